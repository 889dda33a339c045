# SPDX-License-Identifier: Apache-2.0
"""The recurrence of a simple recurrent unit in plain torch: the definition of the semantics."""

from __future__ import annotations

import torch
from torch import Tensor


def _towards_the_end(steps: Tensor, half: int) -> Tensor:
    """Turn time around for the units from ``half`` on."""
    return torch.cat((steps[..., :half], steps[..., half:].flip(0)), -1)


def sru_reference(
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
    """Run ``gates [L, B, k, d]`` through time.

    With ``u0 u1 u2 (u3)`` the gates of a step, ``c'`` the state before it and ``x`` either ``u3``
    or ``scale_x`` times ``highway [L, B, d]``::

        f = sigmoid(u1 + weight[:d] c' + bias[:d])
        r = sigmoid(u2 + weight[d:] c' + bias[d:])
        c = f c' + (1 - f) u0
        h = r mask g(c) + (1 - r) x              dropout="activation"
        h = r mask (g(c) - x) + x                dropout="difference"

    Past a sample's length the state stands still and ``h`` is 0. With ``bidirectional`` the units
    from ``d / 2`` on run from the last step to the first. Returns ``h [L, B, d]`` (with
    ``last_only`` that of each unit's last step, ``[B, d]``) and the last state ``[B, d]``.
    """
    steps, batch, count, units = gates.shape
    compute = torch.float64 if gates.dtype == torch.float64 else torch.float32
    u = gates.to(compute)
    x = u[:, :, 3] if count == 4 or highway is None else highway.to(compute) * scale_x
    bias_f, bias_r = bias.to(compute).chunk(2)
    weight_f, weight_r = weight.to(compute).chunk(2)
    state = u.new_zeros(batch, units) if initial is None else initial.to(compute)
    kept = 1.0 if mask is None else mask.to(compute)
    times = torch.arange(steps, device=gates.device)[:, None, None]
    limit = times.new_full((batch,), steps) if lengths is None else lengths
    real = (times < limit[:, None]).expand(steps, batch, units)
    half = units // 2 if bidirectional else units
    if bidirectional:
        u, x, real = (_towards_the_end(part, half) for part in (u, x, real))
    last = u.new_zeros(batch, units)
    outputs = []
    for t in range(steps):
        forget = torch.sigmoid(u[t, :, 1] + weight_f * state + bias_f)
        reset = torch.sigmoid(u[t, :, 2] + weight_r * state + bias_r)
        after = forget * state + (1 - forget) * u[t, :, 0]
        active = torch.tanh(after) if activation == "tanh" else after
        if dropout == "difference":
            out = reset * kept * (active - x[t]) + x[t]
        else:
            out = reset * (kept * active) + (1 - reset) * x[t]
        state = torch.where(real[t], after, state)
        last = torch.where(real[t], out, last)
        outputs.append(torch.where(real[t], out, 0.0))
    if last_only:
        return last.to(gates.dtype), state
    out = torch.stack(outputs) if outputs else u.new_zeros(0, batch, units)
    if bidirectional:
        out = _towards_the_end(out, half)
    return out.to(gates.dtype), state
