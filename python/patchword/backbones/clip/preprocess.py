# SPDX-License-Identifier: Apache-2.0
"""CLIP's preprocessing, to the bit of Pillow's own bicubic resize."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchword.errors import OptionError
from patchword.structures import ImageArray

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def resize(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Resize uint8 ``[H, W, 3]`` to ``size = (H, W)`` by Pillow's bicubic filter, antialiased."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(resized)


def preprocess(
    image: ImageArray,
    resolution: int = 224,
    fit: Literal["crop", "stretch"] = "crop",
    device: torch.device | str | None = None,
) -> Tensor:
    """Turn a picture into the tower's input.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        resolution: Side of the square input in pixels.
        fit: ``"crop"``: the shorter side is brought to ``resolution`` and the middle cut out, as
            CLIP does; ``"stretch"``: both sides are, as the sketch system does.
        device: Where the result lies; ``None`` for the CPU.

    Returns:
        float32 ``[1, 3, resolution, resolution]``, normalised.

    Raises:
        OptionError: ``fit`` or ``resolution`` is none of its values.
    """
    if fit not in ("crop", "stretch") or resolution < 1:
        raise OptionError(
            "preprocess: fit must be crop or stretch and resolution positive, got "
            f"{fit!r} and {resolution}."
        )
    if fit == "stretch":
        square = resize(image, (resolution, resolution))
    else:
        height, width = image.shape[:2]
        short = min(height, width)
        # Pixels past the last whole one are dropped, as in the published resize.
        larger = resize(image, (resolution * height // short, resolution * width // short))
        top, left = (round((side - resolution) / 2.0) for side in larger.shape[:2])
        square = larger[top : top + resolution, left : left + resolution]
    pixels = torch.from_numpy(np.array(square)).to(device).permute(2, 0, 1).float().div_(255)
    return normalize(pixels[None])


def normalize(pixels: Tensor) -> Tensor:
    """Subtract CLIP's mean from ``[B, 3, H, W]`` in [0, 1] and divide by its deviation."""
    mean = pixels.new_tensor(MEAN).view(3, 1, 1)
    return (pixels - mean) / pixels.new_tensor(STD).view(3, 1, 1)
