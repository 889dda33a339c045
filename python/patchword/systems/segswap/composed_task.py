# SPDX-License-Identifier: Apache-2.0
"""Training of the default weights on a pool of composed pairs, see ``default_card.md``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchword.backbones import create_backbone
from patchword.metrics import area_under_curve, average_precision
from patchword.structures import ImageArray
from patchword.systems.segswap.composites import CompositeConfig
from patchword.systems.segswap.config import SegSwapConfig
from patchword.systems.segswap.losses import (
    correspondence_loss,
    in_batch_negatives,
    mask_loss,
    transport,
)
from patchword.systems.segswap.model import SegSwapNetwork
from patchword.systems.segswap.pool import PoolConfig, open_pool
from patchword.training import Losses, SampleKey, Task


@dataclass(frozen=True)
class ComposedLossConfig:
    """Weights of the losses.

    Attributes:
        negatives: Pairs that share nothing, per micro-batch.
        correspondence: Weight of the coordinates' error.
        transported: Weight of the transported masks beside the direct ones.
        overlap: Weight of one minus the soft intersection over union, coarse and fine.
        fine: Weight of the fine masks' cross-entropy.
    """

    negatives: int = 8
    correspondence: float = 4.0
    transported: float = 0.5
    overlap: float = 0.3
    fine: float = 1.0


@dataclass(frozen=True)
class ComposedConfig:
    """Data and losses of the default weights.

    Attributes:
        composites: How pairs are composed.
        pool: How many are kept.
        loss: Weights.
        initial: A weights file to start from; empty for fresh weights.
        validation_pairs: Held-out pairs that each validation looks at.
    """

    composites: CompositeConfig = field(default_factory=CompositeConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    loss: ComposedLossConfig = field(default_factory=ComposedLossConfig)
    initial: str = ""
    validation_pairs: int = 96


@dataclass(frozen=True, eq=False)
class ComposedBatch:
    """Rows of a pool, as floats; the second axis is the picture of the pair."""

    features: Tensor
    masks: Tensor
    flows: Tensor
    fine: Tensor
    images: Tensor

    @classmethod
    def of(cls, rows: dict[str, Tensor]) -> ComposedBatch:
        """Turn stored numbers into what losses need."""
        return cls(
            rows["features"].float(),
            rows["masks"].float() / 255.0,
            rows["flows"].float(),
            rows["fine"].float() / 255.0,
            rows["images"].permute(0, 1, 4, 2, 3).float() / 255.0,
        )

    def to(self, device: torch.device | str) -> ComposedBatch:
        """The batch on a device."""
        return ComposedBatch(
            *(
                part.to(device)
                for part in (self.features, self.masks, self.flows, self.fine, self.images)
            )
        )

    def target(self, side: int) -> Tensor:
        """Target ``[P, 3, h, w]`` of one picture."""
        return torch.cat(
            [self.flows[:, side].permute(0, 3, 1, 2), self.masks[:, side, None]], dim=1
        )


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, pool: dict[str, Tensor]) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return len(self.pool["features"])

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        rows = {name: column[key.record] for name, column in self.pool.items()}
        # Half of the uses with the two pictures exchanged.
        return {name: row.flip(0) for name, row in rows.items()} if key.draw % 2 else rows


class ComposedTask(Task):
    """Positive pairs of the pool, negatives across pairs, coarse and fine masks, coordinates."""

    system = "segswap"
    model: SegSwapNetwork

    def __init__(self, network: SegSwapConfig, config: ComposedConfig) -> None:
        """Build the network with fresh weights, or with those that ``config.initial`` names."""
        from patchword.systems.segswap.checkpoint import load_network

        self.config = config
        self.backbone = create_backbone(network.backbone)
        if config.initial:
            self.model = load_network(config.initial)
            self.model.backbone = None
        else:
            self.model = SegSwapNetwork(network)
        self._held_out: dict[str, Tensor] | None = None

    def dataset(self) -> _Rows:
        """The training part of the pool, made where it is missing."""
        return _Rows(open_pool(self.config.composites, self.config.pool, self.backbone))

    def collate(self, samples: list[dict[str, Tensor]]) -> ComposedBatch:
        """Stack rows."""
        rows = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        return ComposedBatch.of(rows)

    def metadata(self) -> dict[str, Any]:
        """Configuration of the network."""
        return {"config": asdict(self.model.config)}

    def losses(self, model: nn.Module, batch: ComposedBatch, step: int) -> Losses:
        """Masks of positives and negatives, transported and fine masks, coordinates."""
        weights, count = self.config.loss, len(batch.masks)
        first, second = in_batch_negatives(count, weights.negatives)
        features0, features1 = batch.features[:, 0], batch.features[:, 1]
        all0, all1 = model(
            torch.cat([features0, features0[first]]), torch.cat([features1, features1[second]])
        )
        out0, out1 = all0[:count], all1[:count]
        wanted = [batch.masks[:, 0], batch.masks[:, 1]]
        nothing = torch.zeros_like(all0[count:, 2])
        masks = mask_loss(
            [out0[:, 2], out1[:, 2], all0[count:, 2], all1[count:, 2]], [*wanted, nothing, nothing]
        )
        carried = mask_loss([transport(out1[:, 2], out0), transport(out0[:, 2], out1)], wanted)
        both = torch.cat([out0, out1])
        targets = torch.cat([batch.target(0), batch.target(1)])
        coordinates = correspondence_loss(both, targets, beyond=targets[:, 2])
        overlap = soft_overlap(both[:, 2], targets[:, 2])
        total = (
            masks
            + weights.transported * carried
            + weights.correspondence * coordinates
            + weights.overlap * overlap
        )
        found = {"mask": masks, "transported": carried, "correspondence": coordinates}
        refiner = self.model.refiner
        if refiner is not None:
            images0, images1 = batch.images[:, 0], batch.images[:, 1]
            logits = torch.cat(
                [
                    refiner(images0, images1, out0.detach(), out1.detach()),
                    refiner(images1, images0, out1.detach(), out0.detach()),
                ]
            )
            truth = torch.cat([batch.fine[:, 0], batch.fine[:, 1]])
            fine = F.binary_cross_entropy_with_logits(logits, truth)
            fine_overlap = soft_overlap(logits.sigmoid(), truth)
            total = total + weights.fine * fine + weights.overlap * fine_overlap
            found |= {"fine": fine, "fine_overlap": fine_overlap}
        return {"total": total, **found, "overlap": overlap}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure on held-out pairs, and on pairs of them that share nothing."""
        if self._held_out is None:
            self._held_out = open_pool(
                self.config.composites, self.config.pool, self.backbone, held_out=True
            )
        count = min(self.config.validation_pairs, len(self._held_out["features"]))
        found: dict[str, list[float]] = {}
        for start in range(0, count, 8):
            rows = {name: part[start : start + 8] for name, part in self._held_out.items()}
            batch = ComposedBatch.of(rows).to(next(model.parameters()).device)
            for name, values in self._measure(batch).items():
                found.setdefault(name, []).extend(values)
        scores = found.pop("sharing"), found.pop("apart")
        means = {name: float(np.nanmean(values)) for name, values in found.items()}
        return {**means, "auc": area_under_curve(*scores)}

    def _measure(self, batch: ComposedBatch) -> dict[str, list[float]]:
        out0, out1 = self.model(batch.features[:, 0], batch.features[:, 1])
        apart0, apart1 = self.model(batch.features[:, 0], batch.features[:, 1].roll(1, 0))
        grid = out0.shape[-1]
        found: dict[str, list[float]] = {
            "sharing": pair_scores(out0, out1).tolist(),
            "apart": pair_scores(apart0, apart1).tolist(),
            "ap": [],
            "iou": [],
            "correspondence": [],
        }
        images = batch.images
        for side, out, other in ((0, out0, out1), (1, out1, out0)):
            if self.model.refiner is not None:
                logits = self.model.refiner(images[:, side], images[:, 1 - side], out, other)
                soft = logits.sigmoid()
            else:
                soft = F.interpolate(
                    out[:, 2:], scale_factor=4, mode="bilinear", align_corners=False
                )[:, 0]
            truth = batch.fine[:, side] > 0.5
            for one, true in zip(soft, truth, strict=True):
                found["ap"].append(average_precision(one.cpu(), true.cpu()))
                union = ((one > 0.5) | true).sum().clamp(min=1)
                found["iou"].append(float(((one > 0.5) & true).sum() / union))
            error = (out[:, :2].permute(0, 2, 3, 1) - batch.flows[:, side]).norm(dim=3) * grid
            for one, mask in zip(error, batch.masks[:, side], strict=True):
                found["correspondence"].append(float((one[mask > 0.5] < 1.25).float().mean()))
        return found

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> dict[str, ImageArray]:
        """The first held-out pairs with true and predicted masks, a row each."""
        if self._held_out is None:
            return {}
        rows = {name: part[:6] for name, part in self._held_out.items()}
        batch = ComposedBatch.of(rows).to(next(model.parameters()).device)
        out0, out1 = self.model(batch.features[:, 0], batch.features[:, 1])
        size = batch.images.shape[-2:]

        def grown(masks: Tensor) -> Tensor:
            return F.interpolate(masks[:, None], size=size)[:, 0]

        columns = [
            *(batch.images[:, side] for side in (0, 1)),
            *(grown(batch.masks[:, side])[:, None].expand(-1, 3, -1, -1) for side in (0, 1)),
            *(grown(out[:, 2])[:, None].expand(-1, 3, -1, -1) for out in (out0, out1)),
        ]
        wide = torch.cat(columns, dim=3).permute(0, 2, 3, 1).flatten(0, 1)
        picture: ImageArray = (wide * 255).byte().cpu().numpy()
        return {"held_out": picture}


def pair_scores(out0: Tensor, out1: Tensor, cells: int = 9) -> Tensor:
    """How sure it is that two pictures share something: mean of the surest cells of both."""
    best = []
    for out in (out0, out1):
        masks = out[:, 2].flatten(1)
        best.append(masks.topk(min(cells, masks.shape[1]), dim=1).values.mean(dim=1))
    return (best[0] * best[1]).sqrt()


def soft_overlap(masks: Tensor, truth: Tensor) -> Tensor:
    """One minus the soft intersection over union of maps ``[M, h, w]``, mean over maps."""
    both = (masks * truth).sum(dim=(1, 2))
    either = (masks + truth - masks * truth).sum(dim=(1, 2))
    return (1.0 - (both + 0.1) / (either + 0.1)).mean()
