# SPDX-License-Identifier: Apache-2.0
"""Losses and masks of the published training: triplets at two levels, category-wise strokes.

Source: Bourouis, Fan and Gryaditskaya, "Open Vocabulary Semantic Scene Sketch Understanding",
CVPR 2024, arXiv:2312.12463.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.errors import OptionError, ShapeError

MinMax = Literal["column", "global"]
ThresholdGradient = Literal["none", "straight_through"]

_EPSILON = 1e-12
# Slope of the sigmoid that stands in for the step where a gradient is wanted.
_STEP_SLOPE = 20.0


def hard_triplet(
    anchors: Tensor,
    texts: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    groups: Tensor | None = None,
) -> Tensor:
    """Triplet loss with L1 distances and the closest wrong text of the batch.

    ``mean_i max(0, margin + D[i, i] - min over negatives j of D[i, j])`` with
    ``D[i, j] = sum |anchors[i] - texts[j]|``; an anchor without a negative counts as 0.

    Args:
        anchors: ``[B, D]``.
        texts: ``[B, D]``; row i belongs to anchor i.
        labels: int64 ``[B]``; ``j`` is a negative of ``i`` where the labels differ.
        margin: By how much the own text must be closer.
        groups: int64 ``[B]`` of the captions that ``texts`` come from; where two are equal the
            texts are the same, and ``j`` is no negative. None, as the published code, keeps them:
            then an anchor's own caption can be its negative.

    Raises:
        ShapeError: The shapes do not fit.

    Note:
        Differentiable in ``anchors`` and ``texts``.
    """
    batch = anchors.shape[0]
    if anchors.ndim != 2 or texts.shape != anchors.shape or labels.shape != (batch,):
        raise ShapeError(
            "hard_triplet: anchors and texts must be [B, D] and labels [B], got "
            f"{list(anchors.shape)}, {list(texts.shape)} and {list(labels.shape)}."
        )
    distances = (anchors[:, None] - texts[None]).abs().sum(dim=2)
    negative = labels[:, None] != labels[None]
    if groups is not None:
        negative &= groups[:, None] != groups[None]
    closest = distances.masked_fill(~negative, torch.inf).amin(dim=1)
    # The diagonal is never a negative; an infinite closest one gives exactly 0 and no gradient.
    own = distances.diagonal()
    terms = F.relu(margin + own - closest)
    return torch.where(torch.isfinite(closest), terms, torch.zeros_like(terms)).mean()


def min_max(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Scale to [0, 1] over ``dims``; what is constant there becomes 0."""
    low, high = values.amin(dim=dims, keepdim=True), values.amax(dim=dims, keepdim=True)
    span = high - low
    return torch.where(span > 0, (values - low) / span.clamp_min(_EPSILON), 0.0)


def own_similarity(
    features: Tensor, texts: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Where in each picture its own category is, as maps in [0, 1].

    Args:
        features: Patch rows ``[B, N, D]``, N = h w, without CLS and prompts.
        texts: ``[B, D]``; row i belongs to picture i.
        grid: ``(h, w)``.
        size: ``(H, W)`` of the result.

    Returns:
        ``[B, H, W]``: min-max over the patches, then bilinear.
    """
    scores = (features * texts[:, None]).sum(dim=2)
    maps = min_max(scores, (1,)).reshape(-1, 1, *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]


class MaskThreshold(nn.Module):
    """The threshold ``0.4 + 0.5 sigmoid(theta)`` above which a stroke belongs to a category.

    In the published code no gradient reaches ``theta`` and it moves by noise alone, which the
    noise buffer keeps apart here: with ``gradient="straight_through"`` it learns.
    """

    theta: Tensor

    def __init__(
        self, initial: float = 0.4, *, noise: float = 0.005, gradient: ThresholdGradient = "none"
    ) -> None:
        """Start at a raw value.

        Args:
            initial: Raw value of ``theta``, not the threshold itself.
            noise: Standard deviation of the normal number that every step adds for good.
            gradient: ``"straight_through"`` makes ``theta`` a parameter.

        Raises:
            OptionError: ``gradient`` is unknown.
        """
        super().__init__()
        if gradient not in get_args(ThresholdGradient):
            raise OptionError(
                f'MaskThreshold: gradient must be "none" or "straight_through", got {gradient!r}.'
            )
        self.noise, self.gradient = noise, gradient
        start = torch.tensor(float(initial))
        if gradient == "none":
            self.register_buffer("theta", start)
        else:
            self.theta = nn.Parameter(start)

    @torch.no_grad()
    def drift(self, generator: torch.Generator | None = None) -> None:
        """Add one step of noise to ``theta``."""
        step = torch.randn((), generator=generator) * self.noise
        self.theta += step.to(self.theta.device)

    def forward(self) -> Tensor:
        """The threshold, in (0.4, 0.9)."""
        return 0.4 + 0.5 * torch.sigmoid(self.theta)


def category_mask(
    maps: Tensor,
    threshold: Tensor,
    *,
    minmax: MinMax = "global",
    gradient: ThresholdGradient = "none",
) -> Tensor:
    """Pixels whose similarity reaches a threshold.

    Args:
        maps: ``[B, H, W]``.
        threshold: One number.
        minmax: The maps are scaled to [0, 1] first: each as a whole, or, as the published code,
            each ``"column"`` on its own. A constant map or column becomes 0.
        gradient: ``"straight_through"`` lets a gradient pass the step to map and threshold.

    Returns:
        0 or 1, ``[B, H, W]``.

    Raises:
        OptionError: An option is unknown.
    """
    if minmax not in get_args(MinMax) or gradient not in get_args(ThresholdGradient):
        raise OptionError(
            'category_mask: minmax must be "column" or "global" and gradient "none" or '
            f'"straight_through", got {minmax!r} and {gradient!r}.'
        )
    scaled = min_max(maps, (1,) if minmax == "column" else (1, 2))
    hard = (scaled >= threshold).to(maps.dtype)
    if gradient == "none":
        return hard.detach()
    soft = torch.sigmoid(_STEP_SLOPE * (scaled - threshold))
    return hard + soft - soft.detach()


def stroke_image(pictures: Tensor) -> Tensor:
    """Ink of pictures ``[B, C, H, W]`` in [0, 1]: 1 where the mean of the channels is <= 0.5."""
    return 1.0 - (pictures.mean(dim=1) > 0.5).to(pictures.dtype)


def masked_sketch(strokes: Tensor, mask: Tensor) -> Tensor:
    """Sketches on white of the strokes inside a mask: ``1 - strokes * mask``, ``[B, H, W]``.

    The published code takes the largest value of the whole batch in place of 1, which is 0 when
    every mask is empty and turns the batch black.
    """
    return 1.0 - strokes * mask
