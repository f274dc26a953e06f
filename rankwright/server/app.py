"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

import rankwright
from rankwright.engine import Engine, Reply
from rankwright.errors import DeadlineError, OverloadedError, QuestionTooLongError, ScorerError, UnavailableError
from rankwright.rerankers.ranking import Scorer
from rankwright.rerankers.windows import tells_spans
from rankwright.server import page, schemas
from rankwright.server.answers import Answers, ServedReader
from rankwright.server.body import client_left, read_json
from rankwright.server.dialects import (
    Ask,
    read_context,
    read_rerank,
    read_score,
    total_tokens,
    write_rerank,
    write_score,
)
from rankwright.server.guard import Guard, json_response, problem_response
from rankwright.server.metrics import Metrics
from rankwright.server.problems import Problem
from rankwright.server.settings import ServerSettings
from rankwright.types import RerankRequest

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
OPEN_PATHS = ("/live", "/ready")


def create_app(
    engine: Engine, settings: ServerSettings | None = None, *, reader: ServedReader | None = None
) -> FastAPI:
    """The application over an engine that was started or will be.

    Args:
        engine: scores.
        settings: limits and keys.
        reader: answers at /answer; without one there is no such address.
    """
    return _Routes(engine, settings or ServerSettings(), reader).app


class _Routes:
    def __init__(self, engine: Engine, settings: ServerSettings, reader: ServedReader | None) -> None:
        self.engine, self.settings = engine, settings
        self.answers = Answers(reader, settings.timeout)
        self.metrics = Metrics(engine)
        engine.on_batch = self.metrics.batch
        self.app = FastAPI(
            title="rankwright", version=rankwright.__version__, docs_url=None, redoc_url=None, redirect_slashes=False
        )
        self.app.state.answers = self.answers
        self._add_routes()
        self.app.add_exception_handler(Problem, self._problem)
        self.app.add_exception_handler(HTTPException, self._http_problem)
        paths = {getattr(route, "path", "") for route in self.app.routes}
        self.app.add_middleware(
            Guard,
            settings=settings,
            metrics=self.metrics,
            probes=OPEN_PATHS,
            open_paths=page.FILES,
            routes=lambda: paths,
        )

    def _add_routes(self) -> None:
        add, settings = self.app.add_api_route, self.settings
        for path in RERANK_PATHS:
            ranked = schemas.RANKED_OR_TEI if path == "/rerank" else schemas.RANKED
            described = schemas.description(schemas.rerank_request(settings), ranked)
            add(path, self.rerank, methods=["POST"], name=path, **described)
        described = schemas.description(schemas.score_request(settings), schemas.SCORES)
        add("/score", self.score, methods=["POST"], **described)
        described = schemas.description(schemas.answer_request(settings), schemas.ANSWER, 502)
        add("/answer", self.answer, methods=["POST"], include_in_schema=self.answers.served is not None, **described)
        known = {"/live": self.live, "/ready": self.ready, "/info": self.info, "/v1/models": self.models}
        known["/health"] = self.ready  # the name of TEI and vLLM
        for path, route in known.items():
            responses = schemas.OBJECT | schemas.problems(*([503] if route == self.ready else []))
            add(path, route, methods=["GET"], responses=responses)
        plain = PlainTextResponse
        add("/metrics", self.prometheus, methods=["GET"], response_class=plain, responses=schemas.problems())
        for path in page.FILES:
            add(path, self.page, methods=["GET", "HEAD"], name=path, include_in_schema=False)

    # --- answers -----------------------------------------------------------------------------------------------------

    async def rerank(self, request: Request) -> Response:
        """Documents in the order in which they help with the query, best first."""
        fields = await read_json(request, self.settings)
        request.state.tei = request.url.path == "/rerank" and "texts" in fields and "documents" not in fields
        ask = read_rerank(fields, request.url.path, self.settings)
        model = self._model(ask.model)
        most, warnings = self._document_tokens(ask, model)
        reply = await self._scored(request, model, [ask.request], "query", document_tokens=most)
        if ask.whole and True in reply.scored[0].cut:
            field = f"{ask.field}.{reply.scored[0].cut.index(True)}"
            raise self._too_long(model, field, "Shorten it, or let it be cut on the right.")
        if reply.failed and (ask.dialect == "tei" or len(reply.failed) == len(ask.request.documents)):
            raise Problem(500, "Memory ran out even for a single document; send shorter ones.")
        body = write_rerank(
            replace(ask, warnings=ask.warnings + warnings),
            reply,
            request_id=request.state.request_id,
            model=model,
            temperature=self._temperature(model),
        )
        return json_response(body, headers={"X-Compute-Tokens": str(total_tokens(reply))})

    async def score(self, request: Request) -> Response:
        """Scores of pairs, in the order they were given."""
        ask = read_score(await read_json(request, self.settings), self.settings)
        model = self._model(ask.model)
        reply = await self._scored(request, model, ask.requests, ask.field)
        if reply.failed:
            raise Problem(500, "Memory ran out even for a single document; send shorter ones.")
        return json_response(
            write_score(
                ask, reply, request_id=request.state.request_id, model=model, temperature=self._temperature(model)
            )
        )

    async def answer(self, request: Request) -> Response:
        """The reader's answer from documents in their order."""
        context = read_context(await read_json(request, self.settings), self.settings)
        served = self.answers.served
        answer = await self.answers.answer(context, request)
        return json_response({"answer": answer, "reader": served.reader.name if served else ""})

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        file = page.FILES[request.url.path]
        return Response(file.body, media_type=file.media_type, headers=dict(page.HEADERS))

    async def live(self) -> Response:
        """The process answers."""
        return json_response({"live": True})

    async def ready(self) -> Response:
        """Requests are taken; looked at anew each time, so a hung or dead scorer shows."""
        health = self.engine.health()
        if not health.ready:
            raise Problem(503, f"Not ready: {health.reason}.", retry_after=1)
        return json_response({"ready": True})

    async def info(self) -> Response:
        """Models and limits."""
        models = [
            {
                "name": name,
                "backend": _backend(scorer),
                "max_length": scorer.max_length,
                "temperature": self._temperature(name),
                "threshold": scorer.threshold,
            }
            for name, scorer in self.engine.scorers.items()
        ]
        settings, served = self.settings, self.answers.served
        return json_response(
            {
                "version": rankwright.__version__,
                "models": models,
                "reader": {"name": served.reader.name, "top_k": served.top_k} if served else None,
                "limits": {
                    "documents": settings.max_documents,
                    "body_bytes": settings.max_body,
                    "query_characters": settings.max_query_characters,
                    "document_characters": settings.max_document_characters,
                },
            }
        )

    async def models(self) -> Response:
        """The names that `model` takes, as servers of OpenAI's dialect list theirs."""
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "rankwright", "max_model_len": scorer.max_length}
            for name, scorer in self.engine.scorers.items()
        ]
        return json_response({"object": "list", "data": listed})

    async def prometheus(self) -> Response:
        """Counters, gauges and histograms."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # --- what they share ---------------------------------------------------------------------------------------------

    def _model(self, asked: str | None) -> str:
        names = list(self.engine.scorers)
        if not names:
            raise Problem(503, "The model is being loaded.", retry_after=1)
        if asked in names:
            return asked
        if self.settings.strict_model and asked is not None:
            raise Problem(
                404, f"The model that was asked for is not served; there are {', '.join(names)}.", param="model"
            )
        return names[0]

    def _temperature(self, model: str) -> float:
        return float(getattr(self.engine.scorers[model], "temperature", None) or 1.0)

    def _document_tokens(self, ask: Ask, model: str) -> tuple[int | None, tuple[str, ...]]:
        """How many tokens of a document are read, and what is to be said where that cannot be done."""
        scorer, most = self.engine.scorers[model], ask.document_tokens
        if most is None or most >= scorer.reach:  # the model reads no more of a document anyway
            return None, ()
        if tells_spans(scorer):
            return most, ()
        return None, ("max_tokens_per_doc is not applied: this model does not tell where its tokens stand.",)

    def _too_long(self, model: str, param: str, advice: str) -> Problem:
        longest = self.engine.scorers[model].max_length
        return Problem(422, f"{param} is too long: the model reads {longest} tokens of a pair. {advice}", param=param)

    async def _scored(
        self,
        request: Request,
        model: str,
        requests: Sequence[RerankRequest],
        questions: str,
        *,
        document_tokens: int | None = None,
    ) -> Reply:
        """The engine's reply; the work is called off where the client leaves or the time is over. `questions` is the
        field that they came in."""
        try:
            future = self.engine.submit(model, requests, self.settings.timeout, document_tokens=document_tokens)
        except OverloadedError as error:
            raise Problem(429, str(error), retry_after=error.retry_after) from None
        except UnavailableError as error:
            raise Problem(503, str(error), retry_after=1) from None
        reply, left = asyncio.wrap_future(future), asyncio.ensure_future(client_left(request))
        try:
            await asyncio.wait({reply, left}, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                return reply.result()
            if left.done():
                raise ClientDisconnect
            raise DeadlineError
        except DeadlineError:
            raise Problem(
                504,
                f"The request was not done within {self.settings.timeout:g} seconds; send fewer documents or less "
                "often.",
                retry_after=1,
            ) from None
        except QuestionTooLongError:
            raise self._too_long(model, questions, "Shorten it.") from None
        except UnavailableError as error:
            raise Problem(503, str(error), retry_after=1) from None
        except ScorerError:
            raise Problem(500, "The model failed on this request.") from None
        finally:
            left.cancel()
            reply.cancel()

    async def _problem(self, request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)
        return problem_response(request.scope, problem, tei=getattr(request.state, "tei", False))

    async def _http_problem(self, request: Request, error: Exception) -> Response:
        """What the framework says itself: no such route, no such method."""
        assert isinstance(error, HTTPException)
        methods = (error.headers or {}).get("Allow", "another method")
        words = {404: "There is nothing at this address.", 405: f"This address takes {methods}; send that."}
        status = error.status_code if error.status_code in words else 400
        problem = Problem(status, words.get(status, "The request cannot be read."), headers=error.headers)
        return problem_response(request.scope, problem)


def _backend(scorer: Scorer) -> str:
    """How a model is computed and long passages are read, which stands behind its name where that is not PyTorch's fp32
    and they are cut."""
    ways = scorer.name.split("|")[1:]
    return "|".join(ways if ways and not ways[0].startswith("windows-") else ["torch", *ways])
