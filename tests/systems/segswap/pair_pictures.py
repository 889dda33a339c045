# SPDX-License-Identifier: Apache-2.0
"""Small labelled folders for the tests of SegSwap's pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchword.systems.segswap.recipe import PairRecipe

HEIGHT, WIDTH = 120, 160
# Small, so that a pair takes milliseconds; a hundred cells are enough to hold an object.
SMALL = PairRecipe(size=160, dilation=2, min_cells=2.0)


def photograph(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """Coarse coloured noise: cheap, and no two places look alike."""
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    cells.resize((size[1], size[0]), Image.Resampling.BILINEAR).save(path)
    return path


def photographs(folder: Path, count: int = 4) -> Path:
    for k in range(count):
        photograph(folder / f"{k}.png", k)
    return folder


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Three pictures: one with a cat and a dog, one with a cat, one with nothing."""
    for number in (1, 2, 3):
        photograph(folder / "images" / f"{number:012d}.jpg", number)
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            for n in (1, 2, 3)
        ],
        "annotations": [
            annotation(10, 1, 17, [rectangle(20, 20, 70, 100)]),
            annotation(11, 1, 18, [rectangle(95, 20, 150, 100)]),
            annotation(12, 2, 17, [rectangle(30, 30, 120, 90)]),
        ],
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return folder / "images", path


def annotation(number: int, image: int, category: int, shape: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": shape,
        "iscrowd": 0,
        **fields,
    }
