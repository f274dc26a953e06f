"""Four ways to ask for the same thing. A request may use any field name of any of them; the path decides how the answer
looks: Cohere at /v2/rerank, Jina and vLLM at /v1/rerank and /rerank, Text Embeddings Inference at /rerank where the
documents are called `texts`, and vLLM's /score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from rankwright.engine import Reply
from rankwright.scale import relevance
from rankwright.server.problems import Problem
from rankwright.server.schemas import MAX_TOP
from rankwright.server.settings import ServerSettings
from rankwright.types import Context, Document, Query, RerankRequest

Dialect = Literal["jina", "cohere", "tei"]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""3 and 3.0 are one number in JSON, and some languages write the second."""


Side = Annotated[Literal["left", "right"], BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v)]
"""Where a text that is too long is cut; clients write it in small letters and with a capital."""

NOT_APPLIED = ("instruction", "chat_template_kwargs", "truncate_prompt_tokens", "max_tokens_per_query")
"""vLLM's fields that would change scores. Where one says something, the answer has a warning."""

WITHOUT_EFFECT = ("priority", "user", "request_id")
"""vLLM's and Cohere's fields that change no score, which are left out in silence."""

MOST_NAMED = 8
"""Unknown fields that an answer names; a request may have thousands."""

LONGEST_NAME = 64
"""Characters that an answer repeats of an unknown field's name."""


class TextDocument(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(extra="ignore", strict=True)
    text: str
    title: str = ""


class RerankBody(BaseModel):
    """A rerank request in the field names of all dialects. Of fields that are not here the answer has a warning;
    schemas.py describes those that are."""

    model_config = ConfigDict(extra="ignore", strict=True)
    model: str | None = None
    query: str
    documents: list[str | TextDocument] = []
    texts: list[str | TextDocument] = []
    top_n: Whole | None = None
    top_k: Whole | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None
    ids: list[str] | None = None
    use_activation: bool | None = None
    max_tokens_per_doc: Whole | None = None
    truncate: bool | None = None
    truncation: bool | None = None
    truncation_direction: Side | None = None


class ScoreBody(BaseModel):
    """A request of /score: one text against many, or as many against as many."""

    model_config = ConfigDict(extra="ignore", strict=True)
    model: str | None = None
    queries: str | list[str] = []
    text_1: str | list[str] = []
    data_1: str | list[str] = []
    documents: str | list[str] = []
    text_2: str | list[str] = []
    data_2: str | list[str] = []
    items: str | list[str] = []
    raw_scores: bool | None = None
    use_activation: bool | None = None


class AnswerBody(BaseModel):
    """A request of /answer."""

    model_config = ConfigDict(extra="ignore", strict=True)
    query: str
    documents: list[str | TextDocument]


@dataclass(frozen=True)
class Ask:
    """What any rerank request comes to."""

    dialect: Dialect
    model: str | None
    request: RerankRequest
    top: int
    """How many are returned."""
    with_documents: bool
    raw_scores: bool
    ids: tuple[str, ...]
    field: str = "documents"
    """Which name the documents had."""
    document_tokens: int | None = None
    """Tokens of a document, title included, that are read at most; None for as many as the model reads."""
    whole: bool = False
    """Whether nothing may be cut but on request: a pair that is too long for the model is an error."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreAsk:
    """What a request of /score comes to: pairs, in order."""

    model: str | None
    requests: tuple[RerankRequest, ...]
    raw_scores: bool
    field: str = "queries"
    """Which name the queries had."""


def read_rerank(fields: Mapping[str, Any], path: str, settings: ServerSettings) -> Ask:
    """A body of one of the rerank routes.

    Raises:
        Problem: 400 where the body has another form, 422 where it is over a limit.
    """
    body = _validated(RerankBody, fields)
    dialect: Dialect = "cohere" if path == "/v2/rerank" else "jina"
    name = _given(body, ("documents", "texts"))
    if path == "/rerank" and name == "texts":
        dialect = "tei"
    documents = getattr(body, name)
    _check_query(body.query, "query", settings)
    found = _as_documents(_checked_documents(documents, name, settings))
    for top_name in ("top_n", "top_k"):
        if not 0 <= (getattr(body, top_name) or 0) <= MAX_TOP:
            raise Problem(422, f"{top_name} is out of range; wanted 0 (all) to {MAX_TOP}.", param=top_name)
    if body.top_n is not None and body.top_k is not None and body.top_n != body.top_k:
        raise Problem(422, "top_n and top_k are one field, and differ; give one of them.", param="top_k")
    if not 0 <= (body.max_tokens_per_doc or 0) <= MAX_TOP:
        message = f"max_tokens_per_doc is out of range; wanted 0 (no limit) to {MAX_TOP}."
        raise Problem(422, message, param="max_tokens_per_doc")
    top = body.top_n or body.top_k or len(found)
    with_documents = body.return_documents if body.return_documents is not None else body.return_text
    return Ask(
        dialect,
        body.model,
        RerankRequest(Query("0", body.query), found),
        min(top, len(found)),
        dialect == "jina" if with_documents is None else with_documents,
        _are_raw(body),
        _checked_ids(body.ids, len(found)),
        name,
        body.max_tokens_per_doc or None,
        body.truncate is False or body.truncation is False or body.truncation_direction == "left",
        (*(f"{name} is not applied." for name in NOT_APPLIED if fields.get(name)), *_left_out(fields)),
    )


def _left_out(fields: Mapping[str, Any]) -> Iterator[str]:
    """A warning for every field that no dialect has: one that is misspelt would otherwise do nothing without a word.
    Null says nothing, as everywhere."""
    known = {*RerankBody.model_fields, *NOT_APPLIED, *WITHOUT_EFFECT}
    unknown = [name for name, value in fields.items() if name not in known and value is not None]
    for name in unknown[:MOST_NAMED]:
        yield f"{name[:LONGEST_NAME]} is not known here and was left out."
    if len(unknown) > MOST_NAMED:
        yield f"{len(unknown) - MOST_NAMED} more fields are not known here and were left out."


def _are_raw(body: RerankBody | ScoreBody) -> bool:
    """Whether logits are wanted; vLLM asks for them by use_activation."""
    return body.use_activation is False if body.raw_scores is None else body.raw_scores


def _as_documents(documents: Sequence[str | TextDocument]) -> tuple[Document, ...]:
    return tuple(
        Document(str(i), d, "") if isinstance(d, str) else Document(str(i), d.text, d.title)
        for i, d in enumerate(documents)
    )


def read_context(fields: Mapping[str, Any], settings: ServerSettings) -> Context:
    """A body of /answer.

    Raises:
        Problem: as for read_rerank.
    """
    body = _validated(AnswerBody, fields)
    _check_query(body.query, "query", settings)
    return Context(Query("0", body.query), _as_documents(_checked_documents(body.documents, "documents", settings)))


Body = TypeVar("Body", bound=BaseModel)


def _validated(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = [str(part) for part in first["loc"] if part not in ("str", "TextDocument", "list[str]")]
        param = ".".join(place[:3])
        what = "is missing" if first["type"] == "missing" else "has another form"
        raise Problem(400, f"Field {param} {what}; wanted {_wanted(place, first)}.", param=param) from None


def _wanted(place: Sequence[str], error: Mapping[str, Any]) -> str:
    """What would have been right at this place, in the words of an API and not of pydantic."""
    if len(place) == 1 and "str" in error["loc"]:  # of /score
        return "a string or a list of strings"
    if place[0] not in ("documents", "texts"):
        return "a string" if error["type"] == "missing" else str(error["msg"]).removeprefix("Input should be ")
    return 'a string or an object with "text"' if len(place) > 1 else 'a list of strings or of objects with "text"'


def _given(body: BaseModel, names: Sequence[str]) -> str:
    """The one of several names of a field that the request uses."""
    given = [name for name in names if name in body.model_fields_set]
    if not given:
        others = f" (or {', '.join(names[1:])})"
        raise Problem(400, f"Field {names[0]}{others} is missing; wanted a list of texts.", param=names[0])
    if len(given) > 1:
        raise Problem(400, f"Fields {' and '.join(given)} say the same; wanted one of them.", param=given[1])
    return given[0]


def _check_query(query: str, name: str, settings: ServerSettings) -> None:
    if not query.strip():
        raise Problem(422, f"{name} is empty; wanted text.", param=name)
    if len(query) > settings.max_query_characters:
        raise Problem(
            422,
            f"{name} has {len(query)} characters; at most {settings.max_query_characters} are allowed. Shorten it.",
            param=name,
        )


def _checked_documents(
    documents: Sequence[str | TextDocument], name: str, settings: ServerSettings
) -> Sequence[str | TextDocument]:
    # A single document without text is scored like any other: corpora have such, and one must not cost a whole request.
    if not documents:
        raise Problem(422, f"{name} is empty; wanted 1 to {settings.max_documents} documents.", param=name)
    if len(documents) > settings.max_documents:
        raise Problem(
            422,
            f"{name} has {len(documents)} documents; at most {settings.max_documents} are allowed. Send several "
            "requests: scores of one model can be compared across them.",
            param=name,
        )
    for i, document in enumerate(documents):
        text, title = (document, "") if isinstance(document, str) else (document.text, document.title)
        if len(text) + len(title) > settings.max_document_characters:
            raise Problem(
                422,
                f"{name}[{i}] has {len(text) + len(title)} characters; at most {settings.max_document_characters} are "
                "allowed. Split it into passages.",
                param=f"{name}.{i}",
            )
    return documents


def _checked_ids(ids: Sequence[str] | None, documents: int) -> tuple[str, ...]:
    if ids is None:
        return ()
    if len(ids) != documents or len(set(ids)) < len(ids):
        raise Problem(
            422, f"ids has {len(ids)} names, {len(set(ids))} of them different; wanted {documents}.", param="ids"
        )
    return tuple(ids)


def read_score(fields: Mapping[str, Any], settings: ServerSettings) -> ScoreAsk:
    """A body of /score.

    Raises:
        Problem: as for read_rerank.
    """
    body = _validated(ScoreBody, fields)
    query_name = _given(body, ("queries", "text_1", "data_1"))
    document_name = _given(body, ("documents", "text_2", "data_2", "items"))
    queries, documents = getattr(body, query_name), getattr(body, document_name)
    ones = [queries] if isinstance(queries, str) else queries
    others = [documents] if isinstance(documents, str) else documents
    if not ones:
        raise Problem(422, f"{query_name} is empty; wanted text.", param=query_name)
    for query in ones:
        _check_query(query, query_name, settings)
    _checked_documents(others, document_name, settings)
    if len(ones) not in (1, len(others)):
        raise Problem(
            422,
            f"{query_name} has {len(ones)} texts and {document_name} {len(others)}; wanted one or as many.",
            param=query_name,
        )
    if len(ones) == 1:
        texts = tuple(Document(str(i), text) for i, text in enumerate(others))
        requests = (RerankRequest(Query("0", ones[0]), texts),)
    else:
        pairs = enumerate(zip(ones, others, strict=True))
        requests = tuple(RerankRequest(Query(str(i), q), (Document(str(i), text),)) for i, (q, text) in pairs)
    return ScoreAsk(body.model, requests, _are_raw(body), query_name)


# --- answers ---------------------------------------------------------------------------------------------------------


def total_tokens(reply: Reply) -> int:
    """Tokens read for a request."""
    return sum(sum(scored.tokens) for scored in reply.scored)


def write_rerank(ask: Ask, reply: Reply, *, request_id: str, model: str, temperature: float) -> Any:
    """The answer of a rerank route: best first by raw score, equal scores in input order."""
    results = _results(ask, reply, temperature)
    tokens = total_tokens(reply)
    if ask.dialect == "tei":
        return [_of_tei(result) for result in results]
    failed = [{"index": d, "reason": why} for (_, d), why in sorted(reply.failed.items())]
    more = {"failed": failed} if failed else {}
    more |= {"timing": {"queue_ms": round(1e3 * reply.waited, 3), "score_ms": round(1e3 * reply.worked, 3)}}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    if ask.dialect == "cohere":
        meta: dict[str, Any] = {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1.0},
            "tokens": {"input_tokens": float(tokens), "output_tokens": 0.0},
        }
        if warnings := [*ask.warnings, *(f"Document {f['index']} has no score: {f['reason']}." for f in failed)]:
            meta["warnings"] = warnings
        return {"id": request_id, "results": results, "meta": meta, "model": model, "usage": usage, **more}
    more |= {"warnings": list(ask.warnings)} if ask.warnings else {}
    return {"id": f"rerank-{request_id}", "model": model, "usage": usage, "results": results, **more}


def _results(ask: Ask, reply: Reply, temperature: float) -> list[dict[str, Any]]:
    (scored,) = reply.scored
    scaled = scored.scores if ask.raw_scores else relevance(scored.scores, temperature)
    there = [i for i in range(len(scored.scores)) if (0, i) not in reply.failed]
    results: list[dict[str, Any]] = []
    for i in sorted(there, key=lambda i: -scored.scores[i])[: ask.top]:
        result: dict[str, Any] = {"index": i, "relevance_score": scaled[i], "score_raw": scored.scores[i]}
        result |= {"truncated": scored.cut[i], "tokens": scored.tokens[i]}
        if ask.ids:
            result["id"] = ask.ids[i]
        if ask.with_documents:
            document = ask.request.documents[i]
            result["document"] = {"text": document.text} | ({"title": document.title} if document.title else {})
        results.append(result)
    return results


def _of_tei(result: dict[str, Any]) -> dict[str, Any]:
    renamed = {"index": result["index"], "score": result["relevance_score"]}
    if "document" in result:
        renamed["text"] = result["document"]["text"]
    return renamed | {name: result[name] for name in ("score_raw", "truncated", "tokens", "id") if name in result}


def write_score(ask: ScoreAsk, reply: Reply, *, request_id: str, model: str, temperature: float) -> dict[str, Any]:
    """The answer of /score, in input order."""
    raw = [score for scored in reply.scored for score in scored.scores]
    cut = [one for scored in reply.scored for one in scored.cut]
    scaled = raw if ask.raw_scores else relevance(raw, temperature)
    data = [
        {"index": i, "object": "score", "score": scaled[i], "score_raw": raw[i], "truncated": cut[i]}
        for i in range(len(raw))
    ]
    tokens = total_tokens(reply)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    created = int(time.time())
    return {
        "id": f"score-{request_id}",
        "object": "list",
        "created": created,
        "model": model,
        "data": data,
        "usage": usage,
    }
