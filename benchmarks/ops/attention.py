# SPDX-License-Identifier: Apache-2.0
"""Rows of attention: plain, backward, and of a pair against the joined and the split form."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import AttentionGate
from benchmarks.common import NotAvailable, Run
from benchmarks.ops._ours import find_op
from benchmarks.peers import attention as peers
from benchmarks.peers import eager
from benchmarks.registry import Inputs, OwnBuild, Peer, Row, Target

BOTH = ("cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = ((2, 900, 128), (8, 3600, 32), (12, 1025, 64))


def attention_inputs(
    heads: int, tokens: int, dim: int, dtype: str, cross: bool, small: bool
) -> Inputs:
    """Return packed projections [1,N,3,H,d] of two sets and a gradient of the output."""
    generator = torch.Generator().manual_seed(6)
    count = 64 if small else tokens

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DTYPES[dtype])

    return {
        "packed0": draw(1, count, 3, heads, dim),
        "packed1": draw(1, count, 3, heads, dim),
        "seed": draw(1, heads, count, dim),
        "cross": cross,
    }


def plain_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of plain attention."""
    return AttentionGate([peers.views(inputs["packed0"])])


def pair_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of a pair, split or joined."""
    first, second = peers.views(inputs["packed0"]), peers.views(inputs["packed1"])
    if inputs["cross"]:
        first, second = (first[0], *second[1:]), (second[0], *first[1:])
    return AttentionGate([first, second])


def gradient_gate(inputs: Inputs) -> AttentionGate:
    """Return the gate of the gradients of plain attention."""
    return AttentionGate([peers.views(inputs["packed0"])], inputs["seed"])


def plain(inputs: Inputs, backend: str) -> Run:
    """Plain attention."""
    return partial(find_op("attention"), *peers.views(inputs["packed0"]), backend=backend)


def _with_wgmma(run: Run) -> Any:
    os.environ["PATCHWORD_ATTENTION_WGMMA"] = "must"
    try:
        return run()
    finally:
        del os.environ["PATCHWORD_ATTENTION_WGMMA"]


def wgmma(inputs: Inputs, *, ours: OwnBuild) -> Run:
    """``ours`` by the wgmma kernel, which runs only for who asks, or its refusal."""
    run = partial(_with_wgmma, ours(inputs, "native"))
    try:
        run()
    except NotImplementedError as error:
        raise NotAvailable(str(error)) from error
    return run


def pair(inputs: Inputs, backend: str) -> Run:
    """Both directions of a pair in one call."""
    sets = (*peers.views(inputs["packed0"]), *peers.views(inputs["packed1"]))
    options: dict[str, Any] = {"cross": inputs["cross"], "backend": backend}
    return partial(find_op("pair_attention"), *sets, **options)


def backward(inputs: Inputs, backend: str) -> Run:
    """Gradients of plain attention."""
    return peers.backward_of(partial(find_op("attention"), backend=backend), inputs)


def _name(heads: int, tokens: int, dim: int) -> str:
    return f"{heads}x{tokens}x{dim}"


def _row(kind: str, shape: tuple[int, int, int], dtype: str, **options: Any) -> Row:
    heads, tokens, dim = shape
    factor = {"plain": 4, "backward": 10, "intra": 8, "cross": 8}[kind]
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
            *(
                ()
                if dtype == "float32"
                else (Peer("patchword, wgmma", partial(wgmma, ours=plain), devices=("cuda",)),)
            ),
        ),
        targets=(Target((), 2.0 if dtype == "float32" else 3.3),),
    )


def _backward(shape: tuple[int, int, int]) -> Row:
    return _row(
        "backward",
        shape,
        "float32",
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


ROWS = (
    *(_plain(shape, dtype) for shape in SHAPES for dtype in DTYPES),
    *(_backward(shape) for shape in SHAPES),
    _pair("intra"),
    _pair("cross"),
)
