"""The mixture's kernels against plain float64 torch.

Without a GPU they run in Triton's interpreter, whose bfloat16 is truncated, not rounded: hence its tolerance.
"""

from dataclasses import replace

import pytest
import torch
from int4_matrices import draw
from scaled_matrices import integers, matrix

from octavo.backends.torch.kernels import moe_matmul, moe_routing
from octavo.backends.torch.kernels.moe_matmul import Blocks, combine, down_apart, expert_matmul, mixture
from octavo.backends.torch.kernels.moe_routing import Runs, max_blocks, route, sort_by_expert
from octavo.backends.torch.layers import moe as eager
from octavo.backends.torch.layers.linear import linear
from octavo.backends.torch.layers.mlp import ACTIVATIONS
from octavo.backends.torch.quant.experts import QuantizedExperts
from octavo.backends.torch.weights import MlpWeights, MoEWeights
from octavo.models.spec import MoE

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

WILD = 123456789
ACTS = ["silu", "gelu", "gelu_tanh"]
BYTES = {"e4m3": matrix, "int8": integers}
QUANTIZED = [(kind, group) for kind in BYTES for group in ((1, 0), (1, 128), (128, 128))]
QUANTIZED += [(kind, group) for kind in ("int4", "int4_zeros") for group in ((1, 0), (1, 32), (1, 128))]
"""Kinds, and the rows and columns that share a scale: (1, 0), a row does."""


def random(*shape, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(DEVICE)


def random_experts(tokens, num_experts, top_k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, num_experts, generator=generator).argsort(-1)[:, :top_k]
    return chosen.sort(-1).values.to(torch.int32).to(DEVICE)


def routed(logits, *, top_k, renormalize):
    """route()'s outputs, poisoned before; one row more than it may write."""
    tokens = len(logits)
    experts = torch.full((tokens + 1, top_k), WILD, dtype=torch.int32, device=DEVICE)
    shares = torch.full((tokens + 1, top_k), float("nan"), device=DEVICE)
    route(logits, top_k=top_k, renormalize=renormalize, experts=experts[:tokens], shares=shares[:tokens])
    assert (experts[tokens] == WILD).all()
    assert shares[tokens].isnan().all()
    return experts[:tokens], shares[:tokens]


def routed_plainly(logits, *, top_k, renormalize):
    p = logits.float().softmax(-1)
    order = p.sort(dim=-1, descending=True, stable=True).indices[:, :top_k].sort(-1).values
    shares = p.gather(-1, order)
    return order.to(torch.int32), shares / shares.sum(-1, keepdim=True) if renormalize else shares


def expected_runs(experts, *, num_experts, block_m):
    """order (of used blocks) and block_experts as lists."""
    flat = experts.flatten().tolist()
    order, block_experts = [], []
    for expert in range(num_experts):
        run = [i for i, e in enumerate(flat) if e == expert]
        run += [-1] * (-len(run) % block_m)
        order += run
        block_experts += [expert] * (len(run) // block_m)
    return order, block_experts


def check_runs(runs, experts, *, num_experts, block_m):
    order, block_experts = expected_runs(experts, num_experts=num_experts, block_m=block_m)
    assert runs.block_m == block_m
    assert runs.order[: len(order)].tolist() == order
    assert runs.block_experts[: len(block_experts)].tolist() == block_experts
    assert (runs.block_experts[len(block_experts) :] == -1).all()


@pytest.fixture
def poisoned(monkeypatch):
    """torch.empty gives wild integers and NaN, so that what a kernel leaves out is seen."""

    def empty(*size, dtype=torch.float32, device=None):
        return torch.full(
            size[0] if isinstance(size[0], tuple) else size,
            float("nan") if dtype.is_floating_point else WILD, dtype=dtype, device=device,
        )  # fmt: skip

    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "renormalize", "dtype"),
    [
        (5, 128, 8, True, torch.bfloat16),
        (3, 60, 4, False, torch.float32),
        (2, 512, 32, True, torch.float16),
        (2, 8, 8, False, torch.float32),
        (1, 3, 1, True, torch.bfloat16),
        (0, 8, 2, True, torch.float32),
    ],
)
def test_route(tokens, num_experts, top_k, renormalize, dtype):
    logits = random(tokens, num_experts + 3, dtype=dtype, scale=2.0)[:, :num_experts]  # rows that are not contiguous
    experts, shares = routed(logits, top_k=top_k, renormalize=renormalize)
    wanted, p = routed_plainly(logits, top_k=top_k, renormalize=renormalize)
    assert experts.tolist() == wanted.tolist()
    torch.testing.assert_close(shares, p, rtol=1e-5, atol=1e-7)


def test_route_takes_the_lowest_of_equal_ones():
    logits = torch.zeros(3, 20, device=DEVICE)
    logits[1, [3, 7, 19]] = 1.0
    logits[2, 4:] = -float("inf")
    experts, shares = routed(logits, top_k=6, renormalize=False)
    assert experts.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 7, 19], [0, 1, 2, 3, 4, 5]]
    assert shares[2].tolist() == pytest.approx([0.25] * 4 + [0.0] * 2)


def test_route_of_nan_still_chooses_experts():
    logits = torch.zeros(1, 9, device=DEVICE)
    logits[0, 5] = float("nan")
    experts, shares = routed(logits, top_k=3, renormalize=True)
    assert experts.tolist() == [[0, 1, 2]]
    assert shares.isnan().all()


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "block_m"),
    [(1, 40, 8, 16), (7, 5, 2, 4), (40, 6, 3, 16), (90, 7, 5, 32), (1, 1, 1, 64)],
)
@pytest.mark.usefixtures("poisoned")
def test_sort_by_expert(tokens, num_experts, top_k, block_m):
    experts = random_experts(tokens, num_experts, top_k)
    runs = sort_by_expert(experts, num_experts=num_experts, block_m=block_m)
    check_runs(runs, experts, num_experts=num_experts, block_m=block_m)


@pytest.mark.parametrize("rows", [64, 65, 700])
@pytest.mark.usefixtures("poisoned")
def test_sort_by_expert_in_groups(rows, monkeypatch):
    monkeypatch.setattr(moe_routing, "GROUP", 64)
    experts = random_experts(rows, 5, 1, seed=rows)
    experts[experts == 3] = 0  # one that no token has
    runs = sort_by_expert(experts, num_experts=5, block_m=16)
    check_runs(runs, experts, num_experts=5, block_m=16)


@pytest.mark.usefixtures("poisoned")
def test_sort_by_expert_when_all_have_one():
    experts = torch.full((300, 1), 2, dtype=torch.int32, device=DEVICE)
    runs = sort_by_expert(experts, num_experts=4, block_m=2)  # a run of more blocks than one store writes
    check_runs(runs, experts, num_experts=4, block_m=2)


def test_sort_by_expert_of_nothing():
    runs = sort_by_expert(torch.empty(0, 8, dtype=torch.int32, device=DEVICE), num_experts=16, block_m=16)
    assert runs.order.shape == runs.block_experts.shape == (0,)


@pytest.mark.parametrize(("rows", "num_experts", "block_m"), [(8, 128, 16), (256, 128, 16), (1000, 7, 64), (0, 4, 16)])
def test_max_blocks_is_the_worst_case(rows, num_experts, block_m):
    """All experts but one have one row, the last the others; or runs that end one row past a block."""
    alone = min(rows, num_experts)
    counts = [1] * alone
    left = rows - alone
    for i in range(alone):
        more = left // block_m * block_m if i == alone - 1 else min(left // block_m, 1) * block_m
        counts[i] += more
        left -= more
    worst = sum(-(-count // block_m) for count in counts)
    assert worst <= max_blocks(rows, num_experts=num_experts, block_m=block_m) <= worst + 1


def grouped(x, weight, experts, *, top_k, act=None, shares=None):
    """expert_matmul's meaning in float64: [rows, N]."""
    flat = experts.flatten().long()
    source = torch.arange(len(flat), device=x.device) // top_k
    y = torch.einsum("rnk,rk->rn", weight[flat].double(), x[source].double())
    if act is not None:
        gate, up = y.chunk(2, dim=-1)
        y = ACTIVATIONS[act](gate) * up
    return y if shares is None else y * shares.flatten().double()[:, None]


def quantized(kind, group, count, n, k):
    """(QuantizedExperts, the same in float32); all that can be, of a size that makes products of about 1."""
    if kind not in BYTES:
        case = draw(count * n, k, group=group[1] or -1, zeros=kind == "int4_zeros", device=DEVICE)
        return QuantizedExperts(case.matrix, count), case.values.view(count, n, k).float()
    rows = BYTES[kind](count * n, k, group)
    held = QuantizedExperts(replace(rows, scale=rows.scale * (0.2 * k**-0.5)), count)
    return held, torch.stack([held.expert(i) for i in range(count)])


def check_product(
    *, tokens, experts_of, n, k, blocks, dtype, gather=True, act=None, with_shares=False, kind=None, group=None
):  # fmt: skip
    """One expert_matmul on random inputs; x and out are views with rows farther apart than they are long."""
    num_experts, top_k = experts_of
    experts = random_experts(tokens, num_experts, top_k)
    rows = tokens * top_k
    x = random(tokens if gather else rows, k + 16, dtype=dtype)[:, :k]
    held = weight = random(num_experts, n, k, dtype=dtype, scale=k**-0.5)
    if kind is not None:
        held, weight = quantized(kind, group, num_experts, n, k)
    shares = torch.rand(tokens, top_k, device=DEVICE) if with_shares else None
    columns = n // 2 if act else n
    out = torch.full((rows + 1, columns + 3), float("nan"), dtype=dtype, device=DEVICE)
    runs = sort_by_expert(experts, num_experts=num_experts, block_m=blocks.m)
    expert_matmul(
        x, held, runs=runs, out=out[:rows, :columns], blocks=blocks, gather_top_k=top_k if gather else 1,
        shares=shares, act=act,
    )  # fmt: skip
    wanted = grouped(x, weight, experts, top_k=top_k if gather else 1, act=act, shares=shares)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(out[:rows, :columns].double(), wanted, rtol=tolerance, atol=tolerance)
    assert out[rows].isnan().all()
    assert out[:, columns:].isnan().all()


@pytest.mark.parametrize("act", ACTS)
def test_gated_product(act):
    blocks = Blocks(m=16, n=32, k=32, stages=2, group=2)
    check_product(tokens=9, experts_of=(4, 2), n=2 * 40, k=64, blocks=blocks, dtype=torch.float32, act=act)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_down_product(dtype):
    blocks = Blocks(m=16, n=32, k=64, stages=2, group=3)
    check_product(
        tokens=19, experts_of=(3, 2), n=50, k=72, blocks=blocks, dtype=dtype, gather=False, with_shares=True
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "group"), QUANTIZED, ids=str)
def test_products_of_quantized_experts(kind, group, dtype):
    """More outputs than a block of scales has, and inputs that blocks do not divide; descriptors are none of theirs."""
    blocks = Blocks(m=16, n=32, k=64, stages=2, group=2, descriptors=True)
    n = 256 if group[0] > 1 else 80
    options = {"blocks": blocks, "dtype": dtype, "kind": kind, "group": group}
    whole, odd = (256, 384) if kind.startswith("int4") else (192, 200)
    check_product(tokens=9, experts_of=(4, 2), n=n, k=whole, act="silu", **options)
    check_product(tokens=9, experts_of=(4, 2), n=n // 2 + 3, k=odd, gather=False, with_shares=True, **options)


@pytest.mark.parametrize("kind", ["int4", "int4_zeros"])
def test_inputs_that_blocks_of_words_do_not_divide(kind):
    """A group that is all of a row, 96 inputs."""
    blocks = Blocks(m=16, n=32, k=128, stages=2)
    options = {"blocks": blocks, "dtype": torch.float16, "kind": kind, "group": (1, 0)}
    check_product(tokens=9, experts_of=(4, 2), n=80, k=96, act="gelu", **options)


@pytest.mark.parametrize(("k", "act"), [(64, "silu"), (72, None), (51, None)])
def test_product_by_descriptors(k, act):
    """51 inputs: rows that a descriptor cannot address."""
    blocks = Blocks(m=16, n=32, k=32, stages=2, group=2, descriptors=True)
    check_product(tokens=9, experts_of=(4, 2), n=2 * 40, k=k, blocks=blocks, dtype=torch.float32, act=act)


@pytest.mark.parametrize(("m", "n", "k", "warps"), [(32, 64, 64, 4), (64, 128, 32, 8), (128, 32, 64, 8)])
def test_product_in_other_blocks(m, n, k, warps):
    blocks = Blocks(m=m, n=n, k=k, warps=warps, group=4)
    check_product(tokens=70, experts_of=(3, 1), n=96, k=64, blocks=blocks, dtype=torch.bfloat16, act="silu")


@pytest.mark.parametrize(("tokens", "top_k", "width"), [(3, 8, 40), (1, 1, 256), (70, 3, 1029), (0, 2, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine(tokens, top_k, width, dtype):
    rows = random(tokens * top_k, width + 8, dtype=dtype)[:, :width]
    out = torch.full((tokens + 1, width), float("nan"), dtype=dtype, device=DEVICE)
    combine(rows, out=out[:tokens])
    wanted = sum(rows.float().view(tokens, top_k, width).unbind(1), torch.zeros(tokens, width, device=DEVICE))
    tolerance = 0 if CUDA or dtype == torch.float32 else 8e-3
    torch.testing.assert_close(out[:tokens], wanted.to(dtype), rtol=tolerance, atol=0)
    assert out[tokens].isnan().all()


def random_mixture(*, hidden, moe, dtype):
    def matrix(*shape, seed):
        return random(*shape, dtype=dtype, scale=shape[-1] ** -0.5, seed=seed)

    shared = None
    if moe.shared_width is not None:
        shared = MlpWeights(matrix(2 * moe.shared_width, hidden, seed=1), matrix(hidden, moe.shared_width, seed=2))
    return MoEWeights(
        router=matrix(moe.experts, hidden, seed=3) * 3,
        gate_up=matrix(moe.experts, 2 * moe.width, hidden, seed=4),
        down=matrix(moe.experts, hidden, moe.width, seed=5),
        shared=shared,
        shared_router=matrix(1, hidden, seed=6) if shared else None,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 2, 9, 50])
@pytest.mark.usefixtures("poisoned")
def test_mixture_is_the_eager_one(tokens, dtype):
    moe = MoE(
        experts=6, top_k=2, width=32, act="silu", renormalize=tokens != 9, shared_width=48 if tokens == 9 else None
    )  # fmt: skip
    weights = random_mixture(hidden=64, moe=moe, dtype=dtype)
    x = random(tokens, 64, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    y = mixture(x, linear(x, weights.router, None), weights, moe)
    assert y.dtype == dtype
    assert y.shape == x.shape
    if tokens:  # the eager one does not take none
        torch.testing.assert_close(y, eager.mixture(x, weights, moe), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("tokens", "top_k", "n", "k"), [(1, 8, 40, 96), (3, 2, 16, 51), (0, 2, 16, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_down_apart(tokens, top_k, n, k, dtype):
    experts = random_experts(tokens, 9, top_k)
    inner = random(tokens * top_k, k + 16, dtype=dtype)[:, :k]
    weight = random(9, n, k, dtype=dtype, scale=k**-0.5)
    shares = torch.rand(tokens, top_k, device=DEVICE)
    out = torch.full((tokens + 1, n + 3), float("nan"), dtype=dtype, device=DEVICE)
    down_apart(inner, weight, experts=experts, shares=shares, out=out[:tokens, :n])
    wanted = grouped(inner, weight, experts, top_k=1, shares=shares).view(tokens, top_k, n).sum(1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out[:tokens, :n].double(), wanted, rtol=tolerance, atol=tolerance)
    assert out[tokens].isnan().all()
    assert out[:, n:].isnan().all()


@pytest.mark.parametrize(("kind", "group"), QUANTIZED, ids=str)
def test_down_apart_of_quantized_experts(kind, group):
    tokens, top_k, n, k = 3, 2, 40, 384 if kind.startswith("int4") else 320
    experts = random_experts(tokens, 9, top_k)
    inner = random(tokens * top_k, k)
    held, weight = quantized(kind, group, 9, n, k)
    shares = torch.rand(tokens, top_k, device=DEVICE)
    out = torch.full((tokens + 1, n), float("nan"), device=DEVICE)
    down_apart(inner, held, experts=experts, shares=shares, out=out[:tokens])
    wanted = grouped(inner, weight, experts, top_k=1, shares=shares).view(tokens, top_k, n).sum(1)
    torch.testing.assert_close(out[:tokens].double(), wanted, rtol=1e-5, atol=1e-5)
    assert out[tokens].isnan().all()


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("kind", ["e4m3", "int8", "int4", "int4_zeros"])
def test_mixture_of_quantized_experts_is_the_eager_one(kind, tokens):
    """Which multiplies them as numbers, as the mixture of these numbers does."""
    moe = MoE(experts=6, top_k=2, width=128, act="silu", renormalize=True)
    plain = random_mixture(hidden=64, moe=moe, dtype=torch.float32)
    gate_up, up_numbers = quantized(kind, (1, 0), 6, 256, 64)
    down, down_numbers = quantized(kind, (128, 128) if kind == "e4m3" else (1, 128), 6, 64, 128)
    weights = replace(plain, gate_up=gate_up, down=down)
    x = random(tokens, 64)
    y = mixture(x, linear(x, weights.router, None), weights, moe)
    wanted = eager.mixture(x, replace(plain, gate_up=up_numbers, down=down_numbers), moe)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(eager.mixture(x, weights, moe), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_few_tokens_apart_and_sorted(together, monkeypatch):
    moe = MoE(experts=5, top_k=3, width=32, act="gelu", renormalize=True)
    weights = random_mixture(hidden=32, moe=moe, dtype=torch.float32)
    x = random(2, 32)
    monkeypatch.setattr(moe_matmul, "apart", lambda *_, **__: not together)
    y = mixture(x, linear(x, weights.router, None), weights, moe)
    torch.testing.assert_close(y, eager.mixture(x, weights, moe), rtol=1e-5, atol=1e-5)


def test_apart_is_for_few_tokens_of_many_experts():
    assert moe_matmul.apart(1, top_k=2, experts=8)
    assert moe_matmul.apart(2, top_k=8, experts=128)
    assert not moe_matmul.apart(2, top_k=2, experts=8)
    assert not moe_matmul.apart(3, top_k=8, experts=128)


@pytest.mark.parametrize("tokens", [1, 8, 32, 128, 256, 1024, 4096, 16384])
@pytest.mark.parametrize(("experts", "top_k"), [(128, 8), (8, 2), (512, 10)])
@pytest.mark.parametrize("size", [2, 4])
def test_both_products_have_the_same_rows_a_block(tokens, experts, top_k, size):
    gated, down = (
        moe_matmul.choose_blocks(tokens, top_k=top_k, experts=experts, gated=gated, element_size=size)
        for gated in (True, False)
    )
    assert gated.m == down.m >= 16


@pytest.mark.parametrize(("experts", "top_k"), [(128, 8), (8, 2), (64, 6), (512, 10)])
def test_kernels_of_all_numbers_of_tokens_are_met_ahead(experts, top_k):
    moe = MoE(experts=experts, top_k=top_k, width=64, act="silu", renormalize=True)
    walked = moe_matmul.unlike_tokens(moe, 8192, element_size=2)

    def met(tokens):
        sizes = {"top_k": top_k, "experts": experts}
        rows = moe_matmul.cut_sort(tokens * top_k)
        few = moe_matmul.apart(tokens, top_k=top_k, experts=experts)
        return few, rows[0] > 1, rows[1], *(moe_matmul.choose_blocks(tokens, gated=g, **sizes) for g in (True, False))

    assert {met(tokens) for tokens in range(32, 8193)} == {met(tokens) for tokens in walked}
    assert len(walked) < 10


def test_runs_of_route_apart():
    logits = random(3, 10)
    shares = torch.full((3, 4), float("nan"), device=DEVICE)
    runs: Runs = moe_routing.route_apart(logits, top_k=4, renormalize=True, shares=shares, block_m=16)
    experts, p = routed_plainly(logits, top_k=4, renormalize=True)
    assert runs.block_experts.tolist() == experts.flatten().tolist()
    order = runs.order.view(12, 16)
    assert order[:, 0].tolist() == list(range(12))
    assert (order[:, 1:] == -1).all()
    torch.testing.assert_close(shares, p)
