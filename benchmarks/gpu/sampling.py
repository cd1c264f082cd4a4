"""Checks kernels/sampling.py on the GPU against PyTorch in float64, then times it: one JSON line a case.

Run from the repository root: PYTHONPATH=. python benchmarks/gpu/sampling.py. "us" is of one call in a captured graph;
"error" is the largest score that a drawn token lacks on the best allowed one, "outside" counts rows whose token is not
allowed (those within float32 rounding of the boundary of top_p or min_p may be), "flags" rows with a flag. With all on
every row has penalties, biases, bad words, stop ids, filters and log probabilities; "edit_error", "logprob_error" are
the largest differences to float64, "top_wrong" counts rows whose rank or alternatives are not its, and "us" tells the
parts apart: a copy of the logits, masks and penalties, the draw, log probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import triton
from timing import graph_us
from torch import Tensor

from octavo.backends.torch.kernels import sampling as kernel
from octavo.backends.torch.kernels.edits import edit
from octavo.backends.torch.kernels.logprobs import log_probabilities
from octavo.backends.torch.sampling.edits import EditTables, row_edits
from octavo.backends.torch.sampling.group import FLOATS, INTEGERS
from octavo.backends.torch.sampling.logprobs import MOST, OWN, RANK, TOP
from octavo.backends.torch.sampling.logprobs import WIDTH as PACKED
from octavo.backends.torch.sampling.random import gumbel_noise
from octavo.base.types.plan import RowSampling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB = 151936
WIDTH = 1024
# name: (temperature, top_p, top_k (0: none), min_p)
MODES = {
    "greedy": (0.0, 1.0, 0, 0.0),
    "plain": (0.8, 1.0, 0, 0.0),
    "top_p": (1.0, 0.9, 0, 0.0),
    "top_k": (1.0, 1.0, 50, 0.0),
    "top_k_top_p": (0.7, 0.95, 20, 0.0),
    "min_p": (1.0, 1.0, 0, 0.05),
}


def steep(batch: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Probabilities that fall with rank^-1.5, roughly a language model's: 60 tokens reach 0.9, 240 reach 0.95."""
    ranks = torch.rand(batch, vocab, device=DEVICE).argsort(-1).float() + 1
    return (20 - 1.5 * ranks.log() + 0.1 * torch.randn(batch, vocab, device=DEVICE)).to(dtype)


def flat(batch: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Tens of thousands of tokens reach 0.9: every row has to read its logits again."""
    return torch.randn(batch, vocab, device=DEVICE).to(dtype)


def make_case(logits: Tensor, mode: str) -> SimpleNamespace:
    """Arguments of sample for these logits; mode "mixed" takes all MODES in turn."""
    batch, vocab = logits.shape
    names = list(MODES) if mode == "mixed" else [mode]
    chosen = [MODES[names[b % len(names)]] for b in range(batch)]
    floats, integers = torch.ones(batch, len(FLOATS)), torch.zeros(batch, len(INTEGERS), dtype=torch.int64)
    integers[:, 0] = torch.randint(-(2**63), 2**63 - 1, (batch,))
    for b, (temperature, top_p, top_k, min_p) in enumerate(chosen):
        floats[b, :3] = torch.tensor([temperature, top_p, min_p])
        integers[b, 1] = top_k or vocab
    tokens = torch.zeros(batch, WIDTH + 1, dtype=torch.int32, device=DEVICE)
    return SimpleNamespace(
        logits=logits,
        rows=torch.arange(batch, dtype=torch.int32, device=DEVICE).flip(0).contiguous(),
        positions=torch.randint(0, WIDTH, (batch,), dtype=torch.int32, device=DEVICE),
        arrays=SimpleNamespace(floats=floats.to(DEVICE), integers=integers.to(DEVICE), tokens=tokens),
        out=torch.full((batch,), -7, dtype=torch.int32, device=DEVICE),
        flags=torch.full((batch,), -7, dtype=torch.int32, device=DEVICE),
        workspace=kernel.make_workspace(batch, vocab, DEVICE),
        filtered=mode not in ("greedy", "plain"),
    )


def call(case: SimpleNamespace, logits: Tensor) -> None:
    """The kernel on a case, of these logits."""
    kernel.sample(
        logits, case.rows, case.positions, case.arrays, case.out, case.flags,
        workspace=case.workspace, filtered=case.filtered,
    )  # fmt: skip


def reference(case: SimpleNamespace, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Rows first to last -> float64 scores [rows, vocab], and bool: what the filters leave."""
    rows = case.rows[first:last].long()
    floats, (seeds, top_k) = case.arrays.floats[rows], case.arrays.integers[rows, :2].unbind(1)
    temperature, top_p, min_p = floats[:, 0:1], floats[:, 1:2].double(), floats[:, 2:3].double()
    greedy = temperature < 1e-5
    x = (case.logits[first:last].float() / torch.where(greedy, 1.0, temperature)).double()
    noise = gumbel_noise(seeds, case.positions[first:last].long(), x.shape[1]).double()
    kept_x = x.masked_fill(x < x.amax(-1, keepdim=True) + min_p.log(), -torch.inf)
    values, order = kept_x.sort(dim=-1, descending=True, stable=True)
    values = values.masked_fill(values < values.gather(1, top_k[:, None] - 1), -torch.inf)
    probabilities = values.softmax(-1)
    above = probabilities.cumsum(-1) - probabilities
    kept = (values > -torch.inf) & ((above < top_p) | (top_p >= 1))
    allowed = torch.empty_like(kept).scatter_(1, order, kept)
    return torch.where(greedy, x, x + noise), allowed | greedy


def check(case: SimpleNamespace, step: int = 32) -> dict[str, float]:
    """Runs the case once: worst lack of score, rows whose token is not allowed, flags set."""
    case.out.fill_(-7)
    call(case, case.logits)
    worst, outside = 0.0, 0
    for first in range(0, len(case.out), step):
        token = case.out[first : first + step].long()[:, None]
        score, allowed = reference(case, first, first + step)
        inside = allowed.gather(1, token)
        lack = score.masked_fill(~allowed, -torch.inf).amax(-1, keepdim=True) - score.gather(1, token)
        worst = max(worst, float(torch.where(inside, lack, 0.0).max()))
        outside += int((~inside).sum())
    written = case.arrays.tokens[case.rows.long(), case.positions.long()]
    if not torch.equal(written, case.out):
        raise RuntimeError("the rows' tokens are not those given out")
    return {"error": worst, "outside": outside, "flags": int(case.flags.count_nonzero())}


def time_us(run: Callable[[int], object], calls: int) -> float:
    """Microseconds of one of run(0) .. run(calls - 1)."""
    return graph_us([partial(run, i) for i in range(calls)])


def bench(name: str, make: Callable[..., Tensor], batch: int, mode: str, dtype: torch.dtype = torch.float32) -> None:
    """Checks and times one case, and prints it."""
    line: dict[str, object] = {"kernel": "sample", "case": f"{name} {mode} B={batch} {str(dtype)[6:]}"}
    try:
        case = make_case(make(batch, VOCAB, dtype), mode)
        line |= check(case)
        # a small batch's logits are in cache when the step comes to sample, a large one's are not
        copies = [case.logits] + [case.logits.roll(1, 0) for _ in range(2 if batch >= 64 else 0)]
        us = time_us(lambda i: call(case, copies[i % len(copies)]), calls=6 if batch >= 64 else 20)
        line |= {"us": round(us, 2), "tb_s": round(case.logits.nbytes / us / 1e6, 3)}
    except Exception as error:
        line["failed"] = f"{type(error).__name__}: {error}"[:600]
    print(json.dumps(line), flush=True)


def make_all_on(batch: int, *, listed: bool) -> SimpleNamespace:
    """A case in which every row asks for everything; listed: for allowed_token_ids too, of half the vocabulary.

    Its sampling and prompts: by place in the batch.
    """
    case = make_case(steep(batch, VOCAB, torch.float32), "mixed" if batch > 1 else "top_k_top_p")
    case.positions = torch.randint(WIDTH // 2, WIDTH, (batch,), dtype=torch.int32, device=DEVICE)
    # few tokens make most of a text
    case.arrays.tokens = (VOCAB * torch.rand(batch, WIDTH + 1, device=DEVICE) ** 6).int()
    case.tables = EditTables(batch, VOCAB, torch.device(DEVICE))
    case.saved = torch.empty((batch, WIDTH + 1), device=DEVICE)
    case.packed = torch.zeros((batch, PACKED), dtype=torch.int32, device=DEVICE)
    case.edited = torch.empty_like(case.logits)
    allowed = list(range(0, VOCAB, 2)) if listed else None
    case.filtered, case.sampling, case.prompts, begun = True, [], [], {}
    for row, position in zip(case.rows.tolist(), case.positions.tolist(), strict=True):
        known = case.arrays.tokens[row, :position].tolist()
        drawn = torch.randint(0, VOCAB, (3, 300)).tolist()
        words = [*([a, b] for a, b in zip(*drawn[:2], strict=True)), [known[-2], known[-1], 7], [known[-1], 8], [9]]
        sampling = RowSampling(
            presence_penalty=0.3,
            frequency_penalty=0.2,
            repetition_penalty=1.1,
            logit_bias=dict.fromkeys(drawn[2], 2.0),
            min_tokens=position,
            stop_token_ids=[1, 2, 3],
            bad_words_ids=words,
            allowed_token_ids=allowed,
        )
        begun[row] = edits = row_edits(sampling, num_prompt=position // 2, vocab_size=VOCAB)
        case.sampling.append(sampling)
        case.prompts.append(position // 2)
        case.arrays.floats[row, 3:] = torch.tensor([0.3, 0.2, 1.1])
        wanted = [position // 2, edits.edits.shape[1], int(listed), MOST if row % 2 else 5]
        case.arrays.integers[row, 2:] = torch.tensor(wanted)
    case.tables.write(begun)
    return case


def edited_reference(case: SimpleNamespace, b: int) -> Tensor:
    """Place b of the batch -> float64 [vocab]: its logits after masks, biases and penalties."""
    s, prompt, x = case.sampling[b], case.prompts[b], case.logits[b].double().clone()
    known = case.arrays.tokens[int(case.rows[b]), : int(case.positions[b])].long()
    last = known[-2:].tolist()
    x[list(s.logit_bias)] += torch.tensor(list(s.logit_bias.values()), dtype=torch.float64, device=DEVICE)
    refused = [word[-1] for word in s.bad_words_ids if word[:-1] == last[2 - (len(word) - 1) :]]
    x[refused + s.stop_token_ids] = -torch.inf
    if s.allowed_token_ids is not None:
        x[1::2] = -torch.inf
    seen, counts = known.bincount(minlength=VOCAB) > 0, known[prompt:].bincount(minlength=VOCAB)
    x = torch.where(seen, torch.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty), x)
    return x - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)


def parts(case: SimpleNamespace) -> dict[str, Callable[[Tensor], object]]:
    """What a decode step does with its logits when rows ask for everything, in this order."""
    return {
        "copy": case.edited.copy_,
        "edit": lambda logits: edit(case.edited, case.rows, case.positions, case.arrays, case.tables, case.saved),
        "sample": lambda logits: call(case, case.edited),
        "logprobs": lambda logits: log_probabilities(
            logits, case.rows, case.arrays, case.out, case.flags, case.packed, workspace=case.workspace
        ),
    }


def check_all_on(case: SimpleNamespace) -> dict[str, float]:
    """Runs the case once; every stage against float64 of what the one before gave."""
    raw, expected = case.logits, torch.stack([edited_reference(case, b) for b in range(len(case.rows))])
    for part in parts(case).values():
        part(raw)
    difference = torch.where(expected == case.edited, 0.0, case.edited - expected).abs().max()
    case.logits = case.edited
    line = {"edit_error": float(difference), **check(case)}
    case.logits = raw
    logprobs, token, values = raw.double().log_softmax(-1), case.out.long()[:, None], case.packed.view(torch.float32)
    own = logprobs.gather(1, token)
    error, wrong = (values[:, OWN] - own[:, 0]).abs().max(), 0
    for b, count in enumerate(case.arrays.integers[case.rows.long(), -1].tolist()):
        order = raw[b].sort(descending=True, stable=True).indices[:count]
        error = torch.maximum(error, (values[b, TOP + MOST :][:count] - logprobs[b, order]).abs().max())
        rank = 1 + int((raw[b] > raw[b, token[b]]).sum())
        wrong += int(case.packed[b, RANK]) != rank or not torch.equal(case.packed[b, TOP:][:count].long(), order)
    return line | {"logprob_error": float(error), "top_wrong": wrong}


def bench_all_on(batch: int, *, listed: bool) -> None:
    """Checks and times all on, together and by part, and prints it."""
    name = f"penalties, bias, words, filters, logprobs{', allowed' if listed else ''}"
    line: dict[str, object] = {"kernel": "all on", "case": f"{name} B={batch}"}
    try:
        case = make_all_on(batch, listed=listed)
        line |= check_all_on(case)
        copies = [case.logits] + [case.logits.roll(1, 0) for _ in range(2 if batch >= 64 else 0)]
        stages = parts(case)

        def everything(i: int) -> None:
            for stage in stages.values():
                stage(copies[i % len(copies)])

        def one(stage: Callable[[Tensor], object]) -> Callable[[int], None]:
            return lambda i: stage(copies[i % len(copies)])

        calls = 6 if batch >= 64 else 20
        # parts that edit what is edited already take as long; the draw and log probabilities come after a whole round
        times = {"all": time_us(everything, calls)} | {part: time_us(one(run), calls) for part, run in stages.items()}
        line |= {"us": {part: round(us, 2) for part, us in times.items()}}
    except Exception as error:
        line["failed"] = f"{type(error).__name__}: {error}"[:600]
    print(json.dumps(line), flush=True)


def unfiltered_variant(case: SimpleNamespace, copies: list[Tensor], block: int, warps: int) -> Callable[[int], None]:
    """The unfiltered launch with other tile sizes."""
    vocab = case.logits.shape[1]
    splits = triton.cdiv(vocab, block)
    w, a = case.workspace, case.arrays
    best = torch.zeros(case.logits.shape[0] * splits, device=DEVICE)
    best_token = torch.zeros_like(best, dtype=torch.int32)

    def run(i: int) -> None:
        logits = copies[i % len(copies)]
        kernel._scan_kernel[(splits, logits.shape[0])](
            logits, case.rows, case.positions, a.floats, a.integers, a.tokens, case.out, case.flags,
            w.arrived, best, best_token, w.weight, w.cut, w.kept, w.values, w.ids,
            logits.stride(0), a.floats.stride(0), a.integers.stride(0), *a.tokens.shape,
            vocab=vocab, splits=splits, filtered=False, block=block, lanes=triton.next_power_of_2(splits),
            keep=kernel.KEEP, num_warps=warps,
        )  # fmt: skip

    return run


def filtered_variant(case: SimpleNamespace, copies: list[Tensor], scan: int, finish: int) -> Callable[[int], None]:
    """Both filtered launches with other numbers of warps."""

    def run(i: int) -> None:
        before = kernel.SCAN_WARPS, kernel.FINISH_WARPS
        kernel.SCAN_WARPS, kernel.FINISH_WARPS = scan, finish
        call(case, copies[i % len(copies)])
        kernel.SCAN_WARPS, kernel.FINISH_WARPS = before

    return run


def tune() -> None:
    """Tile sizes of the unfiltered launch, warps of the filtered ones."""
    variants = [("plain", unfiltered_variant, each) for each in ((4096, 8), (2048, 4), (4096, 16), (2048, 8))]
    variants += [("top_k_top_p", filtered_variant, each) for each in ((8, 16), (16, 16), (8, 8))]
    for batch in (1, 256):
        logits = steep(batch, VOCAB, torch.float32)
        copies = [logits, logits.roll(1, 0)] if batch > 1 else [logits]
        results: dict[str, object] = {}
        for mode, variant, (first, second) in variants:
            name = f"{mode} {first} {second}"
            try:
                run = variant(make_case(logits, mode), copies, first, second)
                results[name] = round(time_us(run, calls=6 if batch > 1 else 20), 2)
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"[:200]
        names = "plain: tile, warps; top_k_top_p: warps of scan, finish"
        print(json.dumps({"kernel": "sample", "case": f"tune B={batch} ({names})", "us": results}), flush=True)


def main() -> None:
    """All cases, the most telling first."""
    torch.manual_seed(0)
    for batch in (1, 256):
        for mode in ("plain", "greedy", "top_p", "top_k_top_p", "top_k", "min_p", "mixed")[: 6 if batch == 1 else 7]:
            bench("steep", steep, batch, mode)
    for batch in (1, 256):
        for listed in (False, True):
            bench_all_on(batch, listed=listed)
    for batch, mode in ((1, "top_p"), (1, "top_k_top_p"), (256, "top_p"), (256, "top_k_top_p")):
        bench("flat", flat, batch, mode)
    for batch in (8, 64):
        for mode in ("plain", "mixed"):
            bench("steep", steep, batch, mode)
    bench("steep", steep, 256, "plain", torch.bfloat16)
    tune()


if __name__ == "__main__":
    main()
