# SPDX-License-Identifier: Apache-2.0
"""Rows of the recurrence of simple recurrent units, forward alone and with its backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import as_tensor
from benchmarks.common import Run
from benchmarks.inputs import recurrence_tensors
from benchmarks.ops import _ours
from benchmarks.peers import eager
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

STEPS, BATCH, UNITS = 32, 16, 1024
BOTH = ("cpu", "cuda")
NAMES = ("gates", "bias", "weight", "highway")


def sru_inputs(backward: bool, small: bool) -> Inputs:
    """Return the tensors of a layer with three gates; leaves of a graph for the backward."""
    inputs = recurrence_tensors(STEPS, BATCH, 40 if small else UNITS)
    for name in NAMES if backward else ():
        inputs[name].requires_grad_()
    return inputs


def recurrence(gates: Tensor, bias: Tensor, weight: Tensor, highway: Tensor) -> Tensor:
    """Run the published recurrence as a loop over time."""
    bias_f, bias_r = bias.chunk(2)
    weight_f, weight_r = weight.chunk(2)
    state = torch.zeros_like(highway[0])
    outputs = []
    for u, x in zip(gates, highway, strict=True):
        forget = torch.sigmoid(u[:, 1] + weight_f * state + bias_f)
        reset = torch.sigmoid(u[:, 2] + weight_r * state + bias_r)
        state = forget * (state - u[:, 0]) + u[:, 0]
        outputs.append(reset * (torch.tanh(state) - x) + x)
    return torch.stack(outputs)


def _step(function: Callable[..., Any], grad: Tensor, *leaves: Tensor) -> Any:
    with torch.inference_mode(False), torch.enable_grad():
        return torch.autograd.grad(function(*leaves), leaves, grad)


def _step_of(function: Callable[..., Any], inputs: Inputs) -> Run:
    """Forward and backward; timing runs in inference mode, whose tensors have no gradients."""
    with torch.inference_mode(False):
        leaves = [t.clone().detach().requires_grad_() for t in _arguments(inputs)]
        return partial(_step, function, inputs["grad"].clone(), *leaves)


def _arguments(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(inputs[name] for name in NAMES)


def prepared(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the loop and its arguments."""
    return recurrence, _arguments(inputs)


def eager_step(inputs: Inputs) -> Run:
    """Forward and backward of the loop."""
    return _step_of(recurrence, inputs)


def compiled_step(inputs: Inputs) -> Run:
    """The same with the loop compiled."""
    return _step_of(torch.compile(recurrence, dynamic=False), inputs)


def _outputs(op: Callable[..., Any], *arguments: Tensor) -> Any:
    gates, bias, weight, highway = arguments
    return op(gates, bias, weight, highway=highway)[0]


def ours(inputs: Inputs, backend: str) -> Run:
    """Forward."""
    op = partial(_ours.find_op("sru"), backend=backend)
    return partial(_outputs, op, *_arguments(inputs))


def ours_step(inputs: Inputs, backend: str) -> Run:
    """Forward and backward."""
    op = partial(_outputs, partial(_ours.find_op("sru"), backend=backend))
    return _step_of(op, inputs)


def sru_gate(backward: bool, inputs: Inputs) -> Gate:
    """Return a gate: 1e-5 absolute for outputs, 1e-5 relative Frobenius for gradients."""
    # Timing runs in inference mode, whose tensors have no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        plain = [t.clone().double() for t in _arguments(inputs)]
        leaves = [t.detach().requires_grad_(backward) for t in plain]
        out = recurrence(*leaves)
        wanted = [out]
        if backward:
            seed = inputs["grad"].clone().double()
            wanted = list(torch.autograd.grad(out, leaves, seed))

    def judge(output: Any, part: str) -> Verdict | None:
        if part == "other":
            return None
        made = [as_tensor(t).double() for t in (output if backward else (output,))]
        if [t.shape for t in made] != [t.shape for t in wanted]:
            return Verdict(float("inf"), 1e-5, 1)
        if not backward:
            return Verdict(float((made[0] - out).abs().max()), 1e-5)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(made, wanted, strict=True)]
        return Verdict(max(errors), 1e-5)

    return judge


def _row(backward: bool) -> Row:
    name = "forward_backward" if backward else "forward"
    values = STEPS * BATCH * UNITS
    peers = (
        Peer(
            "torch eager loop",
            eager_step if backward else partial(eager.eager, prepared),
            devices=BOTH,
        ),
        Peer(
            "torch.compile loop",
            compiled_step if backward else partial(eager.compiled, prepared),
            devices=BOTH,
            compiled=True,
        ),
    )
    return Row(
        id=f"sru.{name}",
        op="sru",
        title=f"SRU recurrence, {name.replace('_', ' and ')}",
        shape=f"L {STEPS}, B {BATCH}, d {UNITS}, 3 gates",
        dtype="float32",
        layout="gates planar",
        inputs=partial(sru_inputs, backward),
        gate=partial(sru_gate, backward),
        ours=ours_step if backward else ours,
        peers=peers,
        targets=(Target(("torch.compile loop",), 3.0 if backward else 4.0),),
        flops=(60.0 if backward else 25.0) * values,
        moved_bytes=4.0 * (17 if backward else 5) * values,
        formula="25 operations and 5 values per unit and step, 60 and 17 with the backward",
        note="the product before the recurrence is not part of the row",
    )


ROWS = (_row(False), _row(True))
