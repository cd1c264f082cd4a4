"""The composition root: config structs in, an opened Model or a running Engine out. Only devices.py names backends.

Concrete classes are imported where they are made, so that a CPU never imports an accelerator's library.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.api.devices import (
    choose_for_engine,
    device_memory,
    element_bytes,
    kv_bytes_per_token,
    make_backend,
    resolve_for,
)
from octavo.api.model import Model
from octavo.api.quantization import online_quantization, quantized_matrices, weight_bytes
from octavo.api.requests import Limits
from octavo.api.sampling_defaults import sampling_defaults
from octavo.base import heap
from octavo.base.config.config import AUTO_LENGTH, EngineConfig, ModelConfig
from octavo.base.errors import ConfigError, InputError
from octavo.base.types.ports import Backend, Progress
from octavo.base.types.tensor import Weights
from octavo.models.spec import ModelSpec

if TYPE_CHECKING:
    from octavo.engine.engine import Engine
    from octavo.engine.grammar.grammar import Vocabulary
    from octavo.text.template import ChatTemplate
    from octavo.text.tokenizer import Tokenizer
    from octavo.weights.checkpoint import Checkpoint
    from octavo.weights.sentence import SentenceFiles

logger = logging.getLogger(__name__)


def locate(
    config: EngineConfig,
    *,
    progress: Progress | None = None,
    with_weights: bool = True,
    on_listing: Callable[[int], None] | None = None,
) -> EngineConfig:
    """The config with local paths for what it names, downloaded where needed; without weights for dummy ones.

    on_listing: told the bytes of the weights, where the hub is asked for the model.
    """
    from octavo.weights.source import resolve_source, resolve_tokenizer

    model = config.model
    options: dict[str, Any] = {
        "revision": model.revision,
        "hf_token": model.hf_token,
        "download_dir": model.download_dir,
        "progress": progress,
    }
    with_weights = with_weights and model.load_format != "dummy"
    path = resolve_source(model.model, with_weights=with_weights, on_listing=on_listing, **options)
    tokenizer = None if model.tokenizer is None else str(resolve_tokenizer(model.tokenizer, **options))
    located = msgspec.structs.replace(model, model=str(path), tokenizer=tokenizer)
    return msgspec.structs.replace(config, model=located)


def open_model(
    config: ModelConfig, *, with_text: bool = True, with_weights: bool = True, progress: Progress | None = None
) -> Model:
    """Find and open a model; its tokenizer and template too, unless not with_text or config.skip_tokenizer_init.

    with_weights=False downloads headers and configs only, which is enough for all but the engine.
    """
    from octavo.weights.checkpoint import names_dtype, open_checkpoint

    sizes: list[int] = []
    engine = EngineConfig(model=config)
    located = locate(engine, progress=progress, with_weights=with_weights, on_listing=sizes.append).model
    path = Path(located.model)
    wanted = with_text and not config.skip_tokenizer_init
    ours = path.is_file() and os.path.exists(os.path.expanduser(config.model))  # no header of the hub's: it is whole
    checkpoint = open_checkpoint(
        path,
        load_format=config.load_format,
        hf_overrides=config.hf_overrides,
        with_weights=with_weights or ours,
        with_tokenizer=wanted and located.tokenizer is None,
    )
    spec, labels, files = _build_spec(config, checkpoint)
    stored = checkpoint.total_bytes or sum(sizes) or None
    if not checkpoint.tensors and not names_dtype(checkpoint.config) and stored and stored < 3 * spec.num_parameters():
        spec = replace(spec, dtype="bfloat16")  # of weights that were not read: two bytes a number
    lower = files is not None and files.lower_case and not labels
    tokenizer = _open_tokenizer(located, checkpoint, lower_case=lower) if wanted else None
    if tokenizer is not None and config.tokenizer is not None:
        _check_vocabulary(tokenizer, config.tokenizer, spec.vocab_size)
    return Model(
        config=config,
        path=path,
        checkpoint=replace(checkpoint, tokenizer=None),  # a vocabulary's lists take tens of megabytes
        stored_bytes=stored,
        spec=spec,
        tokenizer=tokenizer,
        template=None if tokenizer is None else _open_template(config, checkpoint, tokenizer),
        sampling=sampling_defaults(config, checkpoint.generation_config),
        eos_token_ids=_eos_token_ids(checkpoint, tokenizer, spec.vocab_size),
        labels=labels,
        prompts=files.prompts if files is not None else {},
        dense=files.dense if files is not None and not labels else (),
        tool_template=None if tokenizer is None else _open_tool_template(config, checkpoint, tokenizer),
    )


def _build_spec(config: ModelConfig, checkpoint: Checkpoint) -> tuple[ModelSpec, list[str], SentenceFiles | None]:
    """What is to run, the names of its classes, and the sentence-transformers files of a model that pools."""
    from octavo.models.config import Config
    from octavo.models.pooling import SentencePooling, choose_pooling, read_labels
    from octavo.models.registry import build_spec
    from octavo.models.spec import Dense
    from octavo.weights.sentence import check_dense, read_sentence_files

    files, told = read_sentence_files(checkpoint.path), checkpoint.config.get("gguf_pooling")
    sentence = None
    if files is not None:
        dense = tuple(Dense(module.outputs, module.act, module.bias) for module in files.dense)
        sentence = SentencePooling(files.kind, files.normalize, files.max_length, dense)
    elif told is not None:
        sentence = SentencePooling(told, normalize=True)  # as llama.cpp gives them
    spec = choose_pooling(
        build_spec(checkpoint.config),
        checkpoint.config,
        runner=config.runner,
        convert=config.convert,
        sentence=sentence,
        pooler=config.pooler_config,
    )
    labels = read_labels(Config(checkpoint.config)) if spec.pooling and spec.pooling.labels else []
    if files is not None and spec.pooling and not labels:
        check_dense(files.dense, spec.hidden_size)
    return spec, labels, files if spec.pooling else None


def _open_tokenizer(located: ModelConfig, checkpoint: Checkpoint, *, lower_case: bool) -> Tokenizer:
    from octavo.text.tokenizer import Tokenizer
    from octavo.weights.checkpoint import open_tokenizer

    if located.tokenizer is not None:
        checkpoint = open_tokenizer(Path(located.tokenizer))
    tokenizer = Tokenizer.from_checkpoint(checkpoint, lower_case=lower_case)
    heap.trim()
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, name: str, vocab_size: int) -> None:
    """ConfigError for a tokenizer of another model, which most texts would be refused with."""
    # without control tokens: Gemma 3's has one for images, which its models of text alone lack
    count = tokenizer.backend.get_vocab_size(with_added_tokens=False)
    if count > vocab_size:
        raise ConfigError(
            f"tokenizer={name} has {count} tokens and the model {vocab_size}: it is another model's; leave it out, "
            "or name one of this model",
            param="tokenizer",
        )


def open_text(name: str) -> tuple[Tokenizer, ChatTemplate | None]:
    """A model's tokenizer and chat template alone; of a hub repository only their files are downloaded."""
    from octavo.text.tokenizer import Tokenizer
    from octavo.weights.checkpoint import open_tokenizer
    from octavo.weights.source import resolve_tokenizer

    checkpoint = open_tokenizer(resolve_tokenizer(name))
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    return tokenizer, _open_template(ModelConfig(model=name), checkpoint, tokenizer)


def _open_template(config: ModelConfig, checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The one that config.chat_template is (the text, or a file's path), the checkpoint's, or the tokenizer's form."""
    from octavo.text.template import ChatTemplate, default_template

    text = checkpoint.chat_template if config.chat_template is None else config.chat_template
    if text is None:
        with suppress(InputError):
            return default_template(tokenizer)
        return None
    if text is config.chat_template and "{" not in text and "\n" not in text:
        try:
            text = Path(os.path.expanduser(text)).read_text("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no text in UTF-8"
            raise ConfigError(
                f"chat_template={text!r:.200}: no such file ({reason}), and no template's text, which has a '{{'",
                param="chat_template",
            ) from None
    template = ChatTemplate(text, tokenizer, late=config.chat_template is None)
    if template.fault is not None:
        logger.warning("%s; until then chats are refused", template.fault.message)
    return template


def _open_tool_template(config: ModelConfig, checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The checkpoint's own for conversations with tools; None where config.chat_template is for all of them."""
    from octavo.text.template import ChatTemplate

    if config.chat_template is not None or checkpoint.tool_template is None:
        return None
    template = ChatTemplate(checkpoint.tool_template, tokenizer, late=True)
    if template.fault is not None:
        logger.warning("tool_use: %s; until then chats with tools are refused", template.fault.message)
    return template


def _eos_token_ids(checkpoint: Checkpoint, tokenizer: Tokenizer | None, vocab_size: int) -> tuple[int, ...]:
    """Every token that ends a text: those of config.json, generation_config.json and the tokenizer."""
    found: dict[int, None] = {}
    for source in (checkpoint.config, checkpoint.generation_config):
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size:
                found[token] = None
    for token in tokenizer.eos_token_ids if tokenizer is not None else []:
        if token < vocab_size:
            found[token] = None
    return tuple(found)


def make_limits(model: Model, config: ModelConfig, *, max_model_len: int) -> Limits:
    """What requests to this model are checked against."""
    from octavo.engine.grammar.checker import Checker

    return Limits(
        vocab_size=model.spec.vocab_size,
        max_model_len=max_model_len,
        tokenizer=model.tokenizer,
        eos_token_ids=model.eos_token_ids,
        max_logprobs=config.max_logprobs,
        seeds=random.Random(config.seed),
        pooling=model.spec.pooling,
        hidden_size=model.spec.hidden_size,
        vector_size=model.spec.vector_size(),
        token_types=model.spec.learned.types if model.spec.learned else 0,
        pair_template=model.template if config.chat_template is not None and model.labels else None,
        joins_pairs=model.by_token is not None,
        checker=None if model.tokenizer is None else Checker(model.tokenizer.special_ids(), size=model.spec.vocab_size),
        template="" if model.template is None else model.template.source,
        reasoning_parser=config.reasoning_parser,
    )


def build_engine(config: EngineConfig, model: Model | None, *, progress: Progress | None = None) -> Engine:
    """Weights onto the device, the cache beside them, the engine over both. Opens the model where none is given."""
    from octavo.engine.cache.sizing import longest_context, num_blocks
    from octavo.engine.engine import Engine
    from octavo.engine.grammar.compiler import Compiler
    from octavo.executor.local import LocalExecutor

    if model is None:
        model = open_model(config.model, with_text=False, progress=progress)
    device, reasons = choose_for_engine(config.device)
    for reason in reasons:
        logger.info("device: %s", reason)
    fitting = config.model.max_model_len == AUTO_LENGTH
    config = resolve_for(device, config, model.spec)
    max_model_len = config.model.max_model_len or model.spec.max_position
    quantization = online_quantization(model, device=device)
    if device == "cpu":
        _check_weights_fit(config, model)
    backend = make_backend(device, config, max_model_len=max_model_len, quantization=quantization)
    try:
        backend.load(model.spec, _weights(model), progress)
        sizes: dict[str, Any] = {
            "cache": config.cache,
            "memory": backend.memory(),
            "on_host": device != "cuda",
            "utilization": config.device.gpu_memory_utilization,
        }
        each = kv_bytes_per_token(config, model.spec, device=device)
        if fitting:
            max_model_len = longest_context(each, max_model_len=max_model_len, **sizes)
        seqs = config.scheduler.max_num_seqs
        blocks = num_blocks(each, max_model_len=max_model_len, max_num_seqs=seqs, **sizes)
        _allocate(backend, blocks)
    except BaseException:
        backend.close()
        raise
    logger.info("device %s: %d cache blocks of %d tokens", device, blocks, config.cache.block_size)
    if fitting:
        logger.info("max_model_len: %d tokens of %d fit", max_model_len, model.spec.max_position)
    return Engine(
        LocalExecutor(backend),
        scheduler=config.scheduler,
        cache=config.cache,
        num_blocks=blocks,
        max_model_len=max_model_len,
        grammars=None if config.model.skip_tokenizer_init else Compiler(partial(_vocabulary, model)),
    )


def _check_weights_fit(config: EngineConfig, model: Model) -> None:
    """ConfigError before gigabytes are read that leave no memory for a cache, unless that is of a size by order."""
    if config.cache.kv_cache_memory_bytes is not None or config.cache.num_gpu_blocks_override is not None:
        return
    element = element_bytes(config.model.dtype, device="cpu", stored=model.spec.dtype)
    weights = weight_bytes(model, device="cpu", element=element, activation_dtype=config.device.activation_dtype)
    total = device_memory("cpu").total
    if weights >= total:
        raise ConfigError(
            f"the weights take {weights / 2**30:.1f} GiB, and there are {total / 2**30:.1f} GiB of memory in all; take "
            "a smaller model, or one that is quantized to fewer bits",
            param="model",
        )


def _allocate(backend: Backend, blocks: int) -> None:
    try:
        backend.allocate(blocks)
    except (MemoryError, OSError) as error:
        raise ConfigError(
            f"the KV cache's {blocks} blocks cannot be had ({error}); lower --kv-cache-memory-bytes, "
            "--num-gpu-blocks-override or --max-num-seqs",
            param="kv_cache_memory_bytes",
        ) from None


def _vocabulary(model: Model) -> Vocabulary:
    """What grammars must know of the tokens."""
    from octavo.engine.grammar.grammar import Vocabulary

    tokenizer = _tokenizer(model)
    size = model.spec.vocab_size
    return Vocabulary(
        tokens=[tokenizer.token_bytes(token) for token in range(min(size, tokenizer.vocab_size))],
        special=dict(tokenizer.special_ids()),
        eos_token_ids=_eos_token_ids(model.checkpoint, tokenizer, size),
        size=size,
    )


def _tokenizer(model: Model) -> Tokenizer:
    """Of a model that was opened without text it is read now."""
    from octavo.text.tokenizer import Tokenizer
    from octavo.weights.checkpoint import open_tokenizer

    if model.tokenizer is not None:
        return model.tokenizer
    located = locate(EngineConfig(model=model.config), with_weights=False).model
    return Tokenizer.from_checkpoint(open_tokenizer(Path(located.tokenizer or located.model)))


def _weights(model: Model) -> Weights:
    from octavo.models.registry import find_family
    from octavo.quant.rows import take_rows
    from octavo.weights.dummy import DummyWeights
    from octavo.weights.names import map_names
    from octavo.weights.sentence import read_dense

    shapes = {name: parameter.shape for name, parameter in model.spec.parameters().items()}
    names = model.tensor_names()
    if model.config.load_format == "dummy":
        return DummyWeights(
            shapes, seed=model.config.seed, quantized=quantized_matrices(model.checkpoint.quantization, names)
        )
    apart = read_dense(model.path, model.dense)
    shapes = {name: shape for name, shape in shapes.items() if name not in apart}
    if model.by_token is None:
        return {**map_names(model.checkpoint, names, shapes), **apart}
    family = find_family(model.checkpoint.config)
    whole = family.spec(model.checkpoint.config)
    tied = whole.head is None or whole.head.tied
    names["classifier"] = family.names(whole)["embed" if tied else "head"]
    shapes["classifier"] = shapes["embed"]
    weights = dict(map_names(model.checkpoint, names, shapes))
    rows = _token_ids(_tokenizer(model), model.by_token.tokens, model.spec.vocab_size)
    weights["classifier"] = take_rows(weights["classifier"], rows, difference=model.by_token.difference)
    return weights


def _token_ids(tokenizer: Tokenizer, tokens: Sequence[str], vocab_size: int) -> list[int]:
    ids = []
    for token in tokens:
        token_id = tokenizer.token_to_id(token)
        if token_id is None or token_id >= vocab_size:
            raise ConfigError(
                f"classifier_from_token: the model has no token {token[:60]!r}; give tokens as its vocabulary spells "
                "them",
                param="hf_overrides",
            )
        ids.append(token_id)
    return ids
