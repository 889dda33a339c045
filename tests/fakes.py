# SPDX-License-Identifier: Apache-2.0
"""Cheap stand-ins for Matcher and Localizer: runs over folders are tested in milliseconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class FakeMatchResult:
    mask0: Any
    mask1: Any
    matches: Any
    match_scores: Any
    score: float
    image0: Any = None
    image1: Any = None


@dataclass(frozen=True)
class FakeLocateResult:
    texts: tuple[str, ...]
    heatmaps: Any
    labels: Any
    scores: Any
    image: Any = None


class FakeMatcher:
    """Scores by how alike the mean colours are; every picture matches in its middle."""

    on_score: Callable[[], None] | None = None
    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **options: Any) -> None:
        FakeMatcher.made.append(options)
        self.scored = 0

    def extract(self, image: np.ndarray) -> np.ndarray:
        return image

    def score(self, a: np.ndarray, b: np.ndarray, *, box0: Any = None) -> float:
        self.scored += 1
        if FakeMatcher.on_score is not None:
            FakeMatcher.on_score()
        gap = np.abs(a.mean(axis=(0, 1)) - b.mean(axis=(0, 1))).mean()
        return float(1 - gap / 255)

    def match(self, a: np.ndarray, b: np.ndarray, *, box0: Any = None) -> FakeMatchResult:
        points = np.linspace(0.2, 0.8, 7)
        ends = [
            np.stack([points * image.shape[1], points * image.shape[0]], axis=1) for image in (a, b)
        ]
        return FakeMatchResult(
            mask0=np.full(a.shape[:2], 0.75, np.float32),
            mask1=np.full(b.shape[:2], 0.25, np.float32),
            matches=np.concatenate(ends, axis=1).astype(np.float32),
            match_scores=np.linspace(0.9, 0.3, 7, dtype=np.float32),
            score=self.score(a, b),
            image0=a,
            image1=b,
        )


class FakeLocalizer:
    """Finds phrase k in column k of the picture."""

    calls = 0

    def __init__(self, **options: Any) -> None:
        pass

    def encode_texts(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def locate(self, image: np.ndarray, texts: Sequence[str]) -> FakeLocateResult:
        FakeLocalizer.calls += 1
        height, width = image.shape[:2]
        heatmaps = np.zeros((len(texts), height, width), np.float32)
        for k in range(len(texts)):
            heatmaps[k, :, k % width] = 1
        labels = np.where(heatmaps.max(axis=0) > 0.5, heatmaps.argmax(axis=0), -1)
        scores = np.linspace(0.9, 0.1, len(texts), dtype=np.float32)
        return FakeLocateResult(tuple(texts), heatmaps, labels.astype(np.int64), scores, image)


@dataclass(frozen=True)
class FakeReport:
    metrics: dict[str, float]
    per_item: tuple[Any, ...] = ()
    protocol: str = "fake"

    def save(self, folder: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text("{}")


def modules() -> dict[str, ModuleType]:
    """Build stand-in modules by the names under which the command line imports them."""
    matching = ModuleType("patchword.matching")
    matching.Matcher = FakeMatcher
    joint = ModuleType("patchword.systems.segswap.joint")
    joint.create_matcher = lambda model, **options: FakeMatcher(**options)
    localization = ModuleType("patchword.localization")
    localization.Localizer = FakeLocalizer
    evaluation = ModuleType("patchword.evaluation")
    evaluation.evaluate_match = lambda data, **_: FakeReport({"ap": 0.5, "nn_easy": 0.9})
    evaluation.evaluate_locate = lambda data, **_: FakeReport({"pointing": 0.75})
    return {module.__name__: module for module in (matching, joint, localization, evaluation)}


def install() -> None:
    """Put the stand-ins in place for a whole process, as the kill tests need."""
    sys.modules.update(modules())
