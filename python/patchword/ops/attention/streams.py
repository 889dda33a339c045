# SPDX-License-Identifier: Apache-2.0
"""One attention problem per batch element and head: its tensors, checked once for every op."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError


# Named tuples: a frozen dataclass takes microseconds to make, as long as a tiny call itself.
class Keys(NamedTuple):
    """Which keys of a set take part, as a public function got it."""

    mask: Tensor | None = None
    lengths: Tensor | None = None
    offsets: Tensor | None = None


EVERY_KEY = Keys()


class Stream(NamedTuple):
    """Queries that attend to one set of keys.

    Padded sets are ``[B, H, N, d]``; sets with offsets are ``[T, H, d]``, batch element ``b``
    owning the rows ``offsets[b]`` to ``offsets[b + 1]``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    key_mask: Tensor | None = None
    """``[B, Nk]`` bool, ``[T]`` for packed keys; True takes part."""

    key_lengths: Tensor | None = None
    """``[B]`` int64: only that many first keys take part."""

    query_offsets: Tensor | None = None
    key_offsets: Tensor | None = None

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.q.shape[1]

    @property
    def form(self) -> str:
        """What a routing table calls it: ragged, masked or plain."""
        if self.query_offsets is not None or self.key_offsets is not None:
            return "ragged"
        return "plain" if self.key_mask is None and self.key_lengths is None else "masked"

    @property
    def batch(self) -> int:
        """Number of batch elements."""
        if self.query_offsets is not None:
            return self.query_offsets.shape[0] - 1
        return self.q.shape[0]

    def to(self, dtype: torch.dtype) -> Stream:
        """Return the same stream with queries, keys and values of another dtype."""
        return self._replace(q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))


def _check_rows(op: str, name: str, rows: Tensor, like: Tensor, ragged: bool) -> None:
    wanted = "[T, H, d] with offsets" if ragged else "[B, H, N, d]"
    if rows.ndim != (3 if ragged else 4):
        raise ShapeError(
            f"{op}: {name} must have shape {wanted}, got {list(rows.shape)}.",
            wanted,
            tuple(rows.shape),
        )
    if rows.shape[1] != like.shape[1] or rows.shape[-1] != like.shape[-1]:
        raise ShapeError(
            f"{op}: {name} must have {like.shape[1]} heads of size {like.shape[-1]}, "
            f"got {list(rows.shape)}.",
            (like.shape[1], like.shape[-1]),
            tuple(rows.shape),
        )
    if not rows.is_floating_point():
        raise DTypeError(f"{op}: {name} must be floating point, got {rows.dtype}.")
    if rows.dtype != like.dtype:
        raise DTypeError(f"{op}: {name} must be {like.dtype}, got {rows.dtype}.")
    if rows.device != like.device:
        raise DTypeError(f"{op}: {name} must be on {like.device}, got {rows.device}.")


def _check_index(op: str, name: str, value: Tensor, count: int | None, like: Tensor) -> Tensor:
    """A vector of whole numbers as int64."""
    fits = value.ndim == 1 and (value.shape[0] == count if count is not None else len(value) > 0)
    if not fits:
        size = "B + 1" if count is None else str(count)
        raise ShapeError(
            f"{op}: {name} must have shape [{size}], got {list(value.shape)}.",
            size,
            tuple(value.shape),
        )
    if value.dtype not in (torch.int64, torch.int32) or value.device != like.device:
        raise DTypeError(
            f"{op}: {name} must be int64 or int32 on {like.device}, "
            f"got {value.dtype} on {value.device}."
        )
    return value if value.dtype == torch.int64 else value.long()


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The type that autocast wants on this tensor's device, or None where it is off."""
    kind = "cpu" if tensor.is_cpu else tensor.device.type
    if kind not in ("cpu", "cuda") and not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocasted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants them: float32 becomes its type, as in torch's attention."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    narrow = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if t.dtype in narrow else t for t in tensors)


def check_scale(op: str, name: str, scale: float | None, dim: int) -> float:
    """The scale, by default one over the root of the head size."""
    if scale is None:
        return 1.0 / math.sqrt(dim) if dim else 1.0
    if not math.isfinite(scale):
        raise OptionError(f"{op}: {name} must be finite, got {scale}.")
    return float(scale)


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether padded sets without masks pass every check; cheaper than asking one by one."""
    queries, keys = q.shape, k.shape
    return (
        len(queries) == len(keys) == 4
        and v.shape == keys
        and queries[0] == keys[0]
        and queries[1] == keys[1]
        and queries[3] == keys[3]
        and q.dtype == k.dtype == v.dtype
        and q.dtype.is_floating_point
        and ((q.is_cpu and k.is_cpu and v.is_cpu) or q.device == k.device == v.device)
    )


def keys_of(
    mask: Tensor | None, lengths: Tensor | None = None, offsets: Tensor | None = None
) -> Keys:
    """Which keys take part, with one object for all sets whose keys all do."""
    if mask is None and lengths is None and offsets is None:
        return EVERY_KEY
    return Keys(mask, lengths, offsets)


def make_stream(
    op: str,
    names: tuple[str, str, str],
    tensors: tuple[Tensor, Tensor, Tensor],
    scale: float,
    keys: Keys,
    query_offsets: Tensor | None,
    suffix: str = "",
) -> Stream:
    """Check one stream; looks at shapes and types alone.

    Args:
        op: Public function, for messages.
        names: What it calls queries, keys and values.
        tensors: Queries, keys and values.
        scale: Factor of the scores.
        keys: Which keys take part.
        query_offsets: Cumulative lengths of packed queries.
        suffix: Of the arguments that say which keys take part.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
    """
    q, k, v = tensors
    if query_offsets is None and keys is EVERY_KEY and fits(q, k, v):
        return Stream(q, k, v, scale)
    if q.ndim < 3:
        raise ShapeError(f"{op}: {names[0]} must have shape [B, H, N, d], got {list(q.shape)}.")
    _check_rows(op, names[0], q, q, query_offsets is not None)
    _check_rows(op, names[1], k, q, keys.offsets is not None)
    _check_rows(op, names[2], v, q, keys.offsets is not None)
    if v.shape != k.shape:
        raise ShapeError(
            f"{op}: {names[2]} must have shape {list(k.shape)} like {names[1]}, "
            f"got {list(v.shape)}.",
            tuple(k.shape),
            tuple(v.shape),
        )
    if query_offsets is not None:
        query_offsets = _check_index(op, "offsets", query_offsets, None, q)
        batch = query_offsets.shape[0] - 1
    else:
        batch = q.shape[0]
    key_offsets = keys.offsets
    if key_offsets is not None:
        key_offsets = _check_index(op, f"offsets{suffix}", key_offsets, batch + 1, q)
    elif k.shape[0] != batch:
        raise ShapeError(
            f"{op}: {names[1]} must have batch size {batch} like {names[0]}, got {k.shape[0]}.",
            batch,
            k.shape[0],
        )
    lengths = keys.lengths
    if lengths is not None:
        if key_offsets is not None:
            raise OptionError(
                f"{op}: key_lengths{suffix} must be absent for packed keys, got both. "
                f"The offsets already say the lengths."
            )
        lengths = _check_index(op, f"key_lengths{suffix}", lengths, batch, q)
    mask = keys.mask
    if mask is not None:
        shape = tuple(k.shape[:1]) if key_offsets is not None else (batch, k.shape[2])
        if tuple(mask.shape) != shape:
            raise ShapeError(
                f"{op}: key_mask{suffix} must have shape {list(shape)}, got {list(mask.shape)}.",
                shape,
                tuple(mask.shape),
            )
        if mask.dtype != torch.bool or mask.device != q.device:
            raise DTypeError(
                f"{op}: key_mask{suffix} must be bool on {q.device}, "
                f"got {mask.dtype} on {mask.device}."
            )
    return Stream(q, k, v, scale, mask, lengths, query_offsets, key_offsets)
