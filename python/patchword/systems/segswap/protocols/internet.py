# SPDX-License-Identifier: Apache-2.0
"""Object discovery on the Internet subset (Airplane100, Car100, Horse100)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchword.data.folders import is_folder, list_images
from patchword.data.io import printable, read_image
from patchword.errors import DatasetError, OptionError
from patchword.evaluation import EvaluationReport
from patchword.evaluation.report import beside, tint
from patchword.inference.progress import Progress, silent
from patchword.systems.segswap.discovery import (
    Discovery,
    DiscoveryOptions,
    discover_from_pairs,
)
from patchword.systems.segswap.relations import PairModel, relate_all

Mask = npt.NDArray[np.bool_]

TRUTH_FOLDER = "GroundTruth"
SIGMAS: Mapping[str, float] = {"Airplane": 0.8, "Car": 5.0, "Horse": 1.2}
"""Published fading distances; they were tuned on these very test pictures."""
_EXAMPLES_PER_CLASS = 4


@dataclass(frozen=True)
class InternetOptions:
    """Settings of the protocol.

    Attributes:
        discovery: Numbers of the discovery; its ``sigma`` is replaced class by class.
        sigmas: Fading distance of each class, by the start of its folder's name; other classes
            take the one of ``discovery``.
        cache: Folder for outputs of pairs, a sub-folder per class.
        chunk: Pairs of one cached file.
        batch: Pairs in one call of the network.
    """

    discovery: DiscoveryOptions = field(default_factory=DiscoveryOptions)
    sigmas: Mapping[str, float] = field(default_factory=lambda: dict(SIGMAS))
    cache: Path | None = None
    chunk: int = 500
    batch: int = 32

    def sigma(self, folder: str) -> float:
        """Give the fading distance of a class by the name of its folder."""
        for start, value in self.sigmas.items():
            if folder.startswith(start):
                return value
        return self.discovery.graph.sigma


def pixel_accuracy(predicted: Mask, truth: Mask) -> float:
    """Share of the pixels, background included, on which two masks agree."""
    return float((predicted == truth).mean())


def jaccard(predicted: Mask, truth: Mask) -> float:
    """Intersection over union; NaN where the truth is empty, which leaves the picture out."""
    if not truth.any():
        return float("nan")
    return float((predicted & truth).sum() / (predicted | truth).sum())


def read_truth(path: Path, size: tuple[int, int]) -> Mask:
    """Read a true mask: a picture of one channel, not zero is object.

    Raises:
        DatasetError: It is missing, has several channels, or another size than its picture.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"evaluate: true mask {printable(path)} cannot be read ({reason}).", path=path
        ) from error
    if values.shape != size:
        raise DatasetError(
            f"evaluate: true mask {printable(path)} must have one channel and the size of its "
            f"picture, {size}, got {values.shape}.",
            path=path,
        )
    truth: Mask = values.astype(bool)
    return truth


def evaluate_internet(
    data: str | Path,
    *,
    model: PairModel,
    options: InternetOptions | None = None,
    progress: Progress = silent,
) -> EvaluationReport:
    """Discover the object of each class and compare with the true masks.

    Args:
        data: Folder of classes (``Airplane100`` ...), or of one class: pictures and, in
            ``GroundTruth``, a mask ``<name>.png`` for each.
        model: The network, see :class:`~patchword.systems.segswap.relations.SegswapPairs`.
        options: Settings.
        progress: Wraps the loop over chunks of pairs.

    Returns:
        ``precision`` (mean over all pictures of the share of right pixels) and ``jaccard`` (mean
        over pictures with an object), both as means over the classes and per class.

    Raises:
        DatasetError: The layout is another one, or a file cannot be read.
        OutputError: The cache cannot be written.
    """
    options = options if options is not None else InternetOptions()
    top = Path(data)
    metrics: dict[str, float] = {}
    items: list[dict[str, Any]] = []
    examples: list[npt.NDArray[np.uint8]] = []
    found: list[tuple[float, float]] = []
    for folder in _classes(top):
        paths = [path for path in list_images(folder) if path.parent == folder]
        if len(paths) < 2:
            raise DatasetError(
                f"evaluate: {printable(folder)} must hold at least 2 pictures, got {len(paths)}.",
                path=folder,
            )
        truths = [
            read_truth(folder / TRUTH_FOLDER / f"{path.stem}.png", _size(path)) for path in paths
        ]
        result = _discover(folder, paths, model, options, progress)
        rows: list[dict[str, Any]] = [
            {
                "class": folder.name,
                "image": path.name,
                "precision": pixel_accuracy(mask, truth),
                "jaccard": jaccard(mask, truth),
            }
            for path, mask, truth in zip(paths, result.masks, truths, strict=True)
        ]
        scores = np.array([row["jaccard"] for row in rows])
        precision = float(np.mean([row["precision"] for row in rows]))
        overlap = float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")
        found.append((precision, overlap))
        metrics[f"precision_{folder.name}"], metrics[f"jaccard_{folder.name}"] = precision, overlap
        metrics[f"nodes_{folder.name}"] = float(result.num_nodes)
        items += [{**row, "jaccard": _or_none(row["jaccard"])} for row in rows]
        for path, mask, truth in list(zip(paths, result.masks, truths, strict=True))[
            :_EXAMPLES_PER_CLASS
        ]:
            picture = read_image(path)
            examples.append(
                beside(
                    tint(picture, mask.astype(np.float32)), tint(picture, truth.astype(np.float32))
                )
            )
    means = np.array(found).mean(axis=0)
    summary = {"precision": float(means[0]), "jaccard": float(means[1]), **metrics}
    # A class whose pictures all lack the object has no Jaccard index.
    measured = {name: value for name, value in summary.items() if not np.isnan(value)}
    return EvaluationReport(measured, items, _words(options), tuple(examples))


def _discover(
    folder: Path, paths: list[Path], model: PairModel, options: InternetOptions, progress: Progress
) -> Discovery:
    discovery = options.discovery
    graph = replace(discovery.graph, sigma=options.sigma(folder.name))
    discovery = replace(discovery, graph=graph)
    outputs = relate_all(
        model,
        paths,
        read=read_image,
        flip=discovery.flip,
        rounding=discovery.graph_options().rounding,
        published_flip="T3" in discovery.compat,
        cache=None if options.cache is None else options.cache / folder.name,
        chunk=options.chunk,
        batch=options.batch,
        progress=progress,
    )
    return discover_from_pairs(outputs, paths, discovery)


def _classes(top: Path) -> list[Path]:
    if not is_folder(top):
        raise DatasetError(f"evaluate: {printable(top)} is not a folder.", path=top)
    if is_folder(top / TRUTH_FOLDER):
        return [top]
    found = sorted(
        path for path in top.iterdir() if is_folder(path) and is_folder(path / TRUTH_FOLDER)
    )
    if not found:
        raise DatasetError(
            f"evaluate: {printable(top)} must hold classes such as Car100 with {TRUTH_FOLDER} in "
            "them, got none.",
            path=top,
        )
    return found


def _size(path: Path) -> tuple[int, int]:
    height, width = read_image(path).shape[:2]
    return height, width


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _words(options: InternetOptions) -> str:
    faults = ", ".join(sorted(options.discovery.compat)) or "none"
    cycles = "2- and 3-cycles" if options.discovery.graph.two_cycles else "3-cycles"
    return (
        f"Internet discovery: {cycles}, mirrored pairs {'on' if options.discovery.flip else 'off'}"
        f", published faults kept: {faults}"
    )


def parse_sigmas(text: str) -> dict[str, float]:
    """Read ``Car=5,Airplane=0.8``.

    Raises:
        OptionError: It does not read so.
    """
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError as error:
        raise OptionError(
            f'evaluate: sigmas must read like "Car=5,Airplane=0.8", got {text!r}.'
        ) from error
