# SPDX-License-Identifier: Apache-2.0
"""torch's own attention: plain, backward, and over the joined tokens of a pair under a mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import NotAvailable, Run
from benchmarks.registry import Inputs

Function = Callable[..., Tensor]


def views(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B,H,N,d] of a packed projection [B,N,3,H,d]."""
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    return q, k, v


def _gradients(out: Tensor, tensors: list[Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    # Timing runs in inference mode, which would hide the backward pass from autograd.
    with torch.inference_mode(False), torch.enable_grad():
        return torch.autograd.grad(out, tensors, seed, retain_graph=True)


def backward_of(function: Function, inputs: Inputs) -> Run:
    """Return the gradients of ``function(q, k, v)``; its forward is done beforehand."""
    with torch.inference_mode(False), torch.enable_grad():
        packed, seed = inputs["packed0"].clone(), inputs["seed"].clone()
        tensors = [t.detach().requires_grad_() for t in views(packed)]
        return partial(_gradients, function(*tensors), tensors, seed)


def _step(function: Function, tensors: list[Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.enable_grad():
        return torch.autograd.grad(function(*tensors), tensors, seed)


def step_of(function: Function, inputs: Inputs) -> Run:
    """Return ``function(q, k, v)`` and its gradients, as a training step asks for both."""
    with torch.inference_mode(False), torch.enable_grad():
        packed, seed = inputs["packed0"].clone(), inputs["seed"].clone()
        return partial(_step, function, [t.detach().requires_grad_() for t in views(packed)], seed)


def sdpa_step(inputs: Inputs) -> Run:
    """Scaled dot-product attention and its gradients."""
    return step_of(F.scaled_dot_product_attention, inputs)


def sdpa(inputs: Inputs) -> tuple[Function, tuple[Any, ...]]:
    """Scaled dot-product attention, with the backend that torch chooses."""
    return F.scaled_dot_product_attention, views(inputs["packed0"])


def _with_backend(backend: Any, *tensors: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*tensors)


def forced(inputs: Inputs, *, backend: str) -> Run:
    """Scaled dot-product attention with one of torch's backends, or its refusal."""
    chosen = torch.nn.attention.SDPBackend.__members__[backend]
    run = partial(_with_backend, chosen, *views(inputs["packed0"]))
    try:
        run()
    except RuntimeError as error:
        raise NotAvailable(f"torch's {backend} refuses: {str(error).splitlines()[0]}") from error
    return run


def sdpa_backward(inputs: Inputs) -> Run:
    """Gradients of scaled dot-product attention."""
    return backward_of(F.scaled_dot_product_attention, inputs)


def _joined(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


def joined_pair(inputs: Inputs) -> tuple[Function, tuple[Any, ...]]:
    """The pair as one sequence under a block mask, as transformer encoders are written."""
    first, second = inputs["packed0"], inputs["packed1"]
    side = torch.arange(first.shape[1] + second.shape[1], device=first.device) >= first.shape[1]
    visible = (side[:, None] == side) ^ inputs["cross"]
    return _joined, (*views(torch.cat([first, second], 1)), visible)


def _two(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return F.scaled_dot_product_attention(*first), F.scaled_dot_product_attention(*second)


def split_pair(inputs: Inputs) -> Run:
    """The pair as two calls of torch's attention: the best composition."""
    first, second = views(inputs["packed0"]), views(inputs["packed1"])
    if inputs["cross"]:
        first, second = (first[0], *second[1:]), (second[0], *first[1:])
    return partial(_two, first, second)


def dual(inputs: Inputs) -> Run:
    """Ordinary and value-value attention as two calls of torch's attention."""
    q, k, v = views(inputs["packed0"])
    return partial(_two, (q, k, v), (v, v, v))


def subset(inputs: Inputs) -> tuple[Function, tuple[Any, ...]]:
    """The first query against all keys."""
    q, k, v = views(inputs["packed0"])
    return F.scaled_dot_product_attention, (q[:, :, :1], k, v)


def _padded_sets(q0: Tensor, mask0: Tensor, q1: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    k0, v0, k1, v1 = rest
    return (
        F.scaled_dot_product_attention(q0, k1, v1),
        F.scaled_dot_product_attention(q1, k0, v0, attn_mask=mask0),
    )


def padded_co(inputs: Inputs) -> Run:
    """Co-attention of ragged words and regions as two calls over padded words under a mask."""
    lengths = inputs["lengths"]
    place = torch.arange(max(lengths), device=inputs["words"].device)
    within = place < torch.tensor(lengths, device=place.device)[:, None]
    padded = inputs["words"].new_zeros(*within.shape, *inputs["words"].shape[1:])
    padded[within] = inputs["words"]
    (q0, k0, v0), (q1, k1, v1) = views(padded), views(inputs["regions"])
    return partial(_padded_sets, q0, within[:, None, None, :], q1, k0, v0, k1, v1)


def flex_pair(inputs: Inputs) -> Run:
    """The pair as one sequence under FlexAttention's block mask, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    first, second = inputs["packed0"], inputs["packed1"]
    count, total, cross = first.shape[1], first.shape[1] + second.shape[1], inputs["cross"]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((query < count) == (key < count)) ^ cross

    mask = create_block_mask(visible, None, None, total, total, device=str(first.device))
    q, k, v = (t.contiguous() for t in views(torch.cat([first, second], 1)))
    return partial(torch.compile(flex_attention), q, k, v, block_mask=mask)
