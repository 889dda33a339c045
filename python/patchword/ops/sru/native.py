# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradients, and when it refuses."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C

ACTIVATIONS = {"tanh": 0, "identity": 1}
DROPOUTS = {"activation": 0, "difference": 1}


def refuse(gates: Tensor, *rest: Tensor | None, **options: Any) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    return _library.refuse_device(gates) or _library.refuse_dtype(gates)


class _Inputs(NamedTuple):
    """What forward and backward both get; the registered ops take the fields one by one."""

    gates: Tensor
    highway: Tensor | None
    bias: Tensor
    weight: Tensor
    initial: Tensor | None
    mask: Tensor | None
    lengths: Tensor | None
    scale_x: float
    activation: int
    dropout: int
    bidirectional: bool
    last_only: bool

    def arguments(self, states: int) -> tuple[Any, ...]:
        """The first arguments of both entries; ``states`` is an address."""
        gates, highway, *others = self[:7]
        addresses = [_library.address(tensor) for tensor in others]
        return (
            (gates.data_ptr(), _library.address(highway), *addresses, states),
            gates.shape,
            gates.stride(),
            (0, 0, 0) if highway is None else highway.stride(),
            (DTYPE_TAGS[gates.dtype], *self[8:]),
            self.scale_x,
        )


_SCHEMA = (
    "Tensor gates, Tensor? highway, Tensor bias, Tensor weight, Tensor? initial, Tensor? mask, "
    "Tensor? lengths, float scale_x, int activation, int dropout, bool bidirectional, "
    "bool last_only"
)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, keep_states = arguments
    inputs = _Inputs(*given)
    steps, batch, _, units = inputs.gates.shape
    out = inputs.gates.new_empty(*(() if inputs.last_only else (steps,)), batch, units)
    last = out.new_empty(batch, units, dtype=torch.float32)
    return out, last, last.new_empty(*((steps, batch, units) if keep_states else (0,)))


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, last, states = _fake_forward(*arguments)
    if last.numel() == 0:
        return out, last, states
    *given, keep_states = arguments
    inputs = _Inputs(*given)
    _library.launch(
        C.sru_forward,
        inputs.gates,
        *inputs.arguments(_library.written(states) if keep_states else 0),
        _library.written(out),
        last.data_ptr(),
    )
    return out, last, states


def _fake_backward(
    grad_out: Tensor, grad_last: Tensor, states: Tensor, *given: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _Inputs(*given)
    gates = inputs.gates
    steps, batch, _, units = gates.shape
    return (
        torch.empty_like(gates),  # in the layout of the gates, as the product before them wants it
        gates.new_empty((0,) if inputs.highway is None else (steps, batch, units)),
        torch.empty_like(inputs.bias, memory_format=torch.contiguous_format),
        torch.empty_like(inputs.weight, memory_format=torch.contiguous_format),
        gates.new_empty((batch, units), dtype=torch.float32),
    )


def _backward(
    grad_out: Tensor, grad_last: Tensor, states: Tensor, *given: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = _fake_backward(grad_out, grad_last, states, *given)
    grad_gates, grad_highway, grad_bias, grad_weight, grad_initial = results
    if grad_initial.numel() == 0:
        return grad_gates, grad_highway, grad_bias.zero_(), grad_weight.zero_(), grad_initial
    inputs = _Inputs(*given)
    grad_out, grad_last = grad_out.contiguous(), grad_last.contiguous()
    _library.launch(
        C.sru_backward,
        inputs.gates,
        *inputs.arguments(states.data_ptr()),
        (grad_out.data_ptr(), grad_last.data_ptr(), *map(_library.written, results)),
        grad_gates.stride(),
    )
    return results


# The states after every step come back without elements unless they are kept for the backward.
_forward_op = _library.register(
    f"sru_forward({_SCHEMA}, bool keep_states) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_backward_op = _library.register(
    f"sru_backward(Tensor grad_out, Tensor grad_last, Tensor states, {_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _Sru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        tensors, options = inputs[:7], inputs[7:]
        out, last, states = _forward_op(*tensors, *options, True)
        ctx.save_for_backward(states, *tensors)
        ctx.options = options
        return out, last

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> tuple[Any, ...]:
        states, *tensors = ctx.saved_tensors
        made = _backward_op(grad_out, grad_last, states, *tensors, *ctx.options)
        wanted = ctx.needs_input_grad
        grads = [grad if wanted[i] else None for i, grad in enumerate(made)]
        return (*grads, None, None, *(None for _ in ctx.options))


def _plain(tensor: Tensor | None) -> Tensor | None:
    """The tensor as contiguous float32, which is what the kernels read parameters as."""
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.float().contiguous()


def sru_native(
    gates: Tensor,
    highway: Tensor | None,
    bias: Tensor,
    weight: Tensor,
    initial: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    *,
    scale_x: float,
    activation: str,
    dropout: str,
    bidirectional: bool,
    last_only: bool,
) -> tuple[Tensor, Tensor]:
    """Same contract as :func:`sru_reference`."""
    if highway is not None and highway.dtype is not gates.dtype:
        highway = highway.to(gates.dtype)
    if lengths is not None:
        lengths = lengths.long().contiguous()
    tensors = (gates, highway, _plain(bias), _plain(weight), _plain(initial), _plain(mask), lengths)
    options = (scale_x, ACTIVATIONS[activation], DROPOUTS[dropout], bidirectional, last_only)
    if _library.plain_eager(*tensors):
        out, last, _ = _forward(*tensors, *options, False)
        return out, last
    if _library.wants_gradient(*tensors[:5]):
        out, last = _Sru.apply(*tensors, *options)  # type: ignore[no-untyped-call]
        return out, last
    out, last, _ = _forward_op(*tensors, *options, False)
    return out, last
