"""Small random encoders, classifiers and cross-encoders made with Transformers, with a WordPiece tokenizer each."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import SENTENCES, save_random
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 240
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ROBERTA = {**BASE, "pad_token_id": 1, "type_vocab_size": 1}

CASES: dict[str, Callable[[], tuple[transformers.PretrainedConfig, str]]] = {
    "bert": lambda: (transformers.BertConfig(**BASE), "BertModel"),
    "bert_classifier": lambda: (
        transformers.BertConfig(**BASE, hidden_act="gelu_new", num_labels=3),
        "BertForSequenceClassification",
    ),
    "bert_cross": lambda: (transformers.BertConfig(**BASE, num_labels=1), "BertForSequenceClassification"),
    "roberta": lambda: (transformers.RobertaConfig(**ROBERTA), "RobertaModel"),
    "roberta_cross": lambda: (
        transformers.RobertaConfig(**ROBERTA, num_labels=1),
        "RobertaForSequenceClassification",
    ),
    "xlm_roberta": lambda: (transformers.XLMRobertaConfig(**ROBERTA), "XLMRobertaModel"),
}
"""Case name -> the config of its checkpoint, and the class in Transformers."""


def make_encoder(name: str, folder: Path) -> Path:
    """Write case `name` into `folder` and return it. The same name gives the same weights."""
    config, kind = CASES[name]()
    save_random(getattr(transformers, kind)(config), folder, seed=zlib.crc32(name.encode()))
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    return folder


def hf_encoder(name: str, folder: Path) -> Any:
    """The checkpoint as Transformers runs it."""
    return getattr(transformers, CASES[name]()[1]).from_pretrained(folder, dtype=torch.float32).eval()


def write_sentence_files(
    folder: Path, *, mode: str, normalize: bool, max_length: int = 32, dense: Sequence[torch.nn.Sequential] = ()
) -> None:
    """sentence-transformers' files beside a checkpoint. dense: each a Linear and an activation function."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    for i, (linear, act) in enumerate(dense):
        place = folder / f"{2 + i}_Dense"
        place.mkdir(exist_ok=True)
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
        name = f"{type(act).__module__}.{type(act).__name__}"
        more = {"bias": linear.bias is not None, "activation_function": name}
        (place / "config.json").write_text(json.dumps(sizes | more))
        save_file(
            {f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, place / "model.safetensors"
        )
    prompts = {"query": "query: ", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE - 4, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))],
    )
    return tokenizer
