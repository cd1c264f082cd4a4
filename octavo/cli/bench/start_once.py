"""Run as a program by `octavo bench startup`: an EngineConfig on stdin; a line at ready, one at the first token."""

from __future__ import annotations

import sys

READY, FIRST_TOKEN = "ready", "first token"


def main() -> int:
    """Load the model, make one token; the exit code."""
    import msgspec

    from octavo.api.llm import LLM
    from octavo.base.config.config import EngineConfig
    from octavo.base.errors import OctavoError
    from octavo.base.types.sampling import SamplingParams

    try:
        config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
        with LLM(config) as llm:
            print(READY, flush=True)
            params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
            llm.generate([1, 2, 3, 4], params, use_tqdm=False)
            print(FIRST_TOKEN, flush=True)
    except OctavoError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
