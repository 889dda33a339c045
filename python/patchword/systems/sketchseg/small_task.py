# SPDX-License-Identifier: Apache-2.0
"""Trains the small network: every ink pixel of a composed scene among the words of all classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from patchword.data.io import printable
from patchword.data.strokes import render_strokes
from patchword.errors import CheckpointError, ConfigError
from patchword.metrics.label_maps import mean_iou, pixel_accuracy
from patchword.nn.checkpoint import read_weights
from patchword.systems.sketchseg.compose import (
    CANVAS,
    DrawingLibrary,
    Scene,
    compose_scene,
    scene_generator,
)
from patchword.systems.sketchseg.small import SmallSketchNet, average_templates
from patchword.systems.sketchseg.small_data import (
    ComposedScenes,
    PointBatch,
    PointSample,
    network_ink,
)
from patchword.systems.sketchseg.small_encoder import SYSTEM, encode_templates, small_header
from patchword.systems.sketchseg.train_config import SmallTrainConfig
from patchword.training import LoopConfig, Losses, Task

# Scenes of validations differ from those of training and of the report.
_VALIDATION_SEED = 1_000_003


class SmallTask(Task):
    """Cross-entropy over all classes at points of the ink; words come from the sentence encoder."""

    system = SYSTEM
    model: SmallSketchNet

    def __init__(self, config: SmallTrainConfig, loop: LoopConfig) -> None:
        """Read the drawings, encode the words and load the pretrained blocks.

        Raises:
            ConfigError: No drawings are named.
            DatasetError: They cannot be read.
            CheckpointError: Pretrained weights are not installed.
        """
        from patchword.backbones.efficientnet_lite import load_efficientnet_lite0

        if not config.drawings:
            raise ConfigError(
                "train: small.drawings must name a file of Quick, Draw! records, got none. "
                "Pass small.drawings=drawings.ndjson.gz."
            )
        self.config, self.loop = config, loop
        self.library, self.validation = split_library(
            DrawingLibrary.read(config.drawings), config.held_out, config.validation
        )
        self.words = self.library.words()
        self.sentences = encode_templates(self.words, config.templates)
        with torch.random.fork_rng():
            torch.manual_seed(loop.seed)
            self.model = SmallSketchNet(
                load_efficientnet_lite0(fold=False), frozen_blocks=config.frozen_blocks
            )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(self._frozen_names()))
        if config.start:
            start_from(self.model, Path(config.start))

    def dataset(self) -> ComposedScenes:
        """Composed scenes without end."""
        return ComposedScenes(
            self.library,
            self.config.scene,
            sizes=self.config.sizes,
            points=self.config.points,
            batch_size=self.loop.micro_batch_size or self.loop.batch_size,
            seed=self.loop.seed,
        )

    def collate(self, samples: list[PointSample]) -> PointBatch:
        """Stack scenes."""
        return PointBatch.join(samples)

    def prepare(self, device: Any) -> None:
        """Take the sentence vectors along."""
        self.sentences = self.sentences.to(device)

    def losses(self, model: nn.Module, batch: PointBatch, step: int) -> Losses:
        """Cross-entropy of every point over all classes, each word in a sentence drawn anew."""
        rows = torch.arange(len(self.words))
        drawn = torch.randint(len(self.config.templates), (len(self.words),))
        logits = model(batch.ink, batch.points, self.sentences[drawn, rows]).flatten(0, 1)
        labels = batch.labels.flatten()
        total = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"total": total, "accuracy": right}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The pretrained blocks at their own rate, the rest at that of the optimiser."""
        pretrained: list[nn.Parameter] = []
        fresh: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                group = pretrained if name.startswith(("stem.", "blocks.")) else fresh
                group.append(parameter)
        return [{"params": fresh}, {"params": pretrained, "lr": self.config.backbone_lr}]

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure scenes of the validation drawings, the categories of each given."""
        assert isinstance(model, SmallSketchNet)
        words = average_templates([model.encode_sentences(one) for one in self.sentences])
        accuracies, ious = [], []
        for index in range(self.config.validation_scenes):
            scene = compose_scene(self.validation, scene_generator(_VALIDATION_SEED, index))
            truth, given = self._label(model, scene, words)
            accuracies.append(pixel_accuracy(truth, given))
            ious.append(mean_iou(truth, given))
        if not accuracies:
            return {}
        return {"pixel_accuracy": float(np.mean(accuracies)), "miou": float(np.mean(ious))}

    def metadata(self) -> dict[str, Any]:
        """What the weights file says about itself."""
        return small_header(self.model.config, self.words, self.config.templates)

    def _label(
        self, model: SmallSketchNet, scene: Scene, words: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """True and given labels of a scene's ink pixels, from 1 in the order of its classes."""
        side = 2 * self.config.validation_size
        classes = scene.classes()
        covered = np.zeros((len(classes), side, side), dtype=np.int32)
        for stroke, label in zip(scene.strokes, scene.labels, strict=True):
            drawn = render_strokes([stroke * np.float32(side / CANVAS)], (side, side), 3)
            covered[classes.index(label)] += drawn > 0
        drawn_ink: NDArray[np.bool_] = np.any(covered > 0, axis=0)
        rows, columns = np.nonzero(drawn_ink)
        ink = network_ink(drawn_ink, (self.config.validation_size,) * 2)
        device = words.device
        maps = model.encode_ink(ink[None].to(device))
        points = (np.stack([columns, rows], axis=1) + 0.5) / side * 2 - 1
        at = F.grid_sample(
            maps,
            torch.from_numpy(points.astype(np.float32))[None, None].to(device),
            padding_mode="border",
            align_corners=False,
        )
        places = torch.tensor([self.words.index(one) for one in classes], device=device)
        given = (at[0, :, 0].T @ words[places].T).argmax(dim=1).cpu().numpy() + 1
        return covered[:, rows, columns].argmax(axis=0) + 1, given

    def _frozen_names(self) -> tuple[str, ...]:
        count = self.config.frozen_blocks
        return ("stem.", *(f"blocks.{index}." for index in range(count))) if count else ()


def start_from(model: SmallSketchNet, path: Path) -> None:
    """Fill a model with the weights of an earlier run.

    Raises:
        CheckpointError: The file is damaged or holds weights of another network.
    """
    state, _ = read_weights(path, system=SYSTEM)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"train: small.start must be an unfolded small network, got {printable(path)}: "
            f"{str(error).splitlines()[0]}."
        ) from error


def split_library(
    library: DrawingLibrary, held_out: float, validation: int
) -> tuple[DrawingLibrary, DrawingLibrary]:
    """Drawings to train with and to validate with; those held out for reports are in neither."""
    first, _ = library.split(held_out)
    if validation == 0:
        return first, first
    return (
        DrawingLibrary({word: part[:-validation] for word, part in first.drawings.items()}),
        DrawingLibrary({word: part[-validation:] for word, part in first.drawings.items()}),
    )
