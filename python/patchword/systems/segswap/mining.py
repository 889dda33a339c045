# SPDX-License-Identifier: Apache-2.0
"""Stage 2: pictures that share nothing and yet look as if they did, found among a random pool.

Source: Shen et al., arXiv:2110.15904, and its released code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.errors import DatasetError
from patchword.nn.cross_transformer import CrossTransformer, ImageTokens
from patchword.structures import ImageArray
from patchword.training.sampling import mixed_seed

# Published: weaker scores count as nothing, stronger ones as a hard pair.
IGNORED_BELOW, HARD_ABOVE = 0.04, 0.1
_BATCH = 32
_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class MiningConfig:
    """How hard negatives are found.

    Attributes:
        hard_negatives: Pairs per micro-batch; 0 for stage 1.
        pool_size: Pictures that are compared, all with all.
        max_steps: Steps, at most, for which one pool serves.
        fewest: A pool that gives this many hard pairs or fewer is drawn again.
    """

    hard_negatives: int = 0
    pool_size: int = 500
    max_steps: int = 100
    fewest: int = 10


@dataclass(frozen=True, eq=False)
class MinedPool:
    """Pictures of one pool and how likely each pair of them is drawn.

    Attributes:
        epoch: Number of the pool.
        attempt: How often it was drawn again.
        records: Which pairs the pictures came from; they are not learned from while it serves.
        features: float16 ``[pool_size, C, h, w]``.
        probabilities: float64 ``[pairs]`` in the order of :func:`pool_pairs`.
        steps: Steps for which it serves.
    """

    epoch: int
    attempt: int
    records: frozenset[int]
    features: Tensor
    probabilities: Tensor
    steps: int

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features of ``count`` different pairs, float32 ``[count, C, h, w]`` twice."""
        chosen = torch.multinomial(self.probabilities, count, generator=generator)
        first, second = pool_pairs(len(self.features))
        return self.features[first[chosen]].float(), self.features[second[chosen]].float()


def pool_pairs(size: int) -> tuple[Tensor, Tensor]:
    """Numbers of the first and second pictures of all ``size (size - 1) / 2`` pairs."""
    first, second = torch.triu_indices(size, size, offset=1).unbind()
    return first, second


@torch.no_grad()
def score_pool(transformer: CrossTransformer, features: Tensor) -> Tensor:
    """Published score of every pair: mean mask of one picture plus mean mask of the other.

    Args:
        transformer: In evaluation mode.
        features: ``[n, C, h, w]``.

    Returns:
        float64 ``[n (n - 1) / 2]`` in (0, 2), order of :func:`pool_pairs`.
    """
    device = next(transformer.parameters()).device
    parts = features.split(_BATCH)
    # What depends on one picture alone is computed once a picture, not once a pair.
    embedded = [transformer.embed(part.float().to(device)) for part in parts]
    first, second = pool_pairs(len(features))
    scores = []
    for rows, columns in zip(first.split(_BATCH), second.split(_BATCH), strict=True):
        sides = [_gather(embedded, numbers) for numbers in (rows, columns)]
        out0, out1 = transformer.relate(*sides)
        scores.append((out0[:, 2].mean(dim=(1, 2)) + out1[:, 2].mean(dim=(1, 2))).double().cpu())
    return torch.cat(scores)


def hard_share(scores: Tensor) -> tuple[Tensor, int]:
    """Probabilities of the pairs, and how many of them are hard.

    Scores up to 0.04 count as nothing; pairs above 0.1 are hard.
    """
    kept = torch.where(scores > IGNORED_BELOW, scores, torch.zeros_like(scores))
    return kept / kept.sum().clamp(min=1e-12), int((scores > HARD_ABOVE).sum())


def mine(
    transformer: CrossTransformer,
    config: MiningConfig,
    *,
    epoch: int,
    seed: int,
    draw: Callable[[np.random.Generator, int], tuple[list[int], Tensor]],
) -> MinedPool:
    """Draw pools until one gives enough hard pairs.

    Args:
        transformer: The network at this moment.
        config: See :class:`MiningConfig`.
        epoch: Number of the pool.
        seed: Of the run.
        draw: Gives, for a generator and a size, numbers of records and features of the pictures.

    Raises:
        DatasetError: No pool in a hundred gives enough: the network separates all pairs.
    """
    was_training = transformer.training
    transformer.eval()
    try:
        for attempt in range(_MAX_ATTEMPTS):
            rng = pool_generator(seed, epoch, attempt)
            records, features = draw(rng, config.pool_size)
            probabilities, hard = hard_share(score_pool(transformer, features))
            steps = min(hard, config.max_steps)
            if steps > config.fewest:
                return MinedPool(
                    epoch, attempt, frozenset(records), features.half(), probabilities, steps
                )
    finally:
        transformer.train(was_training)
    raise DatasetError(
        f"mine: a pool of {config.pool_size} pictures must give more than {config.fewest} hard "
        f"pairs, but none of {_MAX_ATTEMPTS} did. Enlarge pool_size, or train without stage 2."
    )


def pool_generator(seed: int, epoch: int, attempt: int) -> np.random.Generator:
    """Where the randomness of one attempt at a pool comes from."""
    return np.random.default_rng(mixed_seed(seed, epoch, attempt, 2))


def random_crop(image: ImageArray, size: int, rng: np.random.Generator) -> ImageArray:
    """Cut 8 to 100 % of a picture's area, sides 3:4 to 4:3, resize to a square, mirror half.

    As torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``, which the published code
    uses.
    """
    height, width = image.shape[:2]
    top, left, tall, wide = 0, 0, height, width
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            tall, wide = h, w
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            break
    cut = np.ascontiguousarray(image[top : top + tall, left : left + wide])
    pixels = torch.from_numpy(cut).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    if rng.random() < 0.5:
        resized = resized.flip(3)
    out: ImageArray = resized[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return out


def _gather(embedded: list[ImageTokens], numbers: Tensor) -> ImageTokens:
    """Pictures of some numbers out of parts of ``_BATCH``."""
    parts = [embedded[n // _BATCH][n % _BATCH : n % _BATCH + 1] for n in numbers.tolist()]

    def join(pieces: list[Tensor | None]) -> Tensor | None:
        present = [piece for piece in pieces if piece is not None]
        return torch.cat(present) if present else None

    joined: ImageTokens = replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        maps=join([part.maps for part in parts]),
    )
    return joined
