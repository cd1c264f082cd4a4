"""What is logged while a test runs, as JSON lines."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

from octavo.api.log import JsonFormatter


class Lines:
    """What is logged, as it is written."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(JsonFormatter())

    def all(self, **fields: Any) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in found if fields.items() <= line.items()]
