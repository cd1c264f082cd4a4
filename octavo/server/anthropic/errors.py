"""An error in; Anthropic's form of it out."""

from __future__ import annotations

import msgspec

from octavo.server.anthropic.replies import AnthropicError, AnthropicErrorBody, ErrorDetails
from octavo.server.errors import NAMED_EVENT, ErrorReply

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}
OVERLOADED = 529  # Anthropic's status for what is a 503 elsewhere
DETAILS = {"thread": ErrorDetails("thread_unsupported_request", ["thread"])}
"""By the field that was refused: what clients know to do without."""


class AnthropicErrors:
    """The form of one exchange's errors."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def whole(self, told: ErrorReply) -> tuple[int, bytes]:
        """Status and body."""
        return OVERLOADED if told.status == 503 else told.status, self._body(told)

    def events(self, told: ErrorReply) -> bytes:
        """A stream that has begun ends with this event."""
        return NAMED_EVENT % (b"error", self._body(told))

    def _body(self, told: ErrorReply) -> bytes:
        kind = KINDS.get(told.status, "invalid_request_error" if told.status < 500 else "api_error")
        details = DETAILS.get(told.detail.param or "", msgspec.UNSET)
        error = AnthropicError(kind, told.detail.message, details)
        return msgspec.json.encode(AnthropicErrorBody(error=error, request_id=self._request_id))
