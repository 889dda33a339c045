# SPDX-License-Identifier: Apache-2.0
"""torch's own attention: plain, backward, of a pair joined under a mask, dual and ragged."""

from __future__ import annotations

import itertools
import warnings
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


def _with_backend(backend: Any, function: Callable[..., Any], *tensors: Any) -> Any:
    with torch.nn.attention.sdpa_kernel(backend):
        return function(*tensors)


def with_backend(backend: str, build: Callable[[Inputs], Run], inputs: Inputs) -> Run:
    """Return the call of ``build`` confined to one of torch's backends, or say why it refuses."""
    chosen = torch.nn.attention.SDPBackend.__members__[backend]
    try:
        with torch.nn.attention.sdpa_kernel(chosen):
            run = build(inputs)
        confined = partial(_with_backend, chosen, run)
        with warnings.catch_warnings(record=True) as said:  # torch gives its reasons as warnings
            warnings.simplefilter("always")
            confined()
    except RuntimeError as error:
        reasons = [str(warning.message).split(" (Triggered")[0] for warning in said]
        reason = next((r for r in reasons if "not used because" not in r), str(error))
        raise NotAvailable(f"torch's {backend} refuses: {reason.splitlines()[0]}") from error
    return confined


def forced(inputs: Inputs, *, backend: str) -> Run:
    """Scaled dot-product attention with one of torch's backends, or its refusal."""
    return with_backend(backend, _plain, inputs)


def _plain(inputs: Inputs) -> Run:
    return partial(F.scaled_dot_product_attention, *views(inputs["packed0"]))


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


def joined_call(inputs: Inputs) -> Run:
    """The pair as one sequence under a block mask, ready to be called."""
    function, arguments = joined_pair(inputs)
    return partial(function, *arguments)


def _dual(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    attend = F.scaled_dot_product_attention
    return attend(q, k, v), attend(v, v, v)


def split_dual(inputs: Inputs) -> Run:
    """The ordinary and the value-value path as two calls of torch's attention."""
    return partial(_dual, *views(inputs["packed0"]))


def _padded(streams: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(F.scaled_dot_product_attention(q, k, v, attn_mask=m) for q, k, v, m in streams)


def padded_sides(inputs: Inputs) -> Run:
    """Two ragged sides attending to each other, padded to the longest set, under key masks."""
    sides = [[pad_sets(t, inputs[o]) for t in inputs[s]] for s, o in SIDES]
    masks = [pad_mask(inputs[o]) for _, o in SIDES]
    (q0, k0, v0), (q1, k1, v1) = sides
    return partial(_padded, [(q0, k1, v1, masks[1]), (q1, k0, v0, masks[0])])


SIDES = (("side0", "offsets0"), ("side1", "offsets1"))


def pad_sets(packed: Tensor, offsets: Tensor) -> Tensor:
    """Return packed rows ``[T, H, d]`` as sets ``[B, H, longest, d]``, zero where they end."""
    sets = [packed[a:b] for a, b in itertools.pairwise(offsets.tolist())]
    return torch.nn.utils.rnn.pad_sequence(sets, batch_first=True).transpose(1, 2).contiguous()


def pad_mask(offsets: Tensor) -> Tensor:
    """Return ``[B, 1, 1, longest]``, True where a padded set has a row."""
    lengths = offsets.diff()
    places = torch.arange(int(lengths.max()), device=offsets.device)
    return (places < lengths[:, None])[:, None, None]


def flex_plain(inputs: Inputs) -> Run:
    """FlexAttention of one set, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (t.contiguous() for t in views(inputs["packed0"]))
    return partial(torch.compile(flex_attention, dynamic=False), q, k, v)


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
    return partial(torch.compile(flex_attention, dynamic=False), q, k, v, block_mask=mask)
