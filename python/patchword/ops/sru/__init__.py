# SPDX-License-Identifier: Apache-2.0
"""The recurrence of simple recurrent units (SRU), after the matrix product."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.sru import native
from patchword.ops.sru.reference import sru_reference

__all__ = ["refusals", "sru"]


def _always(gates: Tensor, *rest: Tensor | None, **options: Any) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def _check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != expected:
        raise ShapeError(
            f"sru: {name} must have shape {list(expected)}, got {list(tensor.shape)}.",
            expected,
            tuple(tensor.shape),
        )


def _check_tensors(gates: Tensor, others: dict[str, Tensor | None]) -> None:
    if not gates.is_floating_point():
        raise DTypeError(f"sru: gates must be floating point, got {gates.dtype}.")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != gates.device:
            raise DTypeError(
                f"sru: {name} must be on {gates.device} like gates, got {tensor.device}."
            )
        if name == "lengths":
            if tensor.is_floating_point() or tensor.is_complex():
                raise DTypeError(f"sru: lengths must be integers, got {tensor.dtype}.")
        elif not tensor.is_floating_point():
            raise DTypeError(f"sru: {name} must be floating point, got {tensor.dtype}.")


def sru(
    gates: Tensor,
    bias: Tensor,
    weight: Tensor,
    *,
    highway: Tensor | None = None,
    initial: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    scale_x: float = 1.0,
    activation: Literal["tanh", "identity"] = "tanh",
    dropout: Literal["activation", "difference"] = "activation",
    bidirectional: bool = False,
    last_only: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the elementwise recurrence of a layer of simple recurrent units.

    The matrix product comes before: ``gates`` is the layer's input times its weights. Published
    weights are interleaved (column ``j k + g`` is gate ``g`` of unit ``j``); pass
    ``product.view(L, B, d, k).transpose(2, 3)``, any strides are read.

    Args:
        gates: ``u [L, B, k, d]``: candidate, forget, reset and, with ``k = 4``, highway input.
        bias: ``[2 d]``, of the forget gates, then of the reset gates.
        weight: ``[2 d]``, of the previous state in the forget gates, then in the reset gates.
        highway: ``x [L, B, d]``, the layer's input before any dropout; with ``k = 3`` only.
        initial: ``[B, d]`` state before the first step; default 0.
        mask: ``[B, d]`` dropout mask of the cell output, 0 or ``1 / (1 - p)``, the same at every
            step; gets no gradient. Default 1.
        lengths: ``[B]`` steps of each sample, taken as between 0 and L; default L. Past them the
            state stands still and the output is 0.
        scale_x: Factor of ``highway``.
        activation: ``g`` of the state in the output.
        dropout: Where the mask acts: ``"activation"`` is ``r m g(c) + (1 - r) x`` (the package up
            to 2.3), ``"difference"`` is ``r m (g(c) - x) + x`` (from 2.4 on).
        bidirectional: The units from ``d / 2`` on run from the last step to the first.
        last_only: Return the output of each unit's last step only; the others are not worked out.
        backend: Force ``"native"`` or ``"reference"``; default: the first that can run.

    Returns:
        ``(h, c)``: outputs ``[L, B, d]`` in the dtype of the gates (``[B, d]`` with
        ``last_only``), and the state after each unit's last step ``[B, d]``, float32.

    Raises:
        ShapeError: Shapes do not fit.
        DTypeError: Not floating point, or not on one device.
        OptionError: Unknown activation or dropout, or an odd number of units in two directions.
        BackendError: The forced backend cannot run these inputs.

    Note:
        Differentiable in gates, highway, bias, weight and initial. Both gates read the state
        *before* the step. Sums are float32 and states are kept in float32 for half-precision
        gates. The same bits on every run and for every number of threads, backward included.

    Example:
        >>> import torch
        >>> u = torch.tensor([[0.5, 0.2, -0.3], [-0.4, 0.6, 0.8]]).reshape(2, 1, 3, 1)
        >>> x = torch.tensor([1.0, -0.5]).reshape(2, 1, 1)
        >>> h, c = sru(u, torch.tensor([0.1, 0.05]), torch.tensor([0.3, -0.2]), highway=x,
        ...            initial=torch.tensor([[0.4]]))
        >>> h.flatten(), c
        (tensor([ 0.7546, -0.0344]), tensor([[0.1850]]))
    """
    shape = gates.shape
    if len(shape) != 4 or shape[2] not in (3, 4):
        raise ShapeError(
            f"sru: gates must have shape [L, B, 3 or 4, d], got {list(shape)}.",
            "[L, B, 3 or 4, d]",
            tuple(shape),
        )
    steps, batch, count, units = shape
    _check_shape("bias", bias, (2 * units,))
    _check_shape("weight", weight, (2 * units,))
    if count == 3 and highway is None:
        raise ShapeError("sru: highway must be given with 3 gates, got none.")
    if count == 4 and highway is not None:
        raise ShapeError("sru: highway must be absent with 4 gates, got one.")
    _check_shape("highway", highway, (steps, batch, units))
    _check_shape("initial", initial, (batch, units))
    _check_shape("mask", mask, (batch, units))
    _check_shape("lengths", lengths, (batch,))
    others = {"bias": bias, "weight": weight, "highway": highway, "initial": initial}
    _check_tensors(gates, {**others, "mask": mask, "lengths": lengths})
    if activation not in native.ACTIVATIONS:
        raise OptionError(f'sru: activation must be "tanh" or "identity", got {activation!r}.')
    if dropout not in native.DROPOUTS:
        raise OptionError(f'sru: dropout must be "activation" or "difference", got {dropout!r}.')
    if bidirectional and units % 2:
        raise OptionError(f"sru: bidirectional needs an even number of units, got {units}.")
    chosen = _backends.choose("sru", refusals, backend, gates)
    run = native.sru_native if chosen == "native" else sru_reference
    return run(
        gates,
        highway,
        bias,
        weight,
        initial,
        mask,
        lengths,
        scale_x=scale_x,
        activation=activation,
        dropout=dropout,
        bidirectional=bidirectional,
        last_only=last_only,
    )
