"""The example in docs/adding-a-model.md is true: it registers, and its logits are Transformers'."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import checkpoints
import numpy as np
import pytest
import reference_forward
from safetensors.numpy import load_file
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from octavo import LLM, SamplingParams
from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.models import registry

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-model.md"


@pytest.fixture
def smollm3(tmp_path: Path) -> Iterator[ModuleType]:
    block = re.search(r'```python\n("""SmolLM3.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block, "the page has the example"
    path = tmp_path / "smollm3.py"
    path.write_text(block[1], encoding="utf-8")
    found = importlib.util.spec_from_file_location("smollm3_of_the_page", path)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    registry.register_model("smollm3", module)
    yield module
    registry._registered.clear()


@pytest.mark.usefixtures("smollm3")
def test_the_example_on_the_page(tmp_path: Path) -> None:
    model = SmolLM3ForCausalLM(SmolLM3Config(**{**checkpoints.BASE, "num_hidden_layers": 5}, rope_theta=5e6))
    folder = checkpoints.save_random(model, tmp_path / "model", seed=3)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spec = registry.build_spec(config)
    assert [layer.mixer.rope is None for layer in spec.layers] == [False, False, False, True, False]
    stored = load_file(folder / "model.safetensors")
    names = registry.find_family(config).names(spec)
    assert set(names.values()) == set(stored)
    tokens = checkpoints.prompt(60)
    ours = reference_forward.forward(spec, {name: stored[theirs] for name, theirs in names.items()}, tokens)
    expected = checkpoints.logits_of(model.eval(), tokens)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    for device in ("cpu", "torch:cpu"):
        assert_prompt_logprobs(folder, device, tokens, expected)


def assert_prompt_logprobs(folder: Path, device: str, tokens: list[int], logits: np.ndarray) -> None:
    """A backend's log probabilities of the prompt are those of `logits` [tokens, vocab]."""
    with LLM(str(folder), device=device, max_model_len=128, skip_tokenizer_init=True) as llm:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        entries = llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)[0].prompt_logprobs or []
    found = [entry[token].logprob for entry, token in zip(entries[1:], tokens[1:], strict=True) if entry]
    everything = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, everything[np.arange(len(tokens) - 1), tokens[1:]], rtol=0, atol=1e-4)


def test_the_example_refuses(smollm3: ModuleType) -> None:
    config = SmolLM3Config(**checkpoints.BASE).to_dict()
    with pytest.raises(UnsupportedError, match="use_sliding_window"):
        smollm3.spec({**config, "use_sliding_window": True})
    for wrong in ([1], "1111", 3):
        with pytest.raises(ModelFormatError, match="no_rope_layers must be a list of 2"):
            smollm3.spec({**config, "no_rope_layers": wrong})
