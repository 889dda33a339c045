# SPDX-License-Identifier: Apache-2.0
"""Gather the pictures that SegSwap's default weights are trained on, see default_card.md.

    python scripts/collect_segswap_pictures.py PHOTOS SAMPLES CLIPART OUT

PHOTOS holds index.json (records of image and, where there is one, mask), SAMPLES single sample
photographs, CLIPART the folder of the Debian package openclipart-png. OUT gets `photographs`
(backgrounds), `cutouts` (objects of PHOTOS with an alpha channel) and `clipart`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Sample photographs in the public domain or under CC0, and one of lomiri-wallpapers-16.04.
SAMPLES = (
    *("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg", "cameraman.jpg"),
    *("brick.jpg", "grass.jpg", "gravel.jpg", "seeding_by_Clements_Engelhardt.jpg"),
)
CLIPART_FOLDERS = (
    *("animals", "computer", "containers", "education", "electronics", "food", "plants"),
    *("recreation", "science", "tools", "transportation", "people", "buildings", "decorations"),
    *("special", "unsorted"),
)
CLIPART_COUNT = 1200


def main(photos: Path, samples: Path, clipart: Path, out: Path) -> None:
    """Copy, cut out and choose."""
    for name in ("photographs", "cutouts", "clipart"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for record in json.loads((photos / "index.json").read_text("utf-8")):
        source = photos / record["image"]
        shutil.copy(source, out / "photographs")
        if record.get("mask"):
            colour = np.asarray(Image.open(source).convert("RGB"))
            alpha = np.asarray(Image.open(photos / record["mask"]).convert("L"))
            picture = cut(np.dstack([colour, alpha]), margin=4)
            Image.fromarray(picture).save(out / "cutouts" / f"{source.stem}.png")
    for name in SAMPLES:
        shutil.copy(samples / name, out / "photographs")
    chosen = choose_clipart(clipart)
    for path, picture in chosen:
        Image.fromarray(picture).save(out / "clipart" / f"{path.parent.name}_{path.name}")
    print(f"{len(chosen)} clip-art pictures, {len(list((out / 'cutouts').iterdir()))} cut-outs")


def choose_clipart(folder: Path) -> list[tuple[Path, np.ndarray]]:
    """A fixed random choice of colourful pictures with a sensible alpha channel."""
    paths = sorted(path for name in CLIPART_FOLDERS for path in (folder / name).rglob("*.png"))
    random.Random(0).shuffle(paths)
    chosen = []
    for path in paths:
        with Image.open(path) as image:
            if image.mode != "RGBA" or min(image.size) < 80 or max(image.size) > 2500:
                continue
            image.thumbnail((320, 320))
            pixels = np.asarray(image)
        solid = pixels[..., 3] > 127
        if not 0.12 < solid.mean() < 0.9 or pixels[..., :3][solid].std(axis=0).mean() < 30:
            continue
        picture = cut(pixels, margin=0)
        if min(picture.shape[:2]) >= 40:
            chosen.append((path, picture))
        if len(chosen) == CLIPART_COUNT:
            break
    return chosen


def cut(pixels: np.ndarray, *, margin: int) -> np.ndarray:
    """The part of an RGBA picture that is not transparent."""
    rows, columns = np.nonzero(pixels[..., 3] > 127)
    top, left = max(0, rows.min() - margin), max(0, columns.min() - margin)
    return pixels[top : rows.max() + 1 + margin, left : columns.max() + 1 + margin]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
