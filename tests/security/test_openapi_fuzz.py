"""/openapi.json is true: what it allows and what it forbids, sent; statuses, types and bodies are as it says.

OCTAVO_TEST_EXAMPLES=2000: so many examples of a route's good and of its bad requests, in place of a few.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from replay import replay_server
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.generation.feedback import NO_FEEDBACK
from schemathesis.specs.openapi import checks
from serving import LiveServer
from targets import POOLING
from test_bad_input import LEAKS

from octavo.api.async_llm import AsyncLLM
from octavo.server.openapi import TABLE

EXAMPLES = int(os.environ.get("OCTAVO_TEST_EXAMPLES", "0"))
MOST = 4096
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
# Left out: what needs the admin key, and would end other tests' requests; the page's files, whose types are many.
CLOSED = ("/pause", "/resume", "/sleep", "/wake_up", "/is_", "/abort_requests", "/reset_prefix_cache", "/ui/")
LISTS = {"/v1/files", "/v1/batches"}
ALIASES = {"/v1/rerank", "/v2/rerank", "/v1/score"}  # one handler under more names
OPERATIONS = sorted(
    (method, path) for method, path in TABLE if not path.startswith(CLOSED) and (EXAMPLES or path not in ALIASES)
)
# any text is an id, so that only a body or a query can be a bad one
FALLIBLE = [key for key in OPERATIONS if TABLE[key].request is not None or key in {("GET", path) for path in LISTS}]
CASES = [
    *((GenerationMode.POSITIVE, *key) for key in OPERATIONS),
    *((GenerationMode.NEGATIVE, *key) for key in FALLIBLE),
]


@pytest.fixture(scope="module")
def scripted(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    options = {"batch_dir": str(tmp_path_factory.mktemp("batches")), "served_model_name": ["scripted"]}
    with replay_server(folders[0], **options) as live:
        pid = live.llm.engine_pid
        yield live
        assert live.llm.engine_pid == pid
        assert live.run(lambda: live.llm.call("check")) is True


@pytest.fixture(scope="module")
def encoder(folders: tuple[Path, Path]) -> Iterator[LiveServer]:
    with LiveServer(AsyncLLM(str(folders[1]), device="cpu", threads=1, max_num_seqs=8)) as live:
        yield live


def refuses_what_is_forbidden(context: Any, response: Any, case: Any) -> bool | None:
    """Where one type of object alone can stand, its `type` may be left out, though it is told as required."""
    try:
        return checks.negative_data_rejection(context, response, case)
    except AcceptedNegativeData as failure:
        told = failure.message
        if "violates `required`" in told and ("(was type" in told or re.search(r"/type\b", told)):
            return None
        if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:  # refused before it is read
            return None
        raise


@pytest.mark.parametrize(("mode", "method", "path"), CASES, ids=lambda value: getattr(value, "value", value))
def test_it_is_as_described(request: pytest.FixtureRequest, mode: GenerationMode, method: str, path: str) -> None:
    live: LiveServer = request.getfixturevalue("encoder" if path.startswith(POOLING) else "scripted")
    schema = schemathesis.openapi.from_dict(live.client.get("/openapi.json").json())
    operation = schema[path.replace(":path", "")][method]
    count = EXAMPLES or (25 if (method, path) in FALLIBLE else 3)
    wanted = [*CHECKS, refuses_what_is_forbidden] if mode is GenerationMode.NEGATIVE else CHECKS
    with requests.Session() as session:

        @settings(
            max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode, feedback=NO_FEEDBACK))
        def check(case: Any) -> None:
            response = case.call(base_url=live.url, session=session)
            case.validate_response(response, checks=wanted)
            if response.status_code >= 400:
                assert len(response.content) <= MOST
                assert not LEAKS.search(response.text)

        check()
