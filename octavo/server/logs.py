"""ServerConfig.log_format in; log lines of that form, on stderr, out."""

from __future__ import annotations

import logging
from typing import Any, Literal

import msgspec

from octavo.api.log import set_up_logging


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def set_up_server_logging(form: Literal["text", "json"]) -> None:
    """Log Octavo's loggers to stderr."""
    set_up_logging()
    if form == "json":
        for handler in logging.getLogger("octavo").handlers:
            handler.setFormatter(JsonFormatter())
