# SPDX-License-Identifier: Apache-2.0
"""Discovery: mirrored pairs, the graph, its eigenvector, masks, and the Internet protocol."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchword.cli.main import main
from patchword.errors import DatasetError, OptionError, ShapeError
from patchword.geometry import patch_centers
from patchword.systems.segswap import (
    PreprocessConfig,
    Segswap,
    SegSwapNetwork,
    load_backbone,
    make_config,
    save_network,
)
from patchword.systems.segswap.cycles import pair_masks
from patchword.systems.segswap.discovery import (
    DiscoveryOptions,
    cut_out,
    discover,
    discover_from_pairs,
)
from patchword.systems.segswap.graph import (
    Affinity,
    GraphOptions,
    PairNodes,
    build_affinity,
    leading_eigenvector,
    make_nodes,
    published_sign,
    to_cells,
    vote_maps,
)
from patchword.systems.segswap.protocols.internet import (
    InternetOptions,
    evaluate_internet,
    jaccard,
    parse_sigmas,
    pixel_accuracy,
)
from patchword.systems.segswap.relations import (
    PairOutputs,
    all_pairs,
    relate_all,
    relate_pairs,
    score_outputs,
    unmirror,
)

GRID = (10, 10)


def identity_flow(grid: tuple[int, int] = GRID) -> np.ndarray:
    return (patch_centers(grid) / grid[::-1]).T.reshape(2, *grid)


def output(mask: np.ndarray, flow: np.ndarray | None = None) -> np.ndarray:
    flow = identity_flow(mask.shape) if flow is None else flow
    return np.concatenate([flow, mask[None]]).astype(np.float32)


def outputs_of(
    pairs: list[tuple[int, int]],
    maps: list[tuple[np.ndarray, np.ndarray]],
    scores: list[tuple[float, float]],
) -> PairOutputs:
    return PairOutputs(
        np.array(pairs, dtype=np.int64),
        np.stack([first for first, _ in maps]),
        np.stack([second for _, second in maps]),
        np.array(scores, dtype=np.float64),
    )


def blank() -> np.ndarray:
    return np.zeros(GRID)


# ---- measures ---------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    predicted, truth = np.array([[1, 1], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    assert jaccard(predicted, truth) == pytest.approx(1 / 3)
    assert pixel_accuracy(predicted, truth) == 0.5
    assert np.isnan(jaccard(predicted, np.zeros((2, 2), bool)))


# ---- mirrored pairs ---------------------------------------------------------------------------


def test_mirrored_result_turns_back_to_one_minus_x() -> None:
    """Picture 1 is picture 0 mirrored; against the mirrored one the network says identity."""
    mask = blank()
    mask[2:6, 1:4] = 0.9
    raw = torch.from_numpy(output(mask))[None]
    out0, out1 = unmirror(raw, raw.clone())
    x, y = (torch.from_numpy(part).float() for part in identity_flow())
    torch.testing.assert_close(out0[0, 0], 1 - x)
    torch.testing.assert_close(out0[0, 1], y)
    torch.testing.assert_close(out1[0, 0], 1 - x)
    torch.testing.assert_close(out1[0, 1], y)
    torch.testing.assert_close(out1[0, 2], torch.from_numpy(mask[:, ::-1].copy()).float())
    # What one picture says of the other agrees, so nothing is lost by asking both.
    agreed0, agreed1 = pair_masks(out0, out1)
    torch.testing.assert_close(agreed0[0], out0[0, 2] ** 2)
    torch.testing.assert_close(agreed1[0], out1[0, 2] ** 2)

    wrong0, wrong1 = unmirror(raw, raw.clone(), published=True)
    torch.testing.assert_close(wrong0, raw)
    torch.testing.assert_close(wrong1[0, 0], 1 - x)
    torch.testing.assert_close(wrong1[0, 2], torch.from_numpy(mask[::-1].copy()).float())


class Stripes:
    """Pictures of colour columns; two are related by identity when equal, else not at all."""

    def __init__(self) -> None:
        self.described = 0

    def fingerprint(self) -> str:
        return "stripes"

    def describe(self, image: np.ndarray) -> Tensor:
        self.described += 1
        cells = torch.from_numpy(np.asarray(image)[8::16, 8::16].astype(np.float32) + 1)
        return torch.nn.functional.normalize(cells, dim=-1)

    def features(self, described: Tensor) -> Tensor:
        return described.flatten(0, 1)

    def relate(self, first: list[Tensor], second: list[Tensor]) -> tuple[Tensor, Tensor]:
        grid = tuple(first[0].shape[:2])
        shared = torch.from_numpy(output(np.full(grid, 0.95)))  # type: ignore[arg-type]
        alien = torch.from_numpy(output(np.full(grid, 0.05)))  # type: ignore[arg-type]
        both = [shared if torch.equal(a, b) else alien for a, b in zip(first, second, strict=True)]
        return torch.stack(both), torch.stack(both).clone()


def ramp() -> np.ndarray:
    image = np.zeros((80, 96, 3), np.uint8)
    image[..., 0] = np.arange(96, dtype=np.uint8) * 2
    image[..., 1] = 255 - image[..., 0]
    return image


def test_flip_is_taken_where_it_explains_more() -> None:
    model = Stripes()
    pictures = [ramp(), ramp()[:, ::-1].copy()]
    described = [model.describe(picture) for picture in pictures]
    mirrored = [model.describe(picture[:, ::-1].copy()) for picture in pictures]
    pairs = all_pairs(2)
    plain = relate_pairs(model, described, pairs)
    assert plain.scores.tolist() == [[0.0, 0.0]]
    turned = relate_pairs(model, described, pairs, mirrored=mirrored)
    # 30 cells of weight 0.95 squared, and descriptors that agree exactly.
    assert turned.scores[0] == pytest.approx([30 * 0.95**2] * 2, rel=1e-5)
    np.testing.assert_allclose(turned.output0[0, 0], 1 - identity_flow((5, 6))[0], atol=1e-6)
    faulty = relate_pairs(model, described, pairs, mirrored=mirrored, published_flip=True)
    np.testing.assert_allclose(faulty.output0[0, 0], identity_flow((5, 6))[0], atol=1e-6)
    assert faulty.scores[0, 0] < turned.scores[0, 0]


def test_small_agreement_scores_nothing() -> None:
    features = torch.nn.functional.normalize(torch.rand(1, 900, 8), dim=-1)
    for cells, scored in ((8, False), (10, True)):
        mask = np.zeros((30, 30))
        mask.flat[:cells] = 1.0
        out = torch.from_numpy(output(mask))[None]
        scores = score_outputs(out, out.clone(), features, features)
        assert scores[0].tolist() == pytest.approx([cells * scored] * 2, abs=1e-4)


def test_all_pairs_are_lexicographic() -> None:
    assert all_pairs(4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert len(all_pairs(100)) == 4950


# ---- the graph --------------------------------------------------------------------------------


def test_two_cycle_affinity_and_eigenvector_by_hand() -> None:
    nodes = [
        PairNodes(0, np.array([[1, 1], [4, 5]]), np.array([[5, 5], [8, 9]]), np.array([0.9, 1.0]))
    ]
    outputs = outputs_of([(0, 1)], [(output(blank()), output(blank()))], [(10.0, 10.0)])
    affinity = build_affinity(outputs, nodes, GraphOptions(sigma=5.0, two_cycles=True))
    expected = [[0.81, 0.331091], [0.331091, 1.0]]
    np.testing.assert_allclose(affinity.dense(), expected, atol=1e-6)
    value, vector = leading_eigenvector(affinity)
    assert value == pytest.approx(0.905 + np.hypot(0.095, 0.9 / np.e), abs=1e-6)
    assert value == pytest.approx(1.249449, abs=3e-6)
    np.testing.assert_allclose(vector, [0.601747, 0.798687], atol=1e-6)


def triangle(shift: int) -> tuple[PairOutputs, list[PairNodes]]:
    """Pairs 01, 02 and 12; cell (3, 3) everywhere, but 2 -> 1 misses by ``shift`` columns."""
    back = identity_flow()
    back[0] += shift / GRID[1]
    plain = output(np.full(GRID, 0.9))
    third = (plain, output(np.full(GRID, 0.9), back))
    outputs = outputs_of(
        [(0, 1), (0, 2), (1, 2)], [(plain, plain), (plain, plain), third], [(20, 20)] * 3
    )
    cell = np.array([[3, 3]])
    return outputs, [PairNodes(0, cell, cell, np.ones(1)), PairNodes(1, cell, cell, np.ones(1))]


def test_three_cycle_affinity_by_hand() -> None:
    outputs, nodes = triangle(1)
    affinity = build_affinity(outputs, nodes, GraphOptions(sigma=1.0))
    weight = 0.5 * (1 + np.exp(-1))
    assert weight == pytest.approx(0.683940, abs=1e-6)
    np.testing.assert_allclose(affinity.dense(), [[0, weight], [weight, 0]], atol=1e-6)
    # Plain power iteration would swing between the eigenvalues of equal size.
    value, vector = leading_eigenvector(affinity)
    assert value == pytest.approx(weight, abs=1e-6)
    np.testing.assert_allclose(vector, [0.5**0.5] * 2, atol=1e-6)

    masked = build_affinity(outputs, nodes, GraphOptions(sigma=1.0, mask_three_cycles=True))
    np.testing.assert_allclose(masked.dense()[0, 1], 0.9 * weight, atol=1e-6)
    nothing = outputs.scores.copy()
    nothing[2] = 5.0  # the third side does not count
    unrelated = PairOutputs(outputs.pairs, outputs.output0, outputs.output1, nothing)
    assert len(build_affinity(unrelated, nodes, GraphOptions(sigma=1.0)).values) == 0


@pytest.mark.parametrize("pairs", [[(0, 1), (0, 2)], [(0, 1), (1, 2)], [(0, 2), (1, 2)]])
def test_every_way_of_sharing_a_picture(pairs: list[tuple[int, int]]) -> None:
    plain = output(np.full(GRID, 0.9))
    everything = [(0, 1), (0, 2), (1, 2)]
    outputs = outputs_of(everything, [(plain, plain)] * 3, [(20, 20)] * 3)
    cell = np.array([[3, 3]])
    nodes = [PairNodes(everything.index(pair), cell, cell, np.ones(1)) for pair in pairs]
    affinity = build_affinity(outputs, nodes, GraphOptions(sigma=1.0))
    np.testing.assert_allclose(affinity.dense(), [[0, 1], [1, 0]], atol=1e-6)


def test_affinity_equals_the_definition_written_out() -> None:
    rng = np.random.default_rng(0)
    maps = [
        tuple(output(rng.random(GRID), rng.random((2, *GRID))) for _ in range(2)) for _ in range(6)
    ]
    outputs = outputs_of([(i, j) for i, j in all_pairs(4).tolist()], maps, [(20, 20)] * 6)  # type: ignore[arg-type]
    options = GraphOptions(sigma=3.0, two_cycles=True, confidence=0.8, top_k=3)
    nodes = make_nodes(outputs, options)
    assert len(nodes) == 6
    table = [
        (
            outputs.pairs[one.pair].tolist(),
            (one.cells0[k], one.cells1[k]),
            one.confidence[k],
            one.pair,
        )
        for one in nodes
        for k in range(len(one.confidence))
    ]
    third = {tuple(pair): index for index, pair in enumerate(outputs.pairs.tolist())}

    def carried(source: int, target: int, cell: np.ndarray) -> np.ndarray:
        first = source < target
        index = third[(source, target) if first else (target, source)]
        maps_ = outputs.output0[index] if first else outputs.output1[index]
        return to_cells(maps_[:2, cell[1], cell[0]], GRID, "cell")

    def near(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.linalg.norm(a - b) / 3.0))

    expected = np.zeros((len(table), len(table)))
    for r, (pair_a, cells_a, conf_a, index_a) in enumerate(table):
        for c, (pair_b, cells_b, conf_b, index_b) in enumerate(table):
            common = set(pair_a) & set(pair_b)
            if index_a == index_b:
                value = (near(cells_a[0], cells_b[0]) * near(cells_a[1], cells_b[1])) ** 0.5
            elif len(common) == 1:
                a, b = pair_a.index(*common), pair_b.index(*common)
                u, v = pair_a[1 - a], pair_b[1 - b]
                there = near(carried(u, v, cells_a[1 - a]), cells_b[1 - b])
                back = near(cells_a[1 - a], carried(v, u, cells_b[1 - b]))
                value = near(cells_a[a], cells_b[b]) * (there + back) / 2
            else:
                value = 0.0
            value *= conf_a * conf_b
            expected[r, c] = value if value > 0.01 else 0.0
    affinity = build_affinity(outputs, nodes, options)
    np.testing.assert_allclose(affinity.dense(), expected, atol=1e-6)
    value, vector = leading_eigenvector(affinity)
    values, vectors = np.linalg.eigh(expected)
    assert value == pytest.approx(values[-1], rel=1e-6)
    np.testing.assert_allclose(vector, np.abs(vectors[:, -1]), atol=1e-5)


def test_nodes_come_from_the_side_with_more_cells() -> None:
    small, large = blank(), blank()
    small[2, 3] = 0.9
    large[5, 6:9] = 0.95
    shifted = identity_flow()
    shifted[0] += 0.1  # one cell to the right
    outputs = outputs_of([(0, 1)], [(output(small), output(large, shifted))], [(10.0, 0.0)])
    (nodes,) = make_nodes(outputs, GraphOptions())
    assert nodes.cells1.tolist() == [[6, 5], [7, 5], [8, 5]]
    assert nodes.cells0.tolist() == [[7, 5], [8, 5], [9, 5]]
    np.testing.assert_allclose(nodes.confidence, 0.95, atol=1e-6)
    # A tie goes to the second picture; an empty side gives nothing; 9 is not above 9.
    tie = outputs_of([(0, 1)], [(output(small), output(small, shifted))], [(10.0, 0.0)])
    assert make_nodes(tie, GraphOptions())[0].cells0.tolist() == [[4, 2]]
    empty = outputs_of([(0, 1)], [(output(blank()), output(large))], [(10.0, 0.0)])
    assert make_nodes(empty, GraphOptions()) == []
    poor = outputs_of([(0, 1)], [(output(small), output(large))], [(9.0, 0.0)])
    assert make_nodes(poor, GraphOptions()) == []


def test_only_best_partners_give_nodes() -> None:
    sure = output(np.full(GRID, 0.9))
    scores = [(30, 30), (20, 20), (10, 10), (25, 25), (12, 12), (11, 40)]
    outputs = outputs_of([(i, j) for i, j in all_pairs(4).tolist()], [(sure, sure)] * 6, scores)  # type: ignore[arg-type]
    chosen = [
        outputs.pairs[one.pair].tolist() for one in make_nodes(outputs, GraphOptions(top_k=1))
    ]
    # Best of 0 is 1, of 1 is 0, of 2 is 1 (25), of 3 is 2 (its own score, 40).
    assert chosen == [[0, 1], [1, 2], [2, 3]]


def test_rounding_conventions() -> None:
    places = np.array([[0.05, 0.95], [0.5, 0.14]], np.float32)
    assert to_cells(places, GRID, "cell").tolist() == [[0, 9], [5, 1]]
    # round(0.5 * 9) = round(4.5) = 4, halves to even.
    assert to_cells(places, GRID, "published").tolist() == [[0, 9], [4, 1]]


def test_negative_vector_may_stay_negative_in_the_published_rule() -> None:
    full = Affinity(
        3,
        np.repeat(np.arange(3), 3).astype(np.int32),
        np.tile(np.arange(3), 3).astype(np.int32),
        np.ones(9, np.float32),
    )
    vector = leading_eigenvector(full)[1]
    assert (vector > 0).all()
    # The best prefix is everything, in either order: a tie, and the sign stays.
    np.testing.assert_array_equal(published_sign(-vector, full), -vector)
    # Where a part is best, the rule finds it.
    part = Affinity(
        30,
        np.array([0, 1, 0, 1], np.int32),
        np.array([1, 0, 0, 1], np.int32),
        np.ones(4, np.float32),
    )
    found = leading_eigenvector(part)[1]
    np.testing.assert_array_equal(published_sign(-found, part), found)


def test_empty_graph() -> None:
    outputs = outputs_of([(0, 1)], [(output(blank()), output(blank()))], [(0.0, 0.0)])
    affinity = build_affinity(outputs, [], GraphOptions())
    assert leading_eigenvector(affinity) == (0.0, pytest.approx([]))
    found = discover_from_pairs(outputs, [ramp(), ramp()], DiscoveryOptions())
    assert found.num_nodes == 0
    assert not any(mask.any() for mask in found.masks)


def test_votes_add_over_pairs_and_not_within_one() -> None:
    blank_maps = (output(blank()), output(blank()))
    outputs = outputs_of([(0, 1), (0, 2)], [blank_maps] * 2, [(10, 10)] * 2)
    first = PairNodes(0, np.array([[1, 2], [3, 4]]), np.array([[5, 5], [5, 5]]), np.ones(2))
    second = PairNodes(1, np.array([[1, 2]]), np.array([[7, 8]]), np.ones(1))
    vector = np.array([0.2, 0.3, 0.5])
    summed = vote_maps(outputs, [first, second], vector, 3)
    assert summed[0, 2, 1] == pytest.approx(0.7)
    assert summed[0, 4, 3] == pytest.approx(0.3)
    assert summed[1, 5, 5] == pytest.approx(0.3)  # the last write of the pair
    assert summed[2, 8, 7] == pytest.approx(0.5)
    assert vote_maps(outputs, [first, second], vector, 3, "max")[0, 2, 1] == pytest.approx(0.5)
    assert vote_maps(outputs, [first, second], vector, 3, "mean")[0, 2, 1] == pytest.approx(0.35)


# ---- masks and the protocol -------------------------------------------------------------------


def disc(center: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a textured green ground, and its mask."""
    rng = np.random.default_rng(center[0])
    image = rng.integers(0, 60, (160, 160, 3), dtype=np.uint8)
    image[..., 1] += 120
    rows, columns = np.mgrid[0:160, 0:160]
    mask = (rows - center[1]) ** 2 + (columns - center[0]) ** 2 < 40**2
    image[mask] = (220, 30, 40)
    return image, mask


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


class Reds:
    """Relates red cells to red cells of the other picture, offset by their centres of mass."""

    def __init__(self) -> None:
        self.calls = 0

    def fingerprint(self) -> str:
        return "reds"

    def describe(self, image: np.ndarray) -> np.ndarray:
        cells = np.asarray(image)[:160, :160].reshape(10, 16, 10, 16, 3).mean(axis=(1, 3))
        return (cells[..., 0] > 150) & (cells[..., 1] < 80)

    def features(self, described: np.ndarray) -> Tensor:
        return torch.ones(100, 1)

    def relate(self, first: list[np.ndarray], second: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        found = []
        for own, other in ((first, second), (second, first)):
            side = []
            for a, b in zip(own, other, strict=True):
                shift = np.argwhere(b).mean(axis=0) - np.argwhere(a).mean(axis=0)
                flow = identity_flow() + shift[::-1, None, None] / 10
                side.append(output(np.where(a, 0.95, 0.02), flow))
            found.append(torch.from_numpy(np.stack(side)))
        return found[0], found[1]


def internet(folder: Path, classes: tuple[str, ...] = ("Car100",)) -> Path:
    for name in classes:
        (folder / name / "GroundTruth").mkdir(parents=True)
        for k, center in enumerate(((64, 80), (80, 64), (96, 96))):
            image, mask = disc(center)
            Image.fromarray(image).save(folder / name / f"{k:04d}.png")
            Image.fromarray(mask).save(folder / name / "GroundTruth" / f"{k:04d}.png")
    return folder


def test_internet_protocol_on_a_tiny_folder(tmp_path: Path) -> None:
    data = internet(tmp_path / "data", ("Airplane100", "Car100"))
    options = InternetOptions(
        discovery=DiscoveryOptions(flip=False), cache=tmp_path / "cache", chunk=2
    )
    assert (options.sigma("Car100"), options.sigma("Horse100"), options.sigma("Dog")) == (
        5.0,
        1.2,
        1.0,
    )
    model = Reds()
    report = evaluate_internet(data, model=model, options=options)
    assert report.metrics["jaccard_Car100"] > 0.9
    assert report.metrics["precision_Car100"] > 0.97
    means = [report.metrics[f"jaccard_{name}"] for name in ("Airplane100", "Car100")]
    assert report.metrics["jaccard"] == pytest.approx(np.mean(means))
    # Every figure is the mean of what the report lists.
    listed = [row["precision"] for row in report.per_item if row["class"] == "Car100"]
    assert report.metrics["precision_Car100"] == pytest.approx(np.mean(listed))
    assert report.metrics["nodes_Car100"] > 20
    assert len(report.examples) == 6
    # Three pairs a class in files of two.
    names = sorted(path.name for path in (tmp_path / "cache" / "Car100").iterdir())
    assert names == ["start0_end2.npz", "start2_end3.npz"]
    calls = model.calls
    again = evaluate_internet(data, model=model, options=options)
    assert (model.calls, again.metrics) == (calls, report.metrics)
    # A damaged file and a changed picture are made anew.
    (tmp_path / "cache" / "Car100" / names[0]).write_bytes(b"PK damaged")
    assert evaluate_internet(data, model=model, options=options).metrics == report.metrics
    assert model.calls == calls + 1
    Image.fromarray(disc((70, 70))[0]).save(data / "Car100" / "0000.png")
    evaluate_internet(data, model=model, options=options)
    assert model.calls == calls + 3


def test_empty_truth_is_left_out_of_jaccard(tmp_path: Path) -> None:
    data = internet(tmp_path) / "Car100"
    Image.fromarray(np.zeros((160, 160), bool)).save(data / "GroundTruth" / "0001.png")
    options = InternetOptions(discovery=DiscoveryOptions(flip=False))
    report = evaluate_internet(data, model=Reds(), options=options)
    assert report.metrics["jaccard"] > 0.9
    assert report.metrics["precision"] < 0.95
    assert [row["jaccard"] is None for row in report.per_item] == [False, True, False]
    json.dumps(report.per_item, allow_nan=False)


def test_internet_layout_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must hold classes such as Car100"):
        evaluate_internet(tmp_path, model=Reds())
    data = internet(tmp_path) / "Car100"
    truth = data / "GroundTruth" / "0001.png"
    Image.new("RGB", (160, 160)).save(truth)
    with pytest.raises(DatasetError, match=r"one channel and the size.*\(160, 160, 3\)"):
        evaluate_internet(data, model=Reds())
    truth.unlink()
    with pytest.raises(DatasetError, match=r"0001\.png cannot be read"):
        evaluate_internet(data, model=Reds())


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


def test_command_with_fresh_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the files to the report; untrained weights find nothing, and nothing fails."""
    torch.manual_seed(0)
    network = SegSwapNetwork(make_config("tiny", backbone="efficientnet-lite0"), load_backbone())
    save_network(tmp_path / "fresh.safetensors", network)
    system = Segswap(network.eval(), preprocess=PreprocessConfig(size=(96, 96)))
    found = system.discover([disc((64, 80))[0], disc((80, 64))[0]])
    assert [mask.shape for mask in found.masks] == [(160, 160)] * 2
    fitted = Segswap(network, preprocess=PreprocessConfig(resize="fit", size=(96, 96)))
    with pytest.raises(ShapeError, match="Load the system with resize squash"):
        fitted.discover([disc((64, 80))[0], disc((80, 64))[0][:96]])
    data = internet(tmp_path / "data")
    words = ["evaluate", "segswap", "internet", "--data", str(data), "--size", "96"]
    words += ["--checkpoint", str(tmp_path / "fresh.safetensors"), "--quiet"]
    words += ["--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert set(metrics) >= {"precision", "jaccard", "jaccard_Car100", "nodes_Car100"}
    assert (tmp_path / "out" / "evaluation.json").exists()
    stamp = (tmp_path / "cache" / "Car100" / "start0_end3.npz").stat().st_mtime_ns
    # Other settings of the graph need no second pass; other weights do.
    assert main([*words, "--two-cycles", "--conf-th", "0.3"]) == 0
    assert (tmp_path / "cache" / "Car100" / "start0_end3.npz").stat().st_mtime_ns == stamp
    assert main([*words, "--sigma", "Car:5"]) == 2
    assert "must read like" in capsys.readouterr().err
