# SPDX-License-Identifier: Apache-2.0
"""The published network ready for use: sketches of any size in, any words beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from patchword.backbones.clip.preprocess import preprocess
from patchword.backbones.clip.tokenizer import ClipTokenizer
from patchword.errors import OptionError
from patchword.inference.vocabulary import VocabularyEncoder
from patchword.structures import ImageArray
from patchword.systems.sketchseg.config import FeatureNorm
from patchword.systems.sketchseg.encoder import SegmentOptions, SketchFeatures
from patchword.systems.sketchseg.model import SketchSegModel, normalize_features
from patchword.systems.sketchseg.prompts import TEMPLATES

# Sketches in one pass: more do not run faster on a CPU and would hold more memory.
_BATCH = 4


class ClipSketchEncoder:
    """Encodes sketches with :class:`SketchSegModel` and words with its text tower."""

    def __init__(
        self,
        model: SketchSegModel,
        *,
        norm: FeatureNorm = "tokens",
        remove_redundant: bool = True,
        templates: Sequence[str] = TEMPLATES,
        text_cache: Path | None = None,
        sequences: Callable[[Sequence[str]], Sequence[Sequence[int]]] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Take a network.

        Args:
            model: See :func:`patchword.systems.sketchseg.convert.load_model`.
            norm: See :data:`patchword.systems.sketchseg.config.FeatureNorm`.
            remove_redundant: Subtract from each category's vector that of the empty string.
            templates: Sentences that a category is put into.
            text_cache: Folder that keeps the vectors of vocabularies.
            sequences: Turns texts into ids; by default CLIP's tokenizer.
            device: Where to compute; ``None`` for the CPU.

        Raises:
            CheckpointError: The extra ``clip`` is not installed.
        """
        self.device = torch.device("cpu" if device is None else device)
        self.model = model.eval().to(self.device)
        self.norm = norm
        self.remove_redundant = remove_redundant
        self.defaults = SegmentOptions(scores="cosine" if norm == "channel" else "minmax")
        self._vocabulary = VocabularyEncoder(
            self.model.text,
            ClipTokenizer().sequences if sequences is None else sequences,
            templates,
            text_cache,
        )

    @torch.inference_mode()
    def encode_images(self, images: Sequence[ImageArray]) -> list[SketchFeatures]:
        """Encode sketches, uint8 ``[H, W, 3]`` of any sizes; proportions are not kept."""
        resolution = self.model.config.clip.image.resolution
        side = self.model.config.clip.image.grid
        found = []
        for start in range(0, len(images), _BATCH):
            pixels = torch.cat(
                [preprocess(one, resolution, "stretch") for one in images[start : start + _BATCH]]
            )
            features = self.model.encode_image(pixels.to(self.device))
            patches = normalize_features(features, self.norm)[:, self.model.first_patch :]
            found += [SketchFeatures(one, (side, side)) for one in patches]
        return found

    @torch.inference_mode()
    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Encode category names to ``[C, D]``.

        Raises:
            OptionError: A name is empty or too long.
        """
        names = [word.strip() for word in words]
        if not all(names):
            raise OptionError("encode_text: a category must have a name, got ''.")
        vectors = self._vocabulary.encode(names)
        if not self.remove_redundant:
            return vectors
        return vectors - self._vocabulary.encode([""])
