"""JSON Schemas with instances in; how many are enforced to the letter, refused, too strict, or (never) too lax.

    pip download jsonschema==4.26.0 --no-binary jsonschema --no-deps    # its sdist holds the official test suite
    python benchmarks/json_schema_suite.py jsonschema-4.26.0.tar.gz [--draft draft2020-12] [--verbose]

A group of the suite is a schema with instances, valid and not. One JSON line: the number of groups, and of those
right (each instance as the suite says), refused (the keyword is named), strict (a valid instance is not admitted) and
lax (an invalid one is). Instances are compact JSON, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker_main import small_vocabulary
from octavo.engine.grammar.llguidance import compile_matcher, make_tokenizer

TOKENIZER = make_tokenizer(small_vocabulary({}))


def groups(archive: str, draft: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, group) of the draft's required tests."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, name = member.name.partition(f"/json/tests/{draft}/")
            if not name or "/" in name or not name.endswith(".json"):
                continue
            file = tar.extractfile(member)
            for group in json.load(file) if file is not None else ():
                if draft.startswith("draft20") or not isinstance(group["schema"], dict):
                    yield name, group
                else:  # of older drafts the suite's schemas do not say which
                    number = f"draft-0{draft[-1]}"
                    yield (
                        name,
                        {**group, "schema": {"$schema": f"http://json-schema.org/{number}/schema#", **group["schema"]}},
                    )


def admits(schema: dict[str, Any], instances: list[Any]) -> list[bool]:
    """Whether each instance follows the grammar. Raises InputError where the schema is refused."""
    matcher = compile_matcher(TOKENIZER, StructuredOutputsParams(json=schema), ())
    found = []
    for instance in instances:
        text = json.dumps(instance, ensure_ascii=False, separators=(",", ":")).encode()
        copy = matcher.deep_copy()
        found.append(copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting())
    return found


def judge(group: dict[str, Any]) -> tuple[str, str]:
    """right, refused, strict or lax, and of what."""
    tests = group["tests"]
    if not isinstance(group["schema"], dict):
        return "refused", "a schema that is no object"
    try:
        found = admits(group["schema"], [test["data"] for test in tests])
    except InputError as error:
        return "refused", error.message
    for test, admitted in zip(tests, found, strict=True):
        if admitted and not test["valid"]:
            return "lax", test["description"]
    for test, admitted in zip(tests, found, strict=True):
        if not admitted and test["valid"]:
            return "strict", test["description"]
    return "right", ""


def main() -> int:
    """Read the arguments, print the line; 1 where any group is lax."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("--draft", default="draft2020-12")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    for name, group in groups(args.archive, args.draft):
        verdict, what = judge(group)
        counts[verdict] += 1
        if args.verbose and verdict != "right":
            print(f"{verdict}: {name}: {group['description']}: {what}", file=sys.stderr)
    print(json.dumps({"draft": args.draft, "groups": counts.total(), **counts}))
    return int(counts["lax"] > 0)


if __name__ == "__main__":
    sys.exit(main())
