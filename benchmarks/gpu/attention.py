# SPDX-License-Identifier: Apache-2.0
"""Rows of attention on CUDA against torch's backends, one by one, and other packages."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.accuracy import as_tensor
from benchmarks.common import Run
from benchmarks.inputs import DTYPES, packed_sets
from benchmarks.ops._ours import find_op
from benchmarks.ops.attention import (
    backward,
    dual_gate,
    gradient_gate,
    pair,
    pair_gate,
    plain,
    plain_gate,
)
from benchmarks.peers import attention as peers
from benchmarks.peers import eager, gpu_libraries
from benchmarks.registry import Inputs, Peer, Row, Target, Verdict

CUDA = ("cuda",)
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
MASKED = "torch SDPA, joined tokens under a block mask"
SETS, LONGEST = 150, 16
Shape = tuple[int, int, int, int]


def attention_inputs(shape: Shape, dtype: str, cross: bool, small: bool) -> Inputs:
    """Return packed projections [B,N,3,H,d] of two sets and a gradient of the output."""
    batch, heads, tokens, dim = shape
    batch, tokens = (1, 48) if small else (batch, tokens)
    return packed_sets(batch, heads, tokens, dim, dtype=dtype, cross=cross)


def ragged_inputs(dtype: str, small: bool) -> Inputs:
    """Return sets of 4 to 16 rows on both sides, packed [T,8,64], and where they begin."""
    generator = torch.Generator().manual_seed(6)
    count = 5 if small else SETS
    inputs: Inputs = {}
    for side, offsets in peers.SIDES:
        sizes = torch.randint(4, LONGEST + 1, (count,), generator=generator)
        inputs[offsets] = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        packed = torch.randn(3, int(sizes.sum()), 8, 64, generator=generator)
        inputs[side] = packed.to(DTYPES[dtype])
    return inputs


class RaggedGate:
    """Each set against float64 attention over the set of the other side with its number."""

    def __init__(self, inputs: Inputs) -> None:
        """Work the sets out on padded rows; rows past a set's end do not count."""
        wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        self._want = peers.padded_sides(wide)()
        self._seen = [peers.pad_mask(inputs[o])[:, 0, 0] for _, o in peers.SIDES]
        self._offsets = [inputs[o] for _, o in peers.SIDES]
        narrow = inputs["side0"].dtype != torch.float32
        self._tolerance = 4e-3 if narrow else 2e-6

    def __call__(self, output: Any, part: str) -> Verdict:
        """Judge two packed outputs, or two padded ones."""
        error = 0.0
        for got, want, seen, offsets in zip(
            output, self._want, self._seen, self._offsets, strict=True
        ):
            made = as_tensor(got).double()
            made = peers.pad_sets(made, offsets) if made.ndim == 3 else made
            if made.shape != want.shape:
                return Verdict(float("inf"), self._tolerance, made.numel())
            off = ((made - want).transpose(1, 2)[seen]).norm() / want.transpose(1, 2)[seen].norm()
            error = max(error, float(off.nan_to_num(torch.inf)))
        return Verdict(error, self._tolerance)


def ours_dual(inputs: Inputs, backend: str) -> Run:
    """Both paths in one call."""
    return partial(find_op("dual_attention"), *peers.views(inputs["packed0"]), backend=backend)


def ours_ragged(inputs: Inputs, backend: str) -> Run:
    """Both directions of all sets in one call, as they are packed."""
    options = {"offsets0": inputs["offsets0"], "offsets1": inputs["offsets1"], "backend": backend}
    return partial(find_op("co_attention"), *inputs["side0"], *inputs["side1"], **options)


def _each_backend(title: str, build: Any, names: tuple[str, ...] = BACKENDS) -> tuple[Peer, ...]:
    return tuple(
        Peer(
            f"{title}, {name.lower().removesuffix('_attention')}",
            partial(peers.with_backend, name, build),
            devices=CUDA,
        )
        for name in names
    )


PLAIN = (
    Peer("torch SDPA", partial(eager.eager, peers.sdpa), devices=CUDA),
    *(
        Peer(
            f"torch SDPA, {name.lower().removesuffix('_attention')}",
            partial(peers.forced, backend=name),
            devices=CUDA,
        )
        for name in BACKENDS
    ),
)
PACKAGES = (
    Peer("FlashAttention 2", gpu_libraries.flash_attention, devices=CUDA),
    Peer("FlashAttention 3", gpu_libraries.flash_attention_3, devices=CUDA),
    Peer("xformers", gpu_libraries.xformers_attention, devices=CUDA),
)


def _row(kind: str, shape: Shape, dtype: str, **options: Any) -> Row:
    batch, heads, tokens, dim = shape
    factor = {"plain": 4, "backward": 10, "intra": 8, "cross": 8, "dual": 8}[kind]
    size = 4 if dtype == "float32" else 2
    name = "x".join(map(str, shape))
    return Row(
        id=f"gpu.attention_{kind}_{name}_{dtype}",
        op="attention",
        shape=f"batch {batch}, {heads} heads, {tokens} tokens, head size {dim}",
        dtype=dtype,
        layout="views of packed projections",
        inputs=partial(attention_inputs, shape, dtype, kind == "cross"),
        flops=float(factor * batch * heads * tokens**2 * dim),
        moved_bytes=float(size * factor * batch * heads * tokens * dim),
        formula="2 operations per multiplication and addition of each product; each tensor once",
        devices=CUDA,
        **options,
    )


def _plain(shape: Shape, ratio: float, flex: bool = False) -> Row:
    compiled = (Peer("FlexAttention", peers.flex_plain, devices=CUDA, compiled=True),)
    return _row(
        "plain",
        shape,
        "bfloat16",
        title="Attention of one set",
        gate=plain_gate,
        ours=plain,
        peers=(*PLAIN, *(compiled if flex else ()), *PACKAGES),
        targets=(Target((), ratio),),
    )


def _pair(kind: str, dtype: str, flex: bool = False) -> Row:
    masked = (
        Peer(MASKED, peers.joined_call, devices=CUDA),
        *_each_backend(MASKED, peers.joined_call),
    )
    split = Peer("torch SDPA, two calls", peers.split_pair, devices=CUDA)
    compiled = Peer("FlexAttention, block mask", peers.flex_pair, devices=CUDA, compiled=True)
    names = tuple(peer.name for peer in masked)
    whole = (split.name, *((compiled.name,) if flex else ()))
    return _row(
        kind,
        (16, 2, 900, 128),
        dtype,
        title=f"Attention of a pair, {kind}",
        gate=pair_gate,
        ours=pair,
        peers=(*masked, split, *((compiled,) if flex else ())),
        targets=(Target(names, 1.9), Target(whole, 1.0)),
        note="The joined tokens and their mask are prepared outside the timing",
    )


HEADS64 = (16, 12, 785, 64)
TWO_CALLS = "torch SDPA, two calls"
ROWS = (
    _pair("cross", "bfloat16", flex=True),
    _pair("intra", "bfloat16"),
    _plain(HEADS64, 1.0, flex=True),
    _plain((8, 16, 1024, 128), 1.0),
    _plain((2, 8, 3600, 32), 1.4),
    _row(
        "dual",
        HEADS64,
        "bfloat16",
        title="Ordinary and value-value attention together",
        gate=dual_gate,
        ours=ours_dual,
        peers=(
            Peer(TWO_CALLS, peers.split_dual, devices=CUDA),
            *_each_backend(TWO_CALLS, peers.split_dual),
        ),
        targets=(Target((), 1.3),),
    ),
    Row(
        id="gpu.attention_ragged_150",
        op="attention",
        title="Co-attention of ragged tiny sets",
        shape=f"{SETS} pairs of sets of 4 to {LONGEST} rows, 8 heads, head size 64",
        dtype="bfloat16",
        layout="packed rows; the peer padded beforehand",
        inputs=partial(ragged_inputs, "bfloat16"),
        gate=RaggedGate,
        ours=ours_ragged,
        peers=(
            Peer("torch SDPA, padded, two calls", peers.padded_sides, devices=CUDA),
            *_each_backend("torch SDPA, padded, two calls", peers.padded_sides),
        ),
        targets=(Target((), 1.5),),
        note="no rates: the sets' sizes are random",
        devices=CUDA,
    ),
    _row(
        "backward",
        HEADS64,
        "bfloat16",
        title="Gradients of attention",
        gate=gradient_gate,
        ours=backward,
        peers=(
            Peer("torch SDPA backward", peers.sdpa_backward, devices=CUDA),
            *_each_backend("torch SDPA backward", peers.sdpa_backward),
        ),
    ),
    _pair("cross", "float32"),
)
