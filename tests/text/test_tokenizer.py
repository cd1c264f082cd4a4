"""Tokenizer: encoding with and without control tokens, decoding of anything, the files that configure it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CONTROL, FRAGMENTS, byte_level_backend, byte_level_files, sentence_piece_gguf, wrap
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from octavo.base.errors import InputError, ModelFormatError, UnsupportedError
from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import TokenizerFiles

TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=20)
SOME = settings(deadline=None, max_examples=150)


def _mixed_kind(folder: Path) -> TokenizerFiles:
    """Metaspace that prefixes only a text's beginning, and control tokens that swallow spaces or need word borders."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = {char: index for index, char in enumerate("▁abcdehimnorstu<|>_/.\n12 ")}
    vocab = {**letters, "<unk>": 100, "▁t": 101, "he": 102, "▁the": 103, "<|": 104}
    backend.model = models.BPE(vocab, [("▁", "t"), ("h", "e"), ("▁t", "he"), ("<", "|")], unk_token="<unk>")
    for spelling, flags in {
        "<s>": {},
        "<m>": {"lstrip": True},
        "<r>": {"rstrip": True},
        "<n>": {"normalized": True},
    }.items():
        backend.add_special_tokens([AddedToken(spelling, **{"normalized": False, **flags}, special=True)])
    backend.add_tokens([AddedToken("cd", normalized=False), AddedToken("<unk>", special=True)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.save(str(folder / "tokenizer.json"))
    return TokenizerFiles(folder / "tokenizer.json", {"bos_token": "<s>"})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_checkpoint(wrap(_mixed_kind(tmp_path_factory.mktemp("mixed"))))


@SOME
@given(text=TEXTS)
def test_plain_text_never_becomes_a_control_token(byte_level: Tokenizer, sentence_piece: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, sentence_piece):
        ids = tokenizer.encode_parts([text])
        assert not set(ids) & set(tokenizer.special_ids().values())
        prefix = "" if tokenizer is byte_level else " "
        assert "".join(map(bytes.decode, [b"".join(map(tokenizer.token_bytes, ids))])) in (
            prefix + text,
            text.replace("▁", " "),
            (prefix + text).replace("▁", " "),
        )
        if not tokenizer.find_control(text):
            assert ids == tokenizer.encode(text, add_special_tokens=False)


@SOME
@given(
    text=TEXTS
    | st.lists(st.sampled_from([*"the cd<|>_ \n.", "<s>", "<m>", "<r>", "<n>", "<unk>"]), max_size=12).map("".join)
)
def test_parts_are_encoded_as_the_library_encodes_the_whole(
    byte_level: Tokenizer, sentence_piece: Tokenizer, mixed: Tokenizer, normalized: Tokenizer, text: str
) -> None:
    for tokenizer in (byte_level, sentence_piece, mixed, normalized):
        parts: list[str | int] = []
        position = 0
        for span in tokenizer.find_control(text):
            parts += [text[position : span.start], span.token_id]
            position = span.stop
        parts.append(text[position:])
        assert tokenizer.encode_parts(parts) == tokenizer.encode(text, add_special_tokens=False)


def test_a_control_token_is_one_wherever_it_is_meant(normalized: Tokenizer) -> None:
    """Inside of a word normalized text has none."""
    assert normalized.find_control("the</s>") == []
    ids = normalized.encode_parts(["the", 2, "the </s>", 2])
    assert ids.count(2) == 2
    assert max(ids) < normalized.vocab_size
    assert normalized.decode(ids, skip_special_tokens=False).count("</s>") == 3


def test_special_tokens_are_read_in_a_text_and_not_in_a_part(sentence_piece: Tokenizer) -> None:
    ids = sentence_piece.encode("the </s>")
    assert (ids[0], ids[-1]) == (1, 2)
    plain = sentence_piece.encode_parts(["the </s>"])
    assert not {1, 2} & set(plain)
    assert sentence_piece.decode(plain) == "the </s>"


@pytest.fixture
def merging() -> Tokenizer:
    """A model whose merges spell its control token."""
    alphabet = {char: index for index, char in enumerate("<end>x")}
    merges = [("<", "e"), ("<e", "n"), ("<en", "d"), ("<end", ">")]
    vocab = {**alphabet, **{left + right: 10 + index for index, (left, right) in enumerate(merges)}}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", normalized=False, special=True)])
    return Tokenizer(backend, vocab_size=14, special_tokens={}, eos_token_ids=[])


def test_a_model_that_merges_to_a_control_token_is_kept_from_it(merging: Tokenizer) -> None:
    vocab = {token: merging.token_to_id(token) for token in ("<", "e", "n", "d", ">", "x", "<end>")}
    assert merging.encode("x<end>x") == [vocab["x"], vocab["<end>"], vocab["x"]]
    ids = merging.encode_parts(["x<end><end>x"])
    assert vocab["<end>"] not in ids
    assert merging.decode(ids) == "x<end><end>x"
    assert merging.encode_parts(["x<end>"]) == [vocab[token] for token in "x<end>"]


@pytest.mark.parametrize("rounds", [2, 8])
def test_any_number_of_spelled_control_tokens_is_cut(
    rounds: int, merging: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.text.control._ROUNDS", rounds)
    (end,) = merging.special_ids().values()
    text = "<end>" * 3000
    ids = merging.encode_parts([text, end, "x", end, text])
    assert [place for place, token in enumerate(ids) if token == end] == [15000, 15002]
    assert merging.decode(ids) == text + "x" + text


@SOME
@given(ids=st.lists(st.integers(-(2**70), 2**70) | st.integers(0, 700), max_size=30), skip=st.booleans())
def test_any_ids_decode_and_outside_ones_are_nothing(
    byte_level: Tokenizer, sentence_piece: Tokenizer, ids: list[int], skip: bool
) -> None:
    for tokenizer in (byte_level, sentence_piece):
        inside = [token for token in ids if 0 <= token < tokenizer.vocab_size]
        text = tokenizer.decode(ids, skip_special_tokens=skip)
        assert text == tokenizer.decode(inside, skip_special_tokens=skip)
        assert len(tokenizer.token_strings(ids)) == len(ids)
        for token in set(ids) - set(inside):
            assert (tokenizer.id_to_token(token), tokenizer.token_bytes(token)) == (None, b"")


@SOME
@given(ids=st.lists(st.integers(0, 599), max_size=30), skip=st.booleans())
def test_decoding_is_the_librarys(byte_level: Tokenizer, sentence_piece: Tokenizer, ids: list[int], skip: bool) -> None:
    for tokenizer in (byte_level, sentence_piece):
        inside = [token for token in ids if token < tokenizer.vocab_size]
        theirs = tokenizer.backend.decode(inside, skip_special_tokens=skip)
        # A run of byte tokens with one broken byte is broken as a whole to the library's byte fallback; not to us.
        if tokenizer is byte_level or "\ufffd" not in theirs:
            assert tokenizer.decode(inside, skip_special_tokens=skip) == theirs


def test_byte_fallback_breaks_broken_bytes_only(sentence_piece: Tokenizer) -> None:
    ids = [sentence_piece.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xff"]
    assert sentence_piece.decode([token for token in ids if token is not None]) == "é\ufffd"


def test_token_texts_and_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick 😀", add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(token) for token in ids)
    assert joined.decode().removeprefix(" ") == "the quick 😀"
    assert " quick" in "".join(tokenizer.token_strings(ids))
    assert "\ufffd" in "".join(tokenizer.token_strings(ids))


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("a\ud800b")
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode_parts(["a\udfff"])


def test_many_threads_get_the_same(tokenizer: Tokenizer) -> None:
    texts = ["".join(FRAGMENTS[index:]) for index in range(len(FRAGMENTS))]
    expected = [(tokenizer.encode(text), tokenizer.encode_parts([text])) for text in texts]
    wrong: list[str] = []

    def work() -> None:
        for text, (parsed, plain) in zip(texts, expected, strict=True):
            ids = tokenizer.encode(text), tokenizer.encode_parts([text])
            if ids != (parsed, plain) or tokenizer.decode(ids[1]) != tokenizer.decode(plain):
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_special_tokens_and_ends_of_files(tmp_path: Path) -> None:
    files = byte_level_files(tmp_path)
    tokenizer = Tokenizer.from_checkpoint(wrap(files, generation_config={"eos_token_id": [0, 7]}))
    ids = tokenizer.special_ids()
    assert set(ids) == set(CONTROL)
    assert tokenizer.eos_token_ids == [ids["<|im_end|>"], ids["<|endoftext|>"], 7]
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.special_tokens["bos_token"] == "<|endoftext|>"
    assert tokenizer.vocab_size == byte_level_backend().get_vocab_size()
    assert tokenizer.encode("the") == tokenizer.encode("the", add_special_tokens=False)


def test_harmony_messages_do_not_end_the_text() -> None:
    backend = byte_level_backend()
    backend.add_special_tokens(["<|end|>", "<|return|>", "<|call|>"])
    path = {"<|return|>", "<|call|>", "<|end|>"}
    from octavo.text.tokenizer import _well_known_ends

    ends = {backend.id_to_token(token) for token in _well_known_ends(backend)}
    assert ends & path == {"<|return|>", "<|call|>"}


def _theirs(files: TokenizerFiles) -> Any:
    """The same files in Transformers."""
    import transformers

    (files.path.parent / "tokenizer_config.json").write_text(json.dumps(files.config))
    return transformers.PreTrainedTokenizerFast.from_pretrained(files.path.parent)


def _appending(backend: tokenizers.Tokenizer) -> processors.Sequence:
    """Qwen3-Embedding's way: a token behind every text."""
    end = "<|endoftext|>"
    behind = processors.TemplateProcessing(
        single=f"$A:0 {end}:0", pair=f"$A:0 {end}:0 $B:1 {end}:1", special_tokens=[(end, backend.token_to_id(end))]
    )
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), behind])


@pytest.mark.parametrize("appends", [True, False])
@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": False}]
)
def test_what_stands_around_a_text_is_tokenizer_jsons(appends: bool, flags: dict[str, bool], tmp_path: Path) -> None:
    files = byte_level_files(tmp_path, eos_token="<|im_end|>", **flags)
    if appends:
        backend = byte_level_backend()
        backend.post_processor = _appending(backend)
        backend.save(str(files.path))
    tokenizer, theirs = Tokenizer.from_checkpoint(wrap(files)), _theirs(files)
    assert tokenizer.encode("the dog") == theirs("the dog").input_ids
    pair = theirs("the", "dog", return_token_type_ids=True)
    assert tokenizer.encode_whole("the", "dog") == (pair.input_ids, pair.token_type_ids.index(1))
    assert (tokenizer.encode("the")[-1] == tokenizer.special_ids()[tokenizer.special_tokens["bos_token"]]) == appends


def test_config_adds_missing_tokens(tmp_path: Path) -> None:
    size = byte_level_backend().get_vocab_size()
    late, tag = {"content": "<late>", "special": True}, {"content": "<tag>", "special": False}
    listed = {str(size + 1): late, str(size): tag}
    files = byte_level_files(tmp_path, added_tokens_decoder=listed, unk_token="<gone>")
    tokenizer = Tokenizer.from_checkpoint(wrap(files))
    ids = tokenizer.encode("<late><tag>the")
    assert ids == [size + 1, size, *tokenizer.encode("the")]
    assert "<tag>" not in tokenizer.special_ids()
    assert tokenizer.decode(ids) == "<tag>the"
    assert tokenizer.special_ids()["<gone>"] == tokenizer.vocab_size - 1


def _added(backend: tokenizers.Tokenizer) -> dict[int, tuple[str | bool, ...]]:
    """The added tokens and what they match; decoding tells which are special."""
    return {
        token_id: (token.content, token.lstrip, token.rstrip, token.single_word, token.normalized)
        for token_id, token in backend.get_added_tokens_decoder().items()
    }


STRIPPING = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False, "special": True}
TYPED = {"__type": "AddedToken", "content": "<cls>", "rstrip": True, "normalized": True}


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"601": {**STRIPPING, "content": "<|im_start|>"}}},
        {"added_tokens_decoder": {"2": {**STRIPPING, "content": "<|im_end|>", "special": False}}},
        {"added_tokens_decoder": {"1": {**STRIPPING, "content": "<|im_start|>", "special": False}}},
        {"added_tokens_decoder": {"550": {**STRIPPING, "content": "<think>"}}},
        {"added_tokens_decoder": {"700": {"content": "<cls>"}, "99": {"content": "<x>"}}, "cls_token": "<cls>"},
        {"added_tokens_decoder": {"3": {"content": "dog"}}, "sep_token": "the"},
        {"additional_special_tokens": ["<extra>"], "cls_token": "<cls>", "sep_token": "<x>"},
        {"additional_special_tokens": ["<extra>"], "extra_special_tokens": ["<x>", "<think>"]},
        {"additional_special_tokens": ["<extra>", "<extra>"], "extra_special_tokens": []},
        {"additional_special_tokens": [{**TYPED, "content": "<extra>"}]},
        {"extra_special_tokens": {"image_token": "<img>", "other": "<x>"}, "cut_token": "<extra>"},
        {"image_token": "<img>", "mask_token": "<think>", "bos_token": "<x>", "odd_token": 5},
        {"image_token": {**TYPED, "content": "<img>"}, "cls_token": TYPED, "cut_token": "<x>"},
        {"cls_token": None, "extra_special_tokens": None, "added_tokens_decoder": {}, "pad_token": ""},
    ],
    ids=str,
)
def test_tokens_of_tokenizer_config_are_added_as_in_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    files = byte_level_files(tmp_path)
    files = TokenizerFiles(files.path, {"eos_token": "<|im_end|>", **config})
    ours, theirs = Tokenizer.from_checkpoint(wrap(files)), _theirs(files)
    assert _added(ours.backend) == _added(theirs._tokenizer)
    text = "the<extra> <cls>dog <|im_start|>  <img> <think>  x<x>  <|im_end|> z"
    ids = theirs(text).input_ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_checkpoint(wrap(TokenizerFiles(tmp_path / "tokenizer.json", {})))
    assert tokenizer.decode(tokenizer.encode("the quick brown fox jumps")) == "the quick brown fox jumps"
    assert len(tokenizer.encode("a")) == 1


def test_damaged_and_unsupported_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="no tokenizer"):
        Tokenizer.from_checkpoint(wrap(None))
    path = tmp_path / "tokenizer.json"
    for damaged in ("", "{}", "[1", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'):
        path.write_text(damaged)
        with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
            Tokenizer.from_checkpoint(wrap(TokenizerFiles(path, {})))
    for listed in ([5], {"x": {"content": "<x>"}}, {"5": "<x>"}, {"5": {}}, {"5": {"content": 5}}):
        with pytest.raises(ModelFormatError, match="added_tokens_decoder"):
            Tokenizer.from_checkpoint(wrap(byte_level_files(tmp_path, added_tokens_decoder=listed)))
    with pytest.raises(ModelFormatError, match="special token"):
        Tokenizer.from_checkpoint(wrap(byte_level_files(tmp_path, bos_token=5)))
    state: dict[str, Any] = json.loads(byte_level_backend().to_str())
    state["decoder"] = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    path.write_text(json.dumps(state))
    with pytest.raises(UnsupportedError, match="CTC"):
        Tokenizer.from_checkpoint(wrap(TokenizerFiles(path, {})))

    state["decoder"] = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
    path.write_text(json.dumps(state))
    with pytest.raises(UnsupportedError, match="Strip"):
        Tokenizer.from_checkpoint(wrap(TokenizerFiles(path, {})))


def test_control_tokens_that_begin_otherwise_than_others_are_found(tmp_path: Path) -> None:
    """Mistral's [INST] beside <s>."""
    backend = byte_level_backend()
    backend.add_special_tokens([AddedToken("[INST]", normalized=False, special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_checkpoint(wrap(TokenizerFiles(tmp_path / "tokenizer.json", {})))
    [span] = tokenizer.find_control("a[INST]b")
    assert (span.start, span.stop, span.token_id) == (1, 7, backend.token_to_id("[INST]"))
    assert tokenizer.begins_control("a[INS")
    assert not tokenizer.begins_control("a[INST]")


def test_added_tokens_of_characters_that_stand_for_no_byte(tmp_path: Path) -> None:
    """DeepSeek's <｜end▁of▁sentence｜>: stored as it is, in a vocabulary of bytes."""
    backend = byte_level_backend()
    backend.add_tokens(["<｜a▁b｜>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_checkpoint(wrap(TokenizerFiles(tmp_path / "tokenizer.json", {})))
    ids = tokenizer.encode("x<｜a▁b｜>y", add_special_tokens=False)
    assert tokenizer.decode(ids) == backend.decode(ids) == "x<｜a▁b｜>y"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_space_that_metaspace_puts_before_a_text_is_taken_away(tmp_path: Path, scheme: str) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"▁the": 0, "<unk>": 1}, "<unk>"))
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_checkpoint(wrap(TokenizerFiles(tmp_path / "tokenizer.json", {})))
    assert tokenizer.decode([0, 0]) == backend.decode([0, 0]) == (" " * (scheme == "never") + "the the")


def test_a_tokenizer_without_decoder_joins_words(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"the": 0, "dog": 1, "<unk>": 2, " a": 3}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_checkpoint(wrap(TokenizerFiles(tmp_path / "tokenizer.json", {})))
    assert tokenizer.decode(tokenizer.encode("the dog the")) == backend.decode([0, 1, 0]) == "the dog the"
    assert tokenizer.decode([3, 3]) == backend.decode([3, 3]) == " a  a"
    with pytest.raises(UnsupportedError, match="spaces_between_special_tokens"):
        tokenizer.decode([0], skip_special_tokens=False, spaces_between_special_tokens=False)


@pytest.mark.parametrize("skip", [True, False])
def test_spaces_between_special_tokens_makes_no_difference(tokenizer: Tokenizer, skip: bool) -> None:
    ids = [1, 1, 2, *tokenizer.encode("the dog", add_special_tokens=False), 2, 1]
    texts = {
        tokenizer.decode(ids, skip_special_tokens=skip, spaces_between_special_tokens=spaces)
        for spaces in (True, False)
    }
    assert len(texts) == 1


def test_gguf_without_prefix_keeps_leading_spaces() -> None:
    gguf, oracle = sentence_piece_gguf(prefix=False)
    tokenizer = Tokenizer.from_checkpoint(wrap(gguf))
    ids = tokenizer.encode("  the  dog\n\n", add_special_tokens=False)
    assert ids == oracle.encode("  the  dog\n\n")
    assert tokenizer.decode(ids) == "  the  dog\n\n"
