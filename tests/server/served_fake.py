"""Run as a program: serve a FakeLLM as `octavo serve` would. argv[1]: JSON {"server": options, "llm": attributes}."""

from __future__ import annotations

import asyncio
import json
import sys

from fake_llm import FakeLLM

from octavo.api.log import set_up_logging
from octavo.base.config.config import ServerConfig
from octavo.base.errors import ModelNotFoundError
from octavo.server.launch import leave, run
from octavo.server.listener import listen

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    config = ServerConfig(**{"port": 0, **options.get("server", {})})
    llm = FakeLLM()
    for name, value in options.get("llm", {}).items():
        setattr(llm, name, value)
    if options.get("missing"):
        llm.start_error = ModelNotFoundError("no such model: x")
    if options.get("loads_forever"):
        llm.start_gate = asyncio.Event()
    set_up_logging(form=config.log_format)
    leave(asyncio.run(run(llm, config, listener=listen(config.host, config.port))))  # type: ignore[arg-type]
