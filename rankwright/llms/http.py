"""An LLM behind an OpenAI-compatible endpoint: hosted services, vLLM, Ollama, llama.cpp, `transformers serve`.

What goes wrong with one request is a value (`CompletionFailed` with a short reason). What makes every further request
pointless is an error and stops the run: a refused key, an empty account, a wrong address, a server that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import openai

from rankwright.errors import BudgetExceededError, ConfigurationError, ReaderError, StorageError
from rankwright.llms import replies
from rankwright.llms.calls import Call, CallsReport, Prices, collect
from rankwright.llms.completions import Api, bare_text, check_logprobs, checked_api, completions_sampling
from rankwright.llms.endpoint import check_sampling_names, checked_url, checked_variable
from rankwright.llms.logprobs import NO_LOGPROBS, wants_logprobs, without_logprobs
from rankwright.llms.pacing import Breaker, TokenBucket, retry_after_seconds, retry_wait
from rankwright.llms.replies import Reply
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
FIRST_BACKOFF = 0.5
CONNECT_SECONDS = 10.0
GRACE_SECONDS = 10.0
"""How long calls in flight may still end when the run has to stop: their answers are paid for."""
ALONE_SECONDS = 0.5
"""How long the first call of all goes alone: a refusal comes back in a moment, and whoever takes longer is at work."""
ALONE_SHARE = 0.01
"""Of the deadline, which that takes at most: calls behind it wait, and are to end in time."""
AGAIN = (
    "Then run the same command again (train: with --resume, once training has begun): answers in the cache are kept."
)
CHARACTERS_PER_TOKEN = 4
"""Rough estimate for the tokens-per-minute limit; corrected as soon as the server has counted."""
TAKEN_NAMES = frozenset({"model", "messages", "prompt", "echo", "stream", "n"})

Progress = Callable[[int, int], None]
"""Called with (finished, total) after every call."""


class HTTPLLM:
    """An LLM that sends chat completions to `base_url` through the `openai` SDK.

    Arguments: `model`, the name the server knows. `base_url`, an http(s) address; without a path `/v1` is added. `api`,
    "chat", or "completions" for a base model without a chat template, which gets the bare texts of the messages.
    `api_key_env`, the environment variable that holds the key (optional except at api.openai.com).
    `concurrency`, requests in flight at most. `max_retries`, further attempts per call (the SDK's own loop is off).
    `deadline`, seconds for a whole call with all its attempts and waits; time spent under our own rate limits does not
    count. `attempt_timeout`, seconds for one attempt, by default all that the call has left. `requests_per_minute` and
    `tokens_per_minute`, kept on this side.
    `prices`, {"input": x, "output": y} per million tokens. `stop_after`, failures in a row before the run stops.
    `first_backoff`, seconds; `progress`, called after every call; `transport`, a transport of the SDK's HTTP library.

    Errors of `complete`: ReaderError (key refused, address or model unknown, server gone), BudgetExceededError.
    Answers that arrived before such an error have been reported to `on_calls` and are in the cache.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI_URL,
        *,
        api: Api = "chat",
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        max_retries: int = 4,
        deadline: float = 120.0,
        attempt_timeout: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        prices: Mapping[str, float] | None = None,
        stop_after: int = 20,
        first_backoff: float = FIRST_BACKOFF,
        progress: Progress | None = None,
        transport: Any = None,
    ):
        self.model = model
        self.base_url = checked_url(base_url)
        self.api: Api = checked_api(api)
        self.api_key_env = checked_variable(api_key_env)
        self.concurrency = _at_least("concurrency", concurrency, 1)
        self.max_retries = _at_least("max_retries", max_retries, 0)
        self.deadline = _positive("deadline", deadline)
        self.attempt_timeout = (
            self.deadline if attempt_timeout is None else _positive("attempt_timeout", attempt_timeout)
        )
        self.progress = progress
        self.prices = Prices.from_mapping(prices)
        self._first_backoff = _positive("first_backoff", first_backoff)
        self._key = _key_from(api_key_env, self.base_url)
        self._transport = transport
        self._requests = TokenBucket(requests_per_minute, what="requests") if requests_per_minute is not None else None
        self._tokens = TokenBucket(tokens_per_minute, what="tokens") if tokens_per_minute is not None else None
        self._breaker = Breaker(_at_least("stop_after", stop_after, 1))
        self._failed_before_first_answer: int | None = 0
        self._gave_logprobs = False
        # Own generator: jitter drawn from the global one would shift the random numbers of a seeded training run.
        self._rng = random.Random()
        self._told: set[int] = set()
        self._last_words = ""

    def __repr__(self) -> str:
        return f"HTTPLLM({self.name!r})"

    @property
    def name(self) -> str:
        """Model and address, to which another dialect than chat adds its own: it has other answers."""
        return f"{self.model}@{self.base_url}" if self.api == "chat" else f"{self.model}@{self._address}"

    @property
    def knows_server(self) -> bool:
        """Whether the server has given a response that stops nothing: neither key nor address is refused."""
        return self._breaker.answered

    @property
    def _address(self) -> str:
        return f"{self.base_url}/{'chat/completions' if self.api == 'chat' else 'completions'}"

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        """One result per request, in order. Blocks; may be called while an event loop runs (notebooks)."""
        return collect(self, requests)

    def complete_each(self, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
        """Reports every call as it ends. `on_calls` runs in the thread of the event loop, one report at a time."""
        for request in requests:
            _check_sampling(request)
            if self.api == "completions":
                check_logprobs(request)
        if requests:
            _run(_Batch(self, requests, on_calls).run())

    # One call ---------------------------------------------------------------------------------------------------------

    async def call(
        self,
        client: openai.AsyncOpenAI,
        index: int,
        request: LLMRequest,
        stopping: asyncio.Event,
        spent: list[Reply],
    ) -> Call | None:
        """Sends one request until it has an answer, may not be retried, or its time is over: the only retry loop.

        None where the run stopped before the request was ever sent. Fills `spent` with what each attempt came to, so
        that the caller has it when this ends by an error or is cancelled.
        """
        left = self.deadline
        last: Reply | None = None
        while True:
            reserved = await self._own_limits(request, stopping)
            started = time.monotonic()
            reply = await self._while_down(left, stopping)
            if stopping.is_set():
                return self.finished(index, last.result, spent) if last else None
            if reply is None:
                spent.append(replies.unfinished())
                spent[-1] = reply = await self._attempt(client, request, left - (time.monotonic() - started))
                self._settle(reserved, reply)
            left -= time.monotonic() - started
            wait = retry_wait(max(0, len(spent) - 1), reply.retry_after, self._first_backoff, self._rng)
            if not reply.retry or len(spent) > self.max_retries or wait >= left or stopping.is_set():
                return self.finished(index, reply.result, spent)
            last = reply
            await _pause(wait, stopping)
            left -= wait

    async def _own_limits(self, request: LLMRequest, stopping: asyncio.Event) -> float:
        """Waits for the limits the user set; returns the tokens reserved."""
        estimate = _estimated_tokens(request)
        wait = self._requests.reserve(1) if self._requests else 0.0
        if self._tokens:
            wait = max(wait, self._tokens.reserve(estimate))
        await _pause(wait, stopping)
        return estimate

    def _settle(self, reserved: float, reply: Reply) -> None:
        if self._tokens and reply.input_tokens is not None and reply.output_tokens is not None:
            self._tokens.correct(reserved, reply.input_tokens + reply.output_tokens)

    async def _while_down(self, left: float, stopping: asyncio.Event) -> Reply | None:
        """Waits while the server is down. A Reply instead of None: the call's time ends before the next probe."""
        while (wait := self._breaker.wait()) > 0 and not stopping.is_set():
            if wait >= left:
                return Reply(CompletionFailed(replies.NOT_REACHED), reached=False)
            await _pause(wait, stopping)
            left -= wait
        return None

    async def _attempt(self, client: openai.AsyncOpenAI, request: LLMRequest, left: float) -> Reply:
        seconds = max(0.001, min(self.attempt_timeout, left))
        try:
            # The SDK's timeouts hold per read, so a server that drips bytes never meets them; this one is a wall clock.
            async with asyncio.timeout(seconds):
                reply = await self._send(client, request, seconds)
        except TimeoutError:
            reply = replies.timed_out()
        self._note_reachability(reply)
        return reply

    async def _send(self, client: openai.AsyncOpenAI, request: LLMRequest, seconds: float) -> Reply:
        timeout = openai.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        try:
            response = await self._create(client, request, timeout)
            return replies.read_completion(response.http_response.content, request, self.api)
        except openai.APITimeoutError:
            return replies.timed_out()
        except openai.APIConnectionError as error:
            return replies.not_answered(error.__cause__)
        except openai.APIStatusError as error:
            refusal = error
        # Outside of the except block: what is raised must not chain the SDK's error, whose request holds the key.
        return self._refusal(refusal, request)

    async def _create(self, client: openai.AsyncOpenAI, request: LLMRequest, timeout: openai.Timeout) -> Any:
        if self.api == "completions":
            return await client.completions.with_raw_response.create(
                model=self.model,
                prompt=_sendable(bare_text(request.messages)),
                extra_body=completions_sampling(request),
                timeout=timeout,
            )
        messages: list[Any] = [{"role": role, "content": _sendable(text)} for role, text in request.messages]
        return await client.chat.completions.with_raw_response.create(
            model=self.model, messages=messages, extra_body=dict(request.sampling), timeout=timeout
        )

    def _refusal(self, error: openai.APIStatusError, request: LLMRequest) -> Reply:
        """A value for what concerns this call; raises for what concerns all calls."""
        status, said = error.status_code, self._quote(error)
        self._last_words = said
        if replies.is_out_of_quota(status, error.code, error.type):
            raise BudgetExceededError(
                f"Account behind {self.name} is out of quota (http {status}{said}); wanted one that can pay for the "
                f"calls. Add credit or raise the limit. {AGAIN}"
            )
        if status in (401, 403):
            found = f"variable {self.api_key_env} {'is set' if self._key else 'is not set'}"
            raise ReaderError(
                f"{self.name} refused the key (http {status}{said}; {found}); wanted one with access to model "
                f"'{self.model}'. Put it into {self.api_key_env}, or name another variable with --api-key-env."
            )
        if status in (404, 405):
            raise ReaderError(
                f"{self.name} does not exist (http {status}{said}); wanted a server that knows model '{self.model}' at "
                f"{self._address}. Check the model name and the address."
            )
        if 300 <= status < 400:
            raise ReaderError(
                f"{self.name} redirects to {_origin(error.response.headers.get('location', ''))} (http {status}); "
                "wanted an address that answers itself, because the key is never sent to another one. Give the final "
                "address as base URL."
            )
        if status in (400, 422) and "logprobs" in said and self._lacks_logprobs(request):
            raise without_logprobs(self.name, request, f"refused (http {status}{said})")
        if replies.is_too_long(status, error.code, error.type, _message(error)):
            reply = replies.too_long(f"http {status}{said}")
        else:
            reply = replies.refused(status, retry_after_seconds(error.response.headers, time.time()))
        if (not reply.retry or status >= 500) and status not in self._told:
            self._told.add(status)
            then = "are tried again" if reply.retry else "count as failed"
            log.warning("%s refuses a request (http %d%s); such calls %s.", self.name, status, said, then)
        return reply

    def _quote(self, error: openai.APIStatusError) -> str:
        """The server's own words, short, printable, and without the key it may repeat."""
        text = _message(error)
        if self._key:
            text = text.replace(self._key, "***")
        text = "".join(letter for letter in text if letter.isprintable())[:200]
        return f": {text}" if text else ""

    def _note_reachability(self, reply: Reply) -> None:
        if reply.reached:
            self._breaker.reached()
        elif self._breaker.failed():
            raise ReaderError(
                f"{self.name} was not reached in {self._breaker.failures} attempts in a row "
                f"(last: {_reason(reply)}); wanted a server that answers. "
                f"Start the server, or check the address and the network. {AGAIN}"
            )

    def finished(self, index: int, result: CompletionResult, spent: Sequence[Reply]) -> Call:
        """The call that these attempts were, with their sum on the bill."""
        input_tokens = _sum(attempt.input_tokens for attempt in spent)
        output_tokens = _sum(attempt.output_tokens for attempt in spent)
        price = self.prices.of(input_tokens, output_tokens) if self.prices else None
        if not spent:  # its time was over before the server came back
            result = replace(result, paid=False)
        return Call(index, result, len(spent), input_tokens, output_tokens, price)

    def _lacks_logprobs(self, request: LLMRequest) -> bool:
        return wants_logprobs(request) and not self._gave_logprobs

    def note_usefulness(self, request: LLMRequest, result: CompletionResult) -> None:
        """Raises ReaderError where the others would fare no better: none of the first calls was answered, or the server
        drops the log probabilities that were asked for."""
        if isinstance(result, Completion):
            self.answered_before()
            self._gave_logprobs |= bool(result.top_logprobs)
        elif result.reason == NO_LOGPROBS and self._lacks_logprobs(request):
            raise without_logprobs(self.name, request)
        # A prompt that is too long says nothing of the others, and nothing against the model.
        elif self._failed_before_first_answer is not None and result.reason != replies.TOO_LONG:
            self._failed_before_first_answer += 1
            if self._failed_before_first_answer >= self._breaker.limit:
                words = self._last_words if result.reason.startswith("http ") else ""
                raise ReaderError(
                    f"The first {self._failed_before_first_answer} calls of {self.name} all failed "
                    f"(last: {result.reason}{words}); wanted at least one answer. "
                    "Check the model name, the sampling parameters (max_tokens) and the log of the server."
                )

    def answered_before(self) -> None:
        """The model is known to answer, so calls that fail are values however many."""
        self._failed_before_first_answer = None

    def client(self) -> openai.AsyncOpenAI:
        """A fresh SDK client: its connections belong to one event loop, and each batch runs in its own."""
        host = urlsplit(self.base_url).hostname or ""
        transport = {} if self._transport is None else {"transport": self._transport}
        http_client = openai.DefaultAsyncHttpxClient(
            # A followed redirect would carry the passages, and on the same host the key, to wherever a server points.
            follow_redirects=False,
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not _is_loopback(host),
            **transport,
        )
        return openai.AsyncOpenAI(
            # The SDK insists on some key; servers that ask for none ignore it.
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=0,
            http_client=http_client,
        )


class _Batch:
    """The requests of one `complete_each`, served by as many workers as may be in flight."""

    def __init__(self, llm: HTTPLLM, requests: Sequence[LLMRequest], on_calls: CallsReport):
        self._llm = llm
        self._todo: Iterator[tuple[int, LLMRequest]] = iter(enumerate(requests))
        self._total = len(requests)
        self._finished = 0
        self._on_calls = on_calls
        self._stopping = asyncio.Event()
        self._opened = asyncio.Event()
        """Set as soon as the calls behind the first may be sent."""

    async def run(self) -> None:
        if self._llm.knows_server:
            self._opened.set()
        async with self._llm.client() as client:
            count = min(self._llm.concurrency, self._total)
            workers = [asyncio.create_task(self._work(client, first=not number)) for number in range(count)]
            try:
                finished, running = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                self._stopping.set()
                if running:
                    await asyncio.wait(running, timeout=GRACE_SECONDS)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        for worker in finished:
            worker.result()

    async def _work(self, client: openai.AsyncOpenAI, *, first: bool) -> None:
        if not first:
            await _pause(min(ALONE_SECONDS, ALONE_SHARE * self._llm.deadline), self._opened)
        try:
            for index, request in self._todo:
                if self._stopping.is_set():
                    return
                await self._call(client, index, request)
                self._opened.set()
        except BaseException:  # an error that stops the run, or cancelled by one or by Ctrl-C
            self._stopping.set()  # before those that wait for the first call go on
            self._opened.set()
            raise

    async def _call(self, client: openai.AsyncOpenAI, index: int, request: LLMRequest) -> None:
        spent: list[Reply] = []
        try:
            call = await self._llm.call(client, index, request, self._stopping, spent)
        except BaseException:
            self._report_aborted(index, spent)
            raise
        if call is not None:
            self._report(call)
            self._llm.note_usefulness(request, call.result)

    def _report_aborted(self, index: int, spent: Sequence[Reply]) -> None:
        """What was sent may be billed, whatever became of it."""
        if spent:
            with contextlib.suppress(StorageError):  # why the run stops is the greater news
                self._on_calls([self._llm.finished(index, CompletionFailed(replies.ABORTED), spent)])

    def _report(self, call: Call) -> None:
        self._on_calls([call])
        self._finished += 1
        if self._llm.progress:
            self._llm.progress(self._finished, self._total)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end, in this thread if it has no event loop, else in a helper thread.

    Ctrl-C cancels the calls in flight, closes the connections and comes out as KeyboardInterrupt in both cases.
    """
    if not _loop_is_running():
        asyncio.run(work)
        return
    handle: dict[str, Any] = {}
    started = threading.Event()

    async def cancellable() -> None:
        handle.update(loop=asyncio.get_running_loop(), task=asyncio.current_task())
        started.set()
        await work

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rankwright-llm") as helper:
        future = helper.submit(asyncio.run, cancellable())
        try:
            future.result()
        except KeyboardInterrupt:
            started.wait()
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself in the meantime
                handle["loop"].call_soon_threadsafe(handle["task"].cancel)
            raise


async def _pause(seconds: float, ended: asyncio.Event) -> None:
    """Sleeps, unless the event comes in the meantime."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), seconds)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _sum(counts: Iterable[int | None]) -> int | None:
    """Sum of the counts; None as soon as one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _reason(reply: Reply) -> str:
    return reply.result.reason if isinstance(reply.result, CompletionFailed) else "answered"


def _estimated_tokens(request: LLMRequest) -> float:
    sampling = dict(request.sampling)
    longest = sampling.get("max_completion_tokens", sampling.get("max_tokens", 0))
    characters = sum(len(text) for _, text in request.messages)
    return characters / CHARACTERS_PER_TOKEN + (longest if isinstance(longest, int | float) else 0)


def _sendable(text: str) -> str:
    """Lone surrogates, which come from broken files, cannot be written as UTF-8; they become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _check_sampling(request: LLMRequest) -> None:
    check_sampling_names(name for name, _ in request.sampling)
    taken = sorted(TAKEN_NAMES.intersection(name for name, _ in request.sampling))
    if taken:
        raise ConfigurationError(
            f"Sampling parameters name {', '.join(taken)}, which the client sets itself; leave {', '.join(taken)} out."
        )


def _key_from(variable: str, base_url: str) -> str:
    key = os.environ.get(variable, "").strip()
    parts = urlsplit(base_url)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError(
            f"Key in {variable} holds a character that no HTTP header can carry; wanted printable ASCII without "
            "spaces. Copy the key again."
        )
    if not key and parts.hostname == urlsplit(OPENAI_URL).hostname:
        raise ConfigurationError(f"Key for {base_url} is missing; put it into the environment variable {variable}.")
    if key and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        log.warning(
            "The key in %s travels unencrypted to %s; use https where the server offers it.", variable, base_url
        )
    return key


def _message(error: openai.APIStatusError) -> str:
    """What a server wrote about a refusal, on one line."""
    body = error.body
    message = (body.get("message") or body.get("detail") or "") if isinstance(body, dict) else body or ""
    return " ".join(str(message).split())


def _origin(location: str) -> str:
    """Scheme and host of a redirect's target: its path or query may hold secrets."""
    try:
        parts = urlsplit(location)
        host = parts.hostname
    except ValueError:
        return "another address"
    return f"{parts.scheme}://{host}" if host else "another path"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _at_least(what: str, value: int, smallest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ConfigurationError(f"Setting {what} is {value!r}; give a whole number of at least {smallest}.")
    return value


def _positive(what: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ConfigurationError(f"Setting {what} is {value!r}; give a number of seconds above 0.")
    return value
