# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schema, allocation, and when it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchword import _library
from patchword._library import C

# As kPamrMostDilations in kernels/pamr/pamr.h.
_MOST_DILATIONS = 16
# Steps between neighbours are 32-bit in the kernels.
_MAX_SIDE = 2**24


def refuse(image: Tensor, masks: Tensor, dilations: Sequence[int] = ()) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    if len(dilations) > _MOST_DILATIONS:
        return f"there are more than {_MOST_DILATIONS} dilations"
    if max(image.shape[2:]) > _MAX_SIDE:
        return "the image has more than 2^24 pixels along an axis"
    return _library.refuse_device(masks) or _library.refuse_dtype(image, masks)


def _refine(
    image: Tensor, masks: Tensor, live: Tensor | None, dilations: Sequence[int], iterations: int
) -> Tensor:
    out = masks.new_empty(*masks.shape, dtype=torch.float32)
    if out.numel() == 0:
        return out
    if live is not None:
        live = live.contiguous()
    _library.launch(
        C.pamr_refine,
        masks,
        image.data_ptr(),
        masks.data_ptr(),
        _library.address(live),
        out.data_ptr(),
        (masks.shape[0], image.shape[1], *masks.shape[1:]),
        image.stride(),
        masks.stride(),
        dilations,
        iterations,
    )
    return out


def _fake(
    image: Tensor, masks: Tensor, live: Tensor | None, dilations: Sequence[int], iterations: int
) -> Tensor:
    return masks.new_empty(*masks.shape, dtype=torch.float32)


_op = _library.register(
    "pamr(Tensor image, Tensor masks, Tensor? live, int[] dilations, int iterations) -> Tensor",
    _refine,
    _fake,
)


def pamr_native(
    image: Tensor, masks: Tensor, dilations: Sequence[int], iterations: int, live: Tensor | None
) -> Tensor:
    """Same contract as :func:`pamr_reference`, in float32."""
    run = _refine if _library.plain_eager(image, masks, live) else _op
    refined: Tensor = run(image.float(), masks.float(), live, list(dilations), iterations)
    return refined.to(masks.dtype)
