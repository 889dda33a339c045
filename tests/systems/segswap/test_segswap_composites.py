# SPDX-License-Identifier: Apache-2.0
"""Pairs, pool and refiner of the default weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import textured
from PIL import Image
from toy_run import ColourBackbone

from patchword.errors import DatasetError
from patchword.geometry import patch_centers
from patchword.nn.cross_transformer import CrossTransformerConfig
from patchword.systems.segswap import pool as pools
from patchword.systems.segswap.composed_task import (
    ComposedBatch,
    ComposedConfig,
    ComposedLossConfig,
    ComposedTask,
    pair_scores,
    soft_overlap,
)
from patchword.systems.segswap.composites import CompositeConfig, PairComposer, is_held_out
from patchword.systems.segswap.config import SegSwapConfig
from patchword.systems.segswap.pool import PoolConfig, open_pool, targets
from patchword.systems.segswap.refine import MaskRefiner


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    top = tmp_path_factory.mktemp("pictures")
    for name in ("photographs", "cutouts"):
        (top / name).mkdir()
    for number in range(40):
        Image.fromarray(textured(80, 96, number)).save(top / "photographs" / f"{number}.png")
        alpha = np.zeros((60, 60), np.uint8)
        alpha[10:50, 15:45] = 255
        picture = np.dstack([textured(60, 60, 100 + number), alpha])
        Image.fromarray(picture).save(top / "cutouts" / f"{number}.png")
    return {"photographs": str(top / "photographs"), "cutouts": (str(top / "cutouts"),)}  # type: ignore[dict-item]


def config(folders: dict[str, str], **changes: float) -> CompositeConfig:
    settings = {"size": 128, "object_min": 30.0, "object_max": 60.0, **changes}
    return CompositeConfig(**folders, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [{"scene": 1.0}, {"scene": 0.0, "region": 0.0, "second": 0.0}])
def test_coordinates_lead_from_one_mask_into_the_other(
    folders: dict[str, str], kind: dict[str, float]
) -> None:
    composer = PairComposer(config(folders, decoy=0.0, **kind), seed=3)
    inside = []
    for number in range(6):
        pair = composer(number)
        for own, other in ((0, 1), (1, 0)):
            mask = targets(pair)["masks"].numpy() / 255.0
            cells = mask[own] > 0.9
            places = (pair.flows[own][cells] * 128).astype(int).clip(0, 127)
            inside += (pair.masks[other][places[:, 1], places[:, 0]] > 0.5).tolist()
    assert len(inside) > 20
    assert np.mean(inside) > 0.95


def test_pictures_agree_where_coordinates_say_so(folders: dict[str, str]) -> None:
    composer = PairComposer(config(folders, scene=1.0), seed=5)
    pair = composer(1)
    grey = [image.astype(float).mean(axis=2) for image in pair.images]
    centers = patch_centers((8, 8), 16).reshape(8, 8, 2)
    cells = targets(pair)["masks"][0].numpy() > 250
    own = centers[cells].astype(int)
    there = (pair.flows[0][cells] * 128).astype(int).clip(0, 127)
    first, second = grey[0][own[:, 1], own[:, 0]], grey[1][there[:, 1], there[:, 0]]
    assert np.corrcoef(first, second)[0, 1] > 0.7


def test_a_pair_follows_from_seed_and_number(folders: dict[str, str]) -> None:
    first, second = (PairComposer(config(folders), seed=1) for _ in range(2))
    second(0)
    for one, two in zip(first(7).images, second(7).images, strict=True):
        assert (one == two).all()
    assert (PairComposer(config(folders), seed=2)(7).images[0] != first(7).images[0]).any()


def test_held_out_files_are_never_trained_on(folders: dict[str, str]) -> None:
    trained = PairComposer(config(folders))
    held = PairComposer(config(folders), held_out=True)
    assert not set(trained.photographs) & set(held.photographs)
    assert all(is_held_out(path) for path in held.cutouts[0])
    assert 0 < len(held.photographs) < len(trained.photographs)


def test_too_few_or_opaque_pictures_are_named(tmp_path: Path, folders: dict[str, str]) -> None:
    with pytest.raises(DatasetError, match="must hold at least two pictures"):
        PairComposer(CompositeConfig(photographs=str(tmp_path)))
    opaque = tmp_path / "opaque"
    opaque.mkdir()
    for number in range(40):
        Image.fromarray(textured(32, 32, number)).save(opaque / f"{number}.png")
    settings = {"photographs": folders["photographs"], "cutouts": (str(opaque),)}
    composer = PairComposer(CompositeConfig(size=64, scene=0, region=0, **settings))  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="with an alpha channel"):
        composer(0)


def test_a_pool_is_made_once_and_continued(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SHARD", 3)
    settings = PoolConfig(folder=str(tmp_path), pairs=5, held_out=2)
    open_pool(config(folders), settings, ColourBackbone(), part=(1, 2))
    found = open_pool(config(folders), settings, ColourBackbone())
    assert found["features"].shape == (5, 2, 64, 8, 8)
    assert found["fine"].shape == (5, 2, 32, 32)
    shard = next(tmp_path.rglob("00001.safetensors"))
    before = shard.stat().st_mtime_ns
    again = open_pool(config(folders), settings, ColourBackbone())
    assert shard.stat().st_mtime_ns == before
    assert all(torch.equal(found[name], again[name]) for name in found)
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(DatasetError, match="must be a whole shard"):
        open_pool(config(folders), settings, ColourBackbone())


def test_a_fresh_refiner_repeats_the_coarse_mask() -> None:
    refiner = MaskRefiner(8)
    out = torch.full((1, 3, 4, 4), 0.5)
    out[0, 2] = torch.tensor([0.1, 0.2, 0.7, 0.9])
    picture = torch.rand(1, 3, 32, 32)
    fine = refiner(picture, picture, out, out).sigmoid()
    assert fine.shape == (1, 16, 16)
    coarse = torch.nn.functional.interpolate(out[:, 2:], size=(16, 16), mode="bilinear")[0]
    torch.testing.assert_close(fine, coarse)


def test_overlap_and_scores() -> None:
    masks = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    truth = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    assert soft_overlap(masks, truth).item() == pytest.approx((0 + (1 - 0.1 / 2.1)) / 2)
    out = torch.zeros(1, 3, 2, 2)
    out[0, 2] = torch.tensor([[0.9, 0.7], [0.0, 0.0]])
    assert pair_scores(out, out, cells=2).item() == pytest.approx(0.8)


def test_composed_pairs_are_learned(folders: dict[str, str], tmp_path: Path) -> None:
    sizes = {"channels": 304, "width": 16, "heads": 2, "hidden": 16, "prior": True}
    network = SegSwapConfig(
        "efficientnet-lite0", CrossTransformerConfig(**sizes, dropout=0.0), refiner=8
    )
    pool = PoolConfig(folder=str(tmp_path), pairs=4, held_out=2)
    task = ComposedTask(
        network,
        ComposedConfig(config(folders, scene=0.0), pool, ComposedLossConfig(negatives=2)),
    )
    rows = [pools.targets(PairComposer(config(folders, scene=0.0))(i)) for i in range(3)]
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        maps = torch.randn(2, 304, 8, 8, generator=generator)
        row["features"] = torch.nn.functional.normalize(maps, dim=1).half()
    batch = task.collate(rows)
    assert isinstance(batch, ComposedBatch)
    optimizer = torch.optim.Adam(task.model.parameters(), lr=1e-2)
    totals = []
    for step in range(12):
        losses = task.losses(task.model, batch, step)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(losses["total"].item())
    assert totals[-1] < 0.7 * totals[0]
    assert all(one.grad is not None for one in task.model.parameters())
