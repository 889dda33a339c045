# SPDX-License-Identifier: Apache-2.0
"""The sketch network: CLIP with prompts, a value-value path and the context adapter.

Source: Bourouis, Fan and Gryaditskaya, "Open Vocabulary Semantic Scene Sketch Understanding",
CVPR 2024, arXiv:2312.12463.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from patchword.backbones.clip.image import ImageTower
from patchword.backbones.clip.model import Clip
from patchword.backbones.clip.text import TextTower
from patchword.errors import OptionError, ShapeError
from patchword.systems.sketchseg.adapter import ContextAdapter
from patchword.systems.sketchseg.config import FeatureNorm, SketchSegConfig


class SketchSegModel(nn.Module):
    """Encodes a sketch once, to be compared with any words.

    Example:
        >>> model = from_published(torch.load(path, weights_only=True))  # doctest: +SKIP
        >>> model.encode_image(preprocess(sketch, fit="stretch")).shape  # doctest: +SKIP
        torch.Size([1, 200, 512])
    """

    def __init__(self, config: SketchSegConfig | None = None) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.config = config if config is not None else SketchSegConfig()
        clip, width = self.config.clip, self.config.clip.image.width
        if not set(self.config.taps) <= set(range(self.config.dual_start, clip.image.layers + 1)):
            raise OptionError(
                f"SketchSegModel: taps must be blocks {self.config.dual_start} to "
                f"{clip.image.layers}, got {self.config.taps}."
            )
        self.visual = ImageTower(clip.image, clip.embed, clip.activation)
        self.prompts = nn.Parameter(torch.empty(1, self.config.prompts, width))
        self.prompt_dropout = nn.Dropout(self.config.dropout)
        self.adapter = ContextAdapter(
            width,
            clip.embed,
            self.config.adapter_heads,
            self.config.adapter_hidden,
            self.config.dropout,
        )
        self.text = TextTower(clip.text, clip.embed, clip.activation)
        bound = prompt_bound(clip.image.patch, width)
        nn.init.uniform_(self.prompts, -bound, bound)

    @classmethod
    def from_clip(cls, clip: Clip, prompts: int = 3) -> SketchSegModel:
        """Start training from CLIP's weights with new prompts and a new adapter.

        The text tower is shared with ``clip``; the image tower is copied. Towers of other depth
        than twelve blocks get the value-value path in their second half, too.
        """
        layers = clip.config.image.layers
        start = layers // 2 + 1
        config = SketchSegConfig(
            clip=clip.config,
            prompts=prompts,
            dual_start=start,
            taps=(start, max(start, 5 * layers // 6), layers),
        )
        model = cls(config)
        model.visual.load_state_dict(clip.visual.state_dict(), strict=True)
        model.text = clip.text
        return model

    @property
    def first_patch(self) -> int:
        """Row of the first patch: the class token and the prompts come before."""
        return 1 + self.config.prompts

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Vectors ``[C, embed]`` of texts ``[C, 77]``, not scaled to unit length."""
        out: Tensor = self.text(tokens)
        return out

    def encode_image(
        self, image: Tensor, text_features: Tensor | None = None, *, plain: bool = False
    ) -> Tensor:
        """Vectors of all tokens of sketches after the last block, not normalised.

        Args:
            image: ``[B, 3, H, W]`` from ``preprocess(..., fit="stretch")``.
            text_features: ``[C, embed]``; the published form takes a copy of the one image for
                each of the C texts (``B = 1``), or pairs image and text (``B = C``). The result
                does not depend on their values.
            plain: Compute the adapter as published, for each text.

        Returns:
            ``[B, 1 + prompts + h * w, embed]``, or ``[C, ...]`` with texts: class token, prompts,
            patches row by row.

        Raises:
            ShapeError: The input is no picture, or there are neither one nor C of them.
            OptionError: ``plain`` without texts.
        """
        last = self.config.clip.image.layers
        return self.encode_taps(image, (last,), text_features, plain=plain)[0]

    def encode_taps(
        self,
        image: Tensor,
        taps: Sequence[int] | None = None,
        text_features: Tensor | None = None,
        *,
        plain: bool = False,
    ) -> Tensor:
        """The same after each of several blocks, by one pass: ``[len(taps), ...]``.

        Arguments and errors are those of :meth:`encode_image`; ``taps`` counts blocks from 1, by
        default those of the configuration.
        """
        chosen = tuple(self.config.taps if taps is None else taps)
        if plain and text_features is None:
            raise OptionError("SketchSegModel: the plain form must be given text_features.")
        if text_features is not None and len(image) not in (1, len(text_features)):
            raise ShapeError(
                f"SketchSegModel: image must hold 1 or {len(text_features)} sketches, as many as "
                f"text_features, got {len(image)}."
            )
        seen = self.visual.transformer.dual(
            self.visual.ln_pre(self._embed(image)), self.config.dual_start, chosen
        )
        return torch.stack([self._head(*seen[tap], text_features, plain) for tap in chosen])

    def _embed(self, image: Tensor) -> Tensor:
        # The published code resizes its positions bilinearly; at the trained size both agree.
        tokens = self.visual.embed(image, "bilinear")
        prompts = self.prompt_dropout(self.prompts).expand(len(image), -1, -1)
        return torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)

    def _head(
        self, values: Tensor, ordinary: Tensor, text_features: Tensor | None, plain: bool
    ) -> Tensor:
        """Adapter and projection; the class token comes from the ordinary path."""
        if plain and text_features is not None:
            count = len(text_features)
            patches = self.adapter.plain(values.expand(count, -1, -1), text_features)[:, 1:]
            first = self.adapter.plain(ordinary.expand(count, -1, -1), text_features)[:, :1]
            return self.visual.project(torch.cat([first, patches], dim=1))
        patches = self.adapter(values, slice(1, None))
        first = self.adapter(ordinary, slice(0, 1))
        features = self.visual.project(torch.cat([first, patches], dim=1))
        if text_features is not None:
            features = features.expand(len(text_features), -1, -1)
        return features


def prompt_bound(patch: int, width: int) -> float:
    """Largest value of a new prompt: ``sqrt(6 / (3 patch^2 + width))``."""
    return math.sqrt(6 / (3 * patch * patch + width))


def normalize_features(features: Tensor, norm: FeatureNorm = "tokens") -> Tensor:
    """Scale features ``[B, N, D]`` before their product with unit text vectors.

    Args:
        features: All tokens, class token and prompts included: ``"tokens"`` counts them.
        norm: ``"tokens"``: each channel of a sketch to unit length over its tokens, as the
            published demonstration does. ``"sign"``: the sign of each value, to which the
            published test script comes down (there divided by the square root of the number of
            categories, which no decision depends on). ``"channel"``: each token to unit length,
            which makes the product a cosine.

    Raises:
        OptionError: ``norm`` is none of these.
    """
    if norm == "sign":
        return features.sign()
    if norm not in ("tokens", "channel"):
        raise OptionError(
            f"normalize_features: norm must be tokens, sign or channel, got {norm!r}."
        )
    return torch.nn.functional.normalize(features, dim=1 if norm == "tokens" else 2)
