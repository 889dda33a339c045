# SPDX-License-Identifier: Apache-2.0
"""Discovery: masks from votes, published faults, pictures and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from discovery_makers import (
    GRID,
    Reds,
    blank,
    disc,
    output,
    outputs_of,
    ramp,
    triangle,
)
from PIL import Image

from patchword.errors import DatasetError, OptionError, ShapeError
from patchword.systems.segswap.discovery import (
    DiscoveryOptions,
    cut_out,
    discover,
    discover_from_pairs,
)
from patchword.systems.segswap.graph import (
    GraphOptions,
    build_affinity,
    leading_eigenvector,
)
from patchword.systems.segswap.protocols.internet import (
    jaccard,
    parse_sigmas,
)
from patchword.systems.segswap.relations import (
    relate_all,
)


def test_empty_graph() -> None:
    outputs = outputs_of([(0, 1)], [(output(blank()), output(blank()))], [(0.0, 0.0)])
    affinity = build_affinity(outputs, [], GraphOptions())
    assert leading_eigenvector(affinity) == (0.0, pytest.approx([]))
    found = discover_from_pairs(outputs, [ramp(), ramp()], DiscoveryOptions())
    assert found.num_nodes == 0
    assert not any(mask.any() for mask in found.masks)


def test_cut_out_follows_the_picture() -> None:
    image, truth = disc((80, 72))
    votes = np.zeros(GRID)
    votes[3:6, 4:6] = 1.0
    mask = cut_out(image, votes, DiscoveryOptions())
    assert jaccard(mask, truth) > 0.5
    assert not (mask & ~truth).any()
    np.testing.assert_array_equal(mask, cut_out(image, votes, DiscoveryOptions()))
    assert not cut_out(image, np.zeros(GRID), DiscoveryOptions()).any()
    assert cut_out(image, np.ones(GRID), DiscoveryOptions()).all()


def test_compat_changes_signs_and_is_checked() -> None:
    outputs, _ = triangle(0)
    images = [disc((64, 80))[0] for _ in range(3)]
    options = DiscoveryOptions(graph=GraphOptions(sigma=1.0))
    fixed = discover_from_pairs(outputs, images, options)
    assert (fixed.maps >= 0).all()
    assert fixed.maps.max() > 0
    faulty = DiscoveryOptions(graph=GraphOptions(sigma=1.0), compat=frozenset({"T11"}))
    # All nodes support each other alike, so the best prefix is everything: empty masks.
    signed = discover_from_pairs(outputs, images, faulty)
    np.testing.assert_allclose(signed.maps, -fixed.maps, atol=1e-9)
    assert not any(mask.any() for mask in signed.masks)
    with pytest.raises(OptionError, match="T99"):
        DiscoveryOptions(compat=frozenset({"T99"}))
    with pytest.raises(OptionError, match="sigma above 0"):
        GraphOptions(sigma=0.0)
    assert parse_sigmas("Car=5,Airplane=0.8") == {"Car": 5.0, "Airplane": 0.8}
    with pytest.raises(OptionError, match="must read like"):
        parse_sigmas("Car:5")


def test_discover_takes_pictures_or_a_folder(tmp_path: Path) -> None:
    pictures, truths = zip(*(disc(c) for c in ((64, 80), (80, 64), (96, 96))), strict=True)
    options = DiscoveryOptions(flip=False)
    found = discover(Reds(), list(pictures), options=options)
    assert [jaccard(m, t) > 0.9 for m, t in zip(found.masks, truths, strict=True)] == [True] * 3
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    from_folder = discover(Reds(), tmp_path, options=options, cache=tmp_path / "cache")
    np.testing.assert_array_equal(from_folder.maps, found.maps)
    with pytest.raises(DatasetError, match="at least 2 pictures, got 1"):
        discover(Reds(), [pictures[0]])
    with pytest.raises(ShapeError, match="at least two pictures"):
        relate_all(Reds(), [pictures[0]], read=np.asarray)
