"""The fixed set of real schemas (benchmarks/schemas): how many are enforced to the letter, and that none is laxer."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker_main import small_vocabulary
from octavo.engine.grammar.llguidance import compile_matcher, make_tokenizer

SET = Path(__file__).parents[2] / "benchmarks" / "schemas" / "real.jsonl.gz"
TOKENIZER = make_tokenizer(small_vocabulary({}))


def test_real_schemas() -> None:
    counts: Counter[str] = Counter()
    with gzip.open(SET, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            try:
                matcher = compile_matcher(TOKENIZER, StructuredOutputsParams(json=row["schema"]), ())
            except InputError:
                counts["refused"] += 1
                continue
            wrong = 0
            for valid in (True, False):
                for instance in row["valid" if valid else "invalid"]:
                    text = json.dumps(instance, ensure_ascii=False, separators=(",", ":")).encode()
                    copy = matcher.deep_copy()
                    admitted = copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting()
                    assert valid or not admitted, (row["name"], instance)
                    wrong += admitted != valid
            counts["strict" if wrong else "right"] += 1
    assert counts.total() == 150
    assert counts["right"] >= 140
