# SPDX-License-Identifier: Apache-2.0
"""From a picture to the network's input and back: three ways to resize, one exact inverse each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchword.backbones.base import Backbone
from patchword.errors import OptionError, ShapeError
from patchword.geometry import Matrix
from patchword.masks import upsample_map
from patchword.structures import ImageArray
from patchword.systems.segswap.config import PreprocessConfig

PATCH = 16


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the network's input.

    Attributes:
        image_size: ``(H, W)`` of the picture.
        input_size: ``(H, W)`` of the input.
        content: ``(top, left, height, width)`` of the picture inside the input, whole pixels.
        origin: ``(x, y)`` of the picture's corner when it was cut from a larger one.
    """

    image_size: tuple[int, int]
    input_size: tuple[int, int]
    content: tuple[int, int, int, int]
    origin: tuple[int, int] = (0, 0)

    @property
    def grid(self) -> tuple[int, int]:
        """``(h, w)`` of the patches."""
        return -(-self.input_size[0] // PATCH), -(-self.input_size[1] // PATCH)

    def to_picture(self, places: Matrix) -> Matrix:
        """Shares of the input ``[..., 2]`` (x, y in [0, 1]) to pixels of the whole picture."""
        top, left, height, width = self.content
        inside = (places * self.input_size[::-1] - (left, top)) / (width, height)
        pixels: Matrix = inside * self.image_size[::-1] + np.asarray(self.origin)
        return pixels

    def to_input(self, points: Matrix) -> Matrix:
        """Inverse of :meth:`to_picture`."""
        top, left, height, width = self.content
        inside = (points - np.asarray(self.origin)) / self.image_size[::-1]
        shares: Matrix = (inside * (width, height) + (left, top)) / self.input_size[::-1]
        return shares

    def valid(self) -> Tensor | None:
        """Bool ``[h, w]``: patches whose centre shows the picture; None when all do."""
        top, left, height, width = self.content
        if (height, width) == self.input_size:
            return None
        rows = (np.arange(self.grid[0]) + 0.5) * PATCH
        columns = (np.arange(self.grid[1]) + 0.5) * PATCH
        shown = ((rows >= top) & (rows < top + height))[:, None] & (
            (columns >= left) & (columns < left + width)
        )
        return torch.from_numpy(shown)

    def crop_maps(self, maps: Tensor) -> Tensor:
        """Upsample ``[K, h, w]`` to the picture's size, the filled border cut away exactly."""
        top, left, height, width = self.content
        if (height, width) == self.input_size:
            return upsample_map(maps, self.image_size)
        rows = (np.arange(self.image_size[0]) + 0.5) / self.image_size[0]
        columns = (np.arange(self.image_size[1]) + 0.5) / self.image_size[1]
        y = (rows * height + top) / self.input_size[0] * 2 - 1
        x = (columns * width + left) / self.input_size[1] * 2 - 1
        places = torch.stack(
            torch.meshgrid(torch.from_numpy(x), torch.from_numpy(y), indexing="xy"), dim=-1
        )
        return torch.nn.functional.grid_sample(
            maps[None], places[None].to(maps), padding_mode="border", align_corners=False
        )[0]


def plan_frame(
    size: tuple[int, int], preprocess: PreprocessConfig, multiple: int, where: str
) -> Frame:
    """Choose the input of a picture.

    Args:
        size: ``(H, W)`` of the picture.
        preprocess: How to resize.
        multiple: Sides of the input must be multiples of this.
        where: Starts the error message.

    Raises:
        ShapeError: The picture is smaller than a patch.
        OptionError: The configured size is no multiple.
    """
    if min(size) < PATCH:
        raise ShapeError(
            f"{where}: a picture must be at least {PATCH} pixels high and wide, one patch, got "
            f"{size[1]} x {size[0]} pixels."
        )
    height, width = preprocess.size
    if preprocess.resize == "fit":
        factor = max(height, width) / max(size)
        height, width = (max(1, round(side * factor / multiple)) * multiple for side in size)
        return Frame(size, (height, width), (0, 0, height, width))
    if height % multiple or width % multiple:
        raise OptionError(
            f"{where}: size must be a multiple of {multiple} on both sides, got {height} x {width}."
        )
    if preprocess.resize == "squash":
        return Frame(size, (height, width), (0, 0, height, width))
    factor = min(height / size[0], width / size[1])
    inner = (
        min(height, max(1, round(size[0] * factor))),
        min(width, max(1, round(size[1] * factor))),
    )
    content = ((height - inner[0]) // 2, (width - inner[1]) // 2, *inner)
    return Frame(size, (height, width), content)


def to_input(image: ImageArray, frame: Frame, backbone: Backbone) -> Tensor:
    """Draw a picture into its frame: ``[1, 3, H, W]`` float32 in [0, 1] on the backbone's device.

    Resized as the network was trained, by Pillow with its bilinear filter, in whole numbers.
    """
    top, left, height, width = frame.content
    drawn = image
    if (height, width) != image.shape[:2]:
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        drawn = np.asarray(resized)
    if (height, width) != frame.input_size:
        canvas = np.full((*frame.input_size, 3), round(backbone.fill * 255), dtype=np.uint8)
        canvas[top : top + height, left : left + width] = drawn
        drawn = canvas
    pixels = torch.from_numpy(np.array(drawn)).to(backbone.device)
    return pixels.permute(2, 0, 1)[None].float() / 255.0
