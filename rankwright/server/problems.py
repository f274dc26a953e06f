"""Everything that a request can be answered with but a result: status, words, and the form in which a dialect says it.

The contract is the table in docs/serving.md. No answer repeats a header, a key or a text of the request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_encoding",
    421: "wrong_host",
    422: "over_limit",
    429: "overloaded",
    431: "too_large",
    500: "scorer_error",
    502: "reader_failed",
    503: "unavailable",
    504: "deadline_exceeded",
}
TEI_TYPES = {400: "Validation", 413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
"""Words of Text Embeddings Inference; everything else is "Backend"."""


class Problem(Exception):  # noqa: N818 - an answer, not a fault
    """A request's answer that is not a result.

    Args:
        status: of HTTP.
        message: for people: what was found, what was wanted, what to do.
        param: the field of the request.
        retry_after: seconds after which the same request may succeed.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self, request_id: str, *, tei: bool = False) -> dict[str, Any]:
        """The contract's form, or that of Text Embeddings Inference."""
        if tei:
            return {"error": self.message, "error_type": TEI_TYPES.get(self.status, "Backend")}
        return {
            "error": {
                "type": TYPES[self.status],
                "message": self.message,
                "param": self.param,
                "request_id": request_id,
            }
        }
