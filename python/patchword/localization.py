# SPDX-License-Identifier: Apache-2.0
"""``patchword.locate``: where in a picture phrases lie, by a bridge of words with no training.

A sentence encoder ties a phrase to the 1000 ImageNet classes, and the classifier of the backbone
ties the classes to every place of the picture. The bridge knows what those classes span and nothing
else: no attributes ("the red one"), counts, relations ("left of"), people, or stuff without
outlines such as sky and grass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import ops
from patchword.backbones.base import Backbone, extract_features, input_size, to_pixels
from patchword.backbones.dense import EfficientNetBackbone
from patchword.backbones.imagenet_words import load_class_vectors
from patchword.backbones.sentence import SentenceEncoder
from patchword.data.io import read_image
from patchword.errors import OptionError
from patchword.structures import ImageArray, LocateResult


@dataclass(frozen=True)
class LocateOptions:
    """Settings of :class:`Localizer`; the values were chosen on the project's sample photographs.

    Attributes:
        sizes: Longest sides in pixels at which the classifier looks; the answers are averaged.
        token_size: Longest side for the patch tokens that spread the answer.
        text_temperature: Divides the standardised similarities of a phrase to the classes.
        spread_temperature: Divides the cosine of two patches before the softmax.
        spread_steps: Times that the answer is spread among patches that look alike.
        threshold: A pixel takes a label where a heat map reaches this.
        level: Response that becomes heat 0.5.
        slope: Change of response that moves heat from 0.5 to 0.73.
        caption_sharpness: Multiplies a picture's logits before its classes become a text vector.
    """

    sizes: tuple[int, ...] = (256, 384, 512)
    token_size: int = 448
    text_temperature: float = 0.5
    spread_temperature: float = 0.2
    spread_steps: int = 2
    threshold: float = 0.5
    level: float = 6.5
    slope: float = 1.0
    caption_sharpness: float = 0.4


@dataclass(frozen=True, eq=False)
class PhraseFeatures:
    """Encoded phrases.

    Attributes:
        texts: The phrases.
        vectors: ``[K, 384]`` sentence vectors of unit length.
        weights: ``[K, 1000]`` weights of the classes; each row sums to 1.
    """

    texts: tuple[str, ...]
    vectors: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class SceneFeatures:
    """What the classifier sees where, and which patches look alike.

    Attributes:
        class_maps: One ``[1000, h, w]`` map of class logits for each size looked at.
        logits: ``[1000]`` logits of the picture as a whole.
        tokens: ``[N, D]`` patch tokens of unit length, the picture's mean taken away.
        grid: ``(h, w)`` of the tokens.
        image: The picture, uint8 ``[H, W, 3]``.
    """

    class_maps: tuple[Tensor, ...]
    logits: Tensor
    tokens: Tensor
    grid: tuple[int, int]
    image: ImageArray


class Localizer:
    """Locates phrases with EfficientNet-Lite0 and all-MiniLM-L6-v2.

    Example:
        >>> localizer = Localizer()  # doctest: +SKIP
        >>> localizer.locate("farm.jpg", ["a dog", "a tractor"]).scores  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        options: LocateOptions | None = None,
    ) -> None:
        """Load both networks.

        Raises:
            CheckpointError: The extra ``text`` is not installed, or a weights file is damaged.
        """
        self.options = options if options is not None else LocateOptions()
        place = torch.device("cpu" if device is None else device)
        self._encoder = SentenceEncoder(place)
        self._class_vectors = load_class_vectors().to(place)
        self._backbone = EfficientNetBackbone(place)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> PhraseFeatures:
        """Turn phrases into weights of the 1000 classes.

        Raises:
            OptionError: There is no phrase, or one is empty.
        """
        if isinstance(texts, str):
            texts = (texts,)
        if len(texts) == 0:
            raise OptionError("locate: texts must hold at least one phrase, got none.")
        vectors = self._encoder.encode(texts)
        similarity = vectors @ self._class_vectors.T
        standard = (similarity - similarity.mean(dim=1, keepdim=True)) / similarity.std(
            dim=1, keepdim=True
        )
        weights = (standard / self.options.text_temperature).softmax(dim=1)
        return PhraseFeatures(tuple(texts), vectors, weights)

    @torch.inference_mode()
    def extract(self, image: Any) -> SceneFeatures:
        """Look at a picture once (path, PIL picture, array or tensor)."""
        picture = read_image(image)
        network = self._backbone.network
        maps, logits = [], []
        for longest in self.options.sizes:
            pixels = to_pixels(picture, _fit(picture, longest, 32), self._backbone.device)
            head = network.forward_head(pixels)
            maps.append(
                cast(
                    Tensor,
                    ops.patch_similarity(
                        head.flatten(2).transpose(1, 2),
                        network.classifier.weight,
                        metric="dot",
                        grid=(head.shape[2], head.shape[3]),
                    ),
                )[0]
            )
            logits.append(network.classifier(head.mean(dim=(2, 3)))[0])
        features = extract_features(
            cast(Backbone, self._backbone), picture, size=_fit(picture, self.options.token_size, 32)
        )
        tokens = features.tokens[0]
        return SceneFeatures(
            class_maps=tuple(maps),
            logits=torch.stack(logits).mean(dim=0),
            tokens=F.normalize(tokens - tokens.mean(dim=0), dim=1),
            grid=features.grid,
            image=picture,
        )

    @torch.inference_mode()
    def locate(self, image: Any, texts: Sequence[str] | PhraseFeatures) -> LocateResult:
        """Find where phrases lie in a picture.

        Args:
            image: Path, PIL picture, array, tensor, or features from :meth:`extract`.
            texts: Phrases, or the answer of :meth:`encode_texts` to use again.

        Returns:
            One heat map a phrase, a label map, and one score a phrase.

        Raises:
            OptionError: There is no phrase, or one is empty.
            DatasetError: A file cannot be read.
        """
        phrases = texts if isinstance(texts, PhraseFeatures) else self.encode_texts(texts)
        scene = image if isinstance(image, SceneFeatures) else self.extract(image)
        height, width = scene.image.shape[:2]
        response = self._respond(scene, phrases.weights)
        logits = (response - self.options.level) / self.options.slope
        heat = _upsample(logits, (height, width), "sigmoid")
        best, labels = heat.max(dim=0)
        labels = torch.where(best >= self.options.threshold, labels, torch.full_like(labels, -1))
        scores = logits.flatten(1).amax(dim=1).sigmoid()
        return LocateResult(
            texts=phrases.texts,
            heatmaps=heat.cpu().numpy().astype(np.float32),
            labels=labels.cpu().numpy().astype(np.int64),
            scores=scores.cpu().numpy().astype(np.float32),
            image=scene.image,
        )

    def _respond(self, scene: SceneFeatures, weights: Tensor) -> Tensor:
        """Response ``[K, h, w]`` of every patch to every phrase, in logits of the classifier.

        At each place ``log sum_c w_c exp(l_c)``, where ``l_c`` is the logit of class c less the
        mean over classes: one class of the phrase that is plainly there is enough, the others need
        not be. Then patches pass their response to those that look like them.
        """
        bias = weights.clamp(min=1e-12).log()  # [K, 1000]
        total = torch.zeros(len(weights), *scene.grid, device=weights.device)
        for maps in scene.class_maps:
            relative = (maps - maps.mean(dim=0)).flatten(1)  # [1000, n]
            response = torch.stack(
                [torch.logsumexp(relative + row[:, None], dim=0) for row in bias]
            ).reshape(-1, *maps.shape[1:])
            total += _upsample(response, scene.grid, "logits") / len(scene.class_maps)
        passing = scene.tokens @ scene.tokens.T / self.options.spread_temperature
        passing = passing.softmax(dim=1)
        spread = total.flatten(1).T  # [N, K]
        for _ in range(self.options.spread_steps):
            spread = passing @ spread
        return spread.T.reshape(total.shape)

    @torch.inference_mode()
    def caption_scores(
        self, scenes: Sequence[SceneFeatures | Tensor], texts: Sequence[str] | PhraseFeatures
    ) -> Tensor:
        """How well each caption fits each picture of a gallery.

        A picture becomes a text vector: the class vectors (less their mean) mixed by the softmax of
        its logits, less the gallery's mean logits. The score is the cosine to the caption's
        vector, the mean class vector taken away there too.

        Args:
            scenes: The gallery, from :meth:`extract`, or only the ``logits`` of each.
            texts: Captions.

        Returns:
            ``[K, len(scenes)]`` in [-1, 1].

        Raises:
            OptionError: There is no caption, or no picture.
        """
        if len(scenes) == 0:
            raise OptionError("caption_scores: scenes must hold at least one picture, got none.")
        phrases = texts if isinstance(texts, PhraseFeatures) else self.encode_texts(texts)
        logits = torch.stack(
            [scene.logits if isinstance(scene, SceneFeatures) else scene for scene in scenes]
        )
        common = self._class_vectors.mean(dim=0)
        seen = (self.options.caption_sharpness * (logits - logits.mean(dim=0))).softmax(dim=1)
        pictures = F.normalize(seen @ (self._class_vectors - common), dim=1)
        return F.normalize(phrases.vectors - common, dim=1) @ pictures.T


def _fit(picture: ImageArray, longest: int, multiple: int) -> tuple[int, int]:
    """``(H, W)`` with the longest side brought to ``longest``, up or down."""
    height, width = picture.shape[:2]
    factor = longest / max(height, width)
    return input_size((round(height * factor), round(width * factor)), longest, multiple)


def _upsample(maps: Tensor, size: tuple[int, int], output: str) -> Tensor:
    """``[K, h, w]`` to ``[K, *size]`` by the library's own op."""
    large = ops.mask_upsample(maps[None].contiguous(), size, output=cast(Any, output))
    return cast(Tensor, large)[0]


def locate(
    image: Any,
    texts: Sequence[str],
    *,
    device: torch.device | str | None = None,
    options: LocateOptions | None = None,
) -> LocateResult:
    """Find where phrases lie in a picture, with no training.

    Args:
        image: Path, PIL picture, array ``[H, W, 3]`` / ``[H, W]`` or tensor ``[3, H, W]``.
        texts: Phrases. What the 1000 ImageNet classes do not span cannot be found.
        device: Where the networks run; ``None`` for the CPU.
        options: See :class:`LocateOptions`.

    Returns:
        One heat map in [0, 1] a phrase, the label map, and one score a phrase. Deterministic.

    Raises:
        DatasetError: A file cannot be read.
        OptionError: There is no phrase, or one is empty.
        CheckpointError: The extra ``text`` is not installed.

    Example:
        >>> result = locate("farm.jpg", ["a dog"])  # doctest: +SKIP
        >>> result.heatmaps.shape  # doctest: +SKIP
    """
    return Localizer(device=device, options=options).locate(image, texts)
