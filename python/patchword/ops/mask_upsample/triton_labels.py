# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of the labels. Imported on use only: Triton decorates at import."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _tap_weight(t, tap, TAPS: tl.constexpr):
    """Weight of tap `tap` at fraction `t` between the second and third (first and second) cell."""
    if TAPS == 1:
        return t * 0.0 + 1.0
    if TAPS == 2:
        return tl.where(tap == 0, 1.0 - t, t)
    x = tl.abs(t - (tap - 1))
    near = ((1.25 * x - 2.25) * x) * x + 1.0
    far = ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0
    return tl.where(x <= 1.0, near, far)


@triton.jit
def _position(o, scale, cells, TAPS: tl.constexpr, ALIGN: tl.constexpr):
    """First cell and fraction of output coordinates, as torch.nn.functional.interpolate."""
    of = o.to(tl.float32)
    if TAPS == 1:
        return o, of * 0.0
    position = of * scale if ALIGN else tl.math.fma(of + 0.5, scale + of * 0.0, -0.5 + of * 0.0)
    if TAPS == 2:
        position = tl.maximum(position, 0.0)
    cell = tl.minimum(tl.floor(position).to(tl.int32), cells - 1)
    return cell, tl.minimum(tl.maximum(position - cell.to(tl.float32), 0.0), 1.0)


@triton.jit
def decide(
    logits,
    out,
    class_mask,
    region,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    mask_stride_b,
    mask_stride_c,
    region_stride_b,
    region_stride_y,
    region_stride_x,
    channels,
    height,
    width,
    out_height,
    out_width,
    scale_y,
    scale_x,
    ignore_index,
    HAS_MASK: tl.constexpr,
    HAS_REGION: tl.constexpr,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK neighbouring pixels of one output row: the lowest class of the largest value."""
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.program_id(1) + tl.zeros([BLOCK], tl.int32)
    b = tl.program_id(2).to(tl.int64)
    inside = x < out_width
    row, ty = _position(y, scale_y, height, TAPS_Y, ALIGN)
    column, tx = _position(tl.minimum(x, out_width - 1), scale_x, width, TAPS_X, ALIGN)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    label = tl.full([BLOCK], -1, tl.int32)
    first_y = row - (TAPS_Y // 4)
    first_x = column - (TAPS_X // 4)
    # Pointers advance class by class, so that no product of an index and a stride overflows.
    base = logits + b * stride_b
    if HAS_MASK:
        mask_at = class_mask + b * mask_stride_b
    for c in range(channels):
        live = True
        if HAS_MASK:
            live = tl.load(mask_at) != 0
            mask_at += mask_stride_c
        value = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(TAPS_Y):
            cell_y = tl.minimum(tl.maximum(first_y + j, 0), height - 1).to(tl.int64)
            mixed = tl.zeros([BLOCK], tl.float32)
            for i in tl.static_range(TAPS_X):
                cell_x = tl.minimum(tl.maximum(first_x + i, 0), width - 1).to(tl.int64)
                cell = tl.load(base + cell_y * stride_y + cell_x * stride_x, mask=inside, other=0.0)
                mixed += _tap_weight(tx, i, TAPS_X) * cell.to(tl.float32)
            value += _tap_weight(ty, j, TAPS_Y) * mixed
        base += stride_c
        # Minus infinity wins only where there is nothing else; a NaN never does.
        wins = ((value > best) | ((label < 0) & (value == value))) & live  # noqa: PLR0124
        best = tl.where(wins, value, best)
        label = tl.where(wins, c, label)
    if HAS_REGION:
        at = region + b * region_stride_b + y.to(tl.int64) * region_stride_y
        label = tl.where(tl.load(at + x * region_stride_x, mask=inside, other=0) != 0, label, -1)
    result = tl.where(label < 0, ignore_index, label.to(tl.int64))
    at = (b * out_height + y.to(tl.int64)) * out_width + x
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
