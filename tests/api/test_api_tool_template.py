"""Checkpoints with a chat template of its own for tools: taken where there are tools, as Transformers does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import weight_files as make
from transformers import AutoTokenizer

from octavo import LLM
from octavo.api.build import open_model
from octavo.api.model import Model
from octavo.base.config.config import ModelConfig
from octavo.base.errors import InputError, ModelFormatError, UnsupportedError

PLAIN = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WITH_TOOLS = "TOOLS {{ tools | tojson }}\n" + PLAIN
NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}]
SAID = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))


def configure(folder: Path, template: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def write_files(folder: Path, **templates: str) -> None:
    """templates: by name, in the form that Transformers writes."""
    (folder / "additional_chat_templates").mkdir()
    for name, text in templates.items():
        own = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
        (folder / f"{own}.jinja").write_text(text)


def opened(folder: Path, **options: Any) -> Model:
    return open_model(ModelConfig(model=str(folder), **options))


def text(model: Model, tools: list[dict[str, Any]] | None, **options: Any) -> str:
    ids = model.render_chat(SAID, tools=tools, **options)
    assert model.tokenizer is not None
    return model.tokenizer.decode(ids, skip_special_tokens=False)


def check_as_transformers(folder: Path, path: Path | None = None, **options: Any) -> Model:
    """folder: what Transformers opens.  path: what we open, where it is another."""
    ours, theirs = opened(path or folder, **options), AutoTokenizer.from_pretrained(folder)
    for tools in (None, TOOLS):
        expected = theirs.apply_chat_template(SAID, tools=tools, tokenize=False, add_generation_prompt=True)
        assert text(ours, tools) == expected
    return ours


def test_a_list_of_templates(folder: Path) -> None:
    configure(folder, NAMED)
    assert text(check_as_transformers(folder), TOOLS).startswith("TOOLS [{")


def test_files_of_templates(folder: Path) -> None:
    configure(folder, NAMED)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
    assert text(check_as_transformers(folder), TOOLS).startswith("TOOLS [{")


@pytest.mark.parametrize("names", [("default",), ("default", "rag"), ("default", "tool_use")])
def test_files_go_before_a_list(folder: Path, names: tuple[str, ...]) -> None:
    configure(folder, [{"name": name, "template": f"LIST {name}"} for name in ("default", "tool_use")])
    write_files(folder, **{name: f"FILE {name} " + WITH_TOOLS for name in names})
    check_as_transformers(folder)


def test_without_tools_or_with_a_template_of_the_callers(folder: Path) -> None:
    configure(folder, NAMED)
    model = opened(folder)
    assert text(model, []) == text(model, None) == "<|user|>hi<|assistant|>"
    assert text(model, TOOLS, chat_template="{{ tools | length }} given") == "1 given"
    assert text(opened(folder, chat_template="{{ 'set' }}"), TOOLS) == "set"


def test_no_default(folder: Path) -> None:
    configure(folder, NAMED[1:])
    model = opened(folder)
    assert model.template is None
    assert text(model, TOOLS).startswith("TOOLS [{")


def test_gguf(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = make.gguf_writer(path, "llama")
    writer.add_chat_template(NAMED[1:])
    make.finish(writer, make.random_tensors(make.matrices("llama")))
    configure(folder, [{"name": "default", "template": make.TEMPLATE}, NAMED[1]])
    ours = check_as_transformers(folder, path, tokenizer=str(folder), hf_overrides={"vocab_size": 512})
    assert text(ours, TOOLS).startswith("TOOLS [{")


def test_a_broken_one_is_told_where_it_is_wanted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = "{% if %}"
    configure(folder, [NAMED[0], {"name": "tool_use", "template": broken}])
    model = opened(folder)
    assert "tool_use: the chat template does not parse" in caplog.text
    assert text(model, None).endswith("<|user|>hi<|assistant|>")
    for _ in range(2):
        with pytest.raises(ModelFormatError, match=r"^the chat template does not parse") as caught:
            text(model, TOOLS)
        assert caught.value.param == "chat_template"
    assert text(opened(folder, chat_template=PLAIN), TOOLS).endswith("<|user|>hi<|assistant|>")
    with pytest.raises(ModelFormatError, match="does not parse"):
        opened(folder, chat_template=broken)
    configure(folder, broken)
    with LLM(str(folder), device="cpu") as llm:
        assert llm.generate("hi", use_tqdm=False)[0].outputs[0].token_ids
        with pytest.raises(ModelFormatError, match=r"; give another by chat_template \(--chat-template FILE\)$"):
            llm.chat(SAID, use_tqdm=False)
    assert "until then chats are refused" in caplog.text
    configure(folder, [NAMED[0], {"name": "tool_use", "template": 7}])
    with pytest.raises(ModelFormatError, match="chat_template must be"):
        opened(folder)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
CALLED = [
    *SAID,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": None},
    {"role": "tool", "content": [{"type": "text", "text": "12"}]},
]
TOLD = (
    '<|assistant|><tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
    "<|user|><tool_response>\n\n</tool_response>\n\n<tool_response>\n12\n</tool_response><|assistant|>"
)


def test_a_template_that_reads_no_tools(folder: Path) -> None:
    """They are told in the system message, as a server tells them."""
    model = opened(folder, chat_template=PLAIN)
    told = text(model, TOOLS)
    assert told.startswith("<|system|>You can call functions.")
    assert json.dumps(TOOLS[0]) in told
    assert told.endswith("</tool_call><|user|>hi<|assistant|>")
    assert "[TOOL_CALLS]" in text(model, TOOLS, tool_call_parser="mistral")
    with pytest.raises(UnsupportedError, match="told in plain text") as caught:
        model.render_chat(SAID, tools=TOOLS, tool_call_parser="glm45")
    assert caught.value.param == "tools"


def test_earlier_calls_and_results_without_content(folder: Path) -> None:
    longer = {"max_position_embeddings": 1024}
    with LLM(str(folder), chat_template=PLAIN, hf_overrides=longer, max_num_seqs=2) as llm:
        decode = llm.get_tokenizer().decode
        assert decode(llm.render_chat(CALLED), skip_special_tokens=False) == "<|user|>hi" + TOLD
        more = decode(llm.render_chat([*CALLED, {"role": "user", "content": "So?"}]), skip_special_tokens=False)
        assert more == "<|user|>hi" + TOLD.removesuffix("<|assistant|>") + "\n\nSo?<|assistant|>"  # one turn
        (answer,) = llm.chat(CALLED, tools=TOOLS, use_tqdm=False)
        assert (answer.prompt or "").startswith("<|system|>You can call functions.")
        assert (answer.prompt or "").endswith("<|user|>hi" + TOLD)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, ".arguments"),
        ({"role": "tool", "content": [{"type": "image_url"}]}, "messages[1].content[0]"),
    ],
)
def test_calls_that_cannot_be_told(folder: Path, message: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(folder, chat_template=PLAIN).render_chat([*SAID, message], tools=TOOLS)
    assert field in (caught.value.param or "")
