# SPDX-License-Identifier: Apache-2.0
"""A pool of composed pairs with the frozen backbone's features, made once and used many times.

Pictures and their features cost more than a training step on a CPU; what changes between uses is
which pairs meet as negatives.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from patchword.backbones import Backbone
from patchword.errors import DatasetError
from patchword.inference.atomic import write_bytes, write_json
from patchword.structures import FloatArray
from patchword.systems.segswap.composites import (
    FINE_STRIDE,
    STRIDE,
    CompositeConfig,
    CompositePair,
    PairComposer,
)

logger = logging.getLogger(__name__)

SHARD = 100
_BATCH = 8


@dataclass(frozen=True)
class PoolConfig:
    """Which pairs a pool holds.

    Attributes:
        folder: Where it lies; filled on first use, continued after a kill.
        pairs: Number of pairs to train on.
        held_out: Number of pairs of held-out pictures, for validation.
        seed: Of the pairs.
    """

    folder: str = "segswap-pool"
    pairs: int = 3000
    held_out: int = 200
    seed: int = 0


def open_pool(
    compose: CompositeConfig,
    pool: PoolConfig,
    backbone: Backbone,
    *,
    held_out: bool = False,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Tensor]:
    """Read a pool, making what is missing of it.

    Args:
        compose: How pairs are composed.
        pool: How many, and where they lie.
        backbone: Describes the pictures.
        held_out: The pairs for validation, or those to train on.
        part: ``(i, n)``: make shards ``i, i + n, ...`` alone and return nothing; several processes
            can so fill one pool.

    Returns:
        ``features`` float16 ``[N, 2, C, h, w]``, ``masks`` uint8 ``[N, 2, h, w]`` (255 = all of the
        cell is shared), ``flows`` float16 ``[N, 2, h, w, 2]``, ``fine`` uint8 ``[N, 2, 4h, 4w]``
        and ``images`` uint8 ``[N, 2, 8h, 8w, 3]``.

    Raises:
        DatasetError: Pictures are missing or too few, or a shard is damaged.
        OutputError: The folder cannot be written.
    """
    count = pool.held_out if held_out else pool.pairs
    name = "held_out" if held_out else "train"
    made_from = {"compose": asdict(compose), "seed": pool.seed, "backbone": backbone.name}
    digest = hashlib.blake2b(json.dumps(made_from).encode(), digest_size=4).hexdigest()
    folder = Path(pool.folder) / f"{name}-{compose.size}-{digest}"
    composer = PairComposer(compose, held_out=held_out, seed=2 * pool.seed + held_out)
    shards: list[dict[str, Tensor]] = []
    for number, start in enumerate(range(0, count, SHARD)):
        if part != (0, 1) and number % part[1] != part[0]:
            continue
        path = folder / f"{number:05d}.safetensors"
        if not path.is_file():
            if not folder.is_dir():
                write_json(folder / "made_from.json", made_from)
            logger.info("composing pairs %d to %d of %d (%s)", start, start + SHARD, count, name)
            made = _make(composer, backbone, range(start, start + SHARD))
            write_bytes(path, save(made))
        if part == (0, 1):
            shards.append(_read(path))
    if part != (0, 1):
        return {}
    return {key: torch.cat([shard[key] for shard in shards])[:count] for key in shards[0]}


def targets(pair: CompositePair) -> dict[str, Tensor]:
    """What the network is asked to say about a pair, on its grid; see :func:`open_pool`."""
    masks = [_cells(mask, STRIDE) for mask in pair.masks]
    fine = [_cells(mask, FINE_STRIDE) for mask in pair.masks]
    side = pair.images[0].shape[0] // 2
    small = [cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA) for one in pair.images]
    return {
        "masks": torch.from_numpy(np.stack(masks)),
        "fine": torch.from_numpy(np.stack(fine)),
        "flows": torch.from_numpy(np.stack(pair.flows).clip(-1, 2)).half(),
        "images": torch.from_numpy(np.stack(small)),
    }


@torch.inference_mode()
def _make(composer: PairComposer, backbone: Backbone, numbers: range) -> dict[str, Tensor]:
    columns: dict[str, list[Tensor]] = {}
    for start in range(0, len(numbers), _BATCH):
        pairs = [composer(number) for number in numbers[start : start + _BATCH]]
        pixels = np.stack([image for pair in pairs for image in pair.images])
        scaled = torch.from_numpy(pixels).to(backbone.device).permute(0, 3, 1, 2).float() / 255.0
        maps = backbone.describe(scaled).half().cpu()
        columns.setdefault("features", []).append(maps.unflatten(0, (len(pairs), 2)))
        for pair in pairs:
            for key, value in targets(pair).items():
                columns.setdefault(key, []).append(value[None])
    return {key: torch.cat(parts).contiguous() for key, parts in columns.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DatasetError(
            f"open_pool: {path} must be a whole shard, got: {' '.join(str(error).split())}. "
            "Remove it and it is made again.",
            path=path,
        ) from error


def _cells(mask: FloatArray, stride: int) -> npt.NDArray[np.uint8]:
    """Mean over square cells, 255 for all of the cell."""
    side = mask.shape[0] // stride
    mean = mask.reshape(side, stride, side, stride).mean(axis=(1, 3))
    whole: npt.NDArray[np.uint8] = (mean * 255).round().astype(np.uint8)
    return whole
