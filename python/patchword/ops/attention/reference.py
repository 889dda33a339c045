# SPDX-License-Identifier: Apache-2.0
"""Softmax attention in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.ops.attention.streams import Stream


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of ``[..., Nq, d]`` to ``[..., Nk, d]``; ``visible`` broadcasts to the scores."""
    scores = (q @ k.transpose(-1, -2)) * scale
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    # Rows without a visible key go through the softmax as zeros, so that no gradient is NaN.
    seen = visible.any(-1, keepdim=True)
    scores = torch.where(seen, scores.masked_fill(~visible, -torch.inf), 0.0)
    lse = torch.where(seen[..., 0], scores.logsumexp(-1), -torch.inf)
    out = torch.where(seen, scores.softmax(-1), 0.0) @ v
    return out, lse


def hide(rows: Tensor, visible: Tensor | None) -> Tensor:
    """Zeros in place of keys that take no part: what they hold must not reach a result."""
    return rows if visible is None else torch.where(visible, rows, 0.0)


def visible_keys(stream: Stream) -> Tensor | None:
    """Which keys of padded sets take part, ``[B, 1, 1, Nk]``; None where all do."""
    count = stream.k.shape[2]
    visible = None if stream.key_mask is None else stream.key_mask[:, None, None, :]
    if stream.key_lengths is not None:
        place = torch.arange(count, device=stream.k.device)
        within = (place < stream.key_lengths[:, None])[:, None, None, :]
        visible = within if visible is None else visible & within
    return visible


def _padded(stream: Stream) -> tuple[Tensor, Tensor]:
    visible = visible_keys(stream)
    rows = None if visible is None else visible.transpose(-1, -2)
    return _attend(stream.q, hide(stream.k, rows), hide(stream.v, rows), stream.scale, visible)


def _owner(offsets: Tensor, count: int) -> Tensor:
    """The batch element of each of ``count`` packed rows."""
    place = torch.arange(count, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), place, right=True)


def _packed(
    rows: Tensor, offsets: Tensor | None, mask: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows ``[H, T, d]``, the owner of each row, and which of them take part."""
    if offsets is not None:
        return rows.transpose(0, 1), _owner(offsets, rows.shape[0]), mask
    batch, heads, count, dim = rows.shape
    if lengths is not None:
        within = torch.arange(count, device=rows.device) < lengths[:, None]
        mask = within if mask is None else mask & within
    owner = torch.arange(batch, device=rows.device).repeat_interleave(count)
    flat = rows.transpose(0, 1).reshape(heads, batch * count, dim)
    return flat, owner, None if mask is None else mask.reshape(-1)


def _ragged(stream: Stream) -> tuple[Tensor, Tensor]:
    """All sets as one sequence under a block mask: plain, at the price of T x T scores."""
    q, q_owner, _ = _packed(stream.q, stream.query_offsets, None, None)
    k, k_owner, mask = _packed(stream.k, stream.key_offsets, stream.key_mask, stream.key_lengths)
    v, _, _ = _packed(stream.v, stream.key_offsets, None, None)
    rows = None if mask is None else mask[:, None]
    visible = q_owner[:, None] == k_owner
    if mask is not None:
        visible = visible & mask
    out, lse = _attend(q, hide(k, rows), hide(v, rows), stream.scale, visible)
    if stream.query_offsets is not None:
        return out.transpose(0, 1), lse.transpose(0, 1)
    batch, heads, count, dim = stream.q.shape
    return (
        out.reshape(heads, batch, count, dim).transpose(0, 1),
        lse.reshape(heads, batch, count).transpose(0, 1),
    )


def attention_reference(stream: Stream) -> tuple[Tensor, Tensor]:
    """Return ``softmax(scale q k^T) v`` and the log-sum-exp of the scaled scores.

    Keys that take no part are excluded after the product, and what they hold is never used. A
    query without a key gets zeros and -inf. Worked out in float64 for float64 inputs, else in
    float32; the output has the dtype of ``q``, the log-sum-exp that of the computation.
    """
    dtype = stream.q.dtype
    wide = stream.to(torch.float64 if dtype == torch.float64 else torch.float32)
    ragged = stream.query_offsets is not None or stream.key_offsets is not None
    out, lse = _ragged(wide) if ragged else _padded(wide)
    return out.to(dtype), lse
