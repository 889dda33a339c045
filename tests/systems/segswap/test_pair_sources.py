# SPDX-License-Identifier: Apache-2.0
"""Reading annotations: what is taken, what is left out, and what is refused in one sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from pair_pictures import HEIGHT, WIDTH, annotation, coco, photograph, photographs, rectangle
from PIL import Image

from patchword.errors import DatasetError, OptionError
from patchword.systems.segswap.annotations import (
    published_lists,
    read_coco,
    read_cutouts,
    read_published,
)
from patchword.systems.segswap.outlines import (
    BlobOutline,
    MaskFileOutline,
    PolygonOutline,
    RegionOutline,
    RunLengthOutline,
)
from patchword.systems.segswap.pictures import PictureCache
from patchword.systems.segswap.sources import MixedSource, RegionSource

BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def test_polygon_union() -> None:
    outline = PolygonOutline((tuple(rectangle(10, 20, 29, 39)), tuple(rectangle(50, 60, 59, 69))))
    mask = outline.mask(BLACK)
    assert mask[20:40, 10:30].all()
    assert mask[60:70, 50:60].all()
    assert (mask > 0).sum() == 20 * 20 + 10 * 10  # the outline itself belongs to it


def test_run_lengths_compressed_or_not() -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[30:60, 40:90] = 1
    encoded = coco_mask.encode(np.asfortranarray(wanted))
    flat = wanted.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    for runs in (encoded["counts"], tuple(int(run) for run in counts)):
        mask = RunLengthOutline((HEIGHT, WIDTH), runs).mask(BLACK)
        np.testing.assert_array_equal(mask, wanted * 255)
    with pytest.raises(DatasetError, match="size of their picture"):
        RunLengthOutline((5, 5), encoded["counts"]).mask(BLACK)


def test_coco_objects_and_categories(tmp_path: Path) -> None:
    source = read_coco(*coco(tmp_path))
    assert [path.name for path in source.photographs] == [f"{n:012d}.jpg" for n in (1, 2, 3)]
    assert {name: len(found) for name, found in source.objects.items()} == {"17": 2, "18": 1}
    assert [path.name for path, _ in source.grouped] == ["000000000001.jpg"]
    two = source.draw(np.random.default_rng(0), 2)
    assert two.foreground == source.photographs[0]
    assert len(set(two.outlines)) == 2


def test_background_lacks_the_category_unless_the_fault_is_kept(tmp_path: Path) -> None:
    source = read_coco(*coco(tmp_path))

    def shares(*, any_category: bool) -> bool:
        rng = np.random.default_rng(1)
        found = False
        for _ in range(60):
            scene = source.draw(rng, 1, any_category=any_category)
            names = {
                name
                for name, instances in source.objects.items()
                if (scene.foreground, scene.outlines[0]) in instances
            }
            found |= bool(names & source.categories.get(scene.background, frozenset()))
        return found

    assert not shares(any_category=False)
    assert shares(any_category=True)


def test_lists_give_the_same_objects(tmp_path: Path) -> None:
    images, path = coco(tmp_path)
    files = []
    for name, content in published_lists(path).items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    direct, listed = read_coco(images, path), read_published(images, *files)
    # Without annotations picture 3 is in no list.
    assert listed.photographs == direct.photographs[:2]
    assert listed.objects == direct.objects
    assert list(listed.grouped) == list(direct.grouped)
    assert listed.categories == direct.categories


def test_unusable_objects_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = annotation(1, 1, 17, [rectangle(10, 10, 60, 60)])
    line = annotation(2, 2, 18, [[10, 10, 40, 40, 10, 10]])
    nothing = annotation(3, 2, 18, [])
    runs = annotation(4, 2, 18, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]})
    crowd = annotation(5, 2, 19, [rectangle(10, 10, 60, 60)], iscrowd=1)
    where = coco(tmp_path, annotations=[kept, line, nothing, runs, crowd])
    with caplog.at_level(logging.WARNING, "patchword"):
        source = read_coco(*where)
    assert list(source.objects) == ["17"]
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == 2
    assert "3 annotations left out: objects of zero area (first: 2)" in words[0]
    assert "1 annotations left out: crowds (first: 5)" in words[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[1, 2]", "COCO instances"),
        ('{"images": [{"id": 1}], "annotations": []}', "images of .* not as expected"),
        ('{"images": [], "annotations": [{"id": 1}]}', "annotations of .* not as expected"),
        ('{"images": [], "annotations": []}', "must hold pictures with objects"),
    ],
)
def test_corrupt_annotations_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=words) as caught:
        read_coco(tmp_path, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_annotation_of_a_missing_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, path = coco(tmp_path)
    (images / "000000000002.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 pictures that are not in .*000000000002\.jpg"):
        read_coco(images, path)
    with caplog.at_level(logging.WARNING, "patchword"):
        source = read_coco(images, path, skip_missing=True)
    assert len(source.photographs) == 2
    assert len(source.objects["17"]) == 1
    assert "1 pictures are not in" in caplog.text

    _, path = coco(tmp_path, annotations=[annotation(7, 99, 17, [rectangle(1, 1, 9, 9)])])
    with pytest.raises(DatasetError, match="annotation 7 belongs to picture 99"):
        read_coco(images, path)


def test_odd_polygon_is_refused(tmp_path: Path) -> None:
    where = coco(tmp_path, annotations=[annotation(7, 1, 17, [[1, 1, 9, 9, 5, 5, 3]])])
    with pytest.raises(DatasetError, match="annotation 7 must have polygons of x, y pairs"):
        read_coco(*where)


def cutouts(folder: Path) -> Path:
    photograph(folder / "a.png", 1)
    photograph(folder / "b.png", 2)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:90, 30:100] = 255
    Image.fromarray(mask).save(folder / "a_mask.png")
    records = [{"image": "a.png", "mask": "a_mask.png", "class": "cup"}, {"image": "b.png"}]
    (folder / "index.json").write_text(json.dumps(records))
    return folder


def test_cutouts(tmp_path: Path) -> None:
    source = read_cutouts(cutouts(tmp_path))
    assert not source.offers(2)
    scene = source.draw(np.random.default_rng(0), 1)
    # The only background that holds no cup.
    assert (scene.background.name, scene.foreground.name) == ("b.png", "a.png")
    assert (scene.outlines[0].mask(BLACK) > 0).sum() == 70 * 70


def test_cutouts_with_faults_are_refused(tmp_path: Path) -> None:
    folder = cutouts(tmp_path)
    Image.new("L", (7, 7)).save(folder / "small.png")
    with pytest.raises(DatasetError, match="size of its picture"):
        MaskFileOutline(folder / "small.png").mask(BLACK)
    (folder / "a_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"a_mask\.png: there is no such file"):
        read_cutouts(folder)


def test_every_category_in_every_picture_is_refused(tmp_path: Path) -> None:
    everywhere = [annotation(n, n, 17, [rectangle(10, 10, 60, 60)]) for n in (1, 2, 3)]
    source = read_coco(*coco(tmp_path, annotations=everywhere))
    with pytest.raises(DatasetError, match="some photograph must lack some category"):
        source.draw(np.random.default_rng(0), 1)


@pytest.mark.parametrize(
    "outline", [BlobOutline(3, (0.5, 0.5), 0.2), RegionOutline(3, (0.5, 0.4), 9)]
)
def test_random_pieces_are_connected_and_repeatable(
    tmp_path: Path, outline: BlobOutline | RegionOutline
) -> None:
    import cv2

    picture = np.array(Image.open(photograph(tmp_path / "a.png", 1)))
    mask = outline.mask(picture)
    assert mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) == {0, 255}
    assert 0.01 < (mask > 0).mean() < 0.6
    assert cv2.connectedComponents(mask)[0] == 2
    np.testing.assert_array_equal(mask, outline.mask(picture))


def test_region_source_needs_two_photographs(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png", 1)
    with pytest.raises(DatasetError, match="at least 2 photographs"):
        RegionSource.from_folder(tmp_path)


def test_mixture_draws_from_what_is_able_and_keeps_photographs_apart(tmp_path: Path) -> None:
    labelled = read_cutouts(cutouts(tmp_path / "cut"))
    plain = RegionSource.from_folder(photographs(tmp_path / "photos"))
    mixed = MixedSource((labelled, plain), (3.0, 1.0))
    rng = np.random.default_rng(0)
    ones = [mixed.draw(rng, 1) for _ in range(400)]
    assert all(scene.background != scene.foreground for scene in ones)
    share = np.mean([scene.foreground.parent.name == "cut" for scene in ones])
    assert share == pytest.approx(0.75, abs=0.09)  # four standard errors
    twos = [mixed.draw(rng, 2) for _ in range(20)]
    assert all(scene.foreground.parent.name == "photos" for scene in twos)
    assert {path.name for path in mixed.photographs} == {
        "a.png",
        "b.png",
        *(f"{k}.png" for k in range(4)),
    }
    with pytest.raises(OptionError, match="one positive number per source"):
        MixedSource((labelled, plain), (1.0,))


def test_cache_gives_equal_pixels_and_keeps_its_limit(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{k}.png", k) for k in range(3)]
    one = HEIGHT * WIDTH * 3
    cache = PictureCache(2 * one)
    first = cache.read(paths[0])
    assert cache.read(paths[0]) is first
    for path in paths[1:]:
        cache.read(path)
    again = cache.read(paths[0])
    assert again is not first
    np.testing.assert_array_equal(again, first)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1


def test_picture_smaller_than_a_patch_is_refused(tmp_path: Path) -> None:
    path = photograph(tmp_path / "tiny.png", 1, (15, 40))
    with pytest.raises(DatasetError, match=r"tiny\.png.*at least 16 pixels.*40 x 15"):
        PictureCache().read(path)
