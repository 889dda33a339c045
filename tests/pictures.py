# SPDX-License-Identifier: Apache-2.0
"""Seeded pictures with structure at every scale, made where they are used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from patchword.geometry import warp_image

Image = npt.NDArray[np.uint8]


def textured(height: int, width: int, seed: int) -> Image:
    """Colour noise summed over octaves with hard-edged blobs: no two places look alike."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(3, height, width)
    for cells in (3, 6, 12, 24, 48):
        noise = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        if cells == 12:
            noise = noise.sign() * 0.4
        size = (height, width)
        total += F.interpolate(noise, size=size, mode="bilinear", align_corners=False)[0]
    low, high = total.amin(), total.amax()
    return ((total - low) / (high - low) * 255).round().byte().permute(1, 2, 0).numpy()


def warped(image: Image, homography: npt.NDArray[np.float64], size: tuple[int, int]) -> Image:
    """The picture seen through a map from its own frame to the new one."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    drawn, _ = warp_image(pixels, np.linalg.inv(homography), size, fill=127.0)
    return drawn[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def similarity_map(
    degrees: float, scale: float, center0: tuple[float, float], center1: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """Turn and scale about ``center0``, then move it to ``center1``."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = np.array(center1) - turn @ np.array(center0)
    return matrix
