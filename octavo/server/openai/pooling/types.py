"""The JSON bodies of the routes that pool, as types. A field that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from octavo.server.openai.types import Identifier, Label, Messages, Priority
from octavo.server.strict import Strict

Model = Annotated[str, Meta(max_length=512)] | None
Texts = Annotated[list[str], Meta(min_length=1)]
InputType = Literal["search_document", "search_query", "classification", "clustering"]
Input = str | list[int | str | list[int]]
"""A text, token ids, or a list of either."""


class PoolingRequest(Strict, frozen=True, kw_only=True):
    """What all routes share; truncate_prompt_tokens and use_activation as in PoolingParams. user is a label."""

    model: Model = None
    truncate_prompt_tokens: int | None = None
    use_activation: bool | None = None
    priority: Priority | None = None
    request_id: Label | None = None
    user: Identifier | None = None


class InputRequest(PoolingRequest, frozen=True, kw_only=True):
    """add_special_tokens: false leaves those out that the tokenizer puts around a text.

    messages: a conversation in place of the input, by the chat template, with the fields below it as in a chat; but no
    answer is to come: add_generation_prompt is false where it is left out.
    """

    input: Input | None = None
    add_special_tokens: bool | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def source(self) -> str:
        """The field that the prompts come in."""
        return "input" if self.messages is None else "messages"


class EmbeddingRequest(InputRequest, frozen=True, kw_only=True):
    """POST /v1/embeddings. normalize: vLLM's older name of use_activation.  drop_params: RAGFlow asks LiteLLM to leave
    out what a model cannot do; what comes here can be done, or is refused.  input_type: as in EmbedRequest, in
    Voyage's and NIM's words, too.
    """

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    drop_params: bool | None = None
    input_type: InputType | Literal["query", "document", "passage"] | None = None


class PoolRequest(EmbeddingRequest, frozen=True, kw_only=True):
    """POST /pooling. task: as in PoolingParams."""

    task: Literal["embed", "classify", "token_embed"] | None = None


class ClassifyRequest(InputRequest, frozen=True, kw_only=True):
    """POST /classify."""


class ScoreRequest(PoolingRequest, frozen=True, kw_only=True):
    """POST /score. One text with each of many, or pair by pair; others are further names of the two."""

    text_1: str | Texts | None = None
    text_2: str | Texts | None = None
    queries: str | Texts | None = None
    documents: str | Texts | None = None
    data_1: str | Texts | None = None
    data_2: str | Texts | None = None
    items: str | Texts | None = None


class Document(Strict, frozen=True):
    """A document as an object."""

    text: str


class RerankRequest(PoolingRequest, frozen=True, kw_only=True):
    """POST /rerank, as Jina and Cohere have it. top_n: most results; 0 or absent: all.

    max_tokens_per_doc: Cohere's; of a longer document its first so many tokens are read; 0 or absent: all.
    """

    REASONS: ClassVar[dict[str, str]] = {
        "max_chunks_per_doc": "documents are not read in chunks; cut them with max_tokens_per_doc"
    }

    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=0)] | None = None
    max_chunks_per_doc: None = None
    return_documents: bool | None = None


class EmbedRequest(Strict, frozen=True, kw_only=True):
    """POST /v2/embed, as Cohere has it.

    input_type: chooses what texts begin with, where the model's sentence-transformers files have prompts.
    truncate: NONE refuses a text that is too long, END cuts it.
    """

    REASONS: ClassVar[dict[str, str]] = {
        "embedding_types": "send 'float', 'base64', 'binary' or 'ubinary'; int8 and uint8 need the ranges of the "
        "vectors' numbers, which a model's files do not tell"
    }

    model: Model = None
    texts: Texts
    input_type: InputType | None = None
    embedding_types: Annotated[list[Literal["float", "base64", "binary", "ubinary"]], Meta(min_length=1)] | None = None
    output_dimension: int | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    truncate: Literal["NONE", "END"] | None = None
    priority: Priority | None = None
