"""The OpenAPI description of the routes, with the limits of this very server. Routes check by hand, because the
contract of errors differs from the framework's; gate S13 holds that they do what stands here."""

from __future__ import annotations

from typing import Any

from rankwright.server.problems import TYPES
from rankwright.server.settings import ServerSettings

Schema = dict[str, Any]

MAX_TOP = 2**31 - 1
NOT_BLANK = r"\S"
_NUMBER: Schema = {"type": "number"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_MAYBE_FLAG: Schema = {"type": ["boolean", "null"]}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_MAYBE_TOP: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_TOP}
EVERYWHERE = (401, 403, 421, 431, 500)
"""Codes that stand before every route."""
OF_A_BODY = (400, 404, 408, 413, 415, 422, 429, 503, 504)

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "param", "request_id"],
            "properties": {
                "type": {"enum": sorted(set(TYPES.values()))},
                "message": _TEXT,
                "param": _MAYBE_TEXT,
                "request_id": _TEXT,
            },
        }
    },
}
TEI_ERROR: Schema = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": _TEXT, "error_type": _TEXT},
}
_DOCUMENT_OUT: Schema = {"type": "object", "required": ["text"], "properties": {"text": _TEXT, "title": _TEXT}}
_SCORED: Schema = {"score_raw": _NUMBER, "truncated": _FLAG, "tokens": _WHOLE, "id": _TEXT}
_RESULT: Schema = {
    "type": "object",
    "required": ["index", "relevance_score", "score_raw", "truncated"],
    "properties": {"index": _WHOLE, "relevance_score": _NUMBER, "document": _DOCUMENT_OUT, **_SCORED},
}
_USAGE: Schema = {
    "type": "object",
    "required": ["total_tokens"],
    "properties": {"prompt_tokens": _WHOLE, "total_tokens": _WHOLE},
}
_RANKED: Schema = {
    "type": "object",
    "required": ["id", "model", "results", "usage"],
    "properties": {
        "id": _TEXT,
        "model": _TEXT,
        "results": {"type": "array", "items": _RESULT},
        "usage": _USAGE,
        "meta": {"type": "object"},
        "failed": {"type": "array", "items": {"type": "object", "required": ["index", "reason"]}},
        "warnings": {"type": "array", "items": _TEXT},
        "timing": {"type": "object"},
    },
}
_TEI_RANKED: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "score"],
        "properties": {"index": _WHOLE, "score": _NUMBER, "text": _TEXT, **_SCORED},
    },
}
_SCORES: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "model", "data", "usage"],
    "properties": {
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "object", "score", "score_raw", "truncated"],
                "properties": {"index": _WHOLE, "score": _NUMBER, "score_raw": _NUMBER, "truncated": _FLAG},
            },
        },
        "usage": _USAGE,
    },
}


def _text(longest: int) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": longest, "pattern": NOT_BLANK}


def _documents(settings: ServerSettings) -> Schema:
    text = {"type": "string", "maxLength": settings.max_document_characters}
    whole = {"type": "object", "required": ["text"], "properties": {"text": text, "title": _TEXT}}
    items = {"anyOf": [text, whole]}
    return {"type": "array", "items": items, "minItems": 1, "maxItems": settings.max_documents}


def rerank_request(settings: ServerSettings) -> Schema:
    """A body of the rerank routes."""
    documents = _documents(settings)
    return {
        "type": "object",
        "required": ["query"],
        "oneOf": [{"required": ["documents"]}, {"required": ["texts"]}],
        "properties": {
            "model": {**_MAYBE_TEXT, "description": "Any string, unless the server is strict."},
            "query": _text(settings.max_query_characters),
            "documents": documents,
            "texts": {**documents, "description": "TEI's name of documents."},
            "top_n": {**_MAYBE_TOP, "description": "How many of the best; 0 and null for all."},
            "top_k": {**_MAYBE_TOP, "description": "Another name of top_n; give one of them."},
            "return_documents": _MAYBE_FLAG,
            "return_text": {**_MAYBE_FLAG, "description": "TEI's name of return_documents."},
            "raw_scores": {**_MAYBE_FLAG, "description": "Raw logits in the place of scores between 0 and 1."},
            "ids": {"type": ["array", "null"], "items": _TEXT, "uniqueItems": True},
            "use_activation": {**_MAYBE_FLAG, "description": "vLLM's opposite of raw_scores."},
            "max_tokens_per_doc": {**_MAYBE_TOP, "description": "Longer documents are cut to it; 0 and null for none."},
            "truncate": {**_MAYBE_FLAG, "description": "false: a pair that is too long for the model is refused."},
            "truncation": {**_MAYBE_FLAG, "description": "Voyage's name of truncate."},
            "truncation_direction": {
                "enum": ["left", "right", "Left", "Right", None],
                "description": "A pair that is too long and would have to be cut on the left is refused.",
            },
        },
    }


def score_request(settings: ServerSettings) -> Schema:
    """A body of /score."""
    query = _text(settings.max_query_characters)
    document = {"type": "string", "maxLength": settings.max_document_characters}
    queries = {"anyOf": [query, {"type": "array", "items": query, "minItems": 1, "maxItems": settings.max_documents}]}
    documents = {
        "anyOf": [document, {"type": "array", "items": document, "minItems": 1, "maxItems": settings.max_documents}]
    }
    left, right = ("queries", "text_1", "data_1"), ("documents", "text_2", "data_2", "items")
    return {
        "type": "object",
        "allOf": [{"oneOf": [{"required": [name]} for name in names]} for names in (left, right)],
        "properties": {
            "model": _MAYBE_TEXT,
            **dict.fromkeys(left, queries),
            **dict.fromkeys(right, documents),
            "raw_scores": _MAYBE_FLAG,
            "use_activation": _MAYBE_FLAG,
        },
    }


def answer_request(settings: ServerSettings) -> Schema:
    """A body of /answer."""
    properties = {"query": _text(settings.max_query_characters), "documents": _documents(settings)}
    return {"type": "object", "required": ["query", "documents"], "properties": properties}


def description(request: Schema, answers: list[Schema], *codes: int) -> dict[str, Any]:
    """FastAPI's arguments for a route with a body."""
    return {
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        },
        "responses": {200: _of(*answers), **problems(*OF_A_BODY, *codes)},
    }


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside its result."""
    forms = (ERROR, TEI_ERROR)
    return {code: {"description": TYPES[code], **_of(*forms)} for code in sorted({*EVERYWHERE, *codes})}


def _of(*schemas: Schema) -> dict[str, Any]:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"content": {"application/json": {"schema": schema}}}


RANKED = [_RANKED]
RANKED_OR_TEI = [_RANKED, _TEI_RANKED]
SCORES = [_SCORES]
ANSWER: list[Schema] = [
    {"type": "object", "required": ["answer", "reader"], "properties": {"answer": _TEXT, "reader": _TEXT}}
]
OBJECT: dict[int | str, dict[str, Any]] = {200: _of({"type": "object"})}
"""An answer of which nothing more is said."""
