"""150 real schemas: how many are enforced to the letter, token by token, and what keeps the others from it.

    python benchmarks/real_schemas.py [--output FILE] [--verbose]

The set (schemas/real.jsonl.gz; benchmarks/collect_schemas.py says where it is from): what programs send to models, with
instances. A schema is right if every valid instance is admitted and every invalid one is not; refused if a keyword of
it is named; strict if a valid instance is not admitted; lax, which must never be, if an invalid one is. One JSON line:
the counts, in all and by kind, and what was refused. Exit code 1 where any is lax.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from json_schema_suite import judge

SET = Path(__file__).with_name("schemas") / "real.jsonl.gz"


def rows() -> Iterator[dict[str, Any]]:
    """name, schema, valid, invalid."""
    with gzip.open(SET, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def group(row: dict[str, Any]) -> dict[str, Any]:
    """As the official suite has it."""
    tests = [
        {"data": one, "valid": valid, "description": json.dumps(one, ensure_ascii=False)}
        for valid in (True, False)
        for one in row["valid" if valid else "invalid"]
    ]
    return {"schema": row["schema"], "tests": tests}


def main() -> int:
    """Read the arguments, judge, print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    kinds: dict[str, Counter[str]] = {}
    refused: Counter[str] = Counter()
    instances = 0
    for row in rows():
        made = group(row)
        instances += len(made["tests"])
        verdict, what = judge(made)
        kinds.setdefault(row["name"].partition("/")[0], Counter())[verdict] += 1
        if verdict == "refused":
            refused[what.removeprefix("structured_outputs.json: ")[:100]] += 1
        if args.verbose and verdict != "right":
            print(f"{verdict}: {row['name']}: {what}", file=sys.stderr)
    verdicts = ("right", "refused", "strict", "lax")
    total = {verdict: sum(counts[verdict] for counts in kinds.values()) for verdict in verdicts}
    line = {
        "schemas": sum(total.values()),
        "instances": instances,
        **total,
        "by_kind": {kind: {v: counts[v] for v in verdicts if counts[v]} for kind, counts in kinds.items()},
        "refused_for": dict(refused.most_common()),
    }
    print(json.dumps(line))
    if args.output is not None:
        args.output.write_text(json.dumps(line, indent=1) + "\n")
    return int(total["lax"] > 0)


if __name__ == "__main__":
    sys.exit(main())
