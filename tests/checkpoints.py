"""Small random checkpoints made with Transformers: a case's name in, a complete model folder out; and its logits.

Each is a full model: config.json, safetensors, generation_config.json, tokenizer.json and a chat template.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 307
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
BOS, EOS = 1, 2
SENTENCES = (
    "An octavo is a sheet folded into eight pages; the cache is kept in pages too.",
    "The quick brown fox jumps over the lazy dog, and then over the next one.",
    "Greedy output equals the reference's, whatever else is in the batch.",
    "def add(a, b):\n    return a + b\n",
    "Über sieben Brücken musst du gehn; 你好，世界。",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-4,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}


def _llama(**more: Any) -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(**{**BASE, **more})


def _rope(kind: str, **more: Any) -> transformers.PretrainedConfig:
    # A small original context puts several of the 8 frequencies into each of llama3's and yarn's ranges.
    return _llama(rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **more})


def _gemma_text(**more: Any) -> transformers.PretrainedConfig:
    sizes = {"num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 24, "query_pre_attn_scalar": 20}
    return transformers.Gemma3TextConfig(**{**BASE, **sizes, "sliding_window": 8, **more})


def _gemma_with_vision() -> transformers.PretrainedConfig:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    scaled = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    return transformers.Gemma3Config(
        text_config=_gemma_text(rope_parameters=scaled),
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=28, patch_size=14),
        mm_tokens_per_image=4,
        image_token_index=VOCAB_SIZE - 1,
        boi_token_index=VOCAB_SIZE - 2,
        eoi_token_index=VOCAB_SIZE - 3,
    )


def _experts(kind: str, **more: Any) -> transformers.PretrainedConfig:
    """5 experts of another width than the dense layers; 3 layers, of which the second is dense."""
    sizes = {"num_hidden_layers": 3, "num_experts": 5, "moe_intermediate_size": 48, "mlp_only_layers": [1]}
    return getattr(transformers, kind)(**{**BASE, **sizes, **more})


CASES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": _llama,
    "llama_llama3": lambda: _rope(
        "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "llama_linear": lambda: _rope("linear", factor=2.5),
    "llama_yarn": lambda: _rope("yarn", factor=4.0, original_max_position_embeddings=64),
    "llama_dynamic": lambda: _rope("dynamic", factor=2.0),
    "llama_tied": lambda: _llama(tie_word_embeddings=True, num_hidden_layers=3, num_key_value_heads=1),
    "llama_bias": lambda: _llama(attention_bias=True, mlp_bias=True, num_key_value_heads=4, head_dim=20),
    "mistral": lambda: transformers.MistralConfig(**{**BASE, "head_dim": 24}, sliding_window=8),
    "qwen2": lambda: transformers.Qwen2Config(**BASE, tie_word_embeddings=True),
    "qwen2_window": lambda: transformers.Qwen2Config(
        **{**BASE, "num_hidden_layers": 4}, use_sliding_window=True, sliding_window=8, max_window_layers=2
    ),
    "qwen3": lambda: transformers.Qwen3Config(**{**BASE, "num_attention_heads": 6}, head_dim=20),
    "qwen3_bias": lambda: transformers.Qwen3Config(**BASE, head_dim=16, attention_bias=True, rope_theta=1e6),
    "qwen3_moe": lambda: _experts("Qwen3MoeConfig", num_experts_per_tok=2, norm_topk_prob=True, head_dim=20),
    "qwen3_moe_window": lambda: _experts(
        "Qwen3MoeConfig", num_experts_per_tok=3, use_sliding_window=True, sliding_window=8, decoder_sparse_step=2
    ),
    "qwen2_moe": lambda: _experts(
        "Qwen2MoeConfig", num_experts_per_tok=3, norm_topk_prob=True, shared_expert_intermediate_size=80
    ),
    "qwen2_moe_window": lambda: _experts(
        "Qwen2MoeConfig",
        num_experts_per_tok=1,
        shared_expert_intermediate_size=40,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
        qkv_bias=False,
    ),
    "mixtral": lambda: transformers.MixtralConfig(**BASE, num_local_experts=6),
    "gemma3_text": _gemma_text,
    "gemma3_text_softcap": lambda: _gemma_text(final_logit_softcapping=3.0, attention_bias=True),
    "gemma3": _gemma_with_vision,
}
"""Case name -> the config of its checkpoint."""


def make_checkpoint(name: str, folder: Path) -> Path:
    """Write case `name` into `folder` (made if need be) and return it. The same name gives the same weights."""
    config = CASES[name]()
    save_random(_model_class(config)(config), folder, seed=zlib.crc32(name.encode()))
    _write_tokenizer(folder, add_bos=not name.startswith("qwen"))
    return folder


def save_random(model: Any, folder: Path, *, seed: int) -> Path:
    """Fill a Transformers model with the random weights of `seed` and save it: config and safetensors only."""
    _randomize(model, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        model.save_pretrained(folder)
    return folder


def hf_logits(folder: Path, token_ids: Sequence[int]) -> np.ndarray:
    """Transformers' logits, float32 [tokens, vocab], with eager attention and no cache."""
    return logits_of(hf_model(Path(folder)), token_ids)


def logits_of(model: torch.nn.Module, token_ids: Sequence[int]) -> np.ndarray:
    """float32 [tokens, vocab] of a Transformers model."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False)
    return output.logits[0].numpy()


@functools.lru_cache(maxsize=32)
def hf_model(folder: Path) -> torch.nn.Module:
    """The checkpoint as Transformers runs it: float32, eager attention. Kept for later calls."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with _quiet():
        model = _model_class(config).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def prompt(length: int, *, seed: int = 0) -> list[int]:
    """Random token ids that are no special tokens."""
    return np.random.default_rng(seed).integers(len(SPECIAL_TOKENS), VOCAB_SIZE - 4, length).tolist()


def _model_class(config: transformers.PretrainedConfig) -> Any:
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _randomize(model: torch.nn.Module, *, seed: int) -> None:
    """Weights with which every part matters: sharp attention, norms and biases away from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                sharp = 1.4 if "q_proj" in name or "k_proj" in name else 1.0
                weight.copy_(noise * sharp / weight.shape[-1] ** 0.5)
            else:
                center = 1.0 if "norm" in name and "gemma" not in model.config.model_type else 0.0
                weight.copy_(center + 0.3 * noise)


def _write_tokenizer(folder: Path, *, add_bos: bool) -> None:
    _tokenizer(add_bos).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "add_bos_token": add_bos,
        "model_max_length": BASE["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


@functools.lru_cache(maxsize=2)
def _tokenizer(add_bos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 3,  # the embedding has rows that no token uses, as real checkpoints do
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
        )
    return tokenizer


class _quiet:  # noqa: N801
    """No progress bars or notes from Transformers while it saves and loads."""

    def __enter__(self) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity_warning()
