"""An LLM on this machine, run by vLLM in this process (`--llm vllm:PATH`): for GPUs, many prompts at once.

vLLM is imported when a model is made. Written against its documented interface (`LLM.generate`, `SamplingParams`) and
held to it by a stand-in in the tests; it was never run with vLLM itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rankwright.errors import ConfigurationError, MissingDependencyError
from rankwright.llms.calls import Call, CallsReport, collect
from rankwright.llms.endpoint import check_model_place
from rankwright.llms.local import DEFAULT_NEW_TOKENS, check_finite, prompt_ids, too_long, weights_name
from rankwright.llms.logprobs import likeliest, top_wanted, wants_first_tokens, wants_logprobs
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest

AT_ONCE = 512
"""Prompts that are handed to vLLM together: a kill loses the answers of as many."""
KNOWN_SAMPLING = frozenset(
    ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "top_logprobs")
)


class VLLMOffline:
    """A causal language model from a folder or the hub in vLLM's offline engine; code in its repository never runs.

    Messages, failures and log probabilities are those of LocalLLM; vLLM's other kernels give other digits, and weights
    of 32 bits run in 16 unless `dtype` says otherwise, so that `name` begins with `vllm:`. It samples where a
    temperature is given, then best with a `seed`.

    Args:
        model_name_or_path: folder or hub name with safetensors.
        top_logprobs: most alternatives of a token that a request may ask for.
        engine: further arguments of `vllm.LLM`, as `tensor_parallel_size`.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ResourceNotFoundError: no such folder.
    """

    def __init__(self, model_name_or_path: str | Path, *, top_logprobs: int = 20, **engine: Any):
        check_model_place(str(model_name_or_path))
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError(
                f"Language model vllm:{model_name_or_path} needs {error.name}, which is not installed; run: pip "
                'install "rankwright[vllm]" on a machine with a GPU, or leave vllm: out to run it by transformers.'
            ) from error
        self._params: Any = vllm.SamplingParams
        self._llm: Any = vllm.LLM(
            model=str(model_name_or_path),
            trust_remote_code=False,
            load_format="safetensors",
            max_logprobs=top_logprobs,
            **engine,
        )
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._config: Any = self._llm.llm_engine.model_config
        self._most_logprobs = top_logprobs
        self.name = f"vllm:{weights_name(model_name_or_path, self._config.hf_config)}"

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        """One result per request, in order."""
        return collect(self, requests)

    def complete_each(self, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
        """Reports the calls in batches of equal sampling."""
        for request in requests:
            self._check_sampling(request)
        prompts = [prompt_ids(self._tokenizer, request) for request in requests]
        fitting: list[int] = []
        for index, prompt in enumerate(prompts):
            answer, positions = _limit(requests[index]), int(self._config.max_model_len)
            if len(prompt) + answer <= positions:
                fitting.append(index)
            else:
                on_calls([too_long(index, len(prompt), answer, positions)])
        fitting.sort(key=lambda index: str(requests[index].sampling))
        for _, group in groupby(fitting, key=lambda index: requests[index].sampling):
            members = list(group)
            for start in range(0, len(members), AT_ONCE):
                batch = members[start : start + AT_ONCE]
                on_calls(self._generate(batch, prompts, requests[batch[0]]))

    def tokens_in(self, text: str) -> int:
        """Tokens of a bare text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def input_tokens(self, request: LLMRequest) -> int:
        """Tokens of a request's prompt."""
        return len(prompt_ids(self._tokenizer, request))

    def _generate(self, batch: Sequence[int], prompts: Sequence[list[int]], request: LLMRequest) -> list[Call]:
        sampling = dict(request.sampling)
        own = {name: sampling[name] for name in ("top_p", "top_k", "min_p", "seed", "stop") if name in sampling}
        params = self._params(
            temperature=float(sampling.get("temperature", 0.0)),
            max_tokens=_limit(request),
            logprobs=top_wanted(request) if wants_logprobs(request) else None,
            **own,
        )
        outputs = self._llm.generate([{"prompt_token_ids": prompts[index]} for index in batch], params, use_tqdm=False)
        return [self._call(index, request, len(prompts[index]), one) for index, one in zip(batch, outputs, strict=True)]

    def _call(self, index: int, request: LLMRequest, input_tokens: int, output: Any) -> Call:
        written = output.outputs[0]
        output_tokens, text = len(written.token_ids), str(written.text)
        logprobs = tuple(
            self._tokens(int(token), listed)
            for token, listed in zip(written.token_ids, written.logprobs or (), strict=False)
        )
        result: CompletionResult
        if written.finish_reason != "stop" and not wants_first_tokens(request):
            result = CompletionFailed("length")
        elif not text.strip() and not logprobs:
            result = CompletionFailed("empty text")
        else:
            result = Completion(text.strip(), input_tokens, output_tokens, True, logprobs)
        return Call(index, result, 1, input_tokens, output_tokens, 0.0)

    def _tokens(self, token: int, listed: Any) -> dict[str, float]:
        """The token written, then the likeliest, by their texts."""
        others = sorted((other for other in listed if other != token), key=lambda other: -listed[other].logprob)
        pairs = [(int(other), float(listed[other].logprob)) for other in (token, *others)]
        check_finite(self.name, (value for _, value in pairs))
        return likeliest([(str(self._tokenizer.decode([other])), value) for other, value in pairs])

    def _check_sampling(self, request: LLMRequest) -> None:
        sampling = dict(request.sampling)
        unknown = sorted(set(sampling) - KNOWN_SAMPLING)
        if unknown:
            raise ConfigurationError(
                f"Sampling parameter {unknown[0]} was given to {self.name}; wanted some of "
                f"{', '.join(sorted(KNOWN_SAMPLING))}. Leave it out."
            )
        if top_wanted(request) > self._most_logprobs:
            raise ConfigurationError(
                f"Sampling parameter top_logprobs is {top_wanted(request)}; {self.name} was opened for "
                f"{self._most_logprobs} at most. Lower it, or open VLLMOffline with top_logprobs."
            )


def _limit(request: LLMRequest) -> int:
    return int(dict(request.sampling).get("max_tokens", DEFAULT_NEW_TOKENS))
