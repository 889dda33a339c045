# SPDX-License-Identifier: Apache-2.0
"""torch's ``scaled_dot_product_attention`` with the semantics of these ops, for routes to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchword.ops.attention.reference import hide, visible_keys
from patchword.ops.attention.streams import Stream, autocast_dtype

# The preferred kernel comes first; the others follow for inputs that it refuses.
_ORDER = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
_PREFERRED = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
}


def _refuse_stream(stream: Stream) -> str | None:
    q, k, v = stream.q, stream.k, stream.v
    if stream.form == "ragged":
        return "it has no ragged sets"
    # A negative factor turns the maximum that its kernels subtract into the minimum.
    if stream.scale <= 0:
        return f"the scale {stream.scale} is not positive"
    if not (q.stride(-1) == k.stride(-1) == v.stride(-1) == 1):
        return "rows are not contiguous"
    return "a set is empty" if q.numel() == 0 or k.numel() == 0 else None


def refuse(streams: Sequence[Stream], want_lse: bool, training: bool) -> str | None:
    """Why torch's attention cannot stand in for these streams, or None when it can."""
    if want_lse:
        return "it does not return the log-sum-exp"
    for stream in streams:
        if (reason := _refuse_stream(stream)) is not None:
            return reason
    first = streams[0].q
    if first.dtype == torch.float32 and autocast_dtype(first) is not None:
        return "autocast would narrow inputs that are to stay float32"
    if training and first.is_cuda and torch.are_deterministic_algorithms_enabled():
        return "its gradients on a GPU are not repeatable, and torch is asked to be deterministic"
    return None


def _attend(stream: Stream) -> Tensor:
    visible = visible_keys(stream)
    if visible is None:
        return F.scaled_dot_product_attention(stream.q, stream.k, stream.v, scale=stream.scale)
    rows = visible.transpose(-1, -2)
    k, v = hide(stream.k, rows), hide(stream.v, rows)
    # A query without a key attends to the zeros that hidden keys became, and is cleared after.
    seen = visible.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(stream.q, k, v, visible | ~seen, scale=stream.scale)
    return torch.where(seen, out, 0.0)


def attention_sdpa(route: str, streams: Sequence[Stream]) -> list[Tensor]:
    """Outputs of the streams, one call of torch's attention each."""
    preferred = _PREFERRED.get(route)
    # On the CPU torch keeps to its own order; asking for another costs as much as a tiny call.
    if preferred is None or streams[0].q.is_cpu:
        return [_attend(stream) for stream in streams]
    order = [preferred, *(kernel for kernel in _ORDER if kernel is not preferred)]
    with sdpa_kernel(order, set_priority=True):
        return [_attend(stream) for stream in streams]
