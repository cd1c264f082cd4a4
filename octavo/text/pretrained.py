"""What scripts call on a tokenizer of Transformers, over a Tokenizer and its chat templates.

Names, defaults and results are those of Transformers 5's fast tokenizers; that library is not imported. Ids come as
lists: what makes tensors is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import tokenizers

from octavo.base.errors import InputError, UnsupportedError
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import ROLES, Tokenizer, check_text

UNLIMITED = int(1e30)  # Transformers' model_max_length where the files tell none

# A BatchEncoding's lists -> where the library has them
_LISTS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
_RETURNED = {f"return_{name}": name for name in _LISTS if name != "offset_mapping"} | {
    "return_offsets_mapping": "offset_mapping"
}
# Further options of __call__ -> the values that ask for nothing
_UNUSED: dict[str, tuple[Any, ...]] = {
    "padding": (False, None, "do_not_pad"),
    "return_tensors": (None,),
    "pad_to_multiple_of": (None,),
    "padding_side": (None, "left", "right"),
    "stride": (0,),
    "is_split_into_words": (False,),
    "split_special_tokens": (False, None),
    "return_overflowing_tokens": (False,),
    "return_length": (False,),
    "return_assistant_tokens_mask": (False,),
    "verbose": (True, False),
}
_OF_CHAT = ("truncation", "max_length", *_RETURNED, *_UNUSED)  # of apply_chat_template's options, those of __call__
_CUTS = (True, "longest_first", "only_first")
# What Transformers takes back of the spaces that WordPiece's decoder puts before these
_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class BatchEncoding(dict[str, Any]):
    """Lists by name, as keys and as attributes: input_ids, attention_mask ...; of a batch lists of lists."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"BatchEncoding has no {name!r}; there are {', '.join(self)}") from None


class PretrainedTokenizer:
    """A model's tokenizer as Transformers' AutoTokenizer gives it.

    bos_token ... mask_token: spellings, None where there is no such token; bos_token_id ... are their ids.
    templates: by name, "default" and "tool_use".  vocab_size: without added tokens, len() with them.
    chat_template: the text; of several a dict of them by name. One set is for calls of this object, not LLM.chat.
    """

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    is_fast = True

    def __init__(self, tokenizer: Tokenizer, templates: Mapping[str, ChatTemplate], *, name_or_path: str) -> None:
        self._tokenizer, self._templates = tokenizer, dict(templates)
        self._backend: tokenizers.Tokenizer = tokenizer.backend
        self.name_or_path = name_or_path
        for role in ROLES:
            setattr(self, role, tokenizer.special_tokens.get(role))
        settings = tokenizer.settings
        self.extra_special_tokens: list[str] = settings.get("extra_special_tokens", [])
        self.model_max_length: int = settings.get("model_max_length", UNLIMITED)
        self.padding_side: str = settings.get("padding_side", "right")
        self.truncation_side: str = settings.get("truncation_side", "right")
        self.clean_up_tokenization_spaces = bool(settings.get("clean_up_tokenization_spaces"))
        self._model = type(self._backend.model).__name__
        typed = self._model == "WordPiece" and str(settings.get("tokenizer_class", "Bert")).startswith("Bert")
        types = ["token_type_ids"] if typed else []
        self.model_input_names: list[str] = settings.get("model_input_names", ["input_ids", *types, "attention_mask"])

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_id")
        if role != name and role in ROLES:
            token = getattr(self, role)
            return None if token is None else self.convert_tokens_to_ids(token)
        path = vars(self).get("name_or_path", "")  # which is not there yet while a copy is made
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}; transformers.AutoTokenizer.from_pretrained({path!r}) may have it"
        )

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Every token, as the vocabulary spells it, and its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """Added tokens and their ids."""
        return {token.content: number for number, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Ids and added tokens."""
        return self._backend.get_added_tokens_decoder()

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Roles (bos_token ...) and the tokens that have them."""
        return {role: token for role in ROLES if (token := getattr(self, role)) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """Tokens with a role, and extra_special_tokens."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all_special_tokens."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of them; unk_token_id (which may be None) for what is none."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        known = self._backend.token_to_id(tokens)
        return self.unk_token_id if known is None and tokens != self.unk_token else known

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, as the vocabulary spells it (None for what is no id), or a list of them."""
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._tokenizer.id_to_token(int(one)) for one in ids if int(one) not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens as the vocabulary spells them."""
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """A text's tokens, as the vocabulary spells them."""
        found: list[str] = self.convert_ids_to_tokens(self.encode(text, add_special_tokens=add_special_tokens))
        return found

    def encode(
        self, text: str | Sequence[str], text_pair: Any = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """Token ids of a text, a list of them for a list of texts; options as for a call."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def __call__(
        self, text: str | Sequence[str], text_pair: Any = None, *, add_special_tokens: bool = True, **options: Any
    ) -> BatchEncoding:
        """Lists for a text, lists of lists for a list of texts: those of model_input_names.

        text_pair: what is read together with each.  truncation, max_length: cut texts, special tokens stay.
        return_token_type_ids, return_attention_mask, return_special_tokens_mask, return_offsets_mapping: more or fewer
        lists.  Raises InputError for what is no text, UnsupportedError naming an option that is not here.
        """
        longest, names = self._longest(options), self._names(options)
        _check_unused(options)
        single = isinstance(text, str)
        batch: list[Any] = _texts(text, "text")
        if text_pair:
            pairs = _texts(text_pair, "text_pair")
            if len(pairs) != len(batch):
                raise InputError(
                    f"text_pair holds {len(pairs)} texts, text {len(batch)}; give as many", param="text_pair"
                )
            if longest is not None:
                raise UnsupportedError("truncation of pairs is not supported; cut the texts first", param="truncation")
            batch = list(zip(batch, pairs, strict=True))
        found = self._encodings(batch, add_special_tokens, longest)
        lists = {name: [getattr(encoding, _LISTS[name]) for encoding in found] for name in names}
        return BatchEncoding({name: rows[0] if single else rows for name, rows in lists.items()})

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> Any:
        """The text of ids (or of one), a list of texts for a list of lists; arrays with tolist() are taken.

        spaces_between_special_tokens: without effect, as in Transformers' fast tokenizers.
        """
        ids = token_ids["input_ids"] if isinstance(token_ids, Mapping) else token_ids
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and isinstance(ids[0], list | tuple):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        try:
            text = self._backend.decode(ids, skip_special_tokens=bool(skip_special_tokens))
        except (OverflowError, TypeError) as error:
            raise InputError(f"token_ids must be integers from 0 on: {error}", param="token_ids") from None
        asked = clean_up_tokenization_spaces
        if (self.clean_up_tokenization_spaces if asked is None else asked) and self._model != "BPE":
            for spaced in _SPACED:
                text = text.replace(spaced, spaced.strip())
        return text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The text of each of the sequences; options as for decode."""
        found: str | list[str] = self.decode(sequences, skip_special_tokens, **options)
        return [found] if isinstance(found, str) else found

    @property
    def chat_template(self) -> Any:
        """The chat template's text; of several a dict of them; None where there is none."""
        texts = {name: template.source for name, template in self._templates.items()}
        return texts.get("default") if texts.keys() <= {"default"} else texts

    @chat_template.setter
    def chat_template(self, text: str | None) -> None:
        self._templates = {} if text is None else {"default": ChatTemplate(text, self._tokenizer)}

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The text of the template that apply_chat_template would take."""
        return self._template(chat_template, tools).source

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **options: Any,
    ) -> Any:
        """A conversation as the chat template prints it, or each of a list of them.

        Text with tokenize=False; else a BatchEncoding, or with return_dict=False the ids alone, as Transformers 4 has
        it by default.  chat_template: a template's text, or one's name.  tools: JSON schemas, shown where the template
        reads them.  sanitize_control_tokens: what messages spell of control tokens is plain text, as for LLM.chat.
        Other options are those of a call, or names for the template (enable_thinking ...).
        Raises InputError naming the field, or with what the template says.
        """
        sealed, as_dict = options.pop("sanitize_control_tokens", False), options.pop("return_dict", True)
        calling = {name: options.pop(name) for name in _OF_CHAT if name in options}
        calling = {"truncation": False, **calling, **(options.pop("tokenizer_kwargs", None) or {})}
        if not isinstance(continue_final_message, bool):
            raise UnsupportedError(
                f"continue_final_message={continue_final_message!r:.80} is not supported; let it be true or false",
                param="continue_final_message",
            )
        template, batched = self._template(chat_template, tools), _is_batch(conversation)
        render = template.render_ids if tokenize and sealed else template.render
        rows: list[Any] = [
            render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                documents=documents,
                extra=options,
            )
            for messages in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return rows if batched else rows[0]
        encode = partial(self._wrap, cut=calling) if sealed else partial(self, add_special_tokens=False, **calling)
        encoded = encode(rows if batched else rows[0])
        return encoded if as_dict else encoded["input_ids"]

    def _template(self, chat_template: str | None, tools: Any) -> ChatTemplate:
        if chat_template is not None:
            named = self._templates.get(chat_template) if len(self._templates) > 1 else None
            return named or ChatTemplate(chat_template, self._tokenizer)
        found = self._templates.get("tool_use") if tools is not None else None
        found = found or self._templates.get("default")
        if found is None:
            raise InputError("the model has no chat template; give one by chat_template", param="chat_template")
        return found

    def _wrap(self, rows: list[Any], *, cut: dict[str, Any]) -> BatchEncoding:
        """What a call gives, of ids."""
        longest, batched = self._longest(cut), bool(rows) and isinstance(rows[0], list)
        _check_unused(cut)
        ids = rows if batched else [rows]
        if longest is not None:
            ids = [row[:longest] if self.truncation_side == "right" else row[-longest:] for row in ids]
        lists = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        return BatchEncoding(lists if batched else {name: value[0] for name, value in lists.items()})

    def _longest(self, options: dict[str, Any]) -> int | None:
        """Tokens that truncation leaves; None without."""
        how, longest = options.pop("truncation", None), options.pop("max_length", None)
        if how not in (*_CUTS, False, None, "do_not_truncate"):
            raise UnsupportedError(
                f"truncation={how!r:.80} is not supported; let it be true or false", param="truncation"
            )
        if how is None and longest is not None:
            how = True
        if how not in _CUTS:
            return None
        longest = self.model_max_length if longest is None else longest
        return longest if longest < UNLIMITED // 10 else None

    def _names(self, options: dict[str, Any]) -> list[str]:
        asked = {name: options.pop(option, None) for option, name in _RETURNED.items()}
        asked["input_ids"] = True
        return [name for name in _LISTS if (name in self.model_input_names if asked[name] is None else asked[name])]

    def _encodings(self, batch: list[Any], add_special_tokens: bool, longest: int | None) -> list[tokenizers.Encoding]:
        if longest is None:
            return self._backend.encode_batch(batch, add_special_tokens=add_special_tokens)
        # The library's own truncation is a state of the tokenizer, which others use at the same time.
        room = longest - (self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0)
        if room < 1:
            raise InputError(f"max_length={longest} leaves no room beside special tokens; raise it", param="max_length")
        found = self._backend.encode_batch(batch, add_special_tokens=False)
        for encoding in found:
            encoding.truncate(room, direction=self.truncation_side)
        return [self._backend.post_process(encoding, None, add_special_tokens) for encoding in found]


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    for one in texts if isinstance(texts, list | tuple) else (texts,):
        if not isinstance(one, str):
            raise InputError(f"{where} must be a string, or a list of them, got {one!r:.80}", param=where)
        check_text(one)
    return list(texts)


def _check_unused(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _UNUSED:
            raise UnsupportedError(f"{name} is not supported; leave it out", param=name)
        if value not in _UNUSED[name]:
            raise UnsupportedError(
                f"{name}={value!r:.80} is not supported: there are lists here, no tensors or windows; leave it out, or "
                "take Transformers' AutoTokenizer",
                param=name,
            )


def _is_batch(conversation: Any) -> bool:
    return isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)
