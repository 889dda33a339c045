# SPDX-License-Identifier: Apache-2.0
"""SegSwap in use: frames and their inverse, consistent masks, scores, ranking, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colour_backbone import Colours
from PIL import Image
from torch import Tensor

from patchword.backbones.efficientnet_lite import EfficientNetLite0
from patchword.errors import DatasetError, OptionError, ShapeError
from patchword.nn.cross_transformer import CrossTransformer
from patchword.systems.segswap import (
    PreprocessConfig,
    Segswap,
    SegSwapNetwork,
    SegswapOptions,
    cycles,
    make_config,
    published_options,
    retrieval,
)
from patchword.systems.segswap.frames import Frame, plan_frame, to_input


@pytest.fixture(scope="module")
def network() -> SegSwapNetwork:
    torch.manual_seed(3)
    return SegSwapNetwork(make_config("tiny", "efficientnet-lite0"), Colours()).eval()


def system(network: SegSwapNetwork, **preprocess: object) -> Segswap:
    settings = {"size": (96, 128), **preprocess}
    return Segswap(network, preprocess=PreprocessConfig(**settings))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resize", ["squash", "fit", "letterbox"])
@pytest.mark.parametrize("size", [(60, 200), (200, 60), (96, 128), (17, 16)])
def test_frames_lead_there_and_back(resize, size):
    frame = plan_frame(size, PreprocessConfig(resize=resize, size=(96, 128)), 16, "test")
    points = np.array([[0.0, 0.0], [size[1], size[0]], [3.5, 9.25]])
    np.testing.assert_allclose(frame.to_picture(frame.to_input(points)), points, atol=1e-9)
    corner = frame.to_input(np.array([[0.0, 0.0]]))[0] * frame.input_size[::-1]
    top, left, height, width = frame.content
    np.testing.assert_allclose(corner, (left, top), atol=1e-9)
    if resize == "letterbox":
        # The shape is kept up to the rounding to whole pixels.
        assert height / size[0] == pytest.approx(width / size[1], abs=1 / min(size))
        assert max(height / 96, width / 128) == 1
    if resize == "fit":
        assert max(frame.input_size) == 128
        assert frame.input_size[0] % 16 == frame.input_size[1] % 16 == 0


def test_letterbox_shows_the_picture_and_masks_the_rest():
    frame = plan_frame((50, 200), PreprocessConfig(resize="letterbox", size=(96, 128)), 16, "test")
    assert frame.content == (32, 0, 32, 128)
    drawn = to_input(np.full((50, 200, 3), 255, np.uint8), frame, Colours())
    assert bool((drawn[..., 32:64, :] == 1).all())
    assert float(drawn[..., :32, :].max()) == pytest.approx(0.5, abs=0.01)
    valid = frame.valid()
    assert valid.tolist() == [[row in (2, 3)] * 8 for row in range(6)]
    # A map that is 1 inside and 5 outside shows only its inside, at the size of the picture.
    maps = torch.where(valid, 1.0, 5.0)[None]
    shown = frame.crop_maps(maps)
    assert shown.shape == (1, 50, 200)
    assert float(shown[0, 25, 100]) == 1.0


def test_upsampling_agrees_between_frames():
    maps = torch.rand(2, 6, 8)
    whole = Frame((50, 70), (96, 128), (0, 0, 96, 128)).crop_maps(maps)
    want = F.interpolate(maps[None], (50, 70), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, want, rtol=1e-5, atol=1e-5)
    nearly = Frame((50, 70), (96, 128), (0, 0, 96, 127)).crop_maps(maps)
    assert float((nearly - want).abs().max()) < 0.1


def identity(grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=dtype) for n in grid), indexing="ij")
    return torch.stack([(columns + 0.5) / grid[1], (rows + 0.5) / grid[0]])[None]


@pytest.mark.parametrize("count", [20, 25, 30, 35, 40, 50, 70])
def test_an_identity_flow_reads_every_cell_itself(count):
    output = torch.cat([identity((3, count)), torch.ones(1, 1, 3, count)], dim=1)
    values = torch.rand(1, 3, count)
    # float32 places are a few units of 2^-25 off, which is `count` times as much in cells.
    read = cycles.carry(values, output)
    torch.testing.assert_close(read, values, rtol=0, atol=count * 2.0**-24)
    places = torch.cat([identity((3, count), torch.float64), output[:, 2:].double()], dim=1)
    exact = cycles.carry(values.double(), places)
    torch.testing.assert_close(exact, values.double(), rtol=0, atol=1e-6)
    places = (torch.arange(count) + 0.5) / count
    assert torch.equal((places * (count - 1)).round().long(), torch.arange(count))
    assert torch.equal((places * count).floor().long(), torch.arange(count))


def test_consistent_masks_by_hand():
    # Picture 0 has two cells in a row, picture 1 the same two swapped.
    swap = identity((1, 2)).flip(-1)
    out0 = torch.cat([swap, torch.tensor([[[[0.5, 0.8]]]])], dim=1)
    out1 = torch.cat([swap, torch.tensor([[[[1.0, 0.25]]]])], dim=1)
    assert [m.tolist() for m in cycles.raw_masks(out0, out1)] == [
        [[[0.5, pytest.approx(0.8)]]],
        [[[1.0, 0.25]]],
    ]
    pair0, pair1 = cycles.pair_masks(out0, out1)
    torch.testing.assert_close(pair0, torch.tensor([[[0.5 * 0.25, 0.8 * 1.0]]]))
    torch.testing.assert_close(pair1, torch.tensor([[[1.0 * 0.8, 0.25 * 0.5]]]))
    demo0, demo1 = cycles.demo_masks(out0, out1)
    torch.testing.assert_close(demo0, torch.tensor([[[0.5 * 0.5 * 0.25, 0.8 * 0.8 * 1.0]]]))
    torch.testing.assert_close(demo1, torch.tensor([[[1.0 * 0.64, 0.25 * 0.0625]]]))
    region = torch.tensor([[[1.0, 0.0]]])
    own = cycles.self_mask(out0, out1, region)
    # a = (.5, 0); carried to picture 1: (0, .5) times (1, .25) = (0, .125); back: .5 * .125.
    torch.testing.assert_close(own, torch.tensor([[[0.5 * 0.125, 0.0]]]))


@torch.inference_mode()
@pytest.mark.parametrize("grid", [(6, 8), (5, 3)])
def test_lazy_scores_equal_the_definition(network, grid):
    transformer: CrossTransformer = network.transformer
    maps0 = F.normalize(torch.rand(1, 304, 4, 5), dim=1)
    maps1 = F.normalize(torch.rand(3, 304, *grid), dim=1)
    query, candidates = transformer.embed(maps0), transformer.embed(maps1)
    region = torch.zeros(4, 5)
    region[1:3, 1:3] = 1
    weights = retrieval.query_weights(transformer, query, region)
    cells = region.flatten().nonzero()[:, 0]
    assert bool((weights[region.flatten() == 0] == 0).all())
    rows0 = maps0[0].flatten(1).T.contiguous()
    rows1 = maps1.flatten(2).transpose(1, 2).contiguous()
    plain = []
    for b in range(3):
        out0, out1 = network(maps0, maps1[b : b + 1])
        w = weights.reshape(1, 4, 5) * out0[:, 2] * cycles.carry(out1[:, 2], out0)
        best: dict[tuple[int, int], float] = {}
        for p in cells.tolist():
            x, y = out0[0, :2].flatten(1)[:, p].tolist()
            cell = (round(y * (grid[0] - 1)), round(x * (grid[1] - 1)))
            like = float(rows0[p] @ rows1[b, cell[0] * grid[1] + cell[1]])
            best[cell] = max(best.get(cell, 0.0), float(w.flatten()[p]) * like)
        plain.append(sum(best.values()))
    for lazy in (True, False, None):
        got = retrieval.score_candidates(
            transformer,
            query,
            candidates,
            rows0,
            rows1,
            weights,
            cells,
            rounding="published",
            lazy=lazy,
        )
        torch.testing.assert_close(got, torch.tensor(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("resize", ["squash", "fit", "letterbox"])
def test_match_speaks_of_the_pictures_as_given(network, resize, tmp_path):
    used = system(network, resize=resize)
    image0, image1 = picture(60, 90), picture(120, 70, 1)
    result, field = used.match_dense(image0, image1)
    assert result.mask0.shape == (60, 90)
    assert result.mask1.shape == (120, 70)
    for mask in (result.mask0, result.mask1):
        assert mask.dtype == np.float32
        assert 0 <= mask.min() <= mask.max() <= 1
    assert 0 <= result.score <= 1
    frame = used.describe(image0).frame
    assert field.points0.shape == (*frame.grid, 2)
    out0, _ = used.relate(used.describe(image0), used.describe(image1))
    there = used.describe(image1).frame.to_picture(out0[0, :2].flatten(1).T.double().numpy())
    np.testing.assert_allclose(field.points1.reshape(-1, 2), there, atol=1e-3)
    saved = result.save(tmp_path / "out")
    assert all(path.exists() for path in saved.values())


def test_matches_are_the_surest_cells(network):
    used = Segswap(
        network,
        preprocess=PreprocessConfig(size=(96, 128)),
        options=SegswapOptions(min_match=0.0, max_matches=7),
    )
    result, field = used.match_dense(picture(96, 128), picture(96, 128, 2))
    assert result.matches.shape == (7, 4)
    assert bool((np.diff(result.match_scores) <= 0).all())
    assert result.match_scores[0] == field.evidence.max()
    best = np.unravel_index(field.evidence.argmax(), field.evidence.shape)
    np.testing.assert_allclose(result.matches[0, :2], field.points0[best])


def test_described_pictures_give_the_same(network):
    used = system(network)
    image0, image1 = picture(60, 90), picture(120, 70, 1)
    plain = used.match(image0, image1)
    again = used.match(used.describe(image0), used.describe(image1))
    np.testing.assert_array_equal(plain.mask0, again.mask0)
    assert plain.score == again.score
    with pytest.raises(OptionError, match="Pass the box to describe"):
        used.match(used.describe(image0), image1, box0=(0, 0, 20, 20))


def test_boxes_look_at_a_part(network):
    used = system(network)
    image = picture(160, 240)
    box = (150, 100, 190, 130)
    described = used.describe(image, box)
    left, top = described.frame.origin
    height, width = described.frame.image_size
    assert left <= 150
    assert top <= 100
    assert left + width >= 190
    assert top + height >= 130
    # The box fills about a quarter of what is seen.
    assert max(40 / width, 30 / height) == pytest.approx(0.25, abs=0.02)
    cells = used._cells(described, box)
    centres = described.frame.to_picture(
        np.stack(np.meshgrid((np.arange(8) + 0.5) / 8, (np.arange(6) + 0.5) / 6), -1)
    )[cells.numpy()]
    assert bool(((centres >= box[:2]) & (centres < box[2:])).all())
    assert 1 <= int(cells.sum()) < 48
    result = used.match(image, picture(60, 60, 4), box0=box)
    assert result.mask0.shape == (160, 240)
    assert not result.mask0[:80].any()
    tiny = used._cells(used.describe(image), (0.0, 0.0, 1.0, 1.0))
    assert int(tiny.sum()) == 1
    assert bool(tiny[0, 0])


def test_rank_orders_a_gallery(network, tmp_path):
    used = Segswap(
        network,
        preprocess=PreprocessConfig(resize="fit", size=(96, 128)),
        options=SegswapOptions(batch=2),
    )
    query = picture(96, 128)
    gallery = [picture(96, 128, seed) for seed in (1, 0, 2, 3)] + [picture(128, 96, 5)]
    ranked = used.rank(query, gallery)
    assert sorted(one.index for one in ranked) == [0, 1, 2, 3, 4]
    assert bool((np.diff([one.score for one in ranked]) <= 0).all())
    alone = {index: used.rank(query, [image])[0].score for index, image in enumerate(gallery)}
    for one in ranked:
        assert one.score == pytest.approx(alone[one.index], rel=1e-4)
    folder = tmp_path / "gallery"
    folder.mkdir()
    for index, image in enumerate(gallery):
        Image.fromarray(image).save(folder / f"{index}.png")
    from_files = used.rank(query, folder)
    assert [one.name.rpartition("/")[2] for one in from_files] == [
        f"{one.index}.png" for one in ranked
    ]
    boxed = used.rank(query, gallery, box=(32, 32, 96, 64))
    assert max(one.score for one in boxed) < max(one.score for one in ranked)
    assert used.rank(query, []) == []


def test_letterboxed_and_plain_pictures_share_a_batch(network):
    used = system(network, resize="letterbox")
    gallery = [picture(96, 128, 1), picture(30, 128, 2)]
    ranked = used.rank(picture(96, 128), gallery)
    for one in ranked:
        alone = used.rank(picture(96, 128), [gallery[one.index]])[0]
        assert one.score == pytest.approx(alone.score, rel=1e-4)


def test_bad_input(network, tmp_path):
    used = system(network)
    with pytest.raises(ShapeError, match="at least 16 pixels high and wide, one patch, got 9 x 40"):
        used.match(picture(40, 9), picture(60, 60))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        used.match(broken, picture(60, 60))
    with pytest.raises(DatasetError, match="is not a folder"):
        used.rank(picture(60, 60), tmp_path / "absent")
    with pytest.raises(OptionError, match="must overlap the picture"):
        used.match(picture(60, 60), picture(60, 60), box0=(100, 100, 120, 120))
    with pytest.raises(OptionError, match="size must be a multiple of 16"):
        system(network, size=(100, 128)).describe(picture(60, 60))
    with pytest.raises(OptionError, match="network must have a backbone"):
        Segswap(SegSwapNetwork(make_config("tiny", "efficientnet-lite0")))
    with pytest.raises(OptionError, match="backbone must be resnet50-layer3 as configured"):
        SegSwapNetwork(make_config("tiny"), Colours())
    with pytest.raises(OptionError, match="consistency must be one of none, pair, demo"):
        SegswapOptions(consistency="triple")
    with pytest.raises(OptionError, match='resize must be "squash", "fit" or "letterbox"'):
        PreprocessConfig(resize="crop")


def test_compat_options_follow_the_published_code():
    options = published_options()
    assert (options.rounding, options.consistency, options.refine) == ("published", "demo", False)
    assert published_options(batch=4).batch == 4


def test_stand_in_backbone_is_like_the_real_one():
    assert Colours().describe(torch.rand(1, 3, 32, 48)).shape == (1, 304, 2, 3)
    blocks = EfficientNetLite0().blocks
    assert blocks[10].project.conv.out_channels + blocks[14].project.conv.out_channels == 304


def test_discover_cuts_one_mask_a_picture(network):
    masks = system(network).discover([picture(60, 90), picture(120, 70, 1), picture(96, 96)]).masks
    assert [mask.shape for mask in masks] == [(60, 90), (120, 70), (96, 96)]
    with pytest.raises(DatasetError, match="at least 2 pictures"):
        system(network).discover([picture(60, 90)])
