"""An LLM on this machine: a causal language model of transformers, greedy, in length-sorted batches.

The only module of its floor that needs torch, and it imports it when a model is made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwright.errors import ConfigurationError, MissingDependencyError, ModelError, ReaderError, ResourceNotFoundError
from rankwright.llms.calls import Call, CallsReport, collect
from rankwright.llms.completions import bare_text
from rankwright.llms.endpoint import check_model_place
from rankwright.llms.folders import fetched, refuse_adapter, refuse_code
from rankwright.llms.logprobs import likeliest, top_wanted, wants_first_tokens, wants_logprobs
from rankwright.llms.replies import TOO_LONG
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_NEW_TOKENS = 256
BATCH_TOKENS, MOST_AT_ONCE = 32_768, 64
"""Of a batch where no size is given: tokens of prompts and answers together, and prompts. As many tokens as eight
prompts of 4,096 have, whatever their length: writing for more prompts at once costs little where they are short."""
KNOWN_SAMPLING = frozenset({"max_tokens", "temperature", "stop", "logprobs", "top_logprobs"})
Tokens = Mapping[str, float]


class LocalLLM:
    """A causal language model from a folder or the hub, read from safetensors; code in its repository never runs.

    Arguments: `model_name_or_path`; `device`, "auto" takes a GPU where there is one; `dtype`, "auto" takes that of the
    weights; `max_new_tokens`, upper bound over the `max_tokens` of every request, 256 where it names none;
    `batch_size`, prompts at once, by default as many as have 32,768 tokens together with their answers, at most 64.

    A tokenizer with a chat template gets the messages through it, one without gets their bare texts. Decoding is
    greedy, so a temperature other than 0 is an error. A text that does not end within its tokens, and a prompt that
    leaves no room for an answer, is a failure and not a shortened answer; a request for log probabilities may be for
    one or two tokens, and its text empty, as with a server. Log probabilities are float32 of the model's own logits,
    before any penalty of its generation config; those of bfloat16 weights come in steps of a hundredth part.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
    ):
        if (max_new_tokens is not None and max_new_tokens < 1) or (batch_size is not None and batch_size < 1):
            raise ConfigurationError(
                f"Settings max_new_tokens={max_new_tokens} and batch_size={batch_size}: give whole numbers from 1 on."
            )
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        self._model, self._tokenizer = _load(str(model_name_or_path), device, dtype)
        self.name = weights_name(model_name_or_path, self._model.config)

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        """One result per request, in order."""
        return collect(self, requests)

    def complete_each(self, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
        """Reports the calls batch by batch, longest prompts first: what does not fit into memory fails at once."""
        prompts = [self._prompt(request) for request in requests]
        fitting: list[int] = []
        for index, prompt in enumerate(prompts):
            positions, answer = self._positions(), self._limit(requests[index])
            if positions is None or len(prompt) + answer <= positions:
                fitting.append(index)
            else:
                on_calls([too_long(index, len(prompt), answer, positions)])
        for batch in self._batches(fitting, prompts, requests):
            on_calls(self._generate(batch, prompts, requests[batch[0]]))

    def tokens_in(self, text: str) -> int:
        """Tokens of a bare text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]

    def input_tokens(self, request: LLMRequest) -> int:
        """Tokens of a request's prompt."""
        return len(self._prompt(request))

    def _prompt(self, request: LLMRequest) -> list[int]:
        _check_sampling(request)
        return prompt_ids(self._tokenizer, request)

    def _positions(self) -> int | None:
        """Tokens that the model has positions for; None where it has no limit."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def _limit(self, request: LLMRequest) -> int:
        wanted = int(dict(request.sampling).get("max_tokens", DEFAULT_NEW_TOKENS))
        return wanted if self._max_new_tokens is None else min(wanted, self._max_new_tokens)

    def _batches(
        self, indices: Sequence[int], prompts: Sequence[Sequence[int]], requests: Sequence[LLMRequest]
    ) -> Iterator[list[int]]:
        """Batches of equal sampling, sorted by length so that little is padding."""
        ordered = sorted(indices, key=lambda index: (str(requests[index].sampling), -len(prompts[index])))
        for _, group in groupby(ordered, key=lambda index: requests[index].sampling):
            members = list(group)
            while members:
                size = self._size(len(prompts[members[0]]) + self._limit(requests[members[0]]))
                yield members[:size]
                members = members[size:]

    def _size(self, tokens: int) -> int:
        """Prompts of a batch whose longest has so many tokens with its answer."""
        return self._batch_size or min(MOST_AT_ONCE, max(1, BATCH_TOKENS // tokens))

    def _generate(self, batch: Sequence[int], prompts: Sequence[list[int]], request: LLMRequest) -> list[Call]:
        import torch

        stop = dict(request.sampling).get("stop")
        options: dict[str, Any] = {"stop_strings": [stop], "tokenizer": self._tokenizer} if stop else {}
        padded = self._tokenizer.pad({"input_ids": [prompts[index] for index in batch]}, return_tensors="pt")
        try:
            with torch.inference_mode(), self._watched(request) as watch:
                outputs = self._model.generate(  # pyright: ignore[reportCallIssue]
                    **padded.to(self._model.device),  # pyright: ignore[reportArgumentType]
                    max_new_tokens=self._limit(request),
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=self._tokenizer.pad_token_id,
                    stopping_criteria=[watch] if watch else [],
                    **options,
                )
        except torch.OutOfMemoryError as error:
            raise ReaderError(
                f"{self.name} ran out of memory on {len(batch)} prompts of up to {padded['input_ids'].shape[1]} "
                "tokens; lower batch_size, or give the reader fewer or shorter passages."
            ) from error
        width = padded["input_ids"].shape[1]
        return [
            self._call(index, len(prompts[index]), generated, request, watch.row(row) if watch else [])
            for row, (index, generated) in enumerate(zip(batch, outputs[:, width:].tolist(), strict=True))
        ]

    @contextmanager
    def _watched(self, request: LLMRequest) -> Iterator[_Watch | None]:
        """While it is open, every token that the model writes is looked at, if the request asks for that."""
        if not wants_logprobs(request):
            yield None
            return
        watch = _Watch(top_wanted(request))
        handle = self._model.register_forward_hook(watch.see)
        try:
            yield watch
        finally:
            handle.remove()

    def _call(
        self,
        index: int,
        input_tokens: int,
        generated: list[int],
        request: LLMRequest,
        likeliest_ids: Sequence[Sequence[tuple[int, float]]],
    ) -> Call:
        stop = str(dict(request.sampling).get("stop") or "")
        ends = [position for position, token in enumerate(generated) if token in self._end_tokens()]
        written = generated[: ends[0]] if ends else generated
        text = str(self._tokenizer.decode(written, skip_special_tokens=True))
        stopped = bool(stop) and stop in text
        text = text.split(stop)[0] if stop else text
        output_tokens = len(written) + bool(ends)
        logprobs = tuple(self._tokens(pairs) for pairs in likeliest_ids[:output_tokens])
        result: CompletionResult
        if not ends and not stopped and not wants_first_tokens(request):
            result = CompletionFailed("length")
        elif not text.strip() and not logprobs:
            result = CompletionFailed("empty text")
        else:
            result = Completion(text.strip(), input_tokens, output_tokens, True, logprobs)
        return Call(index, result, 1, input_tokens, output_tokens, 0.0)

    def _tokens(self, pairs: Sequence[tuple[int, float]]) -> Tokens:
        check_finite(self.name, (value for _, value in pairs))
        return likeliest([(str(self._tokenizer.decode([token])), value) for token, value in pairs])

    def _end_tokens(self) -> set[int]:
        config = self._model.generation_config
        ends = config.eos_token_id if config is not None else None
        return set(ends) if isinstance(ends, list) else {ends} if isinstance(ends, int) else set()


class _Watch:
    """Keeps the log probabilities of every token written and of the likeliest beside it: a hook of the model sees the
    logits, and as a stopping criterion, which never stops, it sees the token. Keeping all logits instead, as `generate`
    offers, takes gigabytes where a text is long."""

    def __init__(self, top: int):
        self._top = top
        self._logprobs: Any = None
        self._steps: list[tuple[list[list[int]], list[list[float]]]] = []

    def see(self, module: Any, inputs: Any, output: Any) -> None:
        self._logprobs = output.logits[:, -1].float().log_softmax(-1)

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        import torch

        best = self._logprobs.topk(min(self._top, self._logprobs.shape[-1])).indices
        ids = torch.cat([input_ids[:, -1:], best], dim=-1)
        self._steps.append((ids.tolist(), self._logprobs.gather(-1, ids).tolist()))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def row(self, number: int) -> list[list[tuple[int, float]]]:
        """For every step of a row of the batch, (id, log probability) of the token written and of the likeliest."""
        return [list(zip(ids[number], values[number], strict=True)) for ids, values in self._steps]


def _load(source: str, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    check_model_place(source)
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f'A local reader needs {error.name}, which is not installed; run: pip install "rankwright[train]"'
        ) from error
    try:
        with fetched(source):
            refuse_adapter(source)
            refuse_code(source, may_be_quantized=True)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, padding_side="left")
            model: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
    except OSError as error:
        raise ResourceNotFoundError(
            f"Language model '{source}' cannot be loaded ({_short(error)}); wanted a folder or hub name with config, "
            "tokenizer and safetensors weights. Check the name, or the connection to the hub."
        ) from error
    except ValueError as error:  # an architecture that transformers does not know, or only with the repository's code
        raise ModelError(
            f"Language model '{source}' is not usable ({_short(error)}); wanted a causal language model that "
            "transformers knows without running code of the repository. Choose another, or serve it over HTTP."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return model.to(place).eval(), tokenizer


def _short(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())[:200]


def prompt_ids(tokenizer: Any, request: LLMRequest) -> list[int]:
    """A request's messages as the tokens of the prompt: through the chat template, or as bare text where there is
    none."""
    if tokenizer.chat_template:
        messages = [{"role": role, "content": text} for role, text in request.messages]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    else:
        text = bare_text(request.messages)
    # The template writes the special tokens itself; a second beginning-of-text token would shift every answer.
    return tokenizer(text, add_special_tokens=not tokenizer.chat_template, verbose=False)["input_ids"]


def too_long(index: int, prompt: int, answer: int, positions: int) -> Call:
    """The call that was not made, because prompt and answer do not fit into the model's positions."""
    detail = f"{prompt} tokens and {answer} of an answer, where {positions} fit"
    return Call(index, CompletionFailed(TOO_LONG, paid=False, detail=detail), 0, 0, 0, 0.0)


def check_finite(name: str, logprobs: Iterable[float]) -> None:
    """Raises ModelError where a log probability is no number."""
    if any(math.isnan(value) for value in logprobs):
        raise ModelError(
            f"{name} gave log probabilities that are no numbers; wanted finite logits. The weights are damaged or "
            "overflow in their dtype: use another checkpoint, or float32."
        )


def weights_name(source: str | Path, config: Any) -> str:
    """The model and what its weights are, so that another model under the same name has other cache keys."""
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{getattr(config, '_commit_hash', None) or 'unknown'}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            with file.open("rb") as content:
                digest.update(f"{file.name}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"{folder.resolve().name}@sha256:{digest.hexdigest()[:16]}"


def _check_sampling(request: LLMRequest) -> None:
    sampling = dict(request.sampling)
    unknown = sorted(set(sampling) - KNOWN_SAMPLING)
    if unknown or sampling.get("temperature", 0) != 0:
        raise ConfigurationError(
            f"Sampling parameters of a local model are {sampling}; it decodes greedily and knows only max_tokens, "
            "stop, logprobs, top_logprobs and temperature 0. Leave the others out."
        )
    top = sampling.get("top_logprobs", 0)
    if not isinstance(top, int) or top < 0 or (top and not wants_logprobs(request)):
        raise ConfigurationError(
            f"Sampling parameter top_logprobs is {top!r}; wanted a whole number from 0 on, beside logprobs true."
        )
