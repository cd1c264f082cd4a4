"""What get_tokenizer() gives, beside Transformers' AutoTokenizer on the same files: three kinds of vocabulary."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from small_tokenizers import FRAGMENTS, SENTENCES, byte_level_files, byte_level_gguf, sentence_piece_gguf, wrap
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from octavo.api.build import open_text
from octavo.base.errors import InputError, UnsupportedError
from octavo.text.gguf_tokenizer import build_tokenizer
from octavo.text.pretrained import PretrainedTokenizer
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for d in documents or [] %}[{{ d.text }}]{% endfor %}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ '' if enable_thinking | default(true) else '<think>' }}{% endif %}"
)
TOOL_TEMPLATE = "TOOLS " + TEMPLATE
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TEXTS = [*SENTENCES[:7], *FRAGMENTS, "", "a <|im_start|> b</s> [MASK] .", "it 's n't , so ! it ' s"]
SAID = [{"role": "user", "content": "The quick brown fox"}, {"role": "assistant", "content": "jumps over "}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


def byte_level(folder: Path) -> dict[str, Any]:
    byte_level_files(folder)
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {**roles, "additional_special_tokens": ["<|im_start|>"], "truncation_side": "left", "model_max_length": 64}


def sentence_piece(folder: Path) -> dict[str, Any]:
    backend = build_tokenizer(sentence_piece_gguf(prefix=True)[0])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def word_piece(folder: Path) -> dict[str, Any]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    return {**roles, "tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": True}


def opened(folder: Path) -> PretrainedTokenizer:
    tokenizer, template = open_text(str(folder))
    assert template is not None
    templates = {"default": template, "tool_use": ChatTemplate(TOOL_TEMPLATE, tokenizer)}
    return PretrainedTokenizer(tokenizer, templates, name_or_path=str(folder))


@pytest.fixture(scope="module", params=[byte_level, sentence_piece, word_piece])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainedTokenizer, Any]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    make: Callable[[Path], dict[str, Any]] = request.param
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": TOOL_TEMPLATE}]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": named, **make(folder)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert" if make is word_piece else "llama"}))
    return opened(folder), AutoTokenizer.from_pretrained(folder)


def test_attributes(both: tuple[PretrainedTokenizer, Any]) -> None:
    ours, theirs = both
    for role in ROLES:
        for name in (f"{role}_token", f"{role}_token_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
    names = ("all_special_tokens", "all_special_ids", "special_tokens_map", "vocab_size", "chat_template", "is_fast")
    for name in (*names, "model_max_length", "model_input_names", "truncation_side", "padding_side", "name_or_path"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.get_chat_template() == theirs.get_chat_template()
    assert ours.get_chat_template(tools=TOOLS) == theirs.get_chat_template(tools=TOOLS)
    with pytest.raises(AttributeError, match="AutoTokenizer"):
        ours.save_pretrained  # noqa: B018
    assert copy.copy(ours).eos_token_id == ours.eos_token_id
    ours.pad_token, theirs.pad_token = ours.eos_token, theirs.eos_token
    assert ours.pad_token_id == theirs.pad_token_id


def test_encoding(both: tuple[PretrainedTokenizer, Any]) -> None:
    ours, theirs = both
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert dict(ours(text)) == dict(theirs(text))
    asked = {"return_special_tokens_mask": True, "return_offsets_mapping": True, "return_attention_mask": False}
    found = ours(TEXTS, **asked)
    assert dict(found) == dict(theirs(TEXTS, **asked))
    assert found.input_ids == found["input_ids"]
    assert dict(ours(TEXTS[0], TEXTS[1], return_token_type_ids=True)) == dict(
        theirs(TEXTS[0], TEXTS[1], return_token_type_ids=True)
    )
    assert dict(ours(TEXTS[:2], TEXTS[2:4])) == dict(theirs(TEXTS[:2], TEXTS[2:4]))
    with pytest.raises(AttributeError, match="there are input_ids"):
        found.pixel_values  # noqa: B018


@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True, "max_length": 5},
        {"max_length": 4},
        {"truncation": False, "max_length": 4},
        {"truncation": True},
        {"truncation": "only_first", "max_length": 7, "add_special_tokens": False},
    ],
)
def test_truncation(both: tuple[PretrainedTokenizer, Any], options: dict[str, Any]) -> None:
    ours, theirs = both
    asked = {**options, "return_offsets_mapping": True, "return_special_tokens_mask": True}
    assert dict(ours(TEXTS, **asked)) == dict(theirs(TEXTS, **asked))
    theirs._tokenizer.no_truncation()


def test_decoding(both: tuple[PretrainedTokenizer, Any]) -> None:
    ours, theirs = both
    rows = [ours.encode(text) for text in TEXTS]
    for skip in (False, True):
        assert ours.batch_decode(rows, skip) == theirs.batch_decode(rows, skip)
        assert [ours.decode(row, skip_special_tokens=skip) for row in rows] == ours.decode(rows, skip)
        assert ours.convert_ids_to_tokens(rows[0], skip) == theirs.convert_ids_to_tokens(rows[0], skip)
    for clean in (False, True):
        assert ours.decode(rows[-1], clean_up_tokenization_spaces=clean) == theirs.decode(
            rows[-1], clean_up_tokenization_spaces=clean
        )
    assert ours.decode(ours(TEXTS[0])) == theirs.decode(theirs(TEXTS[0]))
    every = [*range(len(ours) + 3)]
    assert ours.decode(every) == theirs.decode(every)
    assert [ours.decode(one) for one in every] == [theirs.decode(one) for one in every]
    assert ours.convert_ids_to_tokens(every) == theirs.convert_ids_to_tokens(every)
    assert ours.convert_ids_to_tokens(7) == theirs.convert_ids_to_tokens(7)
    tokens = ours.tokenize(TEXTS[0])
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert ours.convert_tokens_to_ids([*tokens, "no such"]) == theirs.convert_tokens_to_ids([*tokens, "no such"])
    assert ours.convert_tokens_to_ids(tokens[0]) == theirs.convert_tokens_to_ids(tokens[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokenize": False},
        {"return_dict": False},
        {"add_generation_prompt": True, "enable_thinking": False, "tokenize": False},
        {"add_generation_prompt": True, "tools": TOOLS, "return_dict": False},
        {"tools": TOOLS, "chat_template": "default", "tokenize": False},
        {"tools": [], "tokenize": False},
        {"documents": [{"text": "one"}, {"text": "two"}], "tokenize": False},
        {"continue_final_message": True, "tokenize": False},
        {"continue_final_message": True, "chat_template": "{% for m in messages %}{{ m.content | trim }}.{% endfor %}"},
        {"chat_template": "{{ messages | length }}{{ own }}", "own": [1, "x"], "tokenize": False},
        {"truncation": True, "max_length": 6},
        {"max_length": 6},
        {"tokenizer_kwargs": {"return_offsets_mapping": True}},
    ],
)
def test_chat_template(both: tuple[PretrainedTokenizer, Any], options: dict[str, Any]) -> None:
    ours, theirs = both
    for conversation in (SAID, [SAID, SAID[:1]]):
        expected = theirs.apply_chat_template(conversation, **options)
        theirs._tokenizer.no_truncation()
        found = ours.apply_chat_template(conversation, **options)
        if options.get("tokenize", True) and options.get("return_dict", True):
            assert dict(found) == dict(expected)
        else:
            assert found == expected


def test_control_tokens_in_messages(both: tuple[PretrainedTokenizer, Any]) -> None:
    ours, theirs = both
    spelled = [{"role": "user", "content": f"a {ours.all_special_tokens[-1]} b"}]
    for sealed in (False, True):
        options = {"sanitize_control_tokens": sealed, "return_dict": False}
        ids = ours.apply_chat_template(spelled, **options)
        assert (ours.all_special_ids[-1] in ids) == (not sealed)
        if not sealed or ours.unk_token is None:  # of the others' plain text Transformers encodes each piece by itself
            assert ids == theirs.apply_chat_template(spelled, **options)
    cut = {"sanitize_control_tokens": True, "truncation": True, "max_length": 3}
    two = ours.apply_chat_template([SAID, SAID], **cut)
    assert two == dict(theirs.apply_chat_template([SAID, SAID], **cut))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"return_tensors": "pt"}, "return_tensors"),
        ({"return_tensors": "np"}, "return_tensors"),
        ({"padding": True}, "padding"),
        ({"truncation": "only_second"}, "truncation"),
        ({"truncation": True, "max_length": 0}, "max_length"),
        ({"stride": 2}, "stride"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_refused_by_name(both: tuple[PretrainedTokenizer, Any], options: dict[str, Any], name: str) -> None:
    ours, _ = both
    with pytest.raises(InputError, match=name) as caught:
        ours("text", **options)
    assert caught.value.param == name


def test_refused_in_chat(both: tuple[PretrainedTokenizer, Any]) -> None:
    ours, _ = both
    for name, value in (
        ("return_tensors", "pt"),
        ("return_assistant_tokens_mask", True),
        ("continue_final_message", "reasoning_content"),
    ):
        with pytest.raises(UnsupportedError, match=name):
            ours.apply_chat_template(SAID, **{name: value})
    for call in (lambda: ours.encode(7), lambda: ours.encode([1]), lambda: ours.decode([-1]), lambda: ours("\ud800")):
        with pytest.raises(InputError):
            call()


def test_gguf() -> None:
    """Whose control tokens count as special, with a role or without."""
    tokenizer = Tokenizer.from_checkpoint(wrap(byte_level_gguf(bos_token_id=0)))
    ours = PretrainedTokenizer(tokenizer, {}, name_or_path="small")
    assert (ours.bos_token, ours.eos_token, ours.cls_token_id) == ("<|endoftext|>", "<|im_end|>", None)
    assert set(ours.all_special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert ours.chat_template is None
    assert ours.decode(ours.encode("a <|im_end|> b"), skip_special_tokens=True) == "a  b"
    with pytest.raises(InputError, match="chat_template"):
        ours.apply_chat_template(SAID)
    ours.chat_template = "{{ messages | length }}{{ eos_token }}"
    assert ours.apply_chat_template(SAID, tokenize=False) == "2<|im_end|>"
    assert ours.chat_template == ours.get_chat_template(tools=TOOLS) == "{{ messages | length }}{{ eos_token }}"


@pytest.mark.parametrize("kind", ["BertTokenizerFast", "DistilBertTokenizer", "PreTrainedTokenizerFast", None])
def test_which_lists_come(tmp_path: Path, kind: str | None) -> None:
    config = {**word_piece(tmp_path), "tokenizer_class": kind, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert dict(opened(tmp_path)("the dog")) == dict(AutoTokenizer.from_pretrained(tmp_path)("the dog"))
