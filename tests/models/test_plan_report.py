"""The plan report's numbers, computed by hand for small models."""

from __future__ import annotations

from dataclasses import replace

import checkpoints
import pytest

from octavo.base.errors import ConfigError
from octavo.models.plan import plan_report, render
from octavo.models.registry import build_spec

LLAMA = build_spec(checkpoints.CASES["llama"]().to_dict())

# vocab 307, hidden 64, 2 layers; heads 4 x 16, kv heads 2 x 16; feed-forward 112 wide; head not tied
EMBEDDING = 307 * 64
ATTENTION = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64)
FEED_FORWARD = 2 * 3 * 112 * 64
NORMS = 5 * 64


def test_numbers_by_hand() -> None:
    parameters = 2 * EMBEDDING + ATTENTION + FEED_FORWARD + NORMS
    weights = 4 * parameters
    kv = 2 * 2 * 2 * 16 * 4  # K and V, layers, kv heads, head_dim, bytes
    report = plan_report(
        LLAMA, weight_bytes=weights, kv_bytes_per_token=512, max_model_len=100, free_bytes=weights + 3 * 100 * kv + 99
    )
    assert report.parameters == parameters == 107_200
    assert report.kv_bytes_per_token == kv == 512
    assert report.kv_bytes_full == 51_200
    token = plan_report(LLAMA, weight_bytes=1, kv_bytes_per_token=512, max_model_len=1, free_bytes=None)
    assert token.kv_bytes_full == 512
    assert report.sequences == 3
    assert report.flops_per_token == 2 * (EMBEDDING + ATTENTION + FEED_FORWARD)
    assert report.flops_per_token_full == report.flops_per_token + 2 * 4 * 64 * 100
    assert {part.name: (part.parameters, part.flops) for part in report.parts} == {
        "embedding": (EMBEDDING, 0),
        "attention": (ATTENTION, 2 * ATTENTION),
        "feed-forward": (FEED_FORWARD, 2 * FEED_FORWARD),
        "norms": (NORMS, 0),
        "head": (EMBEDDING, 2 * EMBEDDING),
    }


@pytest.mark.parametrize("name", checkpoints.CASES)
def test_parts_add_up(name: str) -> None:
    spec = build_spec(checkpoints.CASES[name]().to_dict())
    report = plan_report(spec, weight_bytes=1, kv_bytes_per_token=256, max_model_len=9, free_bytes=None)
    assert sum(part.parameters for part in report.parts) == report.parameters == spec.num_parameters()
    assert report.parts[-1].flops == 2 * spec.vocab_size * spec.hidden_size
    vectors = [one.shape for name, one in spec.parameters().items() if not name.endswith("_bias")]
    assert report.parts[3].parameters == sum(shape[0] for shape in vectors if len(shape) == 1)  # norms


def test_experts_by_hand() -> None:
    """All experts are stored, a token goes through top_k of them: 3 layers, the second of them dense."""
    spec = build_spec(checkpoints.CASES["qwen2_moe"]().to_dict())
    report = plan_report(spec, weight_bytes=1, kv_bytes_per_token=256, max_model_len=9, free_bytes=None)
    dense, expert, others = 3 * 112 * 64, 3 * 48 * 64, 5 * 64 + 3 * 80 * 64 + 64
    part = next(part for part in report.parts if part.name == "feed-forward")
    assert part.parameters == dense + 2 * (5 * expert + others)
    assert part.flops == 2 * (dense + 2 * (3 * expert + others))
    assert report.active_parameters == report.parameters - 2 * 2 * expert
    assert "parameters, " in render(report)
    assert "for a token" in render(report)


def test_qwen3_30b_a3b() -> None:
    """The published model's own figures: 30.5 billion parameters, 3.3 of them for a token."""
    sizes = {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4}
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
    spec = build_spec({"model_type": "qwen3_moe", "vocab_size": 151_936, "head_dim": 128, **sizes, **experts})
    assert (spec.num_parameters(), spec.num_active_parameters()) == (30_532_122_624, 3_353_032_704)


def test_windows_bound_the_attention() -> None:
    spec = build_spec(checkpoints.CASES["mistral"]().to_dict())
    short, long = (
        plan_report(spec, weight_bytes=1, kv_bytes_per_token=256, max_model_len=n, free_bytes=None) for n in (8, 200)
    )
    assert short.flops_per_token_full == long.flops_per_token_full == short.flops_per_token + 2 * 4 * 4 * 24 * 8


@pytest.mark.parametrize("length", [0, -1, 257])
def test_a_context_that_the_model_does_not_have(length: int) -> None:
    with pytest.raises(ConfigError, match="max_model_len must be from 1 to 256"):
        plan_report(LLAMA, weight_bytes=1, kv_bytes_per_token=256, max_model_len=length, free_bytes=None)


@pytest.mark.parametrize(
    ("free", "sequences", "said"),
    [
        (None, None, "memory of the device is not known"),
        (1 << 20, 20, "Fits: 20 sequences of 100 tokens beside the weights in 1 MiB"),
        (1000, 0, "The weights fit in 1000 B, a full context does not: no room."),
        (999, 0, "Does not fit: the weights take 1000 B, 999 B are free"),
    ],
)
def test_the_verdict(free: int | None, sequences: int | None, said: str) -> None:
    report = plan_report(LLAMA, weight_bytes=1000, kv_bytes_per_token=512, max_model_len=100, free_bytes=free)
    assert report.sequences == sequences
    assert said in render(replace(report, reason="no room"))


@pytest.mark.parametrize(("free", "sequences", "said"), [(1000, 1, "Fits"), (999, 0, "Does not fit")])
def test_what_caches_nothing_needs_room_for_its_weights_alone(free: int, sequences: int, said: str) -> None:
    report = plan_report(LLAMA, weight_bytes=1000, kv_bytes_per_token=0, max_model_len=100, free_bytes=free)
    assert (report.sequences, render(report).splitlines()[-1].partition(":")[0]) == (sequences, said)


def test_the_verdict_names_the_cache_that_the_sequences_fit_in() -> None:
    report = plan_report(LLAMA, weight_bytes=1000, kv_bytes_per_token=512, max_model_len=100, free_bytes=1 << 30)
    said = render(replace(report, sequences=80, cache_bytes=4 << 20)).splitlines()[-1]
    fits = "Fits: 80 sequences of 100 tokens in a KV cache of 4 MiB"
    assert said == f"{fits}, beside the weights; 1 GiB are free for both."


def test_the_whole_text() -> None:
    report = plan_report(LLAMA, weight_bytes=428_800, kv_bytes_per_token=512, max_model_len=256, free_bytes=1 << 20)
    assert render(report).splitlines() == TEXT.splitlines()


def test_the_stored_size_is_shown_where_it_is_known() -> None:
    report = plan_report(
        LLAMA, weight_bytes=1000, kv_bytes_per_token=512, max_model_len=100, free_bytes=None, stored_bytes=2048
    )
    (line,) = [line for line in render(report).splitlines() if "as stored" in line]
    assert line.split() == ["as", "stored", "2", "KiB"]


TEXT = """\
llama: 2 layers, 107.2 K parameters

  weights                              418.8 KiB
  KV cache, a token                        512 B
  KV cache, 256 tokens                   128 KiB
  arithmetic, a token                174.5 KFLOP
    at the end of that context       305.5 KFLOP

  part                parameters    share      FLOP a token
  embedding               19,648    18.3%                 0
  attention               24,576    22.9%            49,152
  feed-forward            43,008    40.1%            86,016
  norms                      320     0.3%                 0
  head                    19,648    18.3%            39,296

Fits: 4 sequences of 256 tokens beside the weights in 1 MiB."""
