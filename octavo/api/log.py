"""OCTAVO_LOG_LEVEL and a form in, a handler on stderr out, for Octavo's own processes. A program that uses LLM keeps
its own."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from octavo.api.log_handler import BackgroundHandler
from octavo.base.config import env
from octavo.base.errors import ConfigError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LogForm = Literal["text", "json"]

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the HTTP request that is being answered; JSON lines carry it."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (Unix), level, logger, message; request_id in a request; error where there is one.

    What a record's `fields` (a function, in `extra`) tells are members of the object too.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if REQUEST_ID.get():
            line["request_id"] = REQUEST_ID.get()
        line.update(getattr(record, "fields", dict)())
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def set_up_logging(default: str = "INFO", *, form: LogForm = "text") -> None:
    """Log the `octavo` loggers to stderr at OCTAVO_LOG_LEVEL, or at `default` where that is unset."""
    level = (env.read("OCTAVO_LOG_LEVEL") or default).upper()
    if level not in LEVELS:
        raise ConfigError(f"OCTAVO_LOG_LEVEL={level!r} must be one of {', '.join(LEVELS)}", param="OCTAVO_LOG_LEVEL")
    logger = logging.getLogger("octavo")
    logger.setLevel(level)
    if not logger.handlers:
        handler = BackgroundHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
        if not logging.getLogger().handlers:  # what libraries log must not wait either
            logging.getLogger().addHandler(handler)
    if form == "json":
        for own in logger.handlers:
            own.setFormatter(JsonFormatter())


def end_logging() -> None:
    """Write out what was logged. logging.shutdown() alone does not know our handler once a library, as the HTTP server
    does, has called logging.config.dictConfig(), which forgets the handlers that it does not make."""
    for handler in logging.getLogger("octavo").handlers:
        handler.flush()
    logging.shutdown()


def log_form() -> LogForm:
    """The form that was set up: a child process logs in the same."""
    handlers = logging.getLogger("octavo").handlers
    return "json" if any(isinstance(handler.formatter, JsonFormatter) for handler in handlers) else "text"


def log_level() -> str:
    """The level that was set up, for a child process, too; INFO in a program that has set none."""
    return logging.getLevelName(logging.getLogger("octavo").level or logging.INFO)
