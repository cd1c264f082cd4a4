"""`octavo doctor [MODEL]`: flags of `octavo serve` in; what would make that start fail or slow, and remedies, out."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from octavo.api.log import set_up_logging
from octavo.base.config.config import ServerConfig
from octavo.base.config.options import build_struct, options
from octavo.cli.checks import Finding, Patient, examine
from octavo.cli.config_file import with_file
from octavo.cli.flags import take_engine
from octavo.cli.serve import make_parser

EXIT_FAILS = 1


def main(arguments: list[str]) -> int:
    """Print a line for each check; exit code 1 where a start would fail."""
    parser = make_parser("doctor", "Look for what makes a start fail or slow. No weight is read.")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    values: dict[str, Any] = with_file(parser, parser.parse(arguments))
    as_json = values.pop("json")
    set_up_logging("ERROR")
    server = build_struct(ServerConfig, {name: values.pop(name) for name in options(ServerConfig) if name in values})
    named = bool(values.get("model_argument") or values.get("model"))
    config = take_engine(values if named else {**values, "model": "-"})
    findings = examine(Patient(config, server, with_model=named))
    if as_json:
        json.dump([dataclasses.asdict(finding) for finding in findings], sys.stdout, indent=2)
        print()
    else:
        print(render(findings))
    return EXIT_FAILS if any(finding.status == "fails" for finding in findings) else 0


def render(findings: list[Finding]) -> str:
    """One line a check, and one for a remedy."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8}{finding.check:<{width}}  {finding.cause}")
        if finding.remedy:
            lines.append(f"{'':<{8 + width}}  -> {finding.remedy}")
    return "\n".join(lines)
