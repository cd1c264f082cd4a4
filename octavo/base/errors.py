"""Every error that Octavo raises on purpose: what was wrong, where, and what to do.

`param` names the offending field (OpenAI's `error.param`), `status` is the HTTP status the server answers with.
"""

from __future__ import annotations

NOT_FINITE = "the model's output is not finite (NaN or infinity)"
"""Of a row whose numbers are not: NumericalError's message."""

NOTHING_TO_SAMPLE = "structured_outputs, allowed_token_ids, bad_words and min_tokens together leave no token to sample"
"""Of a row whose own fault that is: InputError's message."""


class OctavoError(Exception):
    """Base of all intended errors; its message is safe to show to a user."""

    status = 500
    kind = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InputError(OctavoError, ValueError):
    """A request's field has a value that cannot be honoured."""

    status = 400
    kind = "BadRequestError"


class UnsupportedError(InputError):
    """A known field or feature that this build, model or backend does not support."""


class ConfigError(OctavoError, ValueError):
    """An engine or server option is wrong, or options contradict each other."""

    status = 400
    kind = "BadRequestError"


class ModelFormatError(OctavoError, ValueError):
    """A checkpoint (config, tokenizer, template or weights) is damaged or of an unknown form."""

    status = 400
    kind = "BadRequestError"


class ModelNotFoundError(OctavoError, LookupError):
    """No such model, file or revision; the message says where it was looked for."""

    status = 404
    kind = "NotFoundError"


class OverloadedError(OctavoError):
    """The queue is full or the server is draining: try again after `retry_after` seconds."""

    status = 503
    kind = "ServiceUnavailableError"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestFailedError(OctavoError):
    """One request ended by an internal fault (a failed step, non-finite logits); the engine goes on."""


class EndedByOperatorError(RequestFailedError):
    """Whoever runs the server ended the request; it is not to be sent again."""


class NumericalError(RequestFailedError):
    """The model computed NaN or infinity for one request; the engine goes on, and nothing of it stays cached."""

    kind = "numerical_error"


def row_failure(reason: str) -> OctavoError:
    """The error of a request that ended for a reason in StepResult.failed, or for another of its own."""
    kinds: dict[str, type[OctavoError]] = {NOT_FINITE: NumericalError, NOTHING_TO_SAMPLE: InputError}
    return kinds.get(reason, RequestFailedError)(reason)


class EngineDeadError(OctavoError):
    """The engine process ended; requests in flight are lost, new ones may be sent after `retry_after` seconds."""

    status = 503
    kind = "ServiceUnavailableError"
    retry_after = 2
