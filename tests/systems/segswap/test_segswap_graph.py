# SPDX-License-Identifier: Apache-2.0
"""The graph of discovery: its nodes, affinities, leading eigenvector and votes."""

from __future__ import annotations

import numpy as np
import pytest
from discovery_makers import (
    GRID,
    blank,
    identity_flow,
    output,
    outputs_of,
    triangle,
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
from patchword.systems.segswap.relations import (
    PairOutputs,
    all_pairs,
)


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
