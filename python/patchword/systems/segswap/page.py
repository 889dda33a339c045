# SPDX-License-Identifier: Apache-2.0
"""A page to look at stored pairs: pictures, masks and correspondences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from patchword.data.io import read_image
from patchword.inference.atomic import write_image
from patchword.inference.html import Card, write_pages
from patchword.systems.segswap.correspondence import cell_centers
from patchword.systems.segswap.store import PairFolder

Pixels = npt.NDArray[np.uint8]
Target = npt.NDArray[np.float32]

_LINE = (60, 200, 90)
_DOT = (230, 60, 40)
_DIM = 0.3
_MAX_LINES = 60


def pair_figure(image0: Pixels, image1: Pixels, target0: Target, target1: Target) -> Pixels:
    """Draw one pair: both pictures, both masked, and lines from cells of the mask.

    Args:
        image0: ``[H, W, 3]``.
        image1: Of the same size.
        target0: ``[3, h, w]``: x, y and mask.
        target1: The same for picture 1.

    Returns:
        ``[2 H, 2 W, 3]``: masked pictures above, correspondences from 0 to 1 below.
    """
    top = np.concatenate([_masked(image0, target0[2]), _masked(image1, target1[2])], axis=1)
    bottom = np.ascontiguousarray(np.concatenate([image0, image1], axis=1))
    height, width = image0.shape[:2]
    grid = (target0.shape[1], target0.shape[2])
    chosen = np.flatnonzero(target0[2] > 0.5)
    kept = chosen[np.linspace(0, len(chosen) - 1, min(_MAX_LINES, len(chosen))).astype(int)]
    starts = (cell_centers(grid).reshape(-1, 2)[kept] * (width, height)).astype(int)
    ends = (target0[:2].reshape(2, -1).T[kept] * (width, height)).astype(int)
    ends[:, 0] += width
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        cv2.line(bottom, tuple(start), tuple(end), _LINE, 1, cv2.LINE_AA)
    for point in (*starts.tolist(), *ends.tolist()):
        cv2.circle(bottom, tuple(point), 2, _DOT, -1, cv2.LINE_AA)
    return np.concatenate([top, bottom], axis=0)


def _masked(image: Pixels, mask: npt.NDArray[np.float32]) -> Pixels:
    size = (image.shape[1], image.shape[0])
    soft = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)[:, :, None]
    masked: Pixels = (image * (_DIM + (1.0 - _DIM) * np.clip(soft, 0.0, 1.0))).astype(np.uint8)
    return masked


def write_pair_page(folder: str | Path, count: int = 100) -> Path:
    """Write ``index.html`` with the first ``count`` pairs of a folder, plain and stylised.

    Figures go to ``items/`` beside the pairs.

    Returns:
        The path of the page.

    Raises:
        DatasetError: The folder holds no pairs, or a file of one is damaged.
        OutputError: Something cannot be written.
    """
    pairs = PairFolder(Path(folder))
    numbers = pairs.numbers[:count]

    def cards() -> Iterator[Card]:
        for number in numbers:
            target0, target1 = pairs.targets(number)
            for style, names in (("", ("a", "b")), (", stylised", ("as", "bs"))):
                image0, image1 = (read_image(pairs.picture(number, name)) for name in names)
                figure = pair_figure(image0, image1, target0, target1)
                name = f"items/{number}_{''.join(names)}.jpg"
                write_image(pairs.path / name, figure)
                cells = [f"{float(target[2].sum()):.0f}" for target in (target0, target1)]
                lines = [f"{cells[0]} and {cells[1]} cells shared"]
                yield Card(f"pair {number}{style}", lines, name, name)

    lead = f"{len(numbers)} of {len(pairs)} pairs; what is not shared is dark"
    return write_pages(pairs.path, "Training pairs", lead, cards())
