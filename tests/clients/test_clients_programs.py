"""Clients that are programs of their own: the llm command line, instructor (an environment of its own), JavaScript."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import LiveServer

HERE = Path(__file__).parent
LLM = str(Path(sys.executable).with_name("llm"))
INSTRUCTOR = Path(sys.prefix) / "instructor" / "bin" / "python"
MODELS = """
- {{model_id: smol, model_name: smollm2, api_base: "{smollm2}/v1"}}
- {{model_id: answers, model_name: smollm2, api_base: "{smollm2}/v1", responses: true}}
- {{model_id: base, model_name: smollm2, api_base: "{smollm2}/v1", completion: true}}
- {{model_id: scripted, model_name: scripted, api_base: "{replay}/v1", supports_tools: true, supports_schema: true}}
"""
WEATHER = '''
def get_weather(city: str) -> str:
    """How warm it is."""
    return f"22 degrees in {city}"
'''

Run = Callable[..., str]


@pytest.fixture
def llm(run_client: Run, smollm2: str, replay: LiveServer, tmp_path: Path) -> Run:
    """llm(*arguments), with its own folder of settings. Its plug-ins are off: the demo model's package is one."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(smollm2=smollm2, replay=replay.url))
    environment = {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    return lambda *arguments: run_client(LLM, *arguments, **environment)


@pytest.mark.parametrize(("model", "flags"), [("smol", []), ("answers", ["--no-stream"])], ids=["stream", "whole"])
def test_llm_prompts(llm: Run, model: str, flags: list[str]) -> None:
    ask = ["prompt", "-m", model, "-o", "temperature", "0", *flags, "What is the capital of France?"]
    assert llm(*ask).strip() == "The capital of France is Paris."


def test_llm_goes_on(llm: Run) -> None:
    llm("prompt", "-m", "smol", "-o", "temperature", "0", "What is the capital of France?")
    assert llm("prompt", "-c", "-o", "max_tokens", "20", "And of Italy?").strip()


def test_llm_completes(llm: Run) -> None:
    ask = ["-m", "base", "-o", "temperature", "0", "-o", "max_tokens", "2", "The capital of France is"]
    assert llm("prompt", *ask).strip() == "Paris."


def test_llm_calls_tools(llm: Run) -> None:
    told = llm("prompt", "-m", "scripted", "--functions", WEATHER, "What is the weather in Paris?")
    assert "It is 22 degrees in Paris." in told


def test_llm_schemas(llm: Run) -> None:
    assert llm("prompt", "-m", "scripted", "--schema", "name, age int", "Who is Ada?").strip().startswith('{"name"')


def test_instructor(run_client: Run, smollm2: str, replay: LiveServer) -> None:
    if not INSTRUCTOR.exists():
        pytest.skip("instructor is not there: `make test-clients` installs it")
    told = run_client(str(INSTRUCTOR), str(HERE / "instructor_client.py"), smollm2, replay.url)
    assert told.endswith("done\n")


@pytest.mark.parametrize("script", ["openai.mjs", "ai_sdk.mjs"])
def test_javascript(run_client: Run, smollm2: str, replay: LiveServer, minilm: str, script: str) -> None:
    node = shutil.which("node")
    if node is None or not (HERE / "js" / "node_modules").exists():
        pytest.skip("node or its packages are not there: `make test-clients` installs them where npm is")
    told = run_client(node, str(HERE / "js" / script), smollm2, replay.url, minilm)
    assert told.endswith("done\n")
