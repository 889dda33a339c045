# SPDX-License-Identifier: Apache-2.0
"""Joins of sorted ids, pair after pair, as scripts write them."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import Run
from benchmarks.registry import Inputs


def _lists(inputs: Inputs) -> list[Any]:
    edges = inputs["offsets"].tolist()
    ids = inputs["ids"].numpy()
    return [ids[a:b] for a, b in itertools.pairwise(edges)]


def _intersect(lists: list[Any], pairs: list[list[int]]) -> Any:
    parts = [
        np.intersect1d(lists[a], lists[b], assume_unique=True, return_indices=True)[1:]
        for a, b in pairs
    ]
    return np.concatenate([np.stack(part) for part in parts], axis=1)


def intersect1d(inputs: Inputs) -> Run:
    """numpy.intersect1d of every pair, told that ids are unique."""
    return partial(_intersect, _lists(inputs), inputs["pairs"].tolist())


def _searchsorted(lists: list[torch.Tensor], pairs: list[list[int]]) -> torch.Tensor:
    parts = []
    for a, b in pairs:
        first, second = lists[a], lists[b]
        place = torch.searchsorted(second, first).clamp_(max=len(second) - 1)
        rows = (second[place] == first).nonzero()[:, 0]
        parts.append(torch.stack((rows, place[rows])))
    return torch.cat(parts, 1)


def searchsorted(inputs: Inputs) -> Run:
    """torch.searchsorted of every pair."""
    lists = [torch.from_numpy(one) for one in _lists(inputs)]
    return partial(_searchsorted, lists, inputs["pairs"].tolist())
