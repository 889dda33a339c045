# SPDX-License-Identifier: Apache-2.0
"""The recurrence of simple recurrent units, one thread per unit, step after step, in Triton."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def walk(
    gates, bias, weight, highway, out, steps, batch, units,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK units of one sample through all steps; each step is loaded when its turn comes."""
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1).to(tl.int64)
    inside = unit < units
    bias_f = tl.load(bias + unit, mask=inside, other=0.0)
    bias_r = tl.load(bias + units + unit, mask=inside, other=0.0)
    weight_f = tl.load(weight + unit, mask=inside, other=0.0)
    weight_r = tl.load(weight + units + unit, mask=inside, other=0.0)
    state = tl.zeros([BLOCK], tl.float32)
    for step in range(steps):
        row = step * batch + sample
        at = row * 3 * units + unit
        u0 = tl.load(gates + at, mask=inside, other=0.0)
        u1 = tl.load(gates + at + units, mask=inside, other=0.0)
        u2 = tl.load(gates + at + 2 * units, mask=inside, other=0.0)
        x = tl.load(highway + row * units + unit, mask=inside, other=0.0)
        forget = tl.sigmoid(u1 + weight_f * state + bias_f)
        reset = tl.sigmoid(u2 + weight_r * state + bias_r)
        state = forget * (state - u0) + u0
        squashed = 2.0 * tl.sigmoid(2.0 * state) - 1.0
        tl.store(out + row * units + unit, reset * (squashed - x) + x, mask=inside)
