"""A file of random weights in a given shape is a model like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import random_gguf
from gguf import GGMLQuantizationType

from octavo import LLM, SamplingParams


@pytest.mark.parametrize("scheme", ["Q8_0", "Q4_0"])
def test_a_file_of_random_weights_runs(scheme: str, tmp_path: Path, real_model: Callable[[str], Path]) -> None:
    config = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 49200,  # 48 more than the tokenizer has
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    path = tmp_path / "random.gguf"
    random_gguf.write(config, path, GGMLQuantizationType[scheme], real_model("smollm2"))
    with LLM(path) as llm:
        (output,) = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 4
    assert llm.max_model_len == 256
