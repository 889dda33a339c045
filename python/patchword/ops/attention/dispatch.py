# SPDX-License-Identifier: Apache-2.0
"""Run streams by the backend that is forced, or by the route that was measured for their shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchword.errors import BackendError, OptionError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.attention import native, routes, torch_sdpa
from patchword.ops.attention.reference import attention_reference
from patchword.ops.attention.routes import AttentionRoute
from patchword.ops.attention.streams import Keys, Stream, check_scale, make_stream

Results = list[tuple[Tensor, Any]]


def _always(*tensors: Tensor) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def _measured(kind: str, streams: Sequence[Stream], training: bool) -> str:
    """What the table says; it does not know whether torch's kernels can run these inputs."""
    first, form = streams[0], kind
    q = first.q
    for stream in streams:
        special = stream.form
        if special == "ragged":
            return routes.NATIVE
        if special != "plain":
            form = special
    batch, heads, queries, dim = q.shape
    keys = first.k.shape[2]
    for other in streams[1:]:
        queries, keys = max(queries, other.q.shape[2]), max(keys, other.k.shape[2])
    sizes = (batch * heads, queries, keys, dim)
    return routes.route(q.is_cuda, q.get_device(), q.dtype, form, training, sizes)


def _trains(streams: Sequence[Stream]) -> bool:
    return torch.is_grad_enabled() and any(
        stream.q.requires_grad or stream.k.requires_grad or stream.v.requires_grad
        for stream in streams
    )


def _choose(op: str, kind: str, streams: Sequence[Stream], want_lse: bool) -> str:
    """A route, or ``reference``, where nobody forces a backend."""
    q, k, v = streams[0][:3]
    forced = routes.forced()
    training = _trains(streams)
    if not want_lse or forced is not None:
        name = _measured(kind, streams, training) if forced is None else forced
        if name != routes.NATIVE:
            reason = torch_sdpa.refuse(streams, want_lse, training)
            if reason is None:
                return name
            if forced is not None:
                raise BackendError(f'{op}: route "{forced}" cannot run here: {reason}.')
    if native.runs_here(q):
        return routes.NATIVE
    name = _backends.choose(op, refusals, None, q, k, v)
    # float64 is for those who check a result: it gets the definition.
    if name == "reference" and q.dtype != torch.float64:
        return name if torch_sdpa.refuse(streams, want_lse, training) else "sdpa"
    return name


def choose(
    op: str, kind: str, backend: Backend | None, want_lse: bool, streams: Sequence[Stream]
) -> str:
    """The route that :func:`run` takes, with the same arguments and errors."""
    if backend is None and not _backends.is_forced():
        return _choose(op, kind, streams, want_lse)
    first = streams[0]
    return _backends.choose(op, refusals, backend, first.q, first.k, first.v)


def run(op: str, kind: str, backend: Backend | None, want_lse: bool, *streams: Stream) -> Results:
    """Output and log-sum-exp of each stream; the latter only if wanted.

    Args:
        op: Public function, for messages.
        kind: ``plain``, ``pair`` or ``dual``, as routing tables call it.
        backend: The caller's choice, which wins.
        want_lse: Whether the log-sum-exp is wanted.
        streams: One or two.

    Raises:
        BackendError: A forced backend cannot run these inputs.
        ConfigError: The routing table is not valid.
    """
    name = choose(op, kind, backend, want_lse, streams)
    if name == routes.NATIVE:
        return native.attention_native(streams, want_lse)
    if name == "reference":
        return [attention_reference(stream) for stream in streams]
    return [(out, None) for out in torch_sdpa.attention_sdpa(name, streams)]


def attention_route(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    form: str = "plain",
    scale: float | None = None,
    return_lse: bool = False,
) -> AttentionRoute:
    """Say which kernel an attention op would take for these inputs, and why that one.

    Args:
        q: ``[B, H, Nq, d]``; looked at, not read. Gradients count if any input requires one.
        k: ``[B, H, Nk, d]``.
        v: As ``k``.
        form: ``"plain"``, ``"pair"`` (also co-attention; pass the larger set), ``"dual"``, or
            ``"masked"`` where keys are masked or have lengths. Ragged sets always run natively.
        scale: As the op gets it.
        return_lse: As the op gets it; torch's kernels do not return it.

    Returns:
        The name of the route and where it is known from.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Types or devices do not fit together.
        OptionError: ``form`` is none of these.
        ConfigError: The routing table is not valid.

    Example:
        >>> import torch
        >>> q = torch.randn(1, 2, 900, 32)
        >>> attention_route(q, q, q, return_lse=True).name
        'native'
    """
    op = "attention_route"
    forms = ("plain", "pair", "dual", "masked")
    if form not in forms:
        raise OptionError(f"{op}: form must be one of {', '.join(forms)}, got {form!r}.")
    mask = None
    if form == "masked":
        mask = torch.ones(1, 1, dtype=torch.bool, device=q.device).expand(k.shape[0], k.shape[-2])
    factor = check_scale(op, "scale", scale, q.shape[-1])
    stream = make_stream(op, ("q", "k", "v"), (q, k, v), factor, Keys(mask), None)
    streams = (stream,) if form in ("plain", "masked") else (stream, stream)
    name = _choose(op, form, streams, return_lse)
    return AttentionRoute(name, routes.source(q.is_cuda, q.get_device()))
