# SPDX-License-Identifier: Apache-2.0
"""Class maps read at picture size: labels, masks and probabilities without the large tensor."""

from __future__ import annotations

from typing import Literal, get_args, overload

import torch
from torch import Tensor

from patchword.errors import OptionError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.mask_upsample import checks, native, reference, triton_kernels
from patchword.ops.mask_upsample.confusion import intersection_and_union, upsampled_confusion

__all__ = ["intersection_and_union", "mask_upsample", "refusals", "upsampled_confusion"]

TensorOutput = Literal[
    "logits", "probabilities", "softmax", "sigmoid", "minmax", "binary", "labels"
]
_OUTPUTS = (*get_args(TensorOutput), "labels_confidence")


def _always(logits: Tensor, output: str | Tensor = "labels") -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {
    "native": native.refuse,
    "triton": triton_kernels.refuse,
    "reference": _always,
}

_LABELS = {
    "native": native.labels,
    "triton": triton_kernels.labels,
    "reference": reference.labels,
}


@overload
def mask_upsample(
    logits: Tensor,
    size: tuple[int, int],
    *,
    mode: Literal["bilinear", "bicubic"] = ...,
    align_corners: bool = ...,
    output: TensorOutput = ...,
    threshold: float | Tensor = ...,
    class_mask: Tensor | None = ...,
    region: Tensor | None = ...,
    temperature: float = ...,
    label_dtype: torch.dtype = ...,
    ignore_index: int | None = ...,
    backend: Backend | None = ...,
) -> Tensor: ...


@overload
def mask_upsample(
    logits: Tensor,
    size: tuple[int, int],
    *,
    mode: Literal["bilinear", "bicubic"] = ...,
    align_corners: bool = ...,
    output: Literal["labels_confidence"],
    class_mask: Tensor | None = ...,
    region: Tensor | None = ...,
    temperature: float = ...,
    label_dtype: torch.dtype = ...,
    ignore_index: int | None = ...,
    backend: Backend | None = ...,
) -> tuple[Tensor, Tensor]: ...


def mask_upsample(
    logits: Tensor,
    size: tuple[int, int],
    *,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
    align_corners: bool = False,
    output: TensorOutput | Literal["labels_confidence"] = "logits",
    threshold: float | Tensor = 0.5,
    class_mask: Tensor | None = None,
    region: Tensor | None = None,
    temperature: float = 1.0,
    label_dtype: torch.dtype = torch.int64,
    ignore_index: int | None = None,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Class maps at another size, and what is decided from them.

    ``U = torch.nn.functional.interpolate(logits, size, mode=mode, align_corners=align_corners)``
    in float32, of which only what ``output`` asks for is ever stored.

    Args:
        logits: Maps ``[B, C, h, w]``, any strides (channels-last is as good as contiguous);
            float16/bfloat16/float32/float64.
        size: ``(H, W)`` of the result; larger or smaller than ``(h, w)``.
        mode: ``"bilinear"``, or ``"bicubic"`` with ``A = -0.75``.
        align_corners: Whether the centres of the corner cells and corner pixels coincide.
        output: ``"logits"``: U. ``"softmax"`` over the classes or ``"sigmoid"`` of
            ``U / temperature``; ``"probabilities"``: softmax, or sigmoid where ``C`` is 1.
            ``"minmax"``: ``(U - min) / (max - min)`` of each map's own evaluated pixels, 0 for a
            constant map. ``"binary"``: ``U > threshold``. ``"labels"``: the class of the largest
            U. ``"labels_confidence"``: labels, and the softmax probability of each.
        threshold: Used by ``"binary"``: a number, ``[C]`` or ``[B, C]``, compared with U itself
            (for a sigmoid probability ``p`` pass ``log(p / (1 - p))``).
        class_mask: bool ``[C]`` or ``[B, C]``, True = take part. Excluded classes are never a
            label, have no share in the softmax, and are 0 or False in every other output.
            Do not exclude classes by ``-inf``: interpolation turns it into NaN.
        region: bool ``[H, W]`` or ``[B, H, W]``, True = evaluate. Elsewhere labels are
            ``ignore_index`` and every other output 0 or False.
        temperature: Divides U in softmax, sigmoid and confidence. Positive.
        label_dtype: ``torch.int64``, ``int32``, ``int16`` or ``uint8``; a smaller one is faster.
        ignore_index: Label of a pixel that no class wins: none takes part, all are NaN, or it lies
            outside the region. Default -1, and 255 for ``uint8``.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``[B, C, H, W]`` in the dtype of ``logits`` (bool for ``"binary"``); ``[B, H, W]`` in
        ``label_dtype`` for ``"labels"``; for ``"labels_confidence"`` a pair with the confidence in
        float32 (float64 for float64 maps). Of equal classes the lowest is the label. Empty when
        ``B``, ``H`` or ``W`` is 0; without classes every label is ``ignore_index``.

    Raises:
        ShapeError: Rank or sizes do not fit, or the maps have no cell.
        DTypeError: An element type or device does not fit.
        OptionError: An option is none of its documented values.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Logits, probabilities, min-max and confidence are differentiable in ``logits``; except for
        logits themselves this stores U. Deterministic on every backend, gradients included.

    Source:
        The interpolation is that of :func:`torch.nn.functional.interpolate`.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[4.0, 0.0]], [[1.0, 1.0]]]])
        >>> mask_upsample(maps, (1, 6), output="labels")
        tensor([[[0, 0, 0, 0, 1, 1]]])
        >>> mask_upsample(maps, (1, 6), output="binary", threshold=2.0)[0, 0]
        tensor([[ True,  True,  True, False, False, False]])
    """
    size = (size[0], size[1]) if len(size) == 2 else size
    checks.check_logits("mask_upsample", logits, size, mode)
    if output not in _OUTPUTS:
        raise OptionError(
            f"mask_upsample: output must be one of {', '.join(_OUTPUTS)}, got {output!r}."
        )
    checks.check_class_mask("mask_upsample", class_mask, logits)
    region = checks.check_region("mask_upsample", region, logits, size)
    scale = checks.check_temperature("mask_upsample", temperature)
    if output == "probabilities":
        output = "sigmoid" if logits.shape[1] == 1 else "softmax"
    chosen = _backends.choose("mask_upsample", refusals, backend, logits, output)
    reading = reference.Reading(size, mode, align_corners, class_mask, region)
    if output in ("labels", "labels_confidence"):
        ignore = checks.check_labels("mask_upsample", label_dtype, ignore_index, logits.shape[1])
        if output == "labels":
            logits = logits.detach() if logits.requires_grad else logits
            return _LABELS[chosen](logits, reading, label_dtype, ignore)
        both = native.labels_confidence if chosen == "native" else reference.labels_confidence
        return both(logits, reading, label_dtype, ignore, scale)
    checks.check_threshold("mask_upsample", threshold, logits)
    run = native.maps if chosen == "native" else reference.maps
    return run(logits, reading, output, threshold, scale)
