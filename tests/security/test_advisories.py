"""Classes of published advisories on servers of this kind -> the tests that hold them off; and what no other tests.

A class without a surface here (images and audio, Ray, RPC between hosts, prompt embeddings over HTTP) says why.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.api.async_llm import AsyncLLM
from octavo.api.llm import LLM

TESTS = Path(__file__).parents[1]
GATES = "architecture/test_gates.py"
ME = "security/test_advisories.py"
BOUNDARIES = "security/test_boundaries.py"
HTTP = "security/test_http_hardening.py"
BAD_INPUT = "server/test_bad_input.py"

COVERED: dict[str, dict[str, list[str]]] = {
    "A. code run by deserialisation between processes": {
        "pickle and its kin are absent": [f"{GATES}::test_nothing_that_runs_foreign_code"],
        "nothing listens but HTTP, on loopback": [
            f"{ME}::test_processes_listen_nowhere_else",
            "server/test_launch.py::test_only_the_http_port_listens",
        ],
        "a peer that never reads": ["engine/test_process.py::test_a_slow_reader_stops_steps_only_at_the_bound"],
        "noise in the engine's socket": [
            "engine/test_process.py::test_the_decoder_meets_noise_with_one_error_and_bounded_memory",
            "engine/test_process.py::test_the_process_meets_noise_with_an_end",
        ],
        "hosts in a request (kv_transfer_params)": [f"{BAD_INPUT}::test_known_but_unsupported"],
    },
    "B. code run from a model's repository": {
        "pickled weights": ["weights/test_checkpoint.py::test_pickled_weights_are_never_read"],
        "auto_map and Python files": [f"{ME}::test_a_repositorys_code_is_not_run"],
        "checks that are asserts": [
            f"{GATES}::test_nothing_that_runs_foreign_code",
            f"{BOUNDARIES}::test_hostile_calls_are_refused_without_asserts",
        ],
        "a revision for some files only": ["weights/test_hub.py::test_revision_goes_to_every_file"],
        "templates that reach for Python": ["text/test_template.py::test_templates_reach_no_python"],
        "damaged GGUF": [
            "weights/test_gguf_reader.py::test_attack",
            "weights/test_gguf_reader.py::test_attack_on_a_header",
            "weights/test_mutations.py::test_gguf",
        ],
        "damaged safetensors": [
            "weights/test_safetensors_reader.py::test_attack",
            "weights/test_mutations.py::test_safetensors",
        ],
        "damaged configs": ["models/test_bad_configs.py::test_mutations_end_in_a_spec_or_a_typed_error"],
    },
    "C. an engine killed by a parameter": {
        "bounds of every field of every route": [
            f"{BOUNDARIES}::test_hostile_calls_are_refused",
            f"{BOUNDARIES}::test_every_route_and_field_is_met",
            f"{BAD_INPUT}::test_values",
        ],
        "what passes the front": ["engine/test_process.py::test_values_out_of_range_end_their_own_request"],
        "another's logits": ["security/test_victim.py::test_a_stream_beside_hostile_neighbours"],
        "fields that leave no token": [
            "security/test_victim.py::test_wishes_that_leave_no_token_are_the_clients_mistake"
        ],
        "blocks lost": ["sim/test_state_machine.py"],
    },
    "D. structured output": {
        "broken schemas, regexes, grammars": [
            "engine/test_grammar_schemas.py::test_broken_schemas_are_told",
            "engine/test_grammars.py::test_a_bad_grammar_ends_alone",
        ],
        "bombs": [
            "server/test_structured.py::test_bombs_end_alone",
            "engine/test_grammar_checker.py::test_one_that_takes_too_long_is_refused",
            "engine/test_grammar_checker.py::test_one_that_ends_the_process_is_refused_and_the_next_passes",
        ],
        "a cache without bound": ["engine/test_grammar_checker.py::test_memory_of_what_passed_is_bounded"],
    },
    "E. memory and time before the engine": {
        "heads, bodies and chunks without end": [
            f"{HTTP}::test_what_does_not_end_is_cut_off",
            f"{HTTP}::test_a_body_above_the_cap",
            "server/test_limits.py::test_the_cap_is_exact",
            "server/test_limits.py::test_bodies_together_are_bounded",
        ],
        "compressed or deep bodies": [
            f"{HTTP}::test_bombs",
            "server/test_limits.py::test_compressed_bodies_are_refused",
        ],
        "slow clients": [
            f"{HTTP}::test_slow_connections_take_nothing_from_others",
            f"{HTTP}::test_slow_heads_end",
            "server/test_limits.py::test_a_stalled_body_times_out",
            "server/test_streams.py::test_a_reader_that_stops_is_given_up",
        ],
        "templates that never end": ["text/test_template.py::test_bombs_end_in_an_error"],
        "parsers that slow down": ["text/test_tool_parsers.py::test_time_is_linear"],
        "labels without bound": ["server/test_health.py::test_label_sets_are_closed"],
        "large errors": [f"{BOUNDARIES}::test_hostile_calls_are_refused", f"{BOUNDARIES}::test_the_judge_sees_faults"],
    },
    "F. images, audio, video": {"no surface: text only, other parts are refused": [f"{BAD_INPUT}::test_chat_requests"]},
    "G. fetching addresses, reading files": {
        "no surface: nothing of a request is fetched": [f"{GATES}::test_one_http_client"],
        "names of uploaded files": ["server/test_batches.py"],
    },
    "H. keys and tenants": {
        "routes without a key": ["server/test_auth.py::test_every_route_is_decided"],
        "odd ways to write a path": ["server/test_auth.py::test_odd_targets_are_not_open"],
        "two readings of one request": [f"{HTTP}::test_requests_that_end_in_two_ways"],
        "foreign hosts and pages": [
            "server/test_auth.py::test_odd_hosts",
            "server/test_auth.py::test_foreign_origins_are_refused_on_loopback",
        ],
        "prefixes of others": [
            "engine/test_prefix_cache.py::test_a_hash_depends_on_salt_tokens_order_and_all_before",
            "engine/test_prefix_cache.py::test_hashes_of_two_engines_differ",
        ],
        "ids that clients choose": ["server/test_limits.py::test_request_ids"],
    },
    "I. what errors tell": {
        "paths, addresses, tracebacks": [
            f"{BOUNDARIES}::test_hostile_calls_are_refused",
            f"{BAD_INPUT}::test_an_unexpected_exception_tells_nothing",
        ]
    },
    "J. parsers of tool calls": {
        "evaluated arguments": ["text/test_tool_parsers.py::test_nothing_is_evaluated"],
        "damaged calls": ["text/test_tool_parsers.py::test_damaged_in_random_pieces"],
    },
    "K. healthy but stuck": {"a silent engine": ["server/test_health.py::test_a_silent_engine_is_not_alive"]},
    "L. Ray": {"no surface: it is not used": [f"{ME}::test_dependencies_that_are_not_wanted"]},
    "M. sleep under load": {"requests meanwhile": ["server/test_admin.py"]},
    "N. supply chain": {
        "packages": [f"{ME}::test_dependencies_that_are_not_wanted"],
        "clients of the network": [f"{GATES}::test_one_http_client"],
    },
}


@pytest.mark.parametrize("name", COVERED)
def test_every_class_has_its_tests(name: str) -> None:
    assert COVERED[name]
    for surface, places in COVERED[name].items():
        assert places, surface
        for place in places:
            file, _, function = place.partition("::")
            tree = ast.parse((TESTS / file).read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert not function or function in names, f"{surface}: {place} is not there"


def test_all_classes_are_there() -> None:
    assert [name[0] for name in COVERED] == list("ABCDEFGHIJKLMN")


def test_dependencies_that_are_not_wanted() -> None:
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = {re.split(r"[\[<>=;~! ]", each)[0].lower() for part in (project["dependencies"], *extras) for each in part}
    assert not wanted & {"ray", "litellm", "cloudpickle", "dill", "pyzmq"}


def test_processes_listen_nowhere_else(checkpoint: Callable[[str], Path]) -> None:
    """The engine process has no internet socket at all, and this one no more of them than before."""

    def inet(pid: int) -> list[Any]:
        return [each for each in psutil.Process(pid).net_connections("inet") if each.status == psutil.CONN_LISTEN]

    async def look() -> None:
        llm = AsyncLLM(str(checkpoint("llama")), device="cpu", threads=1)
        before = inet(psutil.Process().pid)
        await llm.start()
        try:
            assert psutil.Process(llm.engine_pid).net_connections("inet") == []
            assert inet(psutil.Process().pid) == before
        finally:
            await llm.close(0)

    asyncio.run(look())


def test_a_repositorys_code_is_not_run(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(checkpoint("llama"), folder)
    code = f"open({str(canary)!r}, 'w').close()\nclass X: pass\n"
    for name in ("modeling_x", "configuration_x", "tokenization_x", "processing_x", "__init__", "setup"):
        (folder / f"{name}.py").write_text(code)
    kinds = {"AutoConfig": "configuration", "AutoModelForCausalLM": "modeling", "AutoTokenizer": "tokenization"}
    auto_map = {kind: f"{stem}_x.X" for kind, stem in kinds.items()}
    for file in ("config.json", "tokenizer_config.json"):
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(
            json.dumps({**known, "auto_map": auto_map, "custom_pipelines": {"x": {"impl": "x.X"}}})
        )
    with LLM(str(folder), device="cpu") as llm:
        assert llm.generate(["hi"], use_tqdm=False)
    assert not canary.exists()
