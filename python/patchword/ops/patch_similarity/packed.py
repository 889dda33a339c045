# SPDX-License-Identifier: Apache-2.0
"""A reusable handle of queries, packed once for the CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from patchword import _library
from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops.patch_similarity import native

Metric = Literal["cosine", "dot"]


@dataclass(frozen=True, eq=False)
class PackedQueries:
    """Queries that :func:`patch_similarity` takes many times without packing them each time.

    Holds the queries themselves too: gradients reach them, other devices and backends read them,
    and when they were changed in place or the CPU level has changed, they are packed anew.
    """

    queries: Tensor
    """``[C, D]`` or ``[B, C, D]``, as they were given."""
    metric: Metric
    """The metric they were packed for."""
    eps: float
    """The lower bound of their norms."""
    packed: Tensor | None = field(repr=False)
    """The packed form; None on other devices than the CPU and without the compiled module."""
    level: str
    """CPU level of the packed form."""
    version: int
    """In-place version of the queries when they were packed."""


def check_eps(function: str, eps: float) -> None:
    """Raise OptionError unless ``eps`` is positive."""
    if not eps > 0:
        raise OptionError(f"{function}: eps must be positive, got {eps}.")


def pack_queries(
    queries: Tensor, *, metric: Metric = "cosine", eps: float = 1e-12
) -> PackedQueries:
    """Pack queries once, for many calls of :func:`patch_similarity`.

    Args:
        queries: ``[C, D]`` shared by all batches, or ``[B, C, D]``; floating point. Not copied.
        metric: The metric that the calls will use.
        eps: The lower bound of the norms that the calls will use.

    Returns:
        A handle to pass in the place of ``queries``.

    Raises:
        ShapeError: ``queries`` has another rank.
        DTypeError: ``queries`` is not floating point.
        OptionError: ``metric`` or ``eps`` is out of range.

    Example:
        >>> import torch
        >>> words = pack_queries(torch.eye(3))
        >>> words.queries.shape
        torch.Size([3, 3])
    """
    if queries.ndim not in (2, 3):
        raise ShapeError(
            "pack_queries: queries must have shape [C, D] or [B, C, D], "
            f"got {list(queries.shape)}.",
            "[C, D] or [B, C, D]",
            tuple(queries.shape),
        )
    if not queries.is_floating_point():
        raise DTypeError(f"pack_queries: queries must be floating point, got {queries.dtype}.")
    if metric not in ("cosine", "dot"):
        raise OptionError(f'pack_queries: metric must be "cosine" or "dot", got {metric!r}.')
    check_eps("pack_queries", eps)
    plain = queries.detach()
    if (
        _library.C is None
        or plain.device.type != "cpu"
        or type(plain) is not torch.Tensor
        or _library.refuse_dtype(plain) is not None
    ):
        return PackedQueries(queries, metric, eps, None, "", -1)
    packed = native.pack(plain, metric == "cosine", eps)
    return PackedQueries(
        queries, metric, eps, packed, _library.C.cpu_level(), native.version_of(queries)
    )
