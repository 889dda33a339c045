# SPDX-License-Identifier: Apache-2.0
"""The 1000 ImageNet-1k classes: names, and text vectors that tie them to phrases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FOLDER = files("patchword") / "assets" / "imagenet1k"


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """First name of each class in the order of the classifier."""
    return tuple(str(record["names"][0]) for record in _records())


def load_class_vectors() -> Tensor:
    """Text vectors of the classes, ``[1000, 384]`` float32 of unit length."""
    with (_FOLDER / "class_text_minilm_384_fp16.npy").open("rb") as stream:
        vectors = np.load(stream, allow_pickle=False)
    return F.normalize(torch.from_numpy(vectors.astype(np.float32)), dim=1)


def build_class_vectors(
    encode: Callable[[Sequence[str]], Tensor], classes: Sequence[int] | None = None
) -> Tensor:
    """Make text vectors of classes as the shipped ones were made.

    The vector of a class is the mean of the encoder's vectors of its first name, of all its names,
    and of "first name: definition", scaled to unit length.

    Args:
        encode: Phrases to unit vectors ``[K, D]``.
        classes: Numbers of the wanted classes; all by default.
    """
    records = _records()
    wanted = range(len(records)) if classes is None else classes
    texts = [
        text
        for index in wanted
        for names, definition in [(records[index]["names"], records[index]["definition"])]
        for text in (names[0], ", ".join(names), f"{names[0]}: {definition}")
    ]
    vectors = encode(texts)
    return F.normalize(vectors.reshape(-1, 3, vectors.shape[1]).mean(dim=1), dim=1)


@lru_cache(maxsize=1)
def _records() -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(
        (_FOLDER / "imagenet1k_classes.json").read_text(encoding="utf-8")
    )
    return content
