"""The two real models, greedy, against Transformers' code on its dequantized weights: 20 prompts x 64 tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams

PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "The three primary colours are",
    "Die Hauptstadt von Deutschland ist",
    "La révolution française commença en",
    "1, 1, 2, 3, 5, 8,",
    "SELECT name, age FROM",
    "Dear Sir or Madam,\n\nI am writing to",
    "The mitochondria is",
    "Q: What is the largest planet?\nA:",
    "import numpy as np\n\nx =",
    "To make a good cup of tea, first",
    "In 1969, humans first",
    "“Where are you going?” she asked.",
    "The quick brown fox",
    "Photosynthesis is the process by which",
    "List of fruits:\n- apple\n- banana\n-",
    "日本の首都は",
]
MAX_TOKENS = 64
TIE = 1e-3


def oracle(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


def differences(model: Any, outputs: list[Any]) -> list[tuple[int, int, float]]:
    """(prompt, position, gap) wherever our token is not the oracle's after the same tokens.

    Teacher-forced: by induction over positions this is the same as comparing two greedy runs, but goes on after a tie.
    """
    import torch

    found = []
    for number, output in enumerate(outputs):
        prompt, chosen = output.prompt_token_ids, output.outputs[0].token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
        best = logits.max(-1)
        for position, token in enumerate(chosen):
            if int(best.indices[position]) != token:
                found.append((number, position, float(best.values[position] - logits[position, token])))
    return found


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_greedy_text_equals_transformers(name: str, real_model: Callable[[str], Path]) -> None:
    path = real_model(name)
    model = oracle(path)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for device in ("cpu", "torch:cpu"):
        exact = {"activation_dtype": "float32"} if device == "cpu" else {}
        with LLM(model=str(path), device=device, max_model_len=512, max_num_seqs=len(PROMPTS), **exact) as llm:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        assert [len(o.outputs[0].token_ids) for o in outputs] == [MAX_TOKENS] * len(PROMPTS)
        found = differences(model, outputs)
        print(f"{name} on {device}: {len(found)} near ties (prompt, position, gap): {found}")
        assert all(gap <= TIE for _, _, gap in found), found
