# SPDX-License-Identifier: Apache-2.0
"""The graph of confident correspondences of a set of pictures, and its leading eigenvector.

A node says that a cell of one picture is the same thing as a cell of another. Two nodes support
each other when both pictures agree (a 2-cycle), or when they share a picture and the third side of
the triangle agrees (a 3-cycle).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from patchword.errors import OptionError
from patchword.systems.segswap.relations import PairOutputs
from patchword.systems.segswap.retrieval import Rounding

Cells = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

_SMALLEST = 0.01


@dataclass(frozen=True)
class GraphOptions:
    """Numbers that the graph depends on; the defaults are the published ones.

    Attributes:
        top_k: Partners of each picture that give nodes.
        confidence: Cells with a mask above this give nodes.
        min_score: Pairs count when their better score is above this.
        sigma: Distance, in cells, over which support fades.
        two_cycles: Let nodes of one pair support each other.
        mask_three_cycles: Weigh a triangle by the masks of its third side.
        rounding: How a predicted place becomes a cell.
    """

    top_k: int = 5
    confidence: float = 0.85
    min_score: float = 9.0
    sigma: float = 1.0
    two_cycles: bool = False
    mask_three_cycles: bool = False
    rounding: Rounding = "cell"

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            OptionError: With the value.
        """
        if self.top_k < 1 or self.sigma <= 0:
            raise OptionError(
                "GraphOptions: top_k must be at least 1 and sigma above 0, got "
                f"{self.top_k} and {self.sigma:g}."
            )


@dataclass(frozen=True)
class PairNodes:
    """Nodes of one pair of pictures.

    Attributes:
        pair: Index into the pairs of the outputs.
        cells0: ``[n, 2]`` column and row in the first picture.
        cells1: The same in the second picture.
        confidence: ``[n]``.
    """

    pair: int
    cells0: Cells
    cells1: Cells
    confidence: Vector


def to_cells(places: npt.NDArray[np.float32], grid: tuple[int, int], rounding: Rounding) -> Cells:
    """Column and row ``[..., 2]`` of places ``[..., 2]`` given as shares of width and height."""
    extent = np.array([grid[1], grid[0]])
    index = np.rint(places * (extent - 1)) if rounding == "published" else places * extent
    cells: Cells = np.clip(np.floor(index), 0, extent - 1).astype(np.int64)
    return cells


def make_nodes(outputs: PairOutputs, options: GraphOptions) -> list[PairNodes]:
    """Find the pairs that count and their confident cells.

    A pair gives nodes when its score is above the least one and either picture is among the best
    partners of the other. Of its two sides the one with more confident cells is used, the second
    on a tie; both must have some.
    """
    partners = _best_partners(outputs, options.top_k)
    grid = (outputs.output0.shape[2], outputs.output0.shape[3])
    found = []
    for index, (i, j) in enumerate(outputs.pairs.tolist()):
        if outputs.scores[index].max() <= options.min_score:
            continue
        if (i, j) not in partners and (j, i) not in partners:
            continue
        sides = outputs.output0[index], outputs.output1[index]
        sure = [np.argwhere(side[2] > options.confidence) for side in sides]
        if not len(sure[0]) or not len(sure[1]):
            continue
        side = 0 if len(sure[0]) > len(sure[1]) else 1
        rows, columns = sure[side].T
        own = np.stack([columns, rows], axis=-1)
        other = to_cells(sides[side][:2, rows, columns].T, grid, options.rounding)
        cells = (own, other) if side == 0 else (other, own)
        confidence = sides[side][2, rows, columns].astype(np.float64)
        found.append(PairNodes(index, *cells, confidence))
    return found


def _best_partners(outputs: PairOutputs, top_k: int) -> set[tuple[int, int]]:
    count = int(outputs.pairs.max(initial=-1)) + 1
    scores = np.zeros((count, count))
    scores[outputs.pairs[:, 0], outputs.pairs[:, 1]] = outputs.scores[:, 0]
    scores[outputs.pairs[:, 1], outputs.pairs[:, 0]] = outputs.scores[:, 1]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return {(row, int(column)) for row in range(count) for column in order[row]}


@dataclass(frozen=True)
class Affinity:
    """A sparse symmetric matrix with entries of both triangles.

    Attributes:
        size: Rows and columns.
        rows: ``[m]``.
        columns: ``[m]``.
        values: ``[m]``, positive.
    """

    size: int
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    def times(self, vector: Vector) -> Vector:
        """Multiply."""
        weights = self.values * vector[self.columns]
        summed = np.bincount(self.rows, weights=weights, minlength=self.size)
        return summed.astype(np.float64, copy=False)

    def dense(self) -> Vector:
        """Write the matrix out; for small graphs."""
        matrix = np.zeros((self.size, self.size))
        matrix[self.rows, self.columns] = self.values
        return matrix


class _Decay:
    """exp(-distance / sigma) of whole-numbered cell differences, from a table."""

    def __init__(self, grid: tuple[int, int], sigma: float) -> None:
        dy, dx = np.mgrid[0 : grid[0], 0 : grid[1]]
        self._table = np.exp(-np.hypot(dx, dy) / sigma)

    def between(self, first: Cells, second: Cells) -> Vector:
        """All pairs of ``[n, 2]`` and ``[m, 2]``, ``[n, m]``."""
        difference = np.abs(first[:, None] - second[None])
        values: Vector = self._table[difference[..., 1], difference[..., 0]]
        return values


def build_affinity(outputs: PairOutputs, nodes: list[PairNodes], options: GraphOptions) -> Affinity:
    """Support of all nodes for each other, block by block; entries up to 0.01 are dropped.

    Blocks of pairs without a common picture are zero and never looked at; the dense matrix is
    never made.
    """
    grid = (outputs.output0.shape[2], outputs.output0.shape[3])
    decay = _Decay(grid, options.sigma)
    half = _Decay(grid, 2.0 * options.sigma)
    starts = np.cumsum([0, *(len(one.confidence) for one in nodes)])
    parts: list[tuple[Cells, Cells, Vector]] = []

    def add(first: int, second: int, block: Vector) -> None:
        rows, columns = np.nonzero(block > _SMALLEST)
        values: Vector = block[rows, columns]
        parts.append((rows + starts[first], columns + starts[second], values))
        if first != second:
            parts.append((columns + starts[second], rows + starts[first], values))

    if options.two_cycles:
        for k, one in enumerate(nodes):
            near = half.between(one.cells0, one.cells0) * half.between(one.cells1, one.cells1)
            add(k, k, near * np.outer(one.confidence, one.confidence))
    third = _Third(outputs, grid, options)
    for first, second in _sharing(outputs, nodes):
        block = _triangle(nodes[first], nodes[second], outputs, third, decay)
        if block is not None:
            add(first, second, block)
    if not parts:
        empty = np.zeros(0, dtype=np.int32)
        return Affinity(int(starts[-1]), empty, empty, np.zeros(0, dtype=np.float32))
    rows, columns, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Affinity(
        int(starts[-1]),
        rows.astype(np.int32),
        columns.astype(np.int32),
        values.astype(np.float32),
    )


def _sharing(outputs: PairOutputs, nodes: list[PairNodes]) -> list[tuple[int, int]]:
    """Places in ``nodes`` of all two pairs that have one picture in common."""
    members: dict[int, list[int]] = defaultdict(list)
    for k, one in enumerate(nodes):
        for picture in outputs.pairs[one.pair].tolist():
            members[picture].append(k)
    return [two for group in members.values() for two in combinations(group, 2)]


class _Third:
    """The third side of triangles: where its cells go, and its masks."""

    def __init__(self, outputs: PairOutputs, grid: tuple[int, int], options: GraphOptions) -> None:
        self._outputs = outputs
        self._grid = grid
        self._options = options
        matchable = outputs.scores.max(axis=1, initial=0.0) > options.min_score
        self._index = {
            (i, j): index for index, (i, j) in enumerate(outputs.pairs.tolist()) if matchable[index]
        }

    def carry(self, source: int, target: int, cells: Cells) -> tuple[Cells, Vector] | None:
        """Where cells of one picture go in another, and their weights; None if unrelated."""
        forward = (source, target) in self._index
        index = self._index.get((source, target) if forward else (target, source))
        if index is None:
            return None
        output = (self._outputs.output0 if forward else self._outputs.output1)[index]
        read = output[:, cells[:, 1], cells[:, 0]]
        weights = np.ones(len(cells))
        if self._options.mask_three_cycles:
            weights = read[2].astype(np.float64)
        return to_cells(read[:2].T, self._grid, self._options.rounding), weights


def _triangle(
    first: PairNodes, second: PairNodes, outputs: PairOutputs, third: _Third, decay: _Decay
) -> Vector | None:
    """Support between nodes of two pairs with one common picture, ``[n, m]``."""
    pair_a, pair_b = outputs.pairs[first.pair].tolist(), outputs.pairs[second.pair].tolist()
    shared = (set(pair_a) & set(pair_b)).pop()
    side_a, side_b = pair_a.index(shared), pair_b.index(shared)
    cells_a, cells_b = (first.cells0, first.cells1), (second.cells0, second.cells1)
    u, v = pair_a[1 - side_a], pair_b[1 - side_b]
    own_a, own_b = cells_a[1 - side_a], cells_b[1 - side_b]
    to_v, to_u = third.carry(u, v, own_a), third.carry(v, u, own_b)
    if to_v is None or to_u is None:
        return None
    meeting = decay.between(cells_a[side_a], cells_b[side_b])
    there = decay.between(to_v[0], own_b) * to_v[1][:, None]
    back = decay.between(own_a, to_u[0]) * to_u[1][None, :]
    block: Vector = meeting * (0.5 * (there + back)) * np.outer(first.confidence, second.confidence)
    return block


def leading_eigenvector(
    affinity: Affinity, *, tolerance: float = 1e-9, steps: int = 2000
) -> tuple[float, Vector]:
    """Largest eigenvalue and its non-negative unit eigenvector, by power iteration from ones.

    The matrix has no negative entry, so such a vector exists (Perron and Frobenius). Half of the
    first estimate is added to the diagonal while iterating: a graph of triangles alone may have
    an eigenvalue of equal size and opposite sign, between which the plain iteration would swing.

    Returns:
        0 and zeros for a graph without nodes or edges.
    """
    vector = np.ones(affinity.size)
    if not len(affinity.values):
        return 0.0, np.zeros(affinity.size)
    vector /= np.linalg.norm(vector)
    product = affinity.times(vector)
    shift = 0.5 * float(np.linalg.norm(product))
    for _ in range(steps):
        moved = product + shift * vector
        moved /= np.linalg.norm(moved)
        change = float(np.abs(moved - vector).max())
        vector = moved
        product = affinity.times(vector)
        if change < tolerance:
            break
    return float(vector @ product), vector


def published_sign(vector: Vector, affinity: Affinity, *, base: float = 1.1) -> Vector:
    """Choose an eigenvector's sign as the published code does (fault T11).

    Prefixes of the rising and of the falling order, of about base^k nodes, are compared by the
    energy of their normalised indicator. Both end with all nodes, so that a vector whose best
    prefix is everything keeps whatever sign it came with.
    """
    count = len(vector)
    if count == 0:
        return vector
    steps = np.arange(int(np.ceil(np.log(count) / np.log(base))) + 1)
    sizes = np.unique(np.minimum(np.floor(base**steps).astype(int), count))
    best = []
    for order in (np.argsort(-vector, kind="stable"), np.argsort(vector, kind="stable")):
        energies = []
        for size in (*sizes.tolist(), count):
            indicator = np.zeros(count)
            indicator[order[:size]] = 1.0
            energies.append(float(indicator @ affinity.times(indicator)) / size)
        best.append(max(energies))
    return -vector if best[1] > best[0] else vector


def vote_maps(
    outputs: PairOutputs,
    nodes: list[PairNodes],
    vector: Vector,
    count: int,
    mode: Literal["sum", "max", "mean"] = "sum",
) -> npt.NDArray[np.float64]:
    """Spread an eigenvector over the cells of the pictures.

    Within one pair the last node of a cell counts, as published; over pairs they are added, or the
    largest is taken, or their mean over the pairs that have the cell.

    Returns:
        ``[count, h, w]``.
    """
    grid = (outputs.output0.shape[2], outputs.output0.shape[3])
    total, hits = np.zeros((count, *grid)), np.zeros((count, *grid))
    start = 0
    for one in nodes:
        values = vector[start : start + len(one.confidence)]
        start += len(values)
        for picture, cells in zip(
            outputs.pairs[one.pair].tolist(), (one.cells0, one.cells1), strict=True
        ):
            votes, voted = np.zeros(grid), np.zeros(grid)
            votes[cells[:, 1], cells[:, 0]] = values
            voted[cells[:, 1], cells[:, 0]] = 1.0
            hits[picture] += voted
            if mode == "max":
                total[picture] = np.maximum(total[picture], votes)
            else:
                total[picture] += votes
    return total / np.maximum(hits, 1.0) if mode == "mean" else total
