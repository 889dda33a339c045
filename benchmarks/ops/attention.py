# SPDX-License-Identifier: Apache-2.0
"""Rows of attention: plain, backward, pairs, dual, ragged and subset forms, and routed calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.accuracy import AttentionGate, Verdict
from benchmarks.common import Run
from benchmarks.inputs import DTYPES, packed_sets
from benchmarks.ops._ours import find_op
from benchmarks.peers import attention as peers
from benchmarks.peers import eager
from benchmarks.registry import Inputs, Peer, Row, Target

BOTH = ("cpu", "cuda")
SHAPES = ((2, 900, 128), (8, 3600, 32), (12, 1025, 64))
PATCHES = (12, 785, 64)
# Sentences of about ten words, each with ten regions of its picture.
LENGTHS = (10, 7, 12, 5, 15, 9, 11, 8, 13, 10, 6, 14, 10, 8, 12)
REGIONS, WORD_HEADS, WORD_DIM = 10, 8, 64
# Batch, heads, tokens, head size of calls with default settings.
ROUTED_SHAPES = (
    (1, 8, 10, 64),
    (15, 8, 10, 64),
    (1, 12, 64, 64),
    (1, 12, 256, 64),
    (1, 2, 900, 128),
)
NOT_SLOWER = 0.97
"""A call with default settings may lose this much to the route it takes: its own overhead."""


def attention_inputs(
    heads: int, tokens: int, dim: int, dtype: str, cross: bool, small: bool, batch: int = 1
) -> Inputs:
    """Return packed projections [B,N,3,H,d] of two sets and a gradient of the output."""
    tokens = min(tokens, 64) if small else tokens
    return packed_sets(batch, heads, tokens, dim, dtype=dtype, cross=cross)


def ragged_inputs(dtype: str, small: bool) -> Inputs:
    """Return packed words [T,3,H,d] with offsets, and regions [B,N,3,H,d]."""
    generator = torch.Generator().manual_seed(7)
    lengths = LENGTHS[:3] if small else LENGTHS
    sizes = (sum(lengths), 3, WORD_HEADS, WORD_DIM)
    words = torch.randn(*sizes, generator=generator).to(DTYPES[dtype])
    sizes = (len(lengths), REGIONS, 3, WORD_HEADS, WORD_DIM)
    regions = torch.randn(*sizes, generator=generator).to(DTYPES[dtype])
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return {"words": words, "regions": regions, "lengths": lengths, "offsets": offsets}


class RaggedGate:
    """Outputs of words and regions, set by set; padded words are cut to their lengths."""

    def __init__(self, inputs: Inputs) -> None:
        """Prepare a gate of both directions of each set."""
        self._lengths = inputs["lengths"]
        words = inputs["words"].split(list(self._lengths))
        streams = []
        for word, region in zip(words, inputs["regions"], strict=True):
            first, second = peers.views(word[None]), peers.views(region[None])
            streams += [(first[0], *second[1:]), (second[0], *first[1:])]
        self._gate = AttentionGate(streams)

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge both outputs."""
        words, regions = output
        if words.ndim == 4:
            sets = [rows[:, :n] for rows, n in zip(words, self._lengths, strict=True)]
        else:
            sets = [rows.transpose(0, 1) for rows in words.split(list(self._lengths))]
        pairs = zip(sets, regions, strict=True)
        return self._gate([rows[None] for pair in pairs for rows in pair], part)


def plain_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of plain attention."""
    return AttentionGate([peers.views(inputs["packed0"])])


def pair_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of a pair, split or joined."""
    first, second = peers.views(inputs["packed0"]), peers.views(inputs["packed1"])
    if inputs["cross"]:
        first, second = (first[0], *second[1:]), (second[0], *first[1:])
    return AttentionGate([first, second])


def dual_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of ordinary and value-value attention."""
    q, k, v = peers.views(inputs["packed0"])
    return AttentionGate([(q, k, v), (v, v, v)])


def subset_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of the first query alone."""
    q, k, v = peers.views(inputs["packed0"])
    return AttentionGate([(q[:, :, :1], k, v)])


def gradient_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of the gradients of plain attention."""
    return AttentionGate([peers.views(inputs["packed0"])], inputs["seed"])


def plain(inputs: Inputs, backend: str | None) -> Run:
    """Plain attention."""
    return partial(find_op("attention"), *peers.views(inputs["packed0"]), backend=backend)


def pair(inputs: Inputs, backend: str) -> Run:
    """Both directions of a pair in one call."""
    sets = (*peers.views(inputs["packed0"]), *peers.views(inputs["packed1"]))
    options: dict[str, Any] = {"cross": inputs["cross"], "backend": backend}
    return partial(find_op("pair_attention"), *sets, **options)


def backward(inputs: Inputs, backend: str) -> Run:
    """Gradients of plain attention."""
    return peers.backward_of(partial(find_op("attention"), backend=backend), inputs)


def dual(inputs: Inputs, backend: str | None) -> Run:
    """Ordinary and value-value attention in one call."""
    return partial(find_op("dual_attention"), *peers.views(inputs["packed0"]), backend=backend)


def subset(inputs: Inputs, backend: str | None) -> Run:
    """The first query against all keys."""
    q, k, v = peers.views(inputs["packed0"])
    return partial(find_op("attention"), q[:, :, :1], k, v, backend=backend)


def ragged(inputs: Inputs, backend: str | None) -> Run:
    """Co-attention of packed words and regions."""
    words, regions = inputs["words"].permute(1, 0, 2, 3), peers.views(inputs["regions"])
    options: dict[str, Any] = {"offsets0": inputs["offsets"], "backend": backend}
    return partial(find_op("co_attention"), *words, *regions, **options)


def step(inputs: Inputs, backend: str | None) -> Run:
    """Attention and its gradients."""
    return peers.step_of(partial(find_op("attention"), backend=backend), inputs)


def routed(inputs: Inputs, backend: str, build: Callable[..., Run]) -> Run:
    """What a caller gets who names no backend, whatever the command line says."""
    return build(inputs, None)


def _name(heads: int, tokens: int, dim: int) -> str:
    return f"{heads}x{tokens}x{dim}"


def _row(kind: str, shape: tuple[int, int, int], dtype: str, **options: Any) -> Row:
    heads, tokens, dim = shape
    factor = {"plain": 4, "backward": 10}.get(kind, 8)
    size = 4 if dtype == "float32" else 2
    return Row(
        id=f"attention.{kind}_{_name(*shape)}_{dtype}",
        op="attention",
        shape=f"{heads} heads, {tokens} tokens, head size {dim}",
        dtype=dtype,
        layout="views of packed projections",
        inputs=partial(attention_inputs, *shape, dtype, kind == "cross"),
        flops=float(factor * heads * tokens**2 * dim),
        moved_bytes=float(size * factor * heads * tokens * dim),
        formula="2 operations per multiplication and addition of each product; each tensor once",
        **options,
    )


def _plain(shape: tuple[int, int, int], dtype: str) -> Row:
    return _row(
        "plain",
        shape,
        dtype,
        title="Attention of one set",
        gate=plain_gate,
        ours=plain,
        peers=(
            Peer("torch SDPA", partial(eager.eager, peers.sdpa), devices=BOTH),
            *(
                Peer(
                    f"torch SDPA, {backend.lower()}",
                    partial(peers.forced, backend=backend),
                    devices=("cuda",),
                )
                for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")
            ),
        ),
        targets=(Target((), 2.0 if dtype == "float32" else 3.3),),
    )


def _backward(shape: tuple[int, int, int], dtype: str) -> Row:
    return _row(
        "backward",
        shape,
        dtype,
        title="Gradients of attention",
        gate=gradient_gate,
        ours=backward,
        peers=(Peer("torch SDPA backward", peers.sdpa_backward, devices=BOTH),),
        targets=(Target((), 1.5),),
    )


def _pair(kind: str) -> Row:
    joined = "torch SDPA, joined tokens under a block mask"
    return _row(
        kind,
        (2, 900, 128),
        "float32",
        title=f"Attention of a pair, {kind}",
        gate=pair_gate,
        ours=pair,
        peers=(
            Peer(joined, partial(eager.eager, peers.joined_pair), devices=BOTH),
            Peer("torch SDPA, two calls", peers.split_pair, devices=BOTH),
            Peer("FlexAttention, block mask", peers.flex_pair, devices=("cuda",)),
        ),
        targets=(Target((joined,), 4.0),),
        note="The joined tokens and their mask are prepared outside the timing",
    )


def _dual() -> Row:
    return _row(
        "dual",
        PATCHES,
        "float32",
        title="Ordinary and value-value attention together",
        gate=dual_gate,
        ours=dual,
        peers=(Peer("torch SDPA, two calls", peers.split_dual, devices=BOTH),),
        targets=(Target((), 2.0),),
    )


def _subset_sizes(dtype: str) -> dict[str, Any]:
    heads, tokens, dim = PATCHES
    size = 4 if dtype == "float32" else 2
    return {
        "shape": f"{heads} heads, 1 query, {tokens} keys, head size {dim}",
        "dtype": dtype,
        "inputs": partial(attention_inputs, *PATCHES, dtype, False),
        "flops": 4.0 * heads * tokens * dim,
        "moved_bytes": float(size * 2 * heads * tokens * dim),
        "gate": subset_gate,
        "peers": (Peer("torch SDPA", partial(eager.eager, peers.subset), devices=BOTH),),
    }


def _ragged_sizes(dtype: str) -> dict[str, Any]:
    pairs = float(sum(LENGTHS) * REGIONS)
    size = 4 if dtype == "float32" else 2
    rows = sum(LENGTHS) + len(LENGTHS) * REGIONS
    return {
        "shape": f"{len(LENGTHS)} sets of {min(LENGTHS)} to {max(LENGTHS)} words and {REGIONS} "
        f"regions, {WORD_HEADS} heads, head size {WORD_DIM}",
        "dtype": dtype,
        "inputs": partial(ragged_inputs, dtype),
        "flops": 8.0 * pairs * WORD_HEADS * WORD_DIM,
        "moved_bytes": float(size * 4 * rows * WORD_HEADS * WORD_DIM),
        "gate": RaggedGate,
        "peers": (Peer("torch SDPA, padded, two calls", peers.padded_co, devices=BOTH),),
    }


def _other(kind: str, title: str, target: float, sizes: dict[str, Any], **options: Any) -> Row:
    return Row(
        id=f"attention.{kind}_{sizes['dtype']}",
        op="attention",
        title=title,
        layout="views of packed projections",
        formula="2 operations per multiplication and addition of each product; each tensor once",
        targets=(Target((), target),),
        **sizes,
        **options,
    )


def _routed(kind: str, shape: tuple[int, int, int, int], dtype: str) -> Row:
    """A call with default settings: what the table of routes makes of the shape."""
    batch, heads, tokens, dim = shape
    training = kind == "step"
    size = 4 if dtype == "float32" else 2
    peer: Callable[..., Run] = partial(eager.eager, peers.sdpa)
    sizes = {
        "shape": f"{batch} x {heads} heads, {tokens} tokens, head size {dim}",
        "dtype": dtype,
        "inputs": partial(attention_inputs, *shape[1:], dtype, False, batch=batch),
        "flops": (14.0 if training else 4.0) * batch * heads * tokens**2 * dim,
        "moved_bytes": float(size * (12 if training else 4) * batch * heads * tokens * dim),
        "gate": gradient_gate if training else plain_gate,
        "peers": (Peer("torch SDPA", peers.sdpa_step if training else peer, devices=BOTH),),
    }
    name = "x".join(map(str, shape))
    return _other(
        f"routed_{kind}_{name}",
        f"Default settings, {'forward and gradients' if training else 'forward'}",
        NOT_SLOWER,
        sizes,
        ours=partial(routed, build=step if training else plain),
    )


ROWS = (
    *(_plain(shape, dtype) for shape in SHAPES for dtype in DTYPES),
    *(_backward(shape, dtype) for shape in SHAPES for dtype in DTYPES),
    _pair("intra"),
    _pair("cross"),
    _dual(),
    _other(
        "ragged_co",
        "Co-attention of ragged words and regions",
        2.0,
        _ragged_sizes("float32"),
        ours=ragged,
        note="The padded words and their mask are prepared outside the timing",
    ),
    _other("subset", "One query of a set", NOT_SLOWER, _subset_sizes("float32"), ours=subset),
    *(
        _other(
            "routed_subset",
            "Default settings, one query of a set",
            NOT_SLOWER,
            _subset_sizes(dtype),
            ours=partial(routed, build=subset),
        )
        for dtype in DTYPES
    ),
    *(_routed("plain", shape, dtype) for shape in ROUTED_SHAPES for dtype in DTYPES),
    *(_routed("step", shape, "float32") for shape in ROUTED_SHAPES),
)
