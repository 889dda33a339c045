# SPDX-License-Identifier: Apache-2.0
"""Runs the network over all pairs of a set of pictures, mirrored ones included, in files."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patchword.errors import ShapeError
from patchword.inference.atomic import open_atomic
from patchword.inference.progress import Progress, silent
from patchword.nn.cross_transformer import ImageTokens
from patchword.ops import match_score
from patchword.structures import ImageArray
from patchword.systems.segswap.cycles import pair_masks
from patchword.systems.segswap.inference import Described, Segswap
from patchword.systems.segswap.retrieval import Rounding

logger = logging.getLogger(__name__)

CHUNK = 10_000
_LEAST_SHARE = 0.01


class PairModel(Protocol):
    """What discovery asks of a network."""

    def fingerprint(self) -> str:
        """Name the weights and the preprocessing; changes when they do."""
        ...

    def describe(self, image: ImageArray) -> Any:
        """Do what depends on one picture alone."""
        ...

    def features(self, described: Any) -> Tensor:
        """Unit descriptors of the cells, ``[h * w, C]``."""
        ...

    def relate(self, first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Outputs ``[B, 3, h, w]`` for pairs of described pictures."""
        ...


class SegswapPairs:
    """A loaded system as discovery uses it."""

    def __init__(self, system: Segswap) -> None:
        """Take a system whose pictures all get the same grid."""
        self.system = system
        self._grid: tuple[int, int] | None = None

    def fingerprint(self) -> str:
        """Digest of all weights, the preprocessing and the backbone's name."""
        digest = hashlib.sha256(repr((self.system.preprocess, self.system.backbone.name)).encode())
        for name, tensor in self.system.network.state_dict().items():
            digest.update(name.encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    def describe(self, image: ImageArray) -> Described:
        """Describe a picture without keeping its pixels.

        Raises:
            ShapeError: Its grid is another one than that of the pictures before.
        """
        described = self.system.describe(image)
        self._grid = self._grid or described.tokens.grid
        if described.tokens.grid != self._grid:
            raise ShapeError(
                f"discover: pictures must be resized to one shape, got grids {self._grid} and "
                f"{described.tokens.grid}. Load the system with resize squash."
            )
        return Described(described.features, described.tokens, described.frame)

    def features(self, described: Described) -> Tensor:
        """Unit descriptors of the cells."""
        return described.features

    @torch.inference_mode()
    def relate(
        self, first: Sequence[Described], second: Sequence[Described]
    ) -> tuple[Tensor, Tensor]:
        """Relate pairs in one call of the network."""
        both = (_join([one.tokens for one in side]) for side in (first, second))
        outputs: tuple[Tensor, Tensor] = self.system.network.transformer.relate(*both)
        return outputs


def _join(tokens: Sequence[ImageTokens]) -> ImageTokens:
    """Make one batch of pictures of one grid."""
    parts: dict[str, Any] = {}
    for field in fields(ImageTokens):
        values = [getattr(one, field.name) for one in tokens]
        parts[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else values[0]
    return ImageTokens(**parts)


@dataclass(frozen=True)
class PairOutputs:
    """What the network says of some pairs of pictures.

    Attributes:
        pairs: int64 ``[n, 2]``, first below second.
        output0: float32 ``[n, 3, h, w]``: x and y in the second picture, and the mask.
        output1: The same for the second picture.
        scores: float64 ``[n, 2]``: how well the first is found in the second, and the reverse; 0
            where the consistent masks are too small.
    """

    pairs: npt.NDArray[np.int64]
    output0: npt.NDArray[np.float32]
    output1: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[PairOutputs]) -> PairOutputs:
        """Put chunks together."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def unmirror(out0: Tensor, out1: Tensor, *, published: bool = False) -> tuple[Tensor, Tensor]:
    """Express outputs for a mirrored second picture in the picture as it was.

    The first picture's x pointed into the mirrored picture, so it becomes 1 - x; the second
    picture's cells change places, and what they say stays. The published code (fault T3) turns the
    second mask upside down instead, and changes the wrong x.

    Args:
        out0: ``[..., 3, h, w]`` of the first picture.
        out1: The same of the mirrored second one.
        published: Reproduce the fault.
    """
    if published:
        wrong = torch.stack([1.0 - out1[..., 0, :, :], out1[..., 1, :, :]], dim=-3)
        return out0, torch.cat([wrong, out1[..., 2:, :, :].flip(-2)], dim=-3)
    turned = torch.stack([1.0 - out0[..., 0, :, :], out0[..., 1, :, :]], dim=-3)
    return torch.cat([turned, out0[..., 2:, :, :]], dim=-3), out1.flip(-1)


def score_outputs(
    out0: Tensor,
    out1: Tensor,
    features0: Tensor,
    features1: Tensor,
    *,
    rounding: Rounding = "cell",
) -> npt.NDArray[np.float64]:
    """Score pairs both ways with their consistent masks.

    Args:
        out0: ``[B, 3, h, w]``.
        out1: ``[B, 3, h, w]``.
        features0: ``[B, h * w, C]``.
        features1: ``[B, h * w, C]``.
        rounding: How a place becomes a cell, see :func:`patchword.ops.match_score`.

    Returns:
        ``[B, 2]``; both 0 where either mask sums to less than a hundredth of the cells.
    """
    agreed0, agreed1 = pair_masks(out0, out1)
    scores = []
    for out, agreed, own, other in (
        (out0, agreed0, features0, features1),
        (out1, agreed1, features1, features0),
    ):
        points = out[:, :2].flatten(2).transpose(1, 2)
        grid = (out.shape[-2], out.shape[-1])
        scores.append(
            match_score(own, other, points, agreed.flatten(1), grid=grid, rounding=rounding)
        )
    small = torch.zeros_like(scores[0], dtype=torch.bool)
    for agreed in (agreed0, agreed1):
        small |= agreed.flatten(1).sum(dim=1) < _LEAST_SHARE * agreed[0].numel()
    both = torch.stack(scores, dim=1).double()
    return both.masked_fill(small[:, None], 0.0).cpu().numpy()


@torch.inference_mode()
def relate_pairs(
    model: PairModel,
    described: Sequence[Any],
    pairs: npt.NDArray[np.int64],
    *,
    mirrored: Sequence[Any] | None = None,
    rounding: Rounding = "cell",
    published_flip: bool = False,
    batch: int = 32,
) -> PairOutputs:
    """Run pairs through the network.

    Args:
        model: The network.
        described: Pictures, see :meth:`PairModel.describe`.
        pairs: ``[n, 2]`` indices.
        mirrored: The pictures left to right; each pair is then also run with its second picture
            mirrored, and the result with the larger first mask is kept.
        rounding: How a place becomes a cell.
        published_flip: Reproduce fault T3.
        batch: Pairs in one call.
    """
    parts = []
    for start in range(0, len(pairs), batch):
        chosen = pairs[start : start + batch]
        first = [described[i] for i in chosen[:, 0]]
        second = [described[j] for j in chosen[:, 1]]
        own = torch.stack([model.features(one) for one in first])
        other = torch.stack([model.features(one) for one in second])
        out0, out1 = model.relate(first, second)
        scores = score_outputs(out0, out1, own, other, rounding=rounding)
        if mirrored is not None:
            turned = [mirrored[j] for j in chosen[:, 1]]
            raw0, raw1 = model.relate(first, turned)
            better = raw0[:, 2].sum(dim=(1, 2)) > out0[:, 2].sum(dim=(1, 2))
            new0, new1 = unmirror(raw0, raw1, published=published_flip)
            if published_flip:
                new_scores = score_outputs(new0, new1, own, other, rounding=rounding)
            else:
                # Descriptors of a mirrored picture are not the mirrored descriptors.
                other = torch.stack([model.features(one) for one in turned])
                new_scores = score_outputs(raw0, raw1, own, other, rounding=rounding)
            chosen_maps = better[:, None, None, None]
            out0, out1 = (
                torch.where(chosen_maps, new, old) for new, old in ((new0, out0), (new1, out1))
            )
            scores = np.where(better.cpu().numpy()[:, None], new_scores, scores)
        parts.append(PairOutputs(chosen, _array(out0), _array(out1), scores))
    return PairOutputs.joined(parts)


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = values.float().cpu().numpy()
    return array


def all_pairs(count: int) -> npt.NDArray[np.int64]:
    """Every pair of ``count`` pictures in the published order, ``[n, 2]``."""
    return np.array(list(combinations(range(count), 2)), dtype=np.int64).reshape(-1, 2)


def relate_all(
    model: PairModel,
    images: Sequence[Any],
    *,
    read: Any,
    flip: bool = True,
    rounding: Rounding = "cell",
    published_flip: bool = False,
    cache: Path | None = None,
    start: int = 0,
    end: int | None = None,
    chunk: int = CHUNK,
    batch: int = 32,
    progress: Progress = silent,
) -> PairOutputs:
    """Run pairs ``start`` to ``end`` - 1 of a set through the network, a file per chunk.

    Args:
        model: The network.
        images: The pictures, as ``read`` takes them.
        read: Gives uint8 ``[H, W, 3]`` of one picture.
        flip: Also try the second picture mirrored.
        rounding: How a place becomes a cell.
        published_flip: Reproduce fault T3.
        cache: Folder for finished chunks, named ``start<s>_end<e>.npz``; they are reused when they
            come from the same weights, pictures and options.
        start: First pair.
        end: One past the last pair, None for all.
        chunk: Pairs of one file; a run that was stopped goes on with the first missing one.
        batch: Pairs in one call of the network.
        progress: Wraps the loop over chunks.

    Raises:
        DatasetError: A picture cannot be read.
        OutputError: A chunk cannot be written.
    """
    pairs = all_pairs(len(images))[start:end]
    described: list[Any] = []
    mirrored: list[Any] | None = None
    # The pictures are read only if some chunk has to be made.
    made_by = _made_by(model, images, read, flip, rounding, published_flip) if cache else ""
    parts = []
    for first in progress(range(0, len(pairs), chunk), total=-(-len(pairs) // chunk)):
        wanted = pairs[first : first + chunk]
        name = f"start{start + first}_end{start + first + len(wanted)}.npz"
        kept = _load(cache / name, made_by, wanted) if cache is not None else None
        if kept is None:
            if not described:
                pictures = [read(image) for image in images]
                described = [model.describe(picture) for picture in pictures]
                if flip:
                    turned = (np.ascontiguousarray(picture[:, ::-1]) for picture in pictures)
                    mirrored = [model.describe(picture) for picture in turned]
            kept = relate_pairs(
                model,
                described,
                wanted,
                mirrored=mirrored,
                rounding=rounding,
                published_flip=published_flip,
                batch=batch,
            )
            if cache is not None:
                _save(cache / name, made_by, kept)
        parts.append(kept)
    if not parts:
        raise ShapeError(f"discover: there must be at least two pictures, got {len(images)}.")
    return PairOutputs.joined(parts)


def _made_by(model: PairModel, images: Sequence[Any], read: Any, *options: Any) -> str:
    digest = hashlib.sha256(repr((model.fingerprint(), options)).encode())
    for image in images:
        if isinstance(image, (str, Path)):
            with Path(image).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(np.ascontiguousarray(read(image)).tobytes())
    return digest.hexdigest()


def _save(path: Path, made_by: str, outputs: PairOutputs) -> None:
    with open_atomic(path) as file:
        np.savez(
            file,
            made_by=np.array(made_by),
            pair_idx=outputs.pairs,
            output1=outputs.output0,
            output2=outputs.output1,
            score=outputs.scores,
        )


def _load(path: Path, made_by: str, pairs: npt.NDArray[np.int64]) -> PairOutputs | None:
    """Give a finished chunk, or None where there is none of the same making."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_by"]) != made_by or not np.array_equal(file["pair_idx"], pairs):
                return None
            return PairOutputs(file["pair_idx"], file["output1"], file["output2"], file["score"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("relate_all: %s is damaged and made anew: %s", path, error)
        return None
