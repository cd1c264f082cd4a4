"""Prompts in, completions out: `python examples/offline_batch.py [MODEL]`."""

import sys

from octavo import LLM, SamplingParams


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else "smollm2")
    prompts = ["The capital of France is", "Water boils at", "The opposite of hot is"]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16)):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
