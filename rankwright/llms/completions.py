"""The older dialect of OpenAI's interface, `/v1/completions`: one text in, its continuation out. Base models without a
chat template are served there.

Requests are those of the chat dialect, so that a prompt and its sampling work with both; here they are translated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from rankwright.errors import ConfigurationError
from rankwright.llms.logprobs import top_wanted, wants_logprobs
from rankwright.types import LLMRequest

Api = Literal["chat", "completions"]
"""The two dialects, by the names that `reader.api` takes."""
_CHAT_NAMES = ("logprobs", "top_logprobs", "max_completion_tokens")


def checked_api(api: Api) -> Api:
    """The name, if it is that of a dialect.

    Raises:
        ConfigurationError: it is none.
    """
    if api not in get_args(Api):
        raise ConfigurationError(f"Setting api is {api!r}; use one of {', '.join(get_args(Api))}.")
    return api


def check_logprobs(request: LLMRequest) -> None:
    """Raises ConfigurationError where log probabilities are asked for in this dialect's own form, a number."""
    found = dict(request.sampling).get("logprobs")
    if not isinstance(found, bool | None):
        raise ConfigurationError(
            f"Sampling parameter logprobs is {found!r}; wanted true or false, and the number as top_logprobs, as for "
            "chat. It is translated."
        )


def bare_text(messages: Sequence[tuple[str, str]]) -> str:
    """The texts of (role, text) messages with a blank line between two, for a model that knows no roles."""
    return "\n\n".join(text for _, text in messages)


def completions_sampling(request: LLMRequest) -> dict[str, Any]:
    """Sampling parameters in this dialect: `logprobs` is the number of likeliest tokens, and the limit has one name."""
    given = dict(request.sampling)
    sampling: dict[str, Any] = {name: value for name, value in given.items() if name not in _CHAT_NAMES}
    if "max_completion_tokens" in given:
        sampling["max_tokens"] = given["max_completion_tokens"]
    if wants_logprobs(request):
        sampling["logprobs"] = top_wanted(request)
    return sampling


def as_chat(choice: object) -> object:
    """A choice of this dialect in the form of the chat dialect; without a message where it has no text. Never
    raises."""
    if not isinstance(choice, dict):
        return choice
    message = {"content": choice["text"]} if "text" in choice else None
    return {**choice, "message": message, "logprobs": _chat_logprobs(choice.get("logprobs"))}


def _chat_logprobs(found: object) -> object:
    """{"tokens", "token_logprobs", "top_logprobs"} as {"content": [...]}. llama.cpp's own server gives the latter here
    too. Lists that do not fit each other become an entry that is no token."""
    if not isinstance(found, dict) or "tokens" not in found:
        return found
    tokens, values = found["tokens"], found.get("token_logprobs")
    tops = found.get("top_logprobs")
    if not tokens and not values:
        return None
    if not tops and isinstance(tokens, list):
        tops = [None] * len(tokens)
    lists = [column for column in (tokens, values, tops) if isinstance(column, list)]
    if len(lists) < 3 or len({len(column) for column in lists}) > 1:
        return {"content": [None]}
    rows = zip(*lists, strict=True)
    return {"content": [{**_entry(token, value), "top_logprobs": _entries(top)} for token, value, top in rows]}


def _entries(top: object) -> object:
    return [_entry(token, value) for token, value in top.items()] if isinstance(top, Mapping) else top


def _entry(token: object, value: object) -> dict[str, object]:
    return {"token": token, "logprob": value}
