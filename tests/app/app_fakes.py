# SPDX-License-Identifier: Apache-2.0
"""Models for the page's tests that answer at once and predictably."""

from __future__ import annotations

import threading

import numpy as np

from patchword.structures import LocateResult, MatchResult


class SplitLocator:
    """Heat of phrase k is high in the k-th vertical stripe: .9 there, .1 elsewhere."""

    def __init__(self) -> None:
        self.calls = 0

    def locate(self, image, texts):
        self.calls += 1
        height, width = image.shape[:2]
        stripe = np.arange(width) * len(texts) // width
        heat = np.full((len(texts), height, width), 0.1, dtype=np.float32)
        for k in range(len(texts)):
            heat[k][:, stripe == k] = 0.9
        return LocateResult(
            texts=tuple(texts),
            heatmaps=heat,
            labels=np.zeros((height, width), dtype=np.int64),
            scores=np.linspace(0.9, 0.5, len(texts), dtype=np.float32),
        )


class SlowLocator(SplitLocator):
    """Waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.started = threading.Event()
        self.go = threading.Event()

    def locate(self, image, texts):
        self.started.set()
        assert self.go.wait(30)
        return super().locate(image, texts)


class HalfMatcher:
    """Says that the left halves are shared."""

    def match(self, image0, image1):
        masks = []
        for image in (image0, image1):
            mask = np.zeros(image.shape[:2], dtype=np.float32)
            mask[:, : image.shape[1] // 2] = 1
            masks.append(mask)
        return MatchResult(
            mask0=masks[0],
            mask1=masks[1],
            matches=np.array([[4, 4, 5, 5]], dtype=np.float32),
            match_scores=np.array([0.8], dtype=np.float32),
            score=0.75,
        )
