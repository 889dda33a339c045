# SPDX-License-Identifier: Apache-2.0
"""Trains the published model: sketches against captions, their parts against category names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchword.backbones.clip.preprocess import normalize, resize
from patchword.backbones.clip.tokenizer import ClipTokenizer
from patchword.data.io import read_image
from patchword.errors import ConfigError
from patchword.systems.sketchseg.captions import caption_categories, clean_caption
from patchword.systems.sketchseg.config import SketchSegConfig, config_to_json
from patchword.systems.sketchseg.convert import KIND, SYSTEM
from patchword.systems.sketchseg.data import CaptionedSketch, read_captioned
from patchword.systems.sketchseg.losses import (
    MaskThreshold,
    category_mask,
    hard_triplet,
    masked_sketch,
    own_similarity,
    stroke_image,
)
from patchword.systems.sketchseg.model import SketchSegModel, normalize_features
from patchword.systems.sketchseg.train_config import PaperTrainConfig
from patchword.training import LoopConfig, Losses, SampleKey, Task

# Their gradient is zero in the published form and they do not exist in the collapsed one.
_IDLE = ("adapter.query.", "adapter.key.", "adapter.text.")


@dataclass(frozen=True, eq=False)
class CaptionSample:
    """A sketch ``[3, R, R]`` in [0, 1], what its caption names, and the cleaned caption."""

    picture: Tensor
    categories: tuple[str, ...]
    caption: str


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Every sketch as often as its caption names something.

    Attributes:
        pictures: ``[B, 3, R, R]`` in [0, 1].
        categories: B names.
        captions: B cleaned captions.
        labels: int64 ``[B]``: numbers of the names.
        groups: int64 ``[B]``: equal where the captions are.
    """

    pictures: Tensor
    categories: tuple[str, ...]
    captions: tuple[str, ...]
    labels: Tensor
    groups: Tensor

    def to(self, device: Any) -> PairBatch:
        """Move the tensors to a device."""
        return PairBatch(
            self.pictures.to(device),
            self.categories,
            self.captions,
            self.labels.to(device),
            self.groups.to(device),
        )


def expand_pairs(samples: Sequence[CaptionSample]) -> PairBatch:
    """Repeat each sketch for each of its categories, in order.

    Labels number the names, and groups the captions, within the batch: all that the losses ask is
    which of them are equal.
    """
    pairs = [(sample, name) for sample in samples for name in sample.categories]
    categories = tuple(name for _, name in pairs)
    captions = tuple(sample.caption for sample, _ in pairs)
    return PairBatch(
        torch.stack([sample.picture for sample, _ in pairs]),
        categories,
        captions,
        _numbers(categories),
        _numbers(captions),
    )


class CaptionedSketches(Dataset[CaptionSample]):
    """The sketches of a training folder at the network's size."""

    def __init__(self, records: Sequence[CaptionedSketch], config: PaperTrainConfig, side: int):
        """Parse the captions; ``side`` is the network's input in pixels."""
        self.records, self.side = list(records), side
        self.categories = [
            tuple(
                caption_categories(
                    record.caption, parser=config.parser, max_classes=config.max_classes
                )
            )
            for record in self.records
        ]

    def __len__(self) -> int:
        """Count the sketches."""
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> CaptionSample:
        """Read a sketch, stretched to a square as the published code does."""
        record = self.records[key.record]
        square = resize(read_image(record.image), (self.side, self.side))
        picture = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255.0
        return CaptionSample(picture, self.categories[key.record], clean_caption(record.caption))


class TrainedSketchSeg(SketchSegModel):
    """The model with the two passes of a training step as its forward."""

    def forward(
        self,
        pictures: Tensor,
        categories: Tensor,
        threshold: Tensor,
        options: PaperTrainConfig,
    ) -> tuple[Tensor, Tensor]:
        """Encode sketches, and again only their strokes that resemble their category.

        Args:
            pictures: ``[B, 3, R, R]`` in [0, 1].
            categories: Unit text vectors ``[B, D]``.
            threshold: Of the mask.
            options: Switches.

        Returns:
            Class tokens of the sketches ``[B, D]`` and, after each tap, of the masked sketches
            ``[taps, B, D]``.
        """
        features = self.encode_image(normalize(pictures))
        scene = normalize_features(features, options.first_norm)
        side = pictures.shape[-1]
        grid = (side // self.config.clip.image.patch,) * 2
        patches = scene[:, self.first_patch :]
        if options.threshold_gradient == "none":
            patches = patches.detach()
        maps = own_similarity(patches, categories, grid, (side, side))
        mask = category_mask(
            maps, threshold, minmax=options.mask_minmax, gradient=options.threshold_gradient
        )
        masked = masked_sketch(stroke_image(pictures), mask)
        taps = self.encode_taps(normalize(masked[:, None].expand(-1, 3, -1, -1)))
        if options.second_norm == "batch":
            parts = F.normalize(taps, dim=1)
        else:
            parts = torch.stack([normalize_features(tap, options.first_norm) for tap in taps])
        return scene[:, 0], parts[:, :, 0]


class PublishedTask(Task):
    """Hard-negative triplets of scenes with captions and of their parts with category names."""

    system = SYSTEM
    model: TrainedSketchSeg

    def __init__(self, config: PaperTrainConfig, loop: LoopConfig) -> None:
        """Read the captions and build the model.

        Raises:
            ConfigError: No data are named, or a learning threshold is to be shared by processes.
            DatasetError: The folder is not laid out like FS-COCO.
            CheckpointError: The weights to start from cannot be read.
        """
        if not config.data:
            raise ConfigError(
                "train: paper.data must name a folder with sketches and text, got none. "
                "Pass paper.data=fscoco/train."
            )
        if config.threshold_gradient != "none" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "train: paper.threshold_gradient must be none where several processes train, got "
                f"{config.threshold_gradient!r}."
            )
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(loop.seed)
            self.model = _start(config)
        self._freeze()
        self.threshold = MaskThreshold(
            config.initial_threshold,
            noise=config.threshold_noise,
            gradient=config.threshold_gradient,
        )
        self.sketches = CaptionedSketches(
            read_captioned(config.data), config, self.model.config.clip.image.resolution
        )
        self._tokenizer = ClipTokenizer()
        self._texts: dict[str, Tensor] = {}

    def dataset(self) -> CaptionedSketches:
        """The sketches of the training folder."""
        return self.sketches

    def collate(self, samples: list[CaptionSample]) -> PairBatch:
        """Expand sketches to pairs."""
        return expand_pairs(samples)

    def prepare(self, device: Any) -> None:
        """Take the threshold along."""
        self.threshold.to(device)

    def before_step(self, model: nn.Module, step: int) -> None:
        """Move the threshold by its noise, alike on every process."""
        self.threshold.drift()

    def losses(self, model: nn.Module, batch: PairBatch, step: int) -> Losses:
        """One triplet loss of the scenes and one of the parts after each tap."""
        names = self._encode(batch.categories, batch.pictures.device)
        captions = self._encode(batch.captions, batch.pictures.device)
        threshold = self.threshold()
        scene, parts = model(batch.pictures, names, threshold, self.config)
        groups = batch.groups if self.config.negatives == "label+caption" else None
        margin = self.config.margin
        found = {"scene": hard_triplet(scene, captions, batch.labels, margin=margin, groups=groups)}
        for tap, part in zip(self.model.config.taps, parts, strict=True):
            found[f"part{tap}"] = hard_triplet(part, names, batch.labels, margin=margin)
        total = torch.stack(list(found.values())).sum()
        return {"total": total, **found, "threshold": threshold.detach()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All trained weights, decayed alike as in the published code, and the threshold."""
        trained = [one for one in self.model.parameters() if one.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained, "weight_decay": self.config.decay}]
        if self.config.threshold_gradient != "none":
            own = list(self.threshold.parameters())
            groups.append({"params": own, "lr": self.config.threshold_lr, "weight_decay": 0.0})
        return groups

    def metadata(self) -> dict[str, Any]:
        """What the network's own loader asks of the header."""
        return {
            "kind": KIND,
            "config": config_to_json(self.model.config),
            "norm": self.config.first_norm,
        }

    def state_dict(self) -> dict[str, Any]:
        """The threshold, which is no part of the model."""
        return {"theta": self.threshold.theta.detach().cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the threshold back."""
        with torch.no_grad():
            self.threshold.theta.copy_(state["theta"])

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Unit vectors of texts; the text tower is frozen, so that each is encoded once.

        One at a time: rounding in a batch depends on its other texts, and a resumed run meets the
        texts in other company.
        """
        for text in sorted(set(texts) - self._texts.keys()):
            tokens = self._tokenizer.tokenize([text], truncate=True).to(device)
            self._texts[text] = F.normalize(self.model.encode_text(tokens), dim=1)[0].cpu()
        return torch.stack([self._texts[text] for text in texts]).to(device)

    def _freeze(self) -> None:
        """Choose what is trained."""
        attention = [
            f"visual.transformer.resblocks.{index}.attn."
            for index in range(
                self.model.config.dual_start - 1, self.model.config.clip.image.layers
            )
        ]
        for name, parameter in self.model.named_parameters():
            frozen = name.startswith(("text.", *_IDLE))
            if self.config.freeze_surgery:
                frozen |= name.startswith(tuple(attention))
            if self.config.prompts_only:
                frozen |= name != "prompts"
            parameter.requires_grad_(not frozen)


def _start(config: PaperTrainConfig) -> TrainedSketchSeg:
    if not config.clip:
        return TrainedSketchSeg(config.network)
    from patchword.backbones.clip import load_clip

    clip = load_clip(config.clip)
    model = TrainedSketchSeg(SketchSegConfig(clip=clip.config, prompts=config.network.prompts))
    model.visual.load_state_dict(clip.visual.state_dict(), strict=True)
    model.text.load_state_dict(clip.text.state_dict(), strict=True)
    return model


def _numbers(names: Sequence[str]) -> Tensor:
    index = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([index[name] for name in names])
