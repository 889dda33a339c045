# SPDX-License-Identifier: Apache-2.0
"""Making, storing and reading pairs: the same for the same seed, whatever happens on the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_pictures import SMALL, annotation, coco, photographs, rectangle
from PIL import Image

from patchword.cli.main import main
from patchword.data.io import read_image
from patchword.errors import CheckpointError, ConfigError, DatasetError, OptionError, OutputError
from patchword.inference import atomic
from patchword.inference.interrupt import StopFlag
from patchword.systems.segswap import compose
from patchword.systems.segswap.adain import (
    AdaInStylist,
    build_decoder,
    build_encoder,
    normalise_to,
)
from patchword.systems.segswap.annotations import read_coco
from patchword.systems.segswap.data import (
    GeneratedPairs,
    StoredPairs,
    collate,
    make_pair,
    resized,
)
from patchword.systems.segswap.generate import generate_pairs
from patchword.systems.segswap.page import pair_figure, write_pair_page
from patchword.systems.segswap.recipe import PUBLISHED_DATA, PairRecipe
from patchword.systems.segswap.sources import RegionSource
from patchword.systems.segswap.store import PairFolder
from patchword.systems.segswap.stylise import style_statistics, transfer_statistics


@pytest.fixture
def source(tmp_path: Path) -> RegionSource:
    return RegionSource.from_folder(photographs(tmp_path / "photos"), radius=(0.2, 0.35))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_*.*") if path.name[0] != "."}


def test_items_depend_on_seed_and_index_alone(source: RegionSource) -> None:
    one = GeneratedPairs(source, SMALL, seed=3)
    other = GeneratedPairs(source, SMALL, seed=3)
    forward = [one[k] for k in range(5)]
    backward = [other[k] for k in reversed(range(5))][::-1]
    for a, b in zip(forward, backward, strict=True):
        for name in ("image0", "image1", "target0", "target1"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert any((one[0].image0 != GeneratedPairs(source, SMALL, seed=4)[0].image0).flat)


def test_batches_have_the_stated_shapes(source: RegionSource) -> None:
    pairs = GeneratedPairs(source, SMALL)
    batch = collate([pairs[k] for k in range(3)])
    assert len(batch) == 3
    assert batch.image0.shape == batch.image1.shape == (3, 3, 160, 160)
    assert batch.image0.dtype == torch.uint8
    assert batch.target0.shape == batch.target1.shape == (3, 3, 10, 10)
    assert batch.target0.dtype == torch.float32
    assert torch.equal(batch.swapped().image0, batch.image1)
    assert torch.equal(batch.to("cpu").target1, batch.target1)
    larger = GeneratedPairs(source, resized(SMALL, 192))[0]
    with pytest.raises(ValueError, match="pairs of one size"):
        collate([pairs[0], larger])


@pytest.mark.parametrize("compat", [frozenset(), PUBLISHED_DATA])
def test_accepted_pairs_have_large_enough_masks(
    source: RegionSource, compat: frozenset[str]
) -> None:
    recipe = replace(SMALL, compat=compat)
    seen = set()
    for index in range(12):
        pair = make_pair(source, recipe, 0, index)
        seen.add(pair.num_objects)
        assert pair.target0.dtype == np.float32
        for target in (pair.target0, pair.target1):
            assert target.shape == (3, 10, 10)
            assert target[2].sum() >= SMALL.min_cells
            assert target[2].min() >= 0
            assert target[2].max() <= 1 + 1e-6
    assert seen == {1, 2}


def test_shared_cells_look_alike(source: RegionSource) -> None:
    """Feathered objects keep their colours, so annotation and pixels can be compared."""
    recipe = replace(SMALL, blend="feather", two_objects=0.0, scale_one=(0.8, 1.0))
    errors = []
    for index in range(10):
        pair = make_pair(source, recipe, 1, index)
        whole = np.argwhere(pair.target1[2] > 0.95)
        for row, column in whole:
            x, y = pair.target1[:2, row, column] * 160
            origin = pair.image0[int(np.clip(y, 0, 159)), int(np.clip(x, 0, 159))].astype(float)
            errors.append(np.abs(pair.image1[row * 16 + 8, column * 16 + 8] - origin).mean())
    assert len(errors) > 30
    assert np.median(errors) < 12


def test_two_object_fields_reach_outside_unless_the_fault_is_kept(source: RegionSource) -> None:
    for compat in (frozenset[str](), frozenset({"T14"})):
        pair = make_pair(source, replace(SMALL, two_objects=1.0, compat=compat), 0, 0)
        outside = pair.target1[2] == 0
        assert outside.any()
        assert bool((pair.target1[:2, outside] == 0).all()) == bool(compat)


def test_stylised_composite_unless_the_fault_is_kept(source: RegionSource) -> None:
    pair = make_pair(source, replace(SMALL, two_objects=1.0), 0, 0)
    fixed = GeneratedPairs(source, SMALL)
    faulty = GeneratedPairs(source, replace(SMALL, compat=frozenset({"T2"})))
    assert fixed.to_style(pair) is pair.image1
    assert faulty.to_style(pair) is pair.plain1
    single = make_pair(source, replace(SMALL, two_objects=0.0), 0, 0)
    assert faulty.to_style(single) is single.image1


def test_plain_objects_are_passed_over(tmp_path: Path) -> None:
    """One half of every photograph is grey, the other noise."""
    rng = np.random.default_rng(0)
    for k in range(2):
        image = np.full((120, 160, 3), 128, np.uint8)
        image[:, 80:] = np.kron(rng.integers(0, 256, (15, 10, 3)), np.ones((8, 8, 1))).astype(
            np.uint8
        )
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    plain = RegionSource.from_folder(tmp_path, blobs=1.0)
    for contrast, least, most in ((0.0, 0, 15), (25.0, 18, 20)):
        recipe = replace(SMALL, two_objects=0.0, border_crop=0.0, min_contrast=contrast)
        pairs = [make_pair(plain, recipe, 0, index) for index in range(20)]
        # The object's centre of mass in picture 0, of ten columns.
        columns = [np.average(np.arange(10), weights=p.target0[2].sum(axis=0)) for p in pairs]
        textured = sum(column > 3.5 for column in columns)
        assert least <= textured <= most


def test_hopeless_scenes_end_with_a_sentence(
    source: RegionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "_MAX_ATTEMPTS", 4)
    with pytest.raises(DatasetError, match="at least 99 cells"):
        make_pair(source, replace(SMALL, two_objects=0.0, min_cells=99.0), 0, 0)


def test_published_layout(tmp_path: Path, source: RegionSource) -> None:
    report = generate_pairs(source, tmp_path / "out", recipe=SMALL, end=3, num_workers=0)
    assert (report.done, report.reused, report.interrupted) == (3, 0, False)
    assert sorted(content(tmp_path / "out")) == sorted(
        f"{k}_{name}"
        for k in range(3)
        for name in ("a.jpg", "b.jpg", "as.jpg", "bs.jpg", "a.npy", "b.npy")
    )
    assert read_image(tmp_path / "out" / "0_as.jpg").shape == (160, 160, 3)
    stored = np.load(tmp_path / "out" / "0_a.npy")
    pair = make_pair(source, SMALL, 0, 0)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, pair.target0)
    summary = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert summary["done"] == 3
    assert sum(summary["stage_shares"].values()) == pytest.approx(1.0)
    assert set(summary["stage_shares"]) >= {"blend", "style", "encode", "write"}


def test_default_annotations_have_thirty_cells(source: RegionSource) -> None:
    pair = make_pair(source, PairRecipe(), 0, 0)
    assert pair.target0.shape == pair.target1.shape == (3, 30, 30)
    assert min(pair.target0[2].sum(), pair.target1[2].sum()) >= 9


def test_any_number_of_processes_writes_the_same_files(
    tmp_path: Path, source: RegionSource
) -> None:
    for workers in (0, 2):
        generate_pairs(source, tmp_path / str(workers), recipe=SMALL, end=6, num_workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "2")


def test_stopped_run_goes_on(tmp_path: Path, source: RegionSource) -> None:
    stop = StopFlag()
    stop.set()
    out = tmp_path / "out"
    options = {"recipe": SMALL, "end": 4, "num_workers": 0}
    first = generate_pairs(source, out, stop=stop, **options)  # type: ignore[arg-type]
    assert (first.done, first.interrupted) == (1, True)
    # A file that lost its content, as after a power failure, is noticed.
    (out / "0_b.jpg").write_bytes(b"")
    second = generate_pairs(source, out, **options)  # type: ignore[arg-type]
    assert (second.done, second.reused) == (4, 0)
    third = generate_pairs(source, out, **{**options, "end": 5})  # type: ignore[arg-type]
    assert (third.done, third.reused) == (1, 4)
    generate_pairs(source, tmp_path / "fresh", **{**options, "end": 5})  # type: ignore[arg-type]
    assert content(out) == content(tmp_path / "fresh")


def test_killed_run_goes_on(tmp_path: Path, source: RegionSource) -> None:
    words = ["data", "segswap", "--photos", str(tmp_path / "photos"), "--size", "160"]
    words += ["--dilation", "2", "--objects", "one", "--scale-one", "0.6", "1.0", "--page", "2"]
    words += ["--num-workers", "2", "-o"]
    process = subprocess.Popen(
        [sys.executable, "-m", "patchword", *words, str(tmp_path / "killed"), "--end", "4000"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = tmp_path / "killed" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The workers hold the folder's lock until the system has taken them down too.
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    written = journal.read_bytes().count(b"\n")
    end = str(written + 3)
    for name in ("killed", "whole"):
        assert main([*words, str(tmp_path / name), "--end", end, "--quiet"]) == 0
    summary = json.loads((tmp_path / "killed" / "generation.json").read_text())
    assert summary["reused"] >= written
    wanted = content(tmp_path / "whole")
    assert {name: content(tmp_path / "killed")[name] for name in wanted} == wanted
    assert len(list((tmp_path / "whole" / "items").iterdir())) == 4


def test_full_disk_loses_nothing(
    tmp_path: Path, source: RegionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            generate_pairs(source, out, recipe=SMALL, end=4, num_workers=0)
    assert "\n" not in str(caught.value)
    assert not list(out.glob(".*.tmp"))
    report = generate_pairs(source, out, recipe=SMALL, end=4, num_workers=0)
    assert report.reused == 1
    generate_pairs(source, tmp_path / "fresh", recipe=SMALL, end=4, num_workers=0)
    assert content(out) == content(tmp_path / "fresh")


def test_other_settings_are_refused_and_overwritten_on_demand(
    tmp_path: Path, source: RegionSource
) -> None:
    out = tmp_path / "out"
    generate_pairs(source, out, recipe=SMALL, end=3, num_workers=0)
    before = content(out)
    with pytest.raises(ConfigError, match=r"other settings \(different: seed\)"):
        generate_pairs(source, out, recipe=SMALL, end=2, seed=1, num_workers=0)
    assert content(out) == before
    generate_pairs(source, out, recipe=SMALL, end=2, seed=1, num_workers=0, overwrite=True)
    assert len(content(out)) == 12
    assert content(out)["0_b.jpg"] != before["0_b.jpg"]


def test_unreadable_photograph_names_itself_from_a_worker(
    tmp_path: Path, source: RegionSource
) -> None:
    for path in source.photographs:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"pair 0: .*photos/\d\.png.*damaged") as caught:
        generate_pairs(source, tmp_path / "out", recipe=SMALL, end=2, num_workers=1)
    assert "\n" not in str(caught.value)


def test_numbers_out_of_range(tmp_path: Path, source: RegionSource) -> None:
    with pytest.raises(OptionError, match="start <= end"):
        generate_pairs(source, tmp_path / "out", start=5, end=3)
    with pytest.raises(OptionError, match="num_workers"):
        generate_pairs(source, tmp_path / "out", num_workers=-1)


def test_stored_pairs_read_back(tmp_path: Path, source: RegionSource) -> None:
    out = tmp_path / "out"
    generate_pairs(source, out, recipe=SMALL, end=8, num_workers=0)
    plain = replace(SMALL, style_probability=0.0, tps_probability=0.0)
    stored = StoredPairs([out], plain)
    assert len(stored) == 8
    pair = make_pair(source, SMALL, 0, 3)
    np.testing.assert_array_equal(stored[3].target1, pair.target1)
    assert np.abs(stored[3].image1.astype(int) - pair.image1).mean() < 8  # JPEG
    assert len(StoredPairs([out], replace(plain, compat=frozenset({"T8"})))) == 6
    changing = StoredPairs([out], SMALL)
    other = changing.for_epoch(1)
    assert changing.epoch == 0
    assert any((changing[k].image1 != other[k].image1).any() for k in range(8))
    with pytest.raises(IndexError):
        stored[8]


def test_damaged_store_is_refused(tmp_path: Path, source: RegionSource) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        PairFolder(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"must hold pairs such as 0_a\.npy"):
        PairFolder(tmp_path)
    out = tmp_path / "out"
    generate_pairs(source, out, recipe=SMALL, end=1, num_workers=0)
    np.save(out / "0_b.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"0_b\.npy cannot be read"):
        StoredPairs([out])[0]
    np.save(out / "0_b.npy", np.zeros((2, 3)))
    with pytest.raises(DatasetError, match=r"must be \[3, h, w\]"):
        StoredPairs([out])[0]
    np.save(out / "0_b.npy", np.zeros((3, 30, 30), np.float32))
    with pytest.raises(DatasetError, match="to fit their annotation"):
        StoredPairs([out])[0]


def test_page_shows_pairs_plain_and_stylised(tmp_path: Path, source: RegionSource) -> None:
    out = tmp_path / "out"
    generate_pairs(source, out, recipe=SMALL, end=3, num_workers=0)
    page = write_pair_page(out, 2)
    text = page.read_text()
    assert text.count("<li>") == 4
    assert "pair 1, stylised" in text
    for name in ("0_ab", "0_asbs", "1_ab", "1_asbs"):
        assert read_image(out / "items" / f"{name}.jpg").shape == (320, 320, 3)


def test_figure_draws_from_shared_cells_to_their_matches() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    target = np.zeros((3, 4, 4), np.float32)
    target[:, 1, 2] = (0.25, 0.75, 1.0)  # cell centre (40, 24) -> (16, 48) of picture 1
    figure = pair_figure(image, image, target, target)
    drawn = figure[64:].any(axis=-1)
    assert drawn[24, 40]
    assert drawn[48, 64 + 16]
    assert not drawn[10, 10]


def test_statistics_move_to_the_style() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(90, 130, (96, 96, 3), dtype=np.uint8)
    style = rng.integers(0, 90, (96, 96, 3), dtype=np.uint8)
    style[..., 2] += 120
    statistics = style_statistics(style, 96)
    same = transfer_statistics(image, statistics, 0.0)
    assert np.abs(same.astype(int) - image).mean() < 2.5  # eight-bit Lab and back
    moved = transfer_statistics(image, statistics, 1.0)
    for channel in range(3):
        near = abs(moved[..., channel].mean() - style[..., channel].mean())
        assert near < 0.35 * abs(image[..., channel].mean() - style[..., channel].mean())
    assert moved.std() > 1.3 * image.std()


def test_adain_networks_and_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, decoder = build_encoder(), build_decoder()
    counts = [sum(p.numel() for p in network.parameters()) for network in (encoder, decoder)]
    assert counts == [3_505_740, 3_505_219]
    assert (len(encoder), len(decoder)) == (31, 29)
    features = torch.randn(1, 4, 5, 6)
    wanted = torch.randn(1, 4, 7, 3) * 3 + 2
    moved = normalise_to(features, wanted)
    torch.testing.assert_close(moved.mean((2, 3)), wanted.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.var((2, 3)), wanted.var((2, 3)), atol=1e-2, rtol=1e-3)

    vgg, dec = tmp_path / "vgg.pth", tmp_path / "dec.pth"
    # The published encoder goes on beyond the layer that is used.
    rest = {"32.weight": torch.zeros(512, 512, 3, 3), "32.bias": torch.zeros(512)}
    torch.save({**encoder.state_dict(), **rest}, vgg)
    torch.save(decoder.state_dict(), dec)
    style = photographs(tmp_path / "styles", 1) / "0.png"
    image = read_image(style)
    stylist = AdaInStylist(vgg, dec, [style], short_side=32)
    out = stylist(image, np.random.default_rng(0))
    assert out.shape == image.shape
    assert out.dtype == np.uint8

    torch.save({**decoder.state_dict(), "99.weight": torch.zeros(1)}, dec)
    with pytest.raises(CheckpointError, match=r"1 unknown, 0 missing .*99\.weight"):
        AdaInStylist(vgg, dec, [style])
    vgg.write_bytes(vgg.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"vgg\.pth cannot be read"):
        AdaInStylist(vgg, dec, [style])
    with pytest.raises(DatasetError, match="at least one picture"):
        AdaInStylist(vgg, dec, [])


def test_command_reports_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, annotations = coco(tmp_path)
    out = str(tmp_path / "out")
    words = ["data", "segswap", "--images", str(images), "--annotations", str(annotations)]
    small = ["--size", "160", "--dilation", "2", "--num-workers", "0", "--end", "3", "-o", out]
    assert main([*words, *small, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["done"] == 3
    assert result["pairs_per_second"] > 0
    assert Path(result["page"]).exists()
    assert main([*words, *small]) == 0
    assert "0 pairs made, 3 reused" in capsys.readouterr().out
    assert main([*words, *small, "--dry-run"]) == 0
    assert "would make 3 pairs" in capsys.readouterr().out
    assert main(["data", "segswap", "--images", str(images)]) == 2
    assert "--images goes with" in capsys.readouterr().err
    assert main(["data", "segswap", "-o", out]) == 2
    assert main([*words, "--vgg", "x.pth", "-o", out]) == 2
    annotations.write_text("{")
    assert main([*words, *small]) == 1
    assert "must be JSON" in capsys.readouterr().err


def test_two_objects_need_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = [annotation(1, 1, 17, [rectangle(10, 10, 90, 90)])]
    images, annotations = coco(tmp_path, annotations=single)
    assert not read_coco(images, annotations).offers(2)
    words = ["--images", str(images), "--annotations", str(annotations), "--objects", "two"]
    assert main(["data", "segswap", *words, "-o", str(tmp_path / "out")]) == 2
    assert "objects of two categories" in capsys.readouterr().err
