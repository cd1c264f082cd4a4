"""A conversation without a server: `python examples/offline_chat.py [MODEL]`."""

import sys

from octavo import LLM, SamplingParams


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else "smollm2")
    messages = [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=64))[0]
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
