"""Small tokenizers trained on a few sentences, in the forms that checkpoints carry."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from octavo.weights.checkpoint import Checkpoint, GgufTokenizer, TokenizerFiles

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Sphinx of black quartz, judge my vow! Pack my box with five dozen liquor jugs.",
    "def add(left, right):\n    return left + right  # in Python",
    "It is 12:45 on 2024-01-31; we're late, they'll wait, I'd hurry, don't you think?",
    "Größe, naïve, café, русский текст, 日本語のテキスト, emoji 😀🎉 and symbols ∑∂∆.",
    "<tool_call>{'name': 'search', 'arguments': {'query': 'weather in Paris'}}</tool_call>",
    "im_start im_end user assistant system the end of the turn and the start of the next one",
] * 4
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# What random text in tests is made of: pieces that merge, spaces, half characters, spellings of control tokens.
FRAGMENTS = [
    *(
        "the",
        " dog",
        "quick",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "é",
        "ö",
        "日本",
        "😀",
        "👩‍👩‍👧",
        "∑",
        "a",
        "1",
        "2024",
        ".",
        "'ll",
    ),
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|im_",
        "|>",
        "<",
        "<s>",
        "</s>",
        "<unk>",
        "<think>",
        "\ue000",
        "\U000f0000",
        "\x00",
    ),
]


def byte_level_backend() -> tokenizers.Tokenizer:
    """Byte-level BPE of 600 tokens; <think> is added but not special."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend


def byte_level_files(folder: Path, **config: Any) -> TokenizerFiles:
    """tokenizer.json in `folder`."""
    byte_level_backend().save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}
    return TokenizerFiles(folder / "tokenizer.json", {**roles, **config})


def byte_level_gguf(pre: str = "gpt-2", **metadata: Any) -> GgufTokenizer:
    """The same vocabulary as a GGUF file holds it."""
    model = json.loads(byte_level_backend().to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "<think>"]
    types = [3 if token in CONTROL else 4 if token == "<think>" else 1 for token in tokens]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    own = {"model": "gpt2", "pre": pre, "eos_token_id": tokens.index("<|im_end|>"), **metadata}
    return GgufTokenizer("gpt2", tokens, [], types, merges, {f"tokenizer.ggml.{name}": own[name] for name in own})


def sentence_piece_gguf(*, prefix: bool) -> tuple[GgufTokenizer, sentencepiece.SentencePieceProcessor]:
    """A SentencePiece model as llama.cpp converts it, and the model itself.

    prefix: with a space before a text (Llama 2); without it there are user-defined runs of spaces and lines (Gemma 3).
    """
    defined = [] if prefix else ["\n", "\n\n", "▁▁", "▁▁▁"]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=480,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        user_defined_symbols=defined,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = range(model.get_piece_size())
    pieces = [model.id_to_piece(index) for index in ids]
    tokens = [piece.replace("▁", " ") if piece in defined else piece for piece in pieces]
    types = [_type(model, index, pieces[index] in defined) for index in ids]
    own = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefix}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in own.items()}
    return GgufTokenizer("llama", tokens, [model.get_score(index) for index in ids], types, [], metadata), model


def _type(model: sentencepiece.SentencePieceProcessor, index: int, defined: bool) -> int:
    kinds = ((model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6))
    return 4 if defined else next((kind for test, kind in kinds if test(index)), 1)


def wrap(
    source: TokenizerFiles | GgufTokenizer | None,
    *,
    generation_config: dict[str, Any] | None = None,
    chat_template: str | None = None,
) -> Checkpoint:
    """A checkpoint with nothing but a tokenizer in it."""
    return Checkpoint(Path("small"), {}, {}, generation_config or {}, chat_template, source, 0, "dummy")
