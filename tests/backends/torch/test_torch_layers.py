"""Every word of the vocabulary, on the torch backend, against the float64 forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch_driver import VOCAB, Driver, arrays, close, layer, rope, spec
from torch_forward import forward

from octavo.backends.torch.layers.decoder import Decoder
from octavo.backends.torch.layers.moe import route
from octavo.backends.torch.ops.plain import PlainOps
from octavo.backends.torch.weights import ModelWeights
from octavo.models.spec import Head, ModelSpec, MoE, RMSNorm

NORM = RMSNorm(1e-6, offset=1.0)
MODELS: dict[str, Any] = {
    "plain": lambda: spec(),
    "tied": lambda: spec(layer(), head=Head(tied=True)),
    "head_softcap_and_scale": lambda: spec(layer(), head=Head(tied=False, softcap=2.0, scale=0.3)),
    "embedding_scale": lambda: spec(layer(), embedding_scale=5.5),
    "biases": lambda: spec(layer({"qkv_bias": True, "output_bias": True}, {"bias": True})),
    "qk_norm": lambda: spec(layer({"qk_norm": RMSNorm(1e-6)})),
    "qk_norm_offset": lambda: spec(layer({"qk_norm": NORM})),
    "four_norms_offset": lambda: spec(layer(pre_mixer=NORM, pre_ffn=NORM, post_mixer=NORM, post_ffn=NORM)),
    "post_norms_only": lambda: spec(layer(pre_mixer=None, pre_ffn=None, post_mixer=NORM, post_ffn=NORM)),
    "gelu": lambda: spec(layer(ffn={"act": "gelu"})),
    "gelu_tanh": lambda: spec(layer(ffn={"act": "gelu_tanh"})),
    "experts": lambda: spec(layer(ffn={"experts": 6, "top_k": 2, "renormalize": True}), layer()),
    "experts_all": lambda: spec(layer(ffn={"experts": 3, "top_k": 3, "renormalize": False, "act": "gelu"})),
    "experts_of_odd_width": lambda: spec(layer(ffn={"experts": 6, "top_k": 2, "renormalize": True, "width": 21})),
    "experts_and_a_shared_one": lambda: spec(
        layer(ffn={"experts": 6, "top_k": 1, "renormalize": False, "shared_width": 24})
    ),
    "no_rope": lambda: spec(layer({"rope": None})),
    "partial_rope": lambda: spec(layer({"rope": rope(4)})),
    "interleaved_rope": lambda: spec(layer({"rope": rope(8, interleaved=True)})),
    "attention_factor": lambda: spec(layer({"rope": rope(8, attention_factor=1.3)})),
    "two_ropes": lambda: spec(layer({"rope": rope(8)}), layer({"rope": rope(6)})),
    "one_kv_head": lambda: spec(layer({"kv_heads": 1})),
    "as_many_kv_heads": lambda: spec(layer({"kv_heads": 4})),
    "layers_of_different_shape": lambda: spec(
        layer({"heads": 6, "kv_heads": 3, "head_dim": 4, "rope": rope(4)}, {"width": 24}), layer({"kv_heads": 1})
    ),
    "window": lambda: spec(layer({"window": 5}), layer()),
    "window_of_one": lambda: spec(layer({"window": 1})),
    "softcap": lambda: spec(layer({"softcap": 0.8})),
    "softcap_window": lambda: spec(layer({"softcap": 0.8, "window": 6}), layer({"window": 3})),
}


@pytest.mark.parametrize("asked", [-1, None])
@pytest.mark.parametrize("name", MODELS)
def test_prompt_chunks_and_decode(name: str, asked: int | None) -> None:
    """Log probabilities of a prompt in two chunks, or what follows it alone, then a decode step whose token the engine
    has not seen."""
    model: ModelSpec = MODELS[name]()
    weights = arrays(model)
    driver = Driver(model, weights)
    ids = np.random.default_rng(1).integers(0, VOCAB, 21).tolist()
    begin = driver.begin(3, ids, prompt_logprobs=asked)
    first = driver.step([(3, 0, 13, False)], [begin])
    second = driver.step([(3, 13, 8, True)])
    third = driver.step([(3, 21, 1, True)])
    expected = forward(model, weights, [*ids, *second.tokens])
    position = len(ids)
    for result, start in ((first, 1), (second, 14)) if asked else ():
        position, entries = result.prompt_logprobs[3]
        assert position == start
        for entry in entries:
            assert entry.token_ids[0] == ids[position]
            close(entry, expected[position - 1])
            position += 1
    assert first.tokens == []
    assert position == len(ids)
    close(second.logprobs[0], expected[20])
    close(third.logprobs[0], expected[21])
    assert second.tokens == [int(expected[20].argmax())]
    assert third.prompt_logprobs == {}
    assert bool(first.prompt_logprobs) == bool(second.prompt_logprobs) == bool(asked)


def test_the_last_layer_feeds_forward_what_something_is_asked_of(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spec(layer(), layer(ffn={"width": 24}))
    driver, fed = Driver(model, arrays(model)), []
    run = PlainOps.norm_mlp

    def norm_mlp(self: PlainOps, stream: Any, *more: Any) -> Any:
        fed.append(len(stream.x))
        return run(self, stream, *more)

    monkeypatch.setattr(PlainOps, "norm_mlp", norm_mlp)
    begins = [driver.begin(row, list(range(1, 12))) for row in range(3)]
    for step, counts in (
        ([(0, 0, 5, False), (1, 0, 11, True), (2, 0, 11, True)], [27, 2]),
        ([(0, 5, 4, False)], [4]),
        ([(0, 9, 1, False), (2, 11, 1, True)], [2, 1]),
        ([(1, 11, 1, True), (0, 10, 1, True)], [2, 2]),
        ([(3, 0, 4, False), (1, 12, 1, True)], [5, 5]),
        ([(3, 4, 3, True), (1, 13, 1, True)], [4, 2]),
    ):
        assert not driver.step(step, begins).failed
        assert fed == counts
        fed.clear()
        begins = [driver.begin(3, list(range(1, 8)), num_prompt=4, prompt_logprobs=0)] if step[0][0] == 1 else []


def test_of_equal_experts_the_lowest_are_taken() -> None:
    logits = torch.zeros(3, 64, dtype=torch.bfloat16)
    logits[1, [3, 7, 60]] = 1.0
    logits[2, 4:] = -float("inf")
    chosen, shares = route(logits, MoE(experts=64, top_k=6, width=8, act="silu", renormalize=False))
    assert chosen.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 7, 60], [0, 1, 2, 3, 4, 5]]
    assert shares[2].tolist() == pytest.approx([0.25] * 4 + [0.0] * 2)


def test_scale_and_softcap_take_no_memory_beside_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    made, head = torch.randn(3, VOCAB), torch.empty(VOCAB, 32)
    wanted = 2.0 * torch.tanh(made * 0.3 / 2.0)
    monkeypatch.setattr(PlainOps, "logits", lambda *_: made)
    model = spec(head=Head(tied=False, softcap=2.0, scale=0.3))
    decoder = Decoder(model, ModelWeights(head, head, None, (), 0), PlainOps())
    assert decoder.logits(torch.empty(3, 32)) is made
    torch.testing.assert_close(made, wanted)
