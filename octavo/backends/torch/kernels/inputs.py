"""What a decode step is told of its rows in; the token ids, cache slots and lengths that its layers read, out.

A row is a sequence's persistent place: tokens[row] are its token ids, block_tables[row] its blocks in the cache.
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl

BLOCK = 128
"""Tokens a program: one a lane of four warps, since each is a chain of dependent loads that only threads can hide."""


def decode_inputs(
    rows: Tensor,
    starts: Tensor,
    tokens: Tensor,
    block_tables: Tensor,
    block_size: int,
    token_ids: Tensor,
    slots: Tensor,
    seq_lens: Tensor,
) -> None:
    """One token a row: token_ids = tokens[row, start], slots: that position's place in the cache, seq_lens = start + 1.

    rows, starts: int32 [batch]; tokens: int32 [rows, any]; block_tables: int32 [rows, max_blocks]; starts within both.
    Written: token_ids, seq_lens int32 [batch], slots int64 [batch].  A row < 0 is padding: token 0, slot -1, length 0.
    """
    batch = rows.shape[0]
    if batch:
        _decode_inputs[(triton.cdiv(batch, BLOCK),)](
            rows,
            starts,
            tokens,
            block_tables,
            token_ids,
            slots,
            seq_lens,
            batch,
            tokens.stride(0),
            block_tables.stride(0),
            BLOCK_SIZE=block_size,
            BLOCK=BLOCK,
            **pdl.options(),
        )


INDICES = ["rows", "starts", "token_ids", "slots", "seq_lens"]
"""Read and written one element a lane: alignment gains nothing, and a slice of them would compile one more variant."""


@triton.jit(do_not_specialize=["batch"], do_not_specialize_on_alignment=INDICES)
def _decode_inputs(
    rows,
    starts,
    tokens,
    block_tables,
    token_ids,
    slots,
    seq_lens,
    batch,
    tokens_stride,
    tables_stride,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < batch
    pdl.wait(PDL)
    row = tl.load(rows + index, mask=inside, other=-1)
    used = inside & (row >= 0)
    position = tl.load(starts + index, mask=used, other=0)
    token, slot = _look_up(tokens, block_tables, row, position, used, tokens_stride, tables_stride, BLOCK_SIZE)
    tl.store(token_ids + index, token, mask=inside)
    tl.store(slots + index, slot, mask=inside)
    tl.store(seq_lens + index, tl.where(used, position + 1, 0), mask=inside)


@triton.jit
def _look_up(tokens, block_tables, row, position, used, tokens_stride, tables_stride, BLOCK_SIZE: tl.constexpr):
    """The token at a row's position and its slot (int64); 0 and -1 where unused."""
    row = row.to(tl.int64)
    token = tl.load(tokens + row * tokens_stride + position, mask=used, other=0)
    block = tl.load(block_tables + row * tables_stride + position // BLOCK_SIZE, mask=used, other=0).to(tl.int64)
    return token, tl.where(used, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
