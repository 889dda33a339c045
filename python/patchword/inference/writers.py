# SPDX-License-Identifier: Apache-2.0
"""The files of one result: exact masks and maps, one picture for people, one JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchword import __version__, viz
from patchword.inference.atomic import write_image, write_json
from patchword.inference.naming import slug
from patchword.viz.canvas import fit
from patchword.viz.masks import resize_image

if TYPE_CHECKING:
    from patchword.structures import LocateResult, MatchResult

SCHEMA_VERSION = 1
_THUMBNAIL_BOX = (300, 420)


def match_summary(result: MatchResult) -> dict[str, Any]:
    """Give a match as JSON-ready values, without its masks."""
    return {
        "schema_version": SCHEMA_VERSION,
        "score": float(result.score),
        "size0": list(result.mask0.shape),
        "size1": list(result.mask1.shape),
        "shared0": float(result.mask0.mean()),
        "shared1": float(result.mask1.mean()),
        "matches": np.round(result.matches, 2).astype(float).tolist(),
        "match_scores": np.round(result.match_scores, 5).astype(float).tolist(),
    }


def save_match(
    result: MatchResult,
    folder: str | PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    thumbnail: bool = False,
    footer: str = "",
) -> dict[str, Path]:
    """Write ``mask0.png``, ``mask1.png`` (8 bit, 255 is 1), ``overlay.png`` and ``result.json``.

    ``result.json`` is written last: where it is, the others are. Points in it are ``x0 y0 x1 y1``
    in pixels, sizes are ``(H, W)``, ``shared0`` is the mean of ``mask0``.

    Args:
        result: What to write.
        folder: Made if needed; files of the same names are replaced.
        extra: Fields to add to ``result.json``.
        thumbnail: Also write ``thumb.jpg``, the overlay made small for a page.
        footer: Words for the small line under the overlay, before patchword's version.

    Returns:
        Paths by ``mask0``, ``mask1``, ``overlay`` and ``result``.

    Raises:
        OutputError: Something cannot be written.
    """
    out = Path(folder)
    written = {
        "mask0": write_image(out / "mask0.png", viz.heatmap_pixels(result.mask0)),
        "mask1": write_image(out / "mask1.png", viz.heatmap_pixels(result.mask1)),
        **write_overlay(out, viz.match_overlay(result, footer=sign(footer)), thumbnail),
    }
    return write_result(out, {**(extra or {}), **match_summary(result)}, written)


def locate_summary(result: LocateResult) -> dict[str, Any]:
    """Give located phrases as JSON-ready values: score, share of the pixels, peak per phrase."""
    height, width = result.labels.shape
    phrases = []
    for k, text in enumerate(result.texts):
        row, column = np.unravel_index(int(np.argmax(result.heatmaps[k])), (height, width))
        phrases.append(
            {
                "text": text,
                "score": float(result.scores[k]),
                "share": float((result.labels == k).mean()),
                "peak": [float(column) + 0.5, float(row) + 0.5],
            }
        )
    return {"schema_version": SCHEMA_VERSION, "size": [height, width], "phrases": phrases}


def save_locate(
    result: LocateResult,
    folder: str | PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    thumbnail: bool = False,
    footer: str = "",
) -> dict[str, Path]:
    """Write a heat map per phrase, ``labels.png``, ``overlay.png`` and ``result.json``.

    A heat map is an 8-bit picture whose palette is viridis: the index is the value (255 is 1),
    the colours are for the eye. ``labels.png`` holds 0 for none and index + 1 for a phrase, in
    the colours of the legend (16 bit without colours from 256 phrases on). ``result.json`` is
    written last.

    Args:
        result: What to write.
        folder: Made if needed; files of the same names are replaced.
        extra: Fields to add to ``result.json``.
        thumbnail: Also write ``thumb.jpg``, the overlay made small for a page.
        footer: Words for the small line under the overlay, before patchword's version.

    Returns:
        Paths by ``heatmap_0`` ..., ``labels``, ``overlay`` and ``result``.

    Raises:
        OutputError: Something cannot be written.
    """
    out = Path(folder)
    written = {}
    heat_palette = viz.viridis(np.linspace(0, 1, 256))
    for k, text in enumerate(result.texts):
        path = out / f"heatmap_{k:02d}_{slug(text)}.png"
        pixels = viz.heatmap_pixels(result.heatmaps[k])
        written[f"heatmap_{k}"] = write_image(path, pixels, palette=heat_palette)
    written["labels"] = _write_labels(out / "labels.png", result)
    written |= write_overlay(out, viz.locate_overlay(result, footer=sign(footer)), thumbnail)
    return write_result(out, {**(extra or {}), **locate_summary(result)}, written)


def sign(footer: str) -> str:
    """Give the small line under an overlay: the caller's words, then patchword's version."""
    return ", ".join(filter(None, (footer, f"patchword {__version__}")))


def write_overlay(out: Path, picture: NDArray[np.uint8], thumbnail: bool) -> dict[str, Path]:
    """Write ``overlay.png`` and, if asked for, ``thumb.jpg``: the same made small for a page.

    Returns:
        Paths by ``overlay`` and ``thumb``.

    Raises:
        OutputError: Something cannot be written.
    """
    written = {"overlay": write_image(out / "overlay.png", picture)}
    if thumbnail:
        small = resize_image(picture, fit(picture.shape[:2], _THUMBNAIL_BOX))
        written["thumb"] = write_image(out / "thumb.jpg", small)
    return written


def write_result(out: Path, record: Mapping[str, Any], written: dict[str, Path]) -> dict[str, Path]:
    """Write ``result.json``, after the other files: where it is, they are.

    Args:
        out: The folder of them all.
        record: JSON-ready fields.
        written: Paths of the other files; their names become the field ``files``.

    Returns:
        ``written`` and the path by ``result``.

    Raises:
        OutputError: It cannot be written.
    """
    names = {name: path.name for name, path in written.items()}
    path = write_json(out / "result.json", {**record, "files": names})
    return {**written, "result": path}


def _write_labels(path: Path, result: LocateResult) -> Path:
    if len(result.texts) > 255:
        return write_image(path, (result.labels + 1).astype(np.uint16))
    palette = np.vstack([np.zeros((1, 3), np.uint8), viz.phrase_colors(result.texts)])
    return write_image(path, (result.labels + 1).astype(np.uint8), palette=palette)
