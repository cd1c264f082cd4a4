"""An opened model: what its files say, its text side, and conversations made into prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.config.config import ModelConfig
from octavo.base.errors import ConfigError, InputError
from octavo.base.types.sampling import SamplingParams
from octavo.models.spec import ModelSpec

if TYPE_CHECKING:
    from octavo.models.pooling import TokenClassifier
    from octavo.text.pretrained import PretrainedTokenizer
    from octavo.text.template import ChatTemplate
    from octavo.text.tokenizer import Tokenizer
    from octavo.weights.checkpoint import Checkpoint
    from octavo.weights.sentence import DenseModule


@dataclass(frozen=True)
class Model:
    """An opened model: headers read, no weight touched. template is None where the checkpoint brings none.

    tool_template: the one for conversations with tools, where it is another.
    stored_bytes: of the weights as the checkpoint stores them; None if neither headers nor the hub told.
    labels: a classifier's, by number.  prompts: what texts begin with, by kind, as sentence-transformers' files say.
    dense: their layers behind the pooling, whose weights have files of their own.
    """

    config: ModelConfig
    path: Path
    checkpoint: Checkpoint = field(repr=False)
    stored_bytes: int | None
    spec: ModelSpec = field(repr=False)
    tokenizer: Tokenizer | None = field(repr=False)
    template: ChatTemplate | None = field(repr=False)
    sampling: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    labels: list[str] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    tool_template: ChatTemplate | None = field(default=None, repr=False)
    dense: tuple[DenseModule, ...] = ()

    def default_sampling_params(self) -> SamplingParams:
        """SamplingParams with what the model recommends."""
        return SamplingParams(**self.sampling)

    def tensor_names(self) -> dict[str, str]:
        """Internal name -> the checkpoint's, for all weights of the spec but those of `dense`."""
        from octavo.models.registry import find_family

        spec = self.spec
        if self.dense and spec.pooling is not None:
            spec = replace(spec, pooling=replace(spec.pooling, dense=()))
        return find_family(self.checkpoint.config).names(spec)

    @cached_property
    def by_token(self) -> TokenClassifier | None:
        """Of what tokens' rows the classifier is made, in a model that has none of its own."""
        from octavo.models.config import Config
        from octavo.models.pooling import token_classifier

        return token_classifier(Config(self.checkpoint.config)) if self.labels else None

    def known_tokenizer(self) -> Tokenizer:
        """The tokenizer; ConfigError with skip_tokenizer_init."""
        if self.tokenizer is None:
            raise ConfigError("there is no tokenizer: skip_tokenizer_init is set", param="skip_tokenizer_init")
        return self.tokenizer

    @cached_property
    def pretrained(self) -> PretrainedTokenizer:
        """The tokenizer by Transformers' names; ConfigError with skip_tokenizer_init."""
        from octavo.text.pretrained import PretrainedTokenizer

        named = {"default": self.template, "tool_use": self.tool_template}
        templates = {name: template for name, template in named.items() if template is not None}
        return PretrainedTokenizer(
            self.known_tokenizer(), templates, name_or_path=self.config.tokenizer or self.config.model
        )

    def template_for(self, tools: Sequence[Any] | None) -> ChatTemplate | None:
        """The chat template that a conversation with these tools, or without any, is rendered by."""
        return self.tool_template if tools and self.tool_template is not None else self.template

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        tool_call_parser: str | None = None,
    ) -> list[int]:
        """A conversation in token ids. InputError where there is no template, or it refuses the messages.

        tools: told in the system message where the template does not read them, in the form that tool_call_parser
        (None: hermes) reads calls in; UnsupportedError where that cannot be told.
        chat_template: a template's text, in place of the model's.  chat_template_kwargs: further names for the
        template, `documents` among them.
        """
        from octavo.text.tools.prompt import place_tools

        if self.tokenizer is None:
            raise InputError("chat needs a tokenizer, and skip_tokenizer_init is set", param="messages")
        extra = dict(chat_template_kwargs or {})
        template = self.template_for(tools)
        if chat_template is not None:
            from octavo.text.template import ChatTemplate

            template = ChatTemplate(chat_template, self.tokenizer)
        if template is None:
            raise InputError(
                "the model has no chat template; give one by chat_template (a file or the text), or send a prompt "
                "instead of messages",
                param="messages",
            )
        placed, tools_left = place_tools(messages, tools, template.source, tool_call_parser)
        return template.render_ids(
            placed,
            tools=tools_left,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            documents=extra.pop("documents", None),
            extra=extra,
        )
