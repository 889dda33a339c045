# SPDX-License-Identifier: Apache-2.0
"""Configurations of the two trainings: the published recipe and that of the shipped default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from patchword.systems.sketchseg.compose import JitterConfig, SceneConfig
from patchword.systems.sketchseg.config import SketchSegConfig
from patchword.training import LoopConfig, OptimConfig, TrainingConfig


@dataclass(frozen=True)
class SmallTrainConfig:
    """Training of the small network on composed scenes.

    Attributes:
        drawings: File of Quick, Draw! records.
        start: ``model.safetensors`` of an earlier run to go on from; empty for the pretrained
            blocks and fresh weights.
        held_out: Share of each class's drawings, last by key, that training never sees.
        validation: Drawings of each class, last of the rest, that only validation sees.
        validation_scenes: Scenes of a validation; 0 for none.
        validation_size: Side of the network's input in a validation.
        sizes: Sides of the network's input in pixels; every step draws one.
        points: Ink pixels of each scene that the loss looks at, shared equally by its objects.
        templates: Sentences that a word is put into; every step draws one for each word.
        frozen_blocks: First blocks of the pretrained network that keep their weights.
        backbone_lr: Learning rate of the pretrained blocks.
        label_smoothing: Of the cross-entropy over all classes.
        scene: How training scenes are composed.
    """

    drawings: str = ""
    start: str = ""
    held_out: float = 1 / 3
    validation: int = 1
    validation_scenes: int = 100
    validation_size: int = 192
    sizes: tuple[int, ...] = (128, 160, 192)
    points: int = 288
    templates: tuple[str, ...] = (
        "{}",
        "a {}",
        "the {}",
        "a drawing of a {}",
        "a sketch of a {}",
    )
    frozen_blocks: int = 3
    backbone_lr: float = 6e-4
    label_smoothing: float = 0.05
    scene: SceneConfig = field(
        default_factory=lambda: SceneConfig(
            min_objects=4,
            max_objects=8,
            min_side=0.22,
            max_side=0.6,
            max_overlap=0.15,
            jitter=JitterConfig(
                rotation=20.0, stretch=0.3, shear=0.15, flip=0.5, warp=0.03, stroke=0.02, drop=0.3
            ),
        )
    )


@dataclass(frozen=True)
class PaperTrainConfig:
    """Training of the published model; ``card.md`` explains every switch.

    Attributes:
        data: Folder laid out like FS-COCO, with ``sketches`` and ``text``.
        clip: CLIP weights to start from: a file or a name on the hub. Empty for fresh weights.
        network: Sizes of fresh weights, and the number of prompts in any case.
        decay: Weight decay of all trained weights, biases and norms included.
        margin: Of the triplets.
        initial_threshold: Raw value that the mask threshold starts from.
        threshold_noise: Standard deviation of the noise that each step adds to it.
        threshold_gradient: ``none`` as published, or ``straight_through``.
        threshold_lr: Learning rate of the threshold where it learns.
        mask_minmax: ``global``, or ``column`` as published.
        first_norm: Normalisation of features: ``channel`` gives unit vectors, ``tokens`` is what
            the published training does in its first pass.
        second_norm: ``same``, or ``batch`` as published.
        negatives: ``label+caption`` leaves an anchor's own caption out of its negatives; ``label``
            is the published rule.
        parser: How captions become categories; ``legacy`` as published.
        max_classes: Categories kept of a caption.
        freeze_surgery: Keep the attention of the dual blocks frozen, as the published code does by
            accident.
        prompts_only: Train the prompts and nothing else.
    """

    data: str = ""
    clip: str = ""
    network: SketchSegConfig = field(default_factory=SketchSegConfig)
    decay: float = 0.01
    margin: float = 0.5
    initial_threshold: float = 0.4
    threshold_noise: float = 0.005
    threshold_gradient: Literal["none", "straight_through"] = "none"
    threshold_lr: float = 1e-4
    mask_minmax: Literal["global", "column"] = "global"
    first_norm: Literal["channel", "tokens"] = "channel"
    second_norm: Literal["same", "batch"] = "same"
    negatives: Literal["label+caption", "label"] = "label+caption"
    parser: Literal["fixed", "legacy"] = "fixed"
    max_classes: int = 3
    freeze_surgery: bool = False
    prompts_only: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """What ``patchword train sketchseg`` is told.

    Attributes:
        recipe: ``small`` or ``paper``: which of the two next parts counts.
        small: The shipped default's training.
        paper: The published training.
        training: Loop, optimiser and records.
    """

    recipe: Literal["small", "paper"] = "small"
    small: SmallTrainConfig = field(default_factory=SmallTrainConfig)
    paper: PaperTrainConfig = field(default_factory=PaperTrainConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            loop=LoopConfig(batch_size=16), optim=OptimConfig(lr=2e-3, weight_decay=0.02)
        )
    )
