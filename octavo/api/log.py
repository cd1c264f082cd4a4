"""OCTAVO_LOG_LEVEL in, a handler on stderr out, for Octavo's own processes. A program that uses LLM keeps its own."""

from __future__ import annotations

import logging
import sys

from octavo.base.config import env
from octavo.base.errors import ConfigError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def set_up_logging(default: str = "INFO") -> None:
    """Log the `octavo` loggers to stderr at OCTAVO_LOG_LEVEL, or at `default` where that is unset."""
    level = env.read("OCTAVO_LOG_LEVEL", default).upper()
    if level not in LEVELS:
        raise ConfigError(f"OCTAVO_LOG_LEVEL={level!r} must be one of {', '.join(LEVELS)}", param="OCTAVO_LOG_LEVEL")
    logger = logging.getLogger("octavo")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
