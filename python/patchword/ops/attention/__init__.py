# SPDX-License-Identifier: Apache-2.0
"""Softmax attention of token sets: one set, a pair of sets, values among themselves, ragged sets.

Queries, keys and values are ``[B, H, N, d]`` with any strides, so that views of packed
projections (``qkv.view(B, N, 3, H, d)``) run without a copy. All ops share one core; no score
matrix is ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.errors import OptionError
from patchword.ops._backends import Backend
from patchword.ops.attention.dispatch import attention_route, refusals, run
from patchword.ops.attention.planned import attend
from patchword.ops.attention.routes import AttentionRoute
from patchword.ops.attention.streams import (
    Keys,
    Stream,
    autocasted,
    check_scale,
    keys_of,
    make_stream,
)

__all__ = [
    "AttentionRoute",
    "attention",
    "attention_route",
    "co_attention",
    "dual_attention",
    "pair_attention",
    "refusals",
    "value_attention",
]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    key_offsets: Tensor | None = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one set of queries to one set of keys.

    Args:
        q: ``[B, H, Nq, d]``, any strides, or packed ``[T, H, d]`` with ``offsets``;
            float16/bfloat16/float32/float64. For a query subset pass only those rows.
        k: ``[B, H, Nk, d]``, or packed ``[T, H, d]`` with ``offsets`` or ``key_offsets``.
        v: As ``k``.
        scale: Factor of the scores; ``d ** -0.5`` by default.
        key_mask: ``[B, Nk]`` (packed: ``[T]``) bool, True = takes part.
        key_lengths: ``[B]`` whole numbers: only that many first keys take part.
        offsets: ``[B + 1]`` whole numbers, ascending from 0 to T: batch element ``b`` owns rows
            ``offsets[b]`` to ``offsets[b + 1]`` of packed queries, and of packed keys.
        key_offsets: The same for the keys alone, where they differ.
        return_lse: Also return the log-sum-exp of the scaled scores.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        The output in the shape and dtype of ``q``. For views of packed projections
        ``out.transpose(1, 2).flatten(2)`` is free; the compiled kernel always leaves its memory
        as ``[B, Nq, H, d]``, torch's kernels leave it as that of ``q``. With ``return_lse`` also
        ``[B, H, Nq]`` (packed: ``[T, H]``) float32, float64 for float64 inputs. A query whose keys
        all take no part gets zeros and -inf.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
        OptionError: The scale is not finite, or lengths and offsets are given for the same keys.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Differentiable in ``q``, ``k`` and ``v``, through both results. Keys that take no part are
        never used: NaN in them does not matter. Under autocast the inputs are cast to its type.
        Deterministic, backward included.

    Example:
        >>> import torch
        >>> q, k = torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 3, 4)
        >>> v = torch.arange(12.0).reshape(1, 1, 3, 4)
        >>> attention(q, k, v)[0, 0, 0]
        tensor([4., 5., 6., 7.])
    """
    if (
        not return_lse
        and key_mask is None
        and key_lengths is None
        and offsets is None
        and key_offsets is None
        and (backend is None or backend == "native")
    ):
        planned = attend("attention", q, k, v, scale, backend)
        if planned is not None:
            return planned
    q, k, v = autocasted(q, k, v)
    if key_offsets is None and k.ndim == 3:
        key_offsets = offsets
    stream = make_stream(
        "attention",
        ("q", "k", "v"),
        (q, k, v),
        check_scale("attention", "scale", scale, q.shape[-1]),
        keys_of(key_mask, key_lengths, key_offsets),
        offsets,
    )
    ((out, lse),) = run("attention", "plain", backend, return_lse, stream)
    return (out, lse) if return_lse else out


def pair_attention(
    q0: Tensor,
    k0: Tensor,
    v0: Tensor,
    q1: Tensor,
    k1: Tensor,
    v1: Tensor,
    *,
    cross: bool,
    scale: float | None = None,
    key_mask0: Tensor | None = None,
    key_mask1: Tensor | None = None,
    key_lengths0: Tensor | None = None,
    key_lengths1: Tensor | None = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention within each set of a pair, or from each set to the other, in one call.

    Equal to attention over the joined ``N0 + N1`` tokens under a block mask, at half the
    multiplications and without the mask.

    Args:
        q0: Queries of set 0, ``[B, H, N0, d]``, any strides; for a query subset pass fewer rows.
        k0: Keys of set 0, ``[B, H, N0, d]``.
        v0: Values of set 0, as ``k0``.
        q1: Queries of set 1, ``[B, H, N1, d]``; ``N1`` may differ from ``N0``.
        k1: Keys of set 1.
        v1: Values of set 1.
        cross: False: each set attends to itself. True: 0 attends to 1 and 1 to 0.
        scale: Factor of the scores; ``d ** -0.5`` by default.
        key_mask0: ``[B, N0]`` bool, True = the token of set 0 takes part as a key. It gets its
            own output either way.
        key_mask1: ``[B, N1]``, for set 1.
        key_lengths0: ``[B]`` whole numbers: only that many first tokens of set 0 take part as keys.
        key_lengths1: For set 1.
        return_lse: Also return both log-sum-exps.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``out0`` and ``out1`` in the shapes of ``q0`` and ``q1``, with ``return_lse`` followed by
        ``lse0`` and ``lse1``; see :func:`attention` for layouts, edge cases and gradients.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
        OptionError: The scale is not finite.
        BackendError: A forced backend cannot run these inputs.

    Example:
        >>> import torch
        >>> tokens0, tokens1 = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 3, 8)
        >>> out0, out1 = pair_attention(*[tokens0] * 3, *[tokens1] * 3, cross=True)
        >>> out0.shape, out1.shape
        (torch.Size([1, 2, 5, 8]), torch.Size([1, 2, 3, 8]))
    """
    op = "pair_attention"
    q0, k0, v0, q1, k1, v1 = autocasted(q0, k0, v0, q1, k1, v1)
    factor = check_scale(op, "scale", scale, q0.shape[-1])
    sets = (
        ("0", k0, v0, keys_of(key_mask0, key_lengths0)),
        ("1", k1, v1, keys_of(key_mask1, key_lengths1)),
    )
    streams = []
    for side, q in enumerate((q0, q1)):
        suffix, k, v, keys = sets[1 - side if cross else side]
        names = (f"q{side}", f"k{suffix}", f"v{suffix}")
        streams.append(make_stream(op, names, (q, k, v), factor, keys, None, suffix))
    (out0, lse0), (out1, lse1) = run(op, "pair", backend, return_lse, *streams)
    return (out0, out1, lse0, lse1) if return_lse else (out0, out1)


def co_attention(
    q0: Tensor,
    k0: Tensor,
    v0: Tensor,
    q1: Tensor,
    k1: Tensor,
    v1: Tensor,
    *,
    offsets0: Tensor | None = None,
    offsets1: Tensor | None = None,
    scale: float | None = None,
    key_mask0: Tensor | None = None,
    key_mask1: Tensor | None = None,
    key_lengths0: Tensor | None = None,
    key_lengths1: Tensor | None = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention from each of two kinds of sets to the other, where either may be ragged.

    As :func:`pair_attention` with ``cross=True``, but each side is padded or packed as it comes,
    e.g. sentences of different lengths and a fixed number of image regions.

    Args:
        q0: Queries of side 0: ``[B, H, N0, d]``, or packed ``[T0, H, d]`` with ``offsets0``.
        k0: Keys of side 0, as ``q0``.
        v0: Values of side 0, as ``k0``.
        q1: Queries of side 1, padded or packed whatever side 0 is.
        k1: Keys of side 1.
        v1: Values of side 1.
        offsets0: ``[B + 1]`` whole numbers, ascending from 0 to T0: set ``b`` owns rows
            ``offsets0[b]`` to ``offsets0[b + 1]``.
        offsets1: For side 1.
        scale: Factor of the scores; ``d ** -0.5`` by default.
        key_mask0: ``[B, N0]`` (packed: ``[T0]``) bool, True = takes part as a key.
        key_mask1: For side 1.
        key_lengths0: ``[B]``, padded sides only: so many first tokens take part as keys.
        key_lengths1: For side 1.
        return_lse: Also return both log-sum-exps.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``out0`` and ``out1`` in the shapes of ``q0`` and ``q1``, with ``return_lse`` followed by
        ``lse0`` and ``lse1`` (``[B, H, N]``, packed ``[T, H]``); see :func:`attention`.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
        OptionError: The scale is not finite, or lengths and offsets are given for the same side.
        BackendError: A forced backend cannot run these inputs.

    Example:
        >>> import torch
        >>> words, regions = torch.randn(7, 2, 8), torch.randn(3, 2, 4, 8)
        >>> offsets = torch.tensor([0, 2, 3, 7])
        >>> out0, out1 = co_attention(*[words] * 3, *[regions] * 3, offsets0=offsets)
        >>> out0.shape, out1.shape
        (torch.Size([7, 2, 8]), torch.Size([3, 2, 4, 8]))
    """
    op = "co_attention"
    q0, k0, v0, q1, k1, v1 = autocasted(q0, k0, v0, q1, k1, v1)
    factor = check_scale(op, "scale", scale, q0.shape[-1])
    keys0 = keys_of(key_mask0, key_lengths0, offsets0)
    keys1 = keys_of(key_mask1, key_lengths1, offsets1)
    (out0, lse0), (out1, lse1) = run(
        op,
        "pair",
        backend,
        return_lse,
        make_stream(op, ("q0", "k1", "v1"), (q0, k1, v1), factor, keys1, offsets0, "1"),
        make_stream(op, ("q1", "k0", "v0"), (q1, k0, v0), factor, keys0, offsets1, "0"),
    )
    return (out0, out1, lse0, lse1) if return_lse else (out0, out1)


def _value_stream(
    op: str, v: Tensor, scale: float | None, keys: Keys, normalize: bool
) -> tuple[Stream, torch.dtype]:
    """Values that attend to themselves, and the dtype that the output shall have."""
    factor = check_scale(
        op, "value_scale" if op == "dual_attention" else "scale", scale, v.shape[-1]
    )
    if normalize and scale is None:
        raise OptionError(
            f"{op}: normalize must come with a scale of its own, got none. "
            f"Cosines times {factor:.3g} would be nearly equal weights."
        )
    rows = v
    if normalize:
        # In float32 throughout: a large scale would show the rounding of halves.
        rows = torch.nn.functional.normalize(v if v.dtype == torch.float64 else v.float(), dim=-1)
    values = v.to(rows.dtype)
    return make_stream(op, ("v", "v", "v"), (rows, rows, values), factor, keys, None), v.dtype


def value_attention(
    v: Tensor,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    normalize: bool = False,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Values that attend to one another: ``softmax(scale v v^T) v``.

    For queries or keys among themselves call :func:`attention` with ``q, q, v`` or ``k, k, v``.

    Args:
        v: ``[B, H, N, d]``, any strides; float16/bfloat16/float32/float64.
        scale: Factor of the scores; ``d ** -0.5`` by default. Needed with ``normalize``.
        key_mask: ``[B, N]`` bool, True = takes part as a key.
        key_lengths: ``[B]`` whole numbers: only that many first rows take part as keys.
        normalize: Compare L2-normalised rows; the averaged values stay as they are. Half types
            then run in float32.
        return_lse: Also return the log-sum-exp.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        As :func:`attention`.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
        OptionError: The scale is not finite, or absent with ``normalize``.
        BackendError: A forced backend cannot run these inputs.

    Example:
        >>> import torch
        >>> value_attention(torch.ones(1, 1, 2, 3))[0, 0]
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    (v,) = autocasted(v)
    stream, dtype = _value_stream(
        "value_attention", v, scale, keys_of(key_mask, key_lengths), normalize
    )
    ((out, lse),) = run("value_attention", "plain", backend, return_lse, stream)
    return (out.to(dtype), lse) if return_lse else out.to(dtype)


def dual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    value_scale: float | None = None,
    key_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    normalize: bool = False,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ordinary and value-value attention of one set, together: they share the values.

    Args:
        q: ``[B, H, N, d]``, any strides.
        k: As ``q``.
        v: As ``q``.
        scale: Factor of ``q k^T``; ``d ** -0.5`` by default.
        value_scale: Factor of ``v v^T``; ``d ** -0.5`` by default. Needed with ``normalize``.
        key_mask: ``[B, N]`` bool, True = takes part as a key in both.
        key_lengths: ``[B]`` whole numbers: only that many first rows take part as keys.
        normalize: Compare L2-normalised values in the second path.
        return_lse: Also return both log-sum-exps.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``softmax(scale q k^T) v`` and ``softmax(value_scale v v^T) v``, with ``return_lse``
        followed by their log-sum-exps; see :func:`attention`.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
        OptionError: A scale is not finite, or absent with ``normalize``.
        BackendError: A forced backend cannot run these inputs.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 12, 50, 64).unbind(0)
        >>> ordinary, values = dual_attention(q, k, v)
    """
    op = "dual_attention"
    q, k, v = autocasted(q, k, v)
    keys = keys_of(key_mask, key_lengths)
    factor = check_scale(op, "scale", scale, q.shape[-1])
    ordinary = make_stream(op, ("q", "k", "v"), (q, k, v), factor, keys, None)
    values, dtype = _value_stream(op, v, value_scale, keys, normalize)
    if values.v.dtype == dtype:
        (out, lse), (value_out, value_lse) = run(op, "dual", backend, return_lse, ordinary, values)
    else:
        ((out, lse),) = run(op, "plain", backend, return_lse, ordinary)
        ((value_out, value_lse),) = run(op, "plain", backend, return_lse, values)
    value_out = value_out.to(dtype)
    return (out, value_out, lse, value_lse) if return_lse else (out, value_out)
