"""Vectors, probabilities and scores of random models beside Transformers' own code, on both backends."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import checkpoints
import encoders
import numpy as np
import pytest
import torch
import transformers

from octavo import LLM, PoolingParams
from octavo.base.errors import OctavoError

DEVICES = ("cpu", "torch:cpu")
LENGTHS = (5, 1, 23, 64, 5, 40)
TEXTS = ["An octavo is a sheet folded.", "The quick brown fox.", "Greedy output equals the reference's."]
QUERY = "eight pages"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def folder_of(folders: Path, name: str) -> Path:
    folder = folders / name
    if folder.exists():
        return folder
    make = encoders.make_encoder if name in encoders.CASES else checkpoints.make_checkpoint
    return make(name, folder)


def prompts(vocab: int = encoders.VOCAB_SIZE, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [np.random.default_rng(i).integers(5, vocab, n).tolist() for i, n in enumerate(lengths)]


def hidden(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def pooled(states: torch.Tensor, kind: str) -> np.ndarray:
    vector = {"CLS": states[0], "LAST": states[-1], "MEAN": states.mean(0)}[kind]
    return torch.nn.functional.normalize(vector, dim=0).numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "MEAN"), ("bert", "LAST"), ("roberta", "CLS"), ("xlm_roberta", "CLS")]
)
def test_embeddings_are_transformers_own(folders: Path, device: Any, name: str, kind: str) -> None:
    folder = folder_of(folders, name)
    model = encoders.hf_encoder(name, folder)
    rows = [ids[:62] for ids in prompts()]  # RoBERTa's positions begin after two rows
    with LLM(str(folder), device=device, pooler_config={"pooling_type": kind}) as llm:
        outputs = llm.embed(rows, use_tqdm=False)
        alone = llm.embed(rows[2], use_tqdm=False)[0].outputs.embedding
        states = llm.encode(rows[0], PoolingParams(use_activation=False), pooling_task="token_embed", use_tqdm=False)
    for ids, output in zip(rows, outputs, strict=True):
        np.testing.assert_allclose(output.outputs.embedding, pooled(hidden(model, ids), kind), atol=1e-5)
    np.testing.assert_allclose(alone, outputs[2].outputs.embedding, atol=1e-6)
    np.testing.assert_allclose(states[0].outputs.data, hidden(model, rows[0]).numpy(), atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("base", "acts", "normalize"),
    [
        ("bert", ("Tanh",), True),
        ("qwen3", ("Identity", "Identity"), True),
        ("bert", ("ReLU", "Sigmoid"), False),
        ("bert", ("GELU", "SiLU"), False),
    ],
)
def test_dense_layers_behind_the_pooling(
    tmp_path: Path, device: Any, base: str, acts: tuple[str, ...], normalize: bool
) -> None:
    """As sentence-transformers' Dense: torch's Linear and activation function, of the pooled state."""
    folder = (encoders.make_encoder if base == "bert" else checkpoints.make_checkpoint)(base, tmp_path / base)
    model = encoders.hf_encoder(base, folder) if base == "bert" else checkpoints.hf_model(folder).model
    torch.manual_seed(5)
    widths = (model.config.hidden_size, 96, 24)
    layers = [
        torch.nn.Sequential(torch.nn.Linear(*widths[i : i + 2], bias=act != "Identity"), getattr(torch.nn, act)())
        for i, act in enumerate(acts)
    ]
    encoders.write_sentence_files(folder, mode="mean_tokens", normalize=normalize, max_length=64, dense=layers)
    rows = prompts()
    with LLM(str(folder), device=device) as llm:
        outputs = llm.embed(rows, use_tqdm=False)
        tokens = llm.encode(rows[0], PoolingParams(use_activation=False), pooling_task="token_embed", use_tqdm=False)
        whole = PoolingParams(dimensions=widths[len(acts)])
        assert llm.embed(rows[0], pooling_params=whole, use_tqdm=False)[0].outputs.hidden_size == widths[len(acts)]
        with pytest.raises(OctavoError, match="not made for shorter vectors"):
            llm.embed(rows[0], pooling_params=PoolingParams(dimensions=48), use_tqdm=False)
    for ids, output in zip(rows, outputs, strict=True):
        with torch.no_grad():
            expected = torch.nn.Sequential(*layers)(hidden(model, ids).mean(0))
        expected = torch.nn.functional.normalize(expected, dim=0) if normalize else expected
        np.testing.assert_allclose(output.outputs.embedding, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(tokens[0].outputs.data, hidden(model, rows[0]).numpy(), atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_classes_are_transformers_own(folders: Path, device: Any) -> None:
    folder = folder_of(folders, "bert_classifier")
    model = encoders.hf_encoder("bert_classifier", folder)
    with LLM(str(folder), device=device) as llm:
        outputs = llm.classify(prompts(), use_tqdm=False)
        raw = llm.classify(prompts()[0], pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    for ids, output in zip(prompts(), outputs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(output.outputs.probs, logits.softmax(-1).numpy(), atol=1e-5)
        if ids == prompts()[0]:
            np.testing.assert_allclose(raw[0].outputs.probs, logits.numpy(), atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["bert_cross", "roberta_cross"])
def test_scores_are_transformers_own(folders: Path, device: Any, name: str) -> None:
    folder = folder_of(folders, name)
    model = encoders.hf_encoder(name, folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with LLM(str(folder), device=device) as llm:
        outputs = llm.score(QUERY, TEXTS, use_tqdm=False)
    for text, output in zip(TEXTS, outputs, strict=True):
        pair = tokenizer(QUERY, text, return_tensors="pt", return_token_type_ids=True)
        if name.startswith("roberta"):
            pair["token_type_ids"].zero_()
        with torch.no_grad():
            logit = model(**pair).logits[0, 0]
        assert output.outputs.score == pytest.approx(float(logit.sigmoid()), abs=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), [("qwen3", "LAST"), ("gemma3_text", "MEAN")])
def test_decoders_pool_transformers_states(folders: Path, device: Any, name: str, kind: str) -> None:
    folder = folder_of(folders, name)
    model = checkpoints.hf_model(folder).model
    rows = prompts(checkpoints.VOCAB_SIZE - 4)
    with LLM(str(folder), device=device, runner="pooling", pooler_config={"pooling_type": kind}) as llm:
        outputs = llm.embed(rows, use_tqdm=False)
    for ids, output in zip(rows, outputs, strict=True):
        np.testing.assert_allclose(output.outputs.embedding, pooled(hidden(model, ids), kind), atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *((name, {"is_causal": False}) for name in ("llama_bias", "qwen2", "qwen3", "qwen3_moe")),
        *(("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": size}) for size in (1, 6, 20, 512)),
    ],
)
def test_a_decoder_whose_tokens_see_what_follows_them(
    folders: Path, device: Any, name: str, keys: dict[str, Any]
) -> None:
    """gemma3_text: within a window on both sides, as EmbeddingGemma has it."""
    folder = folder_of(folders, name)
    whole = folders / f"{name}_{keys.get('sliding_window', 'whole')}"
    if not whole.exists():
        shutil.copytree(folder, whole)
        config = json.loads((whole / "config.json").read_text())
        (whole / "config.json").write_text(json.dumps({**config, **keys}))
    model = checkpoints.hf_model(whole).model
    rows = prompts(checkpoints.VOCAB_SIZE - 4)
    with LLM(str(whole), device=device, pooler_config={"pooling_type": "MEAN"}) as llm:
        outputs = llm.embed(rows, use_tqdm=False)
    for ids, output in zip(rows, outputs, strict=True):
        np.testing.assert_allclose(output.outputs.embedding, pooled(hidden(model, ids), "MEAN"), atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["Qwen3", "Gemma3"])
def test_a_decoder_that_classifies(folders: Path, device: Any, name: str) -> None:
    folder, kind = folders / f"{name}_classifier", getattr(transformers, f"{name}ForSequenceClassification")
    if not folder.exists():
        config = checkpoints.CASES[name.lower()]()
        config.num_labels = 3
        checkpoints.save_random(kind(config), folder, seed=zlib.crc32(b"classifier"))
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    rows = prompts(checkpoints.VOCAB_SIZE - 4)
    with LLM(str(folder), device=device, skip_tokenizer_init=True) as llm:
        outputs = llm.classify(rows, use_tqdm=False)
    for ids, output in zip(rows, outputs, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        np.testing.assert_allclose(output.outputs.probs, expected.numpy(), atol=1e-5)


TEMPLATE = """Is it so? {{ instruction | default("Judge.") }}
<Q>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<D>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}
Answer:"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "head"), [("gemma3_text", "tied"), ("qwen3", "own")])
def test_a_decoder_that_scores_by_two_tokens(folders: Path, device: Any, name: str, head: str) -> None:
    """As Qwen3-Reranker is made to run by vLLM's keys: the share of the second token among the two."""
    folder = folder_of(folders, name)
    model = checkpoints.hf_model(folder)
    assert model.config.tie_word_embeddings == (head == "tied")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    answers = ["o", "f"]
    places = tokenizer.convert_tokens_to_ids(answers)
    keys: dict[str, Any] = {"architectures": [f"{name}ForSequenceClassification"], "classifier_from_token": answers}

    def shares(texts: list[str], *, special: bool) -> list[np.ndarray]:
        found = []
        for text in texts:
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
            found.append(torch.from_numpy(checkpoints.logits_of(model, ids)[-1][places]).softmax(-1).numpy())
        return found

    asked = {**keys, "is_original_qwen3_reranker": True}
    with LLM(str(folder), device=device, hf_overrides=asked, chat_template=TEMPLATE) as llm:
        scores = [output.outputs.score for output in llm.score(QUERY, TEXTS, use_tqdm=False)]
        with pytest.raises(OctavoError, match="is not cut"):
            llm.score(QUERY, TEXTS, pooling_params=PoolingParams(truncate_prompt_tokens=9), use_tqdm=False)
    prompts = [f"Is it so? Judge.\n<Q>: {QUERY}\n<D>: {text}\nAnswer:" for text in TEXTS]
    np.testing.assert_allclose(scores, [share[1] for share in shares(prompts, special=False)], atol=1e-5)
    with LLM(str(folder), device=device, hf_overrides={**keys, "method": "from_2_way_softmax"}) as llm:
        scores = [output.outputs.score for output in llm.score(QUERY, TEXTS, use_tqdm=False)]
    np.testing.assert_allclose(
        scores, [share[1] for share in shares([QUERY + text for text in TEXTS], special=True)], atol=1e-5
    )
    with LLM(str(folder), device=device, hf_overrides={**keys, "method": "no_post_processing"}) as llm:
        both = [output.outputs.probs for output in llm.classify(TEXTS, use_tqdm=False)]
    np.testing.assert_allclose(both, shares(TEXTS, special=True), atol=1e-5)
    with pytest.raises(OctavoError, match="no token 'nobody'"):
        LLM(str(folder), device=device, hf_overrides={**asked, "classifier_from_token": ["o", "nobody"]})
