# SPDX-License-Identifier: Apache-2.0
"""OpenCV: brute-force matcher and resize loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import NotAvailable, Run
from benchmarks.registry import Inputs


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise NotAvailable(f"opencv does not import: {error}") from error
    import torch

    cv2.setNumThreads(torch.get_num_threads())
    return cv2


def match_forward(inputs: Inputs) -> Run:
    """BFMatcher, L2, one direction; equal to the dot metric for rows of unit length."""
    cv2 = _cv2()
    matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=False)
    query, train = inputs["descriptors0"].numpy(), inputs["descriptors1"].numpy()

    def run() -> NDArray[np.int64]:
        found = matcher.match(query, train)
        return np.fromiter((match.trainIdx for match in found), dtype=np.int64, count=len(found))

    return run


def labels(inputs: Inputs) -> Run:
    """Running maximum over classes: resize one class, compare, update value and label."""
    cv2 = _cv2()
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[inputs["mode"]]
    maps = inputs["logits"][0].numpy()
    height, width = inputs["size"]
    if len(maps) > 256:
        raise NotAvailable("the uint8 form of the running maximum holds 256 classes")

    def run() -> NDArray[np.uint8]:
        best = np.empty((height, width), np.float32)
        value = np.empty_like(best)
        mask = np.empty((height, width), np.uint8)
        result = np.zeros((height, width), np.uint8)
        cv2.resize(maps[0], (width, height), dst=best, interpolation=flag)
        for label in range(1, len(maps)):
            cv2.resize(maps[label], (width, height), dst=value, interpolation=flag)
            cv2.compare(value, best, cv2.CMP_GT, dst=mask)
            cv2.bitwise_and(mask, label, dst=mask)  # labels rise, so a maximum replaces
            cv2.max(result, mask, dst=result)
            cv2.max(best, value, dst=best)
        return result

    return run


def masks(inputs: Inputs) -> Run:
    """Resize and compare each map, into one preallocated float buffer."""
    cv2 = _cv2()
    maps = inputs["logits"][0].numpy()
    height, width = inputs["size"]

    def run() -> NDArray[np.uint8]:
        value = np.empty((height, width), np.float32)
        result = np.empty((len(maps), height, width), np.uint8)
        for index, single in enumerate(maps):
            cv2.resize(single, (width, height), dst=value, interpolation=cv2.INTER_LINEAR)
            cv2.compare(value, 0.5, cv2.CMP_GT, dst=result[index])
        return result

    return run
