# SPDX-License-Identifier: Apache-2.0
"""Rows of mutual nearest neighbours and dual-softmax matches on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import DOT_TOLERANCE, PROBABILITY_TOLERANCE, MatchGate, as_tensor
from benchmarks.common import NotAvailable, Run
from benchmarks.ops import _ours
from benchmarks.ops.correspondence import descriptors
from benchmarks.peers import eager, gpu_libraries
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

CUDA = ("cuda",)
INVERSE_TEMPERATURE = 10.0
ROUNDED = "rounded scores"
EAGER, COMPILED = "torch eager", "torch.compile"
FAISS, CUVS = "FAISS on the GPU, one direction", "cuVS, one direction"


def match_inputs(count: int, size: int, dtype: torch.dtype, small: bool) -> Inputs:
    """Return unit rows, half of the second set noisy copies of the first."""
    return {name: rows.to(dtype) for name, rows in descriptors(count, size, small).items()}


def match_gate(inputs: Inputs) -> Gate:
    """Return a gate with the contract of the inputs' type.

    Peers that round the scores themselves to half precision choose other rows at near-ties of
    that size: within it they count as loose, not as wrong.
    """
    first, second = inputs["descriptors0"], inputs["descriptors1"]
    if first.dtype == torch.float32:
        return MatchGate(first, second)
    strict = MatchGate(first, second, 2 * DOT_TOLERANCE)
    wide = MatchGate(first, second, torch.finfo(first.dtype).eps)

    def judge(output: Any, part: str) -> Verdict | None:
        if part != ROUNDED:
            return strict(output, part)
        verdict = wide(output, "full")
        if verdict is None or not verdict.within:
            return verdict
        limit = 4 * DOT_TOLERANCE
        return Verdict(max(verdict.error, 1.01 * limit), limit, 0, verdict.ties)

    return judge


def _mutual_float_scores(first: Tensor, second: Tensor) -> Tensor:
    scores = torch.mm(first, second.T, out_dtype=torch.float32)
    forward, backward = scores.argmax(1), scores.argmax(0)
    kept = backward[forward] == torch.arange(len(forward), device=forward.device)
    return torch.where(kept, forward, -1)


def mutual_float_scores(inputs: Inputs) -> Run:
    """Half-precision product with float32 scores."""
    run = partial(_mutual_float_scores, inputs["descriptors0"], inputs["descriptors1"])
    try:
        run()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise NotAvailable(f"this torch.mm has no out_dtype here: {reason}") from error
    return run


class DualSoftmaxGate:
    """Mutual maxima of the product of both softmaxes, and their probabilities, in float64."""

    def __init__(self, inputs: Inputs) -> None:
        """Compute the whole matrix; ``t`` multiplies the scores."""
        scores = INVERSE_TEMPERATURE * (
            inputs["descriptors0"].double() @ inputs["descriptors1"].double().T
        )
        self._both = scores.softmax(0) * scores.softmax(1)
        rows, columns = self._both.topk(2, dim=1), self._both.topk(2, dim=0)
        index = rows.indices[:, 0]
        start = torch.arange(len(index))
        self._expected = torch.where(columns.indices[0][index] == start, index, -1)
        # A maximum that stands out by less is decided by rounding.
        clear0 = rows.values[:, 1] < (1 - 1e-4) * rows.values[:, 0]
        clear1 = columns.values[1] < (1 - 1e-4) * columns.values[0]
        self._clear = clear0 & clear1[index]
        narrow = inputs["descriptors0"].dtype != torch.float32
        self._tolerance = PROBABILITY_TOLERANCE * 2 * INVERSE_TEMPERATURE * (2 if narrow else 1)

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge (matches, probabilities)."""
        if part == "other":
            return None
        matches, values = (
            (output.matches0, output.scores0) if hasattr(output, "matches0") else output
        )
        matches, values = as_tensor(matches).long(), as_tensor(values).double()
        if matches.shape != self._expected.shape:
            return Verdict(float("inf"), self._tolerance, matches.numel())
        other = matches != self._expected
        kept = matches >= 0
        exact = self._both.gather(1, matches.clamp(min=0)[:, None])[:, 0]
        error = (values - exact).abs()[kept]
        worst = float(error.nan_to_num(torch.inf).max()) if len(error) else 0.0
        wrong = int((other & self._clear).sum())
        return Verdict(worst, self._tolerance, wrong, int((other & ~self._clear).sum()))


def _dual_softmax(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    scores = INVERSE_TEMPERATURE * (first @ second.T)
    both = scores.softmax(0) * scores.softmax(1)
    value, forward = both.max(1)
    backward = both.argmax(0)
    kept = backward[forward] == torch.arange(len(forward), device=forward.device)
    return torch.where(kept, forward, -1), torch.where(kept, value, 0.0)


def dual_softmax(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Both softmaxes of the whole matrix, their product, and its mutual maxima."""
    return _dual_softmax, (inputs["descriptors0"], inputs["descriptors1"])


def ours_dual_softmax(inputs: Inputs, backend: str) -> Run:
    """Two sweeps without the matrix."""
    sets = inputs["descriptors0"], inputs["descriptors1"]
    options = {"inverse_temperature": INVERSE_TEMPERATURE, "metric": "dot"}
    return _ours.bind("dual_softmax_matches", backend, *sets, **options)


def _mutual_row(count: int, size: int, dtype: torch.dtype, targets: tuple[Target, ...]) -> Row:
    name, half = str(dtype).removeprefix("torch."), dtype != torch.float32
    part = ROUNDED if half else "full"
    peers = [
        Peer(EAGER, partial(eager.eager, eager.mutual), part, devices=CUDA),
        Peer(COMPILED, partial(eager.compiled, eager.mutual), part, devices=CUDA, compiled=True),
    ]
    if half:
        peers.append(Peer("torch eager, float32 scores", mutual_float_scores, devices=CUDA))
    else:
        peers += [
            Peer(FAISS, gpu_libraries.faiss_forward, "forward", devices=CUDA),
            Peer("FAISS on the GPU, both directions", gpu_libraries.faiss_mutual, devices=CUDA),
            Peer(CUVS, gpu_libraries.cuvs_forward, "forward", devices=CUDA),
            Peer("kornia match_mnn", gpu_libraries.kornia_mutual, devices=CUDA),
        ]
    return Row(
        id=f"gpu.mutual_{count}_{size}_{name}",
        op="correspondence",
        title="Mutual nearest neighbours, both directions",
        shape=f"{count} x {count} x {size}",
        dtype=name,
        layout="[N,D] and [M,D] contiguous",
        inputs=partial(match_inputs, count, size, dtype),
        gate=match_gate,
        ours=_ours.mutual_dot,
        peers=tuple(peers),
        targets=targets,
        flops=2.0 * count * count * size,
        moved_bytes=float(dtype.itemsize) * 2 * count * size + 2 * 12.0 * count,
        formula="2NMD operations; inputs once, 12 bytes per row and column of output",
        note="ours: metric=dot; rows are of unit length" + ", rounded to the type" * half,
        devices=CUDA,
    )


def _dual_softmax_row(count: int, size: int) -> Row:
    return Row(
        id=f"gpu.dual_softmax_{count}_{size}",
        op="correspondence",
        title="Dual-softmax matches",
        shape=f"{count} x {count} x {size}",
        dtype="float32",
        layout="[N,D] and [M,D] contiguous",
        inputs=partial(match_inputs, count, size, torch.float32),
        gate=DualSoftmaxGate,
        ours=ours_dual_softmax,
        peers=(
            Peer(EAGER, partial(eager.eager, dual_softmax), devices=CUDA),
            Peer(COMPILED, partial(eager.compiled, dual_softmax), devices=CUDA, compiled=True),
        ),
        targets=(Target((EAGER,), 6.0),),
        flops=4.0 * count * count * size,
        moved_bytes=4.0 * 2 * count * size + 12.0 * count,
        formula="two sweeps of 2NMD operations; inputs once, 12 bytes per row",
        devices=CUDA,
    )


HALF = (Target((EAGER, COMPILED), 3.0),)
ROWS = (
    _mutual_row(8192, 128, torch.float16, HALF),
    _mutual_row(4096, 128, torch.bfloat16, HALF),
    _mutual_row(4096, 128, torch.float32, (Target((CUVS, FAISS), 1.8),)),
    _dual_softmax_row(4096, 256),
)
