# SPDX-License-Identifier: Apache-2.0
"""Labels on the ink of a sketch: encode it once, then ask with any list of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchword import ops
from patchword.data.sketches import read_sketch
from patchword.errors import CheckpointError, OptionError
from patchword.structures import FloatArray, ImageArray, LocateResult
from patchword.systems.sketchseg.encoder import SegmentOptions, SketchEncoder, SketchFeatures
from patchword.systems.sketchseg.ink import InkMask, check_sketch, ink_mask
from patchword.systems.sketchseg.scores import minmax, scores_at

MAX_CATEGORIES = 2000
"""Most categories in one request; each costs 85 sentences when it is met first."""

# Sketches read and encoded together when there are many.
_TOGETHER = 4

# Tells ink from paper in a heat map, whatever its score.
_LEAST_HEAT = 1e-6

SketchLabels = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Categories:
    """Encoded words.

    Attributes:
        texts: The words.
        vectors: ``[C, D]``.
    """

    texts: tuple[str, ...]
    vectors: Tensor


@dataclass(frozen=True, eq=False)
class EncodedSketch:
    """A sketch ready for any words.

    Attributes:
        features: From the encoder.
        ink: ``[H, W]``, True on ink.
        image: The sketch, uint8 ``[H, W, 3]``.
    """

    features: SketchFeatures
    ink: InkMask
    image: ImageArray


@dataclass(frozen=True, eq=False)
class SketchResult:
    """What the ink of a sketch shows.

    Attributes:
        texts: The categories.
        labels: int16 ``[H, W]``: index of the category on ink; -1 on paper and unassigned ink.
        ink: bool ``[H, W]``.
        maps: float32 ``[C, h, w]``: scores of the patches.
        options: How the labels came about.
        image: The sketch, uint8 ``[H, W, 3]``.
    """

    texts: tuple[str, ...]
    labels: SketchLabels
    ink: InkMask
    maps: FloatArray
    options: SegmentOptions
    image: ImageArray = field(repr=False)

    @cached_property
    def scores(self) -> FloatArray:
        """float32 ``[H, W]``: score of each ink pixel's best category, 0 on paper."""
        return self._on_ink(None)

    def category_scores(self, index: int) -> FloatArray:
        """float32 ``[H, W]``: scores of one category on ink, 0 on paper."""
        return self._on_ink(index)

    def isolate(self, index: int, threshold: float) -> InkMask:
        """Ink ``[H, W]`` whose score for one category reaches a threshold."""
        return self.ink & (self.category_scores(index) >= threshold)

    def _on_ink(self, index: int | None) -> FloatArray:
        places = np.flatnonzero(self.ink)
        maps, pixels = torch.from_numpy(self.maps), torch.from_numpy(places)
        if index is None:
            # Unassigned ink keeps the score that was too low: read it from the unthresholded map.
            best = _labels(maps, self.ink, self.options.mode).reshape(-1)[pixels].long()
        else:
            best = torch.tensor([index])
        found: FloatArray = np.zeros(self.ink.size, dtype=np.float32)
        size = (self.ink.shape[0], self.ink.shape[1])
        found[places] = scores_at(maps, size, pixels, best, self.options.mode).numpy()
        return found.reshape(self.ink.shape)


class SketchSegmenter:
    """Segments sketches by words.

    Example:
        >>> segmenter = load()  # doctest: +SKIP
        >>> result = segmenter.segment("scene.png", ["giraffe", "tree"])  # doctest: +SKIP
        >>> result.labels.shape  # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: SketchEncoder,
        options: SegmentOptions | None = None,
        *,
        any_picture: bool = False,
    ) -> None:
        """Take an encoder.

        Args:
            encoder: Networks for sketches and words.
            options: By default those that suit the encoder.
            any_picture: Take pictures that do not look like sketches.
        """
        self.encoder = encoder
        self.options = encoder.defaults if options is None else options
        self.any_picture = any_picture
        if self.options.scores not in ("minmax", "cosine"):
            raise OptionError(
                f"SketchSegmenter: scores must be minmax or cosine, got {self.options.scores!r}."
            )

    def encode_texts(self, texts: Sequence[str]) -> Categories:
        """Encode category names, to be used with many sketches.

        Raises:
            OptionError: There are none or over 2000, one is empty, or two are equal.
        """
        names = check_categories(texts)
        return Categories(names, self.encoder.encode_text(names))

    def extract(self, image: Any) -> EncodedSketch:
        """Encode one sketch, to be asked many times.

        Args:
            image: Path of a picture, SVG or ndjson file, PIL picture, array or tensor.

        Raises:
            DatasetError: It cannot be read, is blank, or does not look like a sketch.
        """
        return self.extract_all([image])[0]

    def extract_all(self, images: Sequence[Any]) -> list[EncodedSketch]:
        """Encode several sketches, several in one pass; see :meth:`extract`."""
        pictures = [read_sketch(image) for image in images]
        inks = [ink_mask(one, self.options.ink, self.options.ink_level) for one in pictures]
        if not self.any_picture:
            for picture, ink in zip(pictures, inks, strict=True):
                check_sketch(picture, ink)
        features = self.encoder.encode_images(pictures)
        return [EncodedSketch(*parts) for parts in zip(features, inks, pictures, strict=True)]

    @torch.inference_mode()
    def segment(self, sketch: Any, texts: Sequence[str] | Categories) -> SketchResult:
        """Label the ink of a sketch.

        Args:
            sketch: As :meth:`extract`, or its answer.
            texts: Category names, or the answer of :meth:`encode_texts`.

        Returns:
            The labels at the sketch's own size, and the patches' scores.

        Raises:
            OptionError: As :meth:`encode_texts`.
            DatasetError: As :meth:`extract`.
        """
        categories = texts if isinstance(texts, Categories) else self.encode_texts(texts)
        one = sketch if isinstance(sketch, EncodedSketch) else self.extract(sketch)
        scores = one.features.patches @ categories.vectors.T
        if self.options.scores == "minmax":
            scores = minmax(scores)
        maps = scores.T.reshape(-1, *one.features.grid).float().contiguous()
        labels = _labels(maps, one.ink, self.options.mode).cpu().numpy()
        result = SketchResult(
            texts=categories.texts,
            labels=labels,
            ink=one.ink,
            maps=maps.cpu().numpy(),
            options=self.options,
            image=one.image,
        )
        if self.options.threshold is None:
            return result
        kept = np.where(result.scores >= self.options.threshold, labels, np.int16(-1))
        return replace(result, labels=kept)

    def segment_each(
        self, sketches: Sequence[Any], texts: Sequence[str] | Categories
    ) -> Iterator[SketchResult]:
        """Label sketches in order, a few encoded in one pass, no more than those held at once.

        Arguments and errors are those of :meth:`segment`.
        """
        categories = texts if isinstance(texts, Categories) else self.encode_texts(texts)
        for start in range(0, len(sketches), _TOGETHER):
            for one in self.extract_all(sketches[start : start + _TOGETHER]):
                yield self.segment(one, categories)

    def locate(self, image: Any, texts: Sequence[str] | Categories) -> LocateResult:
        """The same as heat maps on the ink, for what takes the answers of a ``Localizer``.

        Args:
            image: As :meth:`segment`.
            texts: As :meth:`segment`; each costs a map of the sketch's size.

        Returns:
            Heat is the score cut to [0, 1], at least 1e-6 on ink and 0 on paper.
        """
        result = self.segment(image, texts)
        heat = np.stack([result.category_scores(k) for k in range(len(result.texts))])
        heat = np.where(result.ink, heat.clip(_LEAST_HEAT, 1), 0).astype(np.float32)
        return LocateResult(
            texts=result.texts,
            heatmaps=heat,
            labels=result.labels.astype(np.int64),
            scores=heat.reshape(len(heat), -1).max(axis=1),
            image=result.image,
        )


def _labels(maps: Tensor, ink: InkMask, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Best category of each ink pixel, -1 on paper, without maps at the sketch's size."""
    return ops.mask_upsample(
        maps[None],
        (ink.shape[0], ink.shape[1]),
        mode=mode,
        output="labels",
        region=torch.from_numpy(ink).to(maps.device),
        label_dtype=torch.int16,
        ignore_index=-1,
    )[0]


def check_categories(texts: Sequence[str]) -> tuple[str, ...]:
    """Strip category names and refuse empty, repeated and too many ones.

    Raises:
        OptionError: With the rule and the name.
    """
    names = (texts,) if isinstance(texts, str) else tuple(texts)
    if not 1 <= len(names) <= MAX_CATEGORIES:
        raise OptionError(
            f"locate: categories must be 1 to {MAX_CATEGORIES}, got {len(names)}. Ask in several "
            "runs for more."
        )
    seen: set[str] = set()
    stripped = tuple(" ".join(name.split()) for name in names)
    for name in stripped:
        if not name:
            raise OptionError("locate: a category must have a name, got ''.")
        if name.lower() in seen:
            raise OptionError(f"locate: categories must differ, got {name[:60]!r} twice.")
        seen.add(name.lower())
    return stripped


def load(
    checkpoint: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    options: SegmentOptions | None = None,
    any_picture: bool = False,
    **encoder_options: Any,
) -> SketchSegmenter:
    """A ready segmenter: the small network that ships, or one from a checkpoint.

    Args:
        checkpoint: The published checkpoint as it is, or a file that ``patchword convert`` or
            ``patchword train`` wrote; without one the weights that ship with the library.
        device: Where to compute; ``None`` for the CPU.
        options: By default those that suit the network.
        any_picture: Take pictures that do not look like sketches.
        encoder_options: For the published network, see :class:`ClipSketchEncoder`.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, unsafe or of another system, or the
            extra that its words need is not installed.
        OptionError: ``encoder_options`` for the small network.
    """
    from patchword.systems.sketchseg.convert import load_model, read_notes

    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.is_file():
        raise CheckpointError(f"load: checkpoint must be a file, got {str(checkpoint)!r}.")
    encoder: SketchEncoder
    notes = {} if path is None else read_notes(path)
    if path is None or notes.get("kind") == "small":
        from patchword.systems.sketchseg.small_encoder import load_small

        if encoder_options:
            raise OptionError(
                f"load: {sorted(encoder_options)[0]} must go with the published network, got the "
                "small one."
            )
        encoder = load_small(path, device=device)
    else:
        from patchword.systems.sketchseg.clip_encoder import ClipSketchEncoder

        # Weights trained here say how their features were compared.
        chosen = {**({"norm": notes["norm"]} if "norm" in notes else {}), **encoder_options}
        encoder = ClipSketchEncoder(load_model(path), device=device, **chosen)
    return SketchSegmenter(encoder, options, any_picture=any_picture)
