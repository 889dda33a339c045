# SPDX-License-Identifier: Apache-2.0
"""Training as published: stage 1 on generated pairs, stage 2 with mined negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchword.backbones import Backbone
from patchword.errors import ConfigError
from patchword.metrics import average_precision
from patchword.structures import ImageArray
from patchword.systems.segswap.annotations import read_coco, read_cutouts, read_published
from patchword.systems.segswap.checkpoint import load_backbone, load_network
from patchword.systems.segswap.config import SegSwapConfig
from patchword.systems.segswap.data import (
    GeneratedPairs,
    PairBatch,
    PairSample,
    StoredPairs,
    collate,
)
from patchword.systems.segswap.losses import (
    accuracies,
    correspondence_loss,
    in_batch_negatives,
    mask_loss,
    transport,
)
from patchword.systems.segswap.mining import (
    MinedPool,
    MiningConfig,
    mine,
    pool_generator,
    random_crop,
)
from patchword.systems.segswap.model import SegSwapNetwork
from patchword.systems.segswap.recipe import DATA_FAULTS, PairRecipe
from patchword.systems.segswap.sources import RegionSource, SceneSource
from patchword.training import Losses, SampleKey, Task

TRAINING_FAULTS: dict[str, str] = {
    "T13": "coordinates are learned from cells that equal the mask's maximum, one mean a batch",
}
"""Faults of the published training that ``compat`` can keep, besides those of the data.

T7 (stage 2 crashes after its first epoch), T9 (a loader that runs out) and T12 (attention over no
key) are corrected always. T17 is ``training.optim.warmup=segswap``.
"""


PUBLISHED_LISTS = (
    "COCO2017_train_img2cat.json",
    "COCO2017_train_obj.json",
    "COCO2017_train_img2obj.json",
)
"""Names of the lists that the published generators read."""


@dataclass(frozen=True)
class PairsConfig:
    """Where pairs come from.

    Attributes:
        kind: ``regions``: pieces of the photographs in ``images``; ``coco``: ``images`` with the
            instances file ``annotations``; ``published``: ``images`` with the folder
            ``annotations`` of the published lists; ``cutouts``: ``images`` is a folder with
            ``index.json`` and masks; ``stored``: ``folders`` in the published layout.
        images: Folder of photographs.
        annotations: File or folder.
        folders: Of stored pairs.
        size: Side of generated pictures in pixels.
        length: Generated pairs of one epoch.
        style: Probability that a picture is stylised.
        warp: Probability that the second picture is warped.
    """

    kind: Literal["regions", "coco", "published", "cutouts", "stored"] = "regions"
    images: str = ""
    annotations: str = ""
    folders: tuple[str, ...] = ()
    size: int = 480
    length: int = 100_000
    style: float = 0.5
    warp: float = 0.5


@dataclass(frozen=True)
class PublishedConfig:
    """Losses and negatives; the defaults are the published ones.

    Attributes:
        pairs: Where pairs come from.
        negatives: Pairs of different samples, per micro-batch.
        correspondence: Weight of the coordinates' error.
        warped_masks: Masks read through the other picture's coordinates are learned too.
        object_only: Probability, a pair, that only the object's cells of one picture can be seen
            by the other: a query by a cut-out detail.
        swap: Probability, a batch, that the two pictures change roles.
        mining: Hard negatives, stage 2.
        backbone: Weights file of the backbone; empty for the one of the network's package.
        initial: Weights file to start from; empty for fresh weights.
        compat: Published faults to keep, keys of ``DATA_FAULTS`` and ``TRAINING_FAULTS``.
        validation_pairs: Pairs of another seed that are looked at in each validation.
    """

    pairs: PairsConfig = field(default_factory=PairsConfig)
    negatives: int = 15
    correspondence: float = 8.0
    warped_masks: bool = True
    object_only: float = 0.5
    swap: float = 0.5
    mining: MiningConfig = field(default_factory=MiningConfig)
    backbone: str = ""
    initial: str = ""
    compat: tuple[str, ...] = ()
    validation_pairs: int = 16

    def __post_init__(self) -> None:
        """Refuse faults that are not known.

        Raises:
            ConfigError: With the names.
        """
        known = {**DATA_FAULTS, **TRAINING_FAULTS}
        unknown = sorted(set(self.compat) - known.keys())
        if unknown:
            raise ConfigError(
                f"PublishedConfig: compat must name some of {', '.join(sorted(known))}, "
                f"got {', '.join(unknown)}."
            )

    def recipe(self) -> PairRecipe:
        """What generated and stored pairs are treated with."""
        pairs = self.pairs
        cells = 9.0 * (pairs.size / 480) ** 2
        return PairRecipe(
            size=pairs.size,
            min_cells=cells,
            style_probability=pairs.style,
            tps_probability=pairs.warp,
            compat=frozenset(self.compat) & DATA_FAULTS.keys(),
        )


@dataclass(frozen=True, eq=False)
class _Sample:
    record: int
    pair: PairSample


@dataclass(frozen=True, eq=False)
class _Batch:
    records: tuple[int, ...]
    pairs: PairBatch

    def to(self, device: torch.device | str) -> _Batch:
        return _Batch(self.records, self.pairs.to(device))


class _Pairs(Dataset[_Sample]):
    """Generated or stored pairs by :class:`SampleKey`."""

    def __init__(self, pairs: GeneratedPairs | StoredPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> _Sample:
        if isinstance(self.pairs, GeneratedPairs):
            return _Sample(key.draw, self.pairs[key.draw])
        pairs = self.pairs.for_epoch(key.draw // len(self.pairs))
        return _Sample(key.record, pairs[key.record])


class PublishedTask(Task):
    """The published losses on pairs made on the fly or read from disk."""

    system = "segswap"
    model: SegSwapNetwork

    def __init__(
        self,
        network: SegSwapConfig,
        config: PublishedConfig,
        *,
        seed: int = 0,
        backbone: Backbone | None = None,
    ) -> None:
        """Build the network; no picture is read yet.

        Args:
            network: What is trained.
            config: Losses, negatives, where pairs come from.
            seed: Of the pairs and pools.
            backbone: A loaded one instead of that of the configuration.
        """
        self.config, self.seed = config, seed
        self.backbone = (
            backbone
            if backbone is not None
            else load_backbone(config.backbone or None, name=network.backbone)
        )
        if config.initial:
            self.model = load_network(config.initial)
            self.model.backbone = None
        else:
            self.model = SegSwapNetwork(network)
        self.pool: MinedPool | None = None
        self.pool_ends = 0
        self._pairs: GeneratedPairs | StoredPairs | None = None

    def dataset(self) -> _Pairs:
        """The pairs of the configuration."""
        return _Pairs(self._open())

    def _open(self) -> GeneratedPairs | StoredPairs:
        if self._pairs is None:
            self._pairs = open_pairs(self.config, seed=self.seed)
        return self._pairs

    def collate(self, samples: list[_Sample]) -> _Batch:
        """Stack pairs, keeping their numbers."""
        records = tuple(sample.record for sample in samples)
        return _Batch(records, collate([sample.pair for sample in samples]))

    def prepare(self, device: Any) -> None:
        """Move the frozen backbone to where it is used."""
        self.backbone.device = torch.device(device)
        network = getattr(self.backbone, "network", None)
        if isinstance(network, nn.Module):
            network.to(device)

    def metadata(self) -> dict[str, Any]:
        """Configuration of the network."""
        return {"config": asdict(self.model.config)}

    def before_step(self, model: nn.Module, step: int) -> None:
        """Mine a new pool where the last one has served its steps."""
        if self.config.mining.hard_negatives == 0 or step < self.pool_ends:
            return
        epoch = 0 if self.pool is None else self.pool.epoch + 1
        self.pool = mine(
            self.model.transformer,
            self.config.mining,
            epoch=epoch,
            seed=self.seed,
            draw=self._draw_pictures,
        )
        self.pool_ends = step + self.pool.steps

    def losses(self, model: nn.Module, batch: _Batch, step: int) -> Losses:
        """Mask loss of positives, negatives and hard negatives; coordinates of positives."""
        config = self.config
        pairs = self._outside_pool(batch)
        if torch.rand(()) < config.swap:
            pairs = pairs.swapped()
            object_side = 0
        else:
            object_side = 1
        features0, features1 = self._describe(pairs.image0), self._describe(pairs.image1)
        targets = (pairs.target0, pairs.target1)
        valid: list[Tensor | None] = [None, None]
        valid[object_side] = self._object_cells(targets[object_side][:, 2])
        out0, out1 = model(features0, features1, *valid)
        wanted = [pairs.target0[:, 2], pairs.target1[:, 2]]
        maps, truth = [out0[:, 2], out1[:, 2]], list(wanted)
        if config.warped_masks:
            maps += [transport(out1[:, 2], out0), transport(out0[:, 2], out1)]
            truth += wanted
        apart = self._negatives(model, features0, features1, object_side)
        maps += apart
        truth += [torch.zeros_like(one) for one in apart]
        masks = mask_loss(maps, truth)
        both, target = torch.cat([out0, out1]), torch.cat([pairs.target0, pairs.target1])
        coordinates = correspondence_loss(both, target, compat="T13" in config.compat)
        counted = accuracies(both[:, 2], target[:, 2], torch.cat(apart) if apart else None)
        return {
            "total": masks + config.correspondence * coordinates,
            "mask": masks,
            "correspondence": coordinates,
            "accuracy_positive": counted.positive,
            "accuracy_negative": counted.negative,
        }

    def _negatives(
        self, model: nn.Module, features0: Tensor, features1: Tensor, object_side: int
    ) -> list[Tensor]:
        """Masks of pairs that share nothing; always the object's photograph first, as published."""
        first, second = (features1, features0) if object_side == 0 else (features0, features1)
        count = min(self.config.negatives, len(first) * (len(first) - 1))
        rows, columns = in_batch_negatives(len(first), count)
        sides = [(first[rows], second[columns])] if count else []
        if self.pool is not None and self.config.mining.hard_negatives:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            hard = self.pool.draw(self.config.mining.hard_negatives, generator)
            sides.append((hard[0].to(first), hard[1].to(first)))
        if not sides:
            return []
        out0, out1 = model(*(torch.cat(parts) for parts in zip(*sides, strict=True)))
        return [out0[:, 2], out1[:, 2]]

    def _outside_pool(self, batch: _Batch) -> PairBatch:
        """Leave out pairs whose pictures are in the pool, as far as any others are there."""
        pairs = batch.pairs
        if self.pool is None:
            return pairs
        kept = [i for i, record in enumerate(batch.records) if record not in self.pool.records]
        if not kept or len(kept) == len(pairs):
            return pairs
        return PairBatch(
            pairs.image0[kept], pairs.image1[kept], pairs.target0[kept], pairs.target1[kept]
        )

    def _object_cells(self, masks: Tensor) -> Tensor:
        """Bool ``[P, h, w]``: with the configured probability only cells of the object."""
        chosen = torch.rand(len(masks)) < self.config.object_only
        return (masks >= 0.5) | ~chosen.to(masks.device)[:, None, None]

    @torch.no_grad()
    def _describe(self, images: Tensor) -> Tensor:
        """Frozen features ``[P, C, h, w]`` of uint8 pictures ``[P, 3, H, W]``."""
        # Backbones run in inference mode; what they return cannot be kept for a backward pass.
        return self.backbone.describe(images.float() / 255.0).clone()

    def _draw_pictures(self, rng: np.random.Generator, size: int) -> tuple[list[int], Tensor]:
        """A pool: one cut picture each of ``size`` different pairs."""
        pairs = self._open()
        records = rng.choice(len(pairs), size=min(size, len(pairs)), replace=False).tolist()
        side, parts = self.config.pairs.size, []
        for start in range(0, len(records), 16):
            images = []
            for record in records[start : start + 16]:
                sample = pairs[record]
                picture = sample.image0 if rng.random() < 0.5 else sample.image1
                images.append(torch.from_numpy(random_crop(picture, side, rng)))
            pixels = torch.stack(images).permute(0, 3, 1, 2).to(self.backbone.device)
            parts.append(self._describe(pixels).half().cpu())
        return records, torch.cat(parts)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Average precision of the masks on generated or stored pairs of another seed."""
        pairs = open_pairs(self.config, seed=self.seed + 1)
        precision: list[float] = []
        for number in range(min(self.config.validation_pairs, len(pairs))):
            batch = collate([pairs[number]]).to(self.backbone.device)
            outputs = self.model(self._describe(batch.image0), self._describe(batch.image1))
            for out, target in zip(outputs, (batch.target0, batch.target1), strict=True):
                truth = (target[0, 2] > 0.5).cpu()
                precision.append(average_precision(out[0, 2].cpu(), truth))
        return {"ap": float(np.nanmean(precision))}

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> dict[str, ImageArray]:
        """One pair with its true and its predicted masks."""
        batch = collate([self._open()[0]]).to(self.backbone.device)
        outputs = self.model(self._describe(batch.image0), self._describe(batch.image1))
        size = batch.image0.shape[-2:]
        columns = [batch.image0[0].float() / 255.0, batch.image1[0].float() / 255.0]
        for maps in (batch.target0, batch.target1, *outputs):
            grown = nn.functional.interpolate(maps[:1, 2:], size=size)[0]
            columns.append(grown.expand(3, -1, -1).float())
        wide: ImageArray = (torch.cat(columns, dim=2) * 255).byte().permute(1, 2, 0).cpu().numpy()
        return {"pair": wide}

    def state_dict(self) -> dict[str, Any]:
        """The pool in use; its features are made again from its numbers."""
        if self.pool is None:
            return {}
        return {
            "epoch": self.pool.epoch,
            "attempt": self.pool.attempt,
            "probabilities": self.pool.probabilities,
            "steps": self.pool.steps,
            "ends": self.pool_ends,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the pool back."""
        if not state:
            return
        rng = pool_generator(self.seed, state["epoch"], state["attempt"])
        records, features = self._draw_pictures(rng, self.config.mining.pool_size)
        self.pool = MinedPool(
            state["epoch"],
            state["attempt"],
            frozenset(records),
            features,
            state["probabilities"],
            state["steps"],
        )
        self.pool_ends = state["ends"]


def open_pairs(config: PublishedConfig, *, seed: int) -> GeneratedPairs | StoredPairs:
    """The pairs that a configuration names.

    Raises:
        ConfigError: A path that the kind needs is not given.
        DatasetError: Files are missing or damaged.
    """
    pairs, recipe = config.pairs, config.recipe()
    needs: dict[str, Sequence[str]] = {
        "stored": ("folders",),
        "coco": ("images", "annotations"),
        "published": ("images", "annotations"),
    }
    for name in needs.get(pairs.kind, ("images",)):
        if not getattr(pairs, name):
            raise ConfigError(
                f"config: pairs.{name} must be set for pairs.kind={pairs.kind}, got nothing."
            )
    if pairs.kind == "stored":
        return StoredPairs(pairs.folders, recipe, seed=seed)
    source: SceneSource
    if pairs.kind == "regions":
        source = RegionSource.from_folder(pairs.images)
    elif pairs.kind == "cutouts":
        source = read_cutouts(pairs.images)
    elif pairs.kind == "coco":
        source = read_coco(pairs.images, pairs.annotations)
    else:
        lists = (Path(pairs.annotations) / name for name in PUBLISHED_LISTS)
        source = read_published(pairs.images, *lists)
    return GeneratedPairs(source, recipe, seed=seed, length=pairs.length)
