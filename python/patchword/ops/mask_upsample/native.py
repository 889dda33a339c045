# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradient, and when it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.mask_upsample import reference
from patchword.ops.mask_upsample.reference import Reading

# The same numbers as in kernels/mask_upsample/mask_upsample.h.
MODES = {"bilinear": 0, "bicubic": 1}
OUTPUTS = {
    "logits": 0,
    "sigmoid": 1,
    "softmax": 2,
    "minmax": 3,
    "binary": 4,
    "labels": 5,
    "labels_confidence": 6,
    "confusion": 7,
}
LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
_LABEL_OF_TAG = {DTYPE_TAGS[dtype]: dtype for dtype in LABEL_DTYPES}


def refuse(logits: Tensor, output: str | Tensor = "labels") -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    return _library.refuse_device(logits) or _library.refuse_dtype(logits)


def _run(
    output: int,
    logits: Tensor,
    size: Sequence[int],
    mode: int,
    align_corners: bool,
    label_tag: int = 6,
    *,
    out: Tensor | None = None,
    confidence: Tensor | None = None,
    confusion: Tensor | None = None,
    target: Tensor | None = None,
    class_mask: Tensor | None = None,
    region: Tensor | None = None,
    thresholds: Tensor | None = None,
    threshold: float = 0.0,
    scale: float = 1.0,
    ignore_index: int = -1,
) -> None:
    pixels = target if out is None else out
    assert pixels is not None
    if pixels.numel() == 0:
        if confusion is not None:
            confusion.zero_()
        return
    if class_mask is not None:
        class_mask = class_mask.contiguous()
    if region is not None:
        region = region.contiguous()
    if thresholds is not None:
        thresholds = thresholds.float().expand(logits.shape[0], logits.shape[1])
    _library.launch(
        C.mask_upsample_forward,
        logits,
        (
            logits.data_ptr(),
            0 if out is None else _library.written(out),
            _library.address(confidence),
            _library.address(confusion),
            _library.address(target),
            _library.address(class_mask),
            _library.address(region),
            _library.address(thresholds),
        ),
        (DTYPE_TAGS[logits.dtype], label_tag, mode, output, align_corners),
        (*logits.shape, *size),
        (
            *logits.stride(),
            0 if class_mask is None or class_mask.ndim == 1 else class_mask.stride(0),
            0 if region is None or region.shape[0] == 1 else region.stride(0),
            *((0, 0) if thresholds is None else thresholds.stride()),
        ),
        (threshold, scale),
        ignore_index,
    )


def _maps(
    logits: Tensor,
    size: Sequence[int],
    mode: int,
    align_corners: bool,
    output: int,
    threshold: float,
    thresholds: Tensor | None,
    class_mask: Tensor | None,
    region: Tensor | None,
    scale: float,
) -> Tensor:
    out = _maps_fake(logits, size, mode, align_corners, output)
    _run(
        output,
        logits,
        size,
        mode,
        align_corners,
        out=out,
        class_mask=class_mask,
        region=region,
        threshold=threshold,
        thresholds=thresholds,
        scale=scale,
    )
    return out


def _maps_fake(
    logits: Tensor, size: Sequence[int], mode: int, align_corners: bool, output: int, *rest: Any
) -> Tensor:
    dtype = torch.bool if output == OUTPUTS["binary"] else logits.dtype
    batch, channels, _, _ = logits.shape
    return logits.new_empty(batch, channels, *size, dtype=dtype)


_maps_op = _library.register(
    "mask_upsample_maps(Tensor logits, SymInt[] size, int mode, bool align_corners, int output, "
    "float threshold, Tensor? thresholds, Tensor? class_mask, Tensor? region, float scale) "
    "-> Tensor",
    _maps,
    _maps_fake,
)


def _labels(
    logits: Tensor,
    size: Sequence[int],
    mode: int,
    align_corners: bool,
    label_tag: int,
    ignore_index: int,
    class_mask: Tensor | None,
    region: Tensor | None,
) -> Tensor:
    out = _labels_fake(logits, size, mode, align_corners, label_tag)
    _run(
        OUTPUTS["labels"],
        logits,
        size,
        mode,
        align_corners,
        label_tag,
        out=out,
        class_mask=class_mask,
        region=region,
        ignore_index=ignore_index,
    )
    return out


def _labels_fake(
    logits: Tensor, size: Sequence[int], mode: int, align_corners: bool, label_tag: int, *_: Any
) -> Tensor:
    return logits.new_empty(logits.shape[0], *size, dtype=_LABEL_OF_TAG[label_tag])


_labels_op = _library.register(
    "mask_upsample_labels(Tensor logits, SymInt[] size, int mode, bool align_corners, "
    "int label_tag, int ignore_index, Tensor? class_mask, Tensor? region) -> Tensor",
    _labels,
    _labels_fake,
)


def _confidence(
    logits: Tensor,
    size: Sequence[int],
    mode: int,
    align_corners: bool,
    label_tag: int,
    ignore_index: int,
    class_mask: Tensor | None,
    region: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    out, confidence = _confidence_fake(logits, size, mode, align_corners, label_tag)
    _run(
        OUTPUTS["labels_confidence"],
        logits,
        size,
        mode,
        align_corners,
        label_tag,
        out=out,
        confidence=confidence,
        class_mask=class_mask,
        region=region,
        scale=scale,
        ignore_index=ignore_index,
    )
    return out, confidence


def _confidence_fake(
    logits: Tensor, size: Sequence[int], mode: int, align_corners: bool, label_tag: int, *_: Any
) -> tuple[Tensor, Tensor]:
    out = _labels_fake(logits, size, mode, align_corners, label_tag)
    return out, torch.empty_like(out, dtype=torch.float32)


_confidence_op = _library.register(
    "mask_upsample_confidence(Tensor logits, SymInt[] size, int mode, bool align_corners, "
    "int label_tag, int ignore_index, Tensor? class_mask, Tensor? region, float scale) "
    "-> (Tensor, Tensor)",
    _confidence,
    _confidence_fake,
)


def _confusion(
    logits: Tensor,
    target: Tensor,
    mode: int,
    align_corners: bool,
    ignore_index: int,
    class_mask: Tensor | None,
    region: Tensor | None,
) -> Tensor:
    out = _confusion_fake(logits)
    _run(
        OUTPUTS["confusion"],
        logits,
        target.shape[1:],
        mode,
        align_corners,
        DTYPE_TAGS[target.dtype],
        confusion=out,
        target=target.contiguous(),
        class_mask=class_mask,
        region=region,
        ignore_index=ignore_index,
    )
    return out


def _confusion_fake(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((logits.shape[1], logits.shape[1]), dtype=torch.int64)


_confusion_op = _library.register(
    "mask_upsample_confusion(Tensor logits, Tensor target, int mode, bool align_corners, "
    "int ignore_index, Tensor? class_mask, Tensor? region) -> Tensor",
    _confusion,
    _confusion_fake,
)


def _backward(grad: Tensor, height: int, width: int, mode: int, align_corners: bool) -> Tensor:
    grad = grad.contiguous()
    out = _backward_fake(grad, height, width, mode, align_corners)
    if out.numel() == 0:
        return out
    if grad.numel() == 0:
        return out.zero_()
    _library.launch(
        C.mask_upsample_backward,
        grad,
        grad.data_ptr(),
        _library.written(out),
        (DTYPE_TAGS[grad.dtype], 0, mode, 0, align_corners),
        (grad.shape[0], grad.shape[1], height, width, grad.shape[2], grad.shape[3]),
    )
    return out


def _backward_fake(grad: Tensor, height: int, width: int, mode: int, align_corners: bool) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], height, width))


_backward_op = _library.register(
    "mask_upsample_backward(Tensor grad, SymInt height, SymInt width, int mode, "
    "bool align_corners) -> Tensor",
    _backward,
    _backward_fake,
)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, size: Sequence[int], mode: int, align_corners: bool
    ) -> Tensor:
        ctx.shape, ctx.mode, ctx.align_corners = logits.shape[2:], mode, align_corners
        out: Tensor = _maps_op(
            logits, size, mode, align_corners, OUTPUTS["logits"], 0.0, None, None, None, 1.0
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        height, width = ctx.shape
        grad = _backward_op(grads[0], height, width, ctx.mode, ctx.align_corners)
        return grad, None, None, None


def _differentiable(logits: Tensor, reading: Reading) -> Tensor:
    out: Tensor = _Upsample.apply(  # type: ignore[no-untyped-call]
        logits, reading.size, MODES[reading.mode], reading.align_corners
    )
    return out


def maps(
    logits: Tensor, reading: Reading, output: str, threshold: float | Tensor, scale: float
) -> Tensor:
    """Same contract as :func:`reference.maps`."""
    size, mode, align_corners, class_mask, region = reading
    if output == "binary" and logits.requires_grad:
        logits = logits.detach()
    elif _library.wants_gradient(logits):
        out = _differentiable(logits, reading)
        if output == "logits" and class_mask is None and region is None:
            return out
        values = reference.finish_maps(
            out.float(), output=output, class_mask=class_mask, region=region, scale=scale
        )
        return values.to(logits.dtype)
    each, number = (threshold, 0.0) if isinstance(threshold, Tensor) else (None, float(threshold))
    run = _maps if _library.plain_eager(logits, each, class_mask, region) else _maps_op
    result: Tensor = run(
        logits,
        size,
        MODES[mode],
        align_corners,
        OUTPUTS[output],
        number,
        each,
        class_mask,
        region,
        scale,
    )
    return result


def labels(logits: Tensor, reading: Reading, label_dtype: torch.dtype, ignore_index: int) -> Tensor:
    """Same contract as :func:`reference.labels`."""
    size, mode, align_corners, class_mask, region = reading
    run = _labels if _library.plain_eager(logits, class_mask, region) else _labels_op
    tag = DTYPE_TAGS[label_dtype]
    out: Tensor = run(
        logits, size, MODES[mode], align_corners, tag, ignore_index, class_mask, region
    )
    return out


def labels_confidence(
    logits: Tensor, reading: Reading, label_dtype: torch.dtype, ignore_index: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Same contract as :func:`reference.labels_confidence`."""
    size, mode, align_corners, class_mask, region = reading
    detached = logits.detach() if logits.requires_grad else logits
    run = _confidence if _library.plain_eager(detached, class_mask, region) else _confidence_op
    tag = DTYPE_TAGS[label_dtype]
    chosen, confidence = run(
        detached, size, MODES[mode], align_corners, tag, ignore_index, class_mask, region, scale
    )
    if _library.wants_gradient(logits):
        values = _differentiable(logits, reading).float()
        confidence = reference.finish_confidence(
            values, class_mask=class_mask, region=region, scale=scale
        )
    return chosen, confidence


def confusion(logits: Tensor, target: Tensor, reading: Reading, ignore_index: int) -> Tensor:
    """Same contract as :func:`reference.confusion`."""
    _, mode, align_corners, class_mask, region = reading
    plain = _library.plain_eager(logits, target, class_mask, region)
    run = _confusion if plain else _confusion_op
    out: Tensor = run(logits, target, MODES[mode], align_corners, ignore_index, class_mask, region)
    return out
