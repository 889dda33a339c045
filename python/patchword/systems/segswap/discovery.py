# SPDX-License-Identifier: Apache-2.0
"""Finds the object that a set of pictures has in common, and cuts it out of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from patchword.data.folders import list_images
from patchword.data.io import read_image
from patchword.errors import DatasetError, OptionError
from patchword.inference.progress import Progress, silent
from patchword.structures import ImageArray
from patchword.systems.segswap.graph import (
    GraphOptions,
    build_affinity,
    leading_eigenvector,
    make_nodes,
    published_sign,
    vote_maps,
)
from patchword.systems.segswap.inference import Segswap
from patchword.systems.segswap.relations import PairModel, PairOutputs, SegswapPairs, relate_all

Mask = npt.NDArray[np.bool_]

DISCOVERY_FAULTS: dict[str, str] = {
    "T3": "results for a mirrored picture are turned back the wrong way",
    "T10": "places are rounded to cells by another convention than they were trained with",
    "T11": "the eigenvector may keep a negative sign, which gives empty masks",
}
"""Faults of the published discovery, by their number in the card."""

PUBLISHED_DISCOVERY = frozenset(DISCOVERY_FAULTS)


@dataclass(frozen=True)
class DiscoveryOptions:
    """Numbers of the discovery; the defaults are the published ones, faults aside.

    Attributes:
        graph: See :class:`GraphOptions`.
        flip: Also try each second picture mirrored.
        mode: How votes of several pairs are joined.
        foreground: Votes above this share of a picture's largest are surely object.
        ring: Side in pixels of the square by which the object is enlarged to find background.
        rounds: Iterations of GrabCut.
        compat: Keys of :data:`DISCOVERY_FAULTS` to reproduce.
    """

    graph: GraphOptions = field(default_factory=GraphOptions)
    flip: bool = True
    mode: Literal["sum", "max", "mean"] = "sum"
    foreground: float = 0.6
    ring: int = 10
    rounds: int = 5
    compat: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            OptionError: With the value.
        """
        unknown = sorted(self.compat - DISCOVERY_FAULTS.keys())
        if unknown:
            raise OptionError(
                f"DiscoveryOptions: compat must name some of {sorted(DISCOVERY_FAULTS)}, "
                f"got {unknown}."
            )
        if not 0 <= self.foreground <= 1 or self.ring < 1 or self.rounds < 1:
            raise OptionError(
                "DiscoveryOptions: foreground must be in [0, 1], ring and rounds at least 1, got "
                f"{self.foreground:g}, {self.ring} and {self.rounds}."
            )

    def graph_options(self) -> GraphOptions:
        """Give the graph's options with the rounding that ``compat`` asks for."""
        rounding: Literal["cell", "published"] = "published" if "T10" in self.compat else "cell"
        return replace(self.graph, rounding=rounding)


@dataclass(frozen=True)
class Discovery:
    """The common object of a set of pictures.

    Attributes:
        masks: One bool ``[H, W]`` per picture, of its own size; empty where nothing was found.
        maps: ``[n, h, w]`` votes of the cells.
        num_nodes: Confident correspondences.
        eigenvalue: Of the leading eigenvector.
    """

    masks: tuple[Mask, ...]
    maps: npt.NDArray[np.float64]
    num_nodes: int
    eigenvalue: float


def discover(
    system: Segswap | PairModel,
    images: str | Path | Sequence[Any],
    *,
    options: DiscoveryOptions | None = None,
    cache: str | Path | None = None,
    chunk: int = 500,
    batch: int = 32,
    progress: Progress = silent,
) -> Discovery:
    """Find what most of the pictures show.

    All pairs are related; confident correspondences that agree around triangles of pictures vote
    for their cells; GrabCut makes masks of the votes.

    Args:
        system: A loaded system, or another model of pairs.
        images: Folder, or pictures as :func:`patchword.data.io.read_image` takes them; at least
            two.
        options: Numbers of the method.
        cache: Folder for finished parts; a run that was stopped goes on from there.
        chunk: Pairs of one part.
        batch: Pairs in one call of the network.
        progress: Wraps the loop over parts.

    Raises:
        DatasetError: There are fewer than two pictures, or one cannot be read.
        ShapeError: The system resizes pictures to different shapes.
        OutputError: The cache cannot be written.
    """
    options = options if options is not None else DiscoveryOptions()
    members = list(list_images(images)) if isinstance(images, (str, Path)) else list(images)
    if len(members) < 2:
        raise DatasetError(f"discover: there must be at least 2 pictures, got {len(members)}.")
    model: PairModel = SegswapPairs(system) if isinstance(system, Segswap) else system
    outputs = relate_all(
        model,
        members,
        read=read_image,
        flip=options.flip,
        rounding=options.graph_options().rounding,
        published_flip="T3" in options.compat,
        cache=None if cache is None else Path(cache),
        chunk=chunk,
        batch=batch,
        progress=progress,
    )
    return discover_from_pairs(outputs, members, options)


def discover_from_pairs(
    outputs: PairOutputs, images: Sequence[Any], options: DiscoveryOptions
) -> Discovery:
    """Do all that follows the network; ``images`` are those that the pairs were made of."""
    graph = options.graph_options()
    nodes = make_nodes(outputs, graph)
    affinity = build_affinity(outputs, nodes, graph)
    eigenvalue, vector = leading_eigenvector(affinity)
    if "T11" in options.compat:
        # An eigenvector routine may return either sign; the published one was seen to return this.
        vector = published_sign(-vector, affinity)
    maps = vote_maps(outputs, nodes, vector, len(images), options.mode)
    masks = tuple(
        cut_out(read_image(image), votes, options)
        for image, votes in zip(images, maps, strict=True)
    )
    return Discovery(masks, maps, affinity.size, eigenvalue)


def cut_out(image: ImageArray, votes: npt.NDArray[np.float64], options: DiscoveryOptions) -> Mask:
    """Turn the votes of a picture's cells into a mask of its pixels with GrabCut.

    Args:
        image: ``[H, W, 3]``.
        votes: ``[h, w]``; a map without a positive vote gives an empty mask.
        options: Numbers of the method.
    """
    height, width = image.shape[:2]
    large = cv2.resize(votes, (width, height), interpolation=cv2.INTER_LINEAR)
    peak = float(large.max())
    if peak <= 0:
        return np.zeros((height, width), dtype=bool)
    labels = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    labels[(large > 0) & (large < options.foreground * peak)] = cv2.GC_PR_FGD
    labels[large > options.foreground * peak] = cv2.GC_FGD
    covered = (large > 0).astype(np.uint8)
    around = cv2.dilate(covered, np.ones((options.ring, options.ring), np.uint8))
    labels[(around > 0) & (covered == 0)] = cv2.GC_PR_BGD
    foreground = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    # GrabCut needs pixels of both kinds.
    if foreground.all():
        return foreground
    # Its colour clusters start from OpenCV's own generator.
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    background_model, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(
        bgr,
        labels,
        None,
        background_model,
        foreground_model,
        options.rounds,
        cv2.GC_INIT_WITH_MASK,
    )
    cut: Mask = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    return cut
