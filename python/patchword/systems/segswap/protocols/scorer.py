# SPDX-License-Identifier: Apache-2.0
"""What the retrieval protocols ask of a network, and a store that encodes each picture once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from patchword.inference.atomic import write_bytes
from patchword.structures import ImageArray

logger = logging.getLogger(__name__)

Normalisation = Literal["correct", "segswap_eval"]


@dataclass(frozen=True)
class CandidateScores:
    """Answers for one query and its candidates.

    Attributes:
        scores: ``[N]`` matching scores, larger is better.
        points: ``[N, h, w, 2]`` predicted ``(x, y)`` of each query cell as shares of the
            candidate's width and height.
        masks: ``[N, h, w]`` weight of each query cell in the score.
    """

    scores: Tensor
    points: Tensor
    masks: Tensor


class Scorer(Protocol):
    """A network that compares a query with candidates."""

    def fingerprint(self) -> str:
        """Name the network, its weights and its precision; changes when they do."""
        ...

    def encode(self, image: ImageArray, normalisation: Normalisation = "correct") -> Tensor:
        """Unit descriptors ``[C, h, w]`` of a picture of the network's input size."""
        ...

    def embed(self, descriptors: Tensor) -> Any:
        """What :meth:`score` wants of a picture, from its descriptors; kept in memory only."""
        ...

    def score(self, query: Any, cells: Tensor, candidates: Sequence[Any]) -> CandidateScores:
        """Compare pictures that :meth:`embed` gave.

        Args:
            query: One picture.
            cells: bool ``[h, w]``: the cells that belong to the query.
            candidates: Pictures of any sizes.
        """
        ...


class FeatureStore:
    """Descriptors on disk, one safetensors file a picture, found by its bytes and what made it.

    Args:
        scorer: What encodes.
        folder: Where files go; None keeps nothing.
        half: Store in half precision: half the size, scores change in the fourth digit.
    """

    def __init__(self, scorer: Scorer, folder: Path | None, *, half: bool = False) -> None:
        """Note what encodes and where to keep."""
        self.scorer = scorer
        self.folder = folder
        self.half = half
        self._made_by = f"{scorer.fingerprint()}/{'half' if half else 'float'}"

    def get(
        self, path: Path, prepare: Any, settings: str, normalisation: Normalisation = "correct"
    ) -> Tensor:
        """Descriptors of a picture.

        Args:
            path: The file.
            prepare: Called without arguments if there is nothing stored; gives the input,
                uint8 ``[H, W, 3]``.
            settings: Names what ``prepare`` does.
            normalisation: Passed to the scorer.
        """
        if self.folder is None:
            return self.scorer.encode(prepare(), normalisation)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        words = f"{content}/{settings}/{normalisation}/{self._made_by}"
        key = hashlib.sha256(words.encode()).hexdigest()
        kept = self.folder / key[:2] / f"{key}.safetensors"
        if kept.exists():
            try:
                return load_file(kept)["descriptors"].float()
            except (SafetensorError, OSError, KeyError) as error:
                logger.warning("FeatureStore: %s is damaged and made anew: %s", kept, error)
        made = self.scorer.encode(prepare(), normalisation).cpu().contiguous()
        stored = made.half() if self.half else made
        write_bytes(kept, save({"descriptors": stored}))
        return stored.float()


def resize(image: ImageArray, size: tuple[int, int], filter_name: str = "bilinear") -> ImageArray:
    """Resize a picture to ``(H, W)`` with Pillow's filter of that name."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    method = Image.Resampling[filter_name.upper()]
    out: ImageArray = np.asarray(Image.fromarray(image).resize(size[::-1], method))
    return out
