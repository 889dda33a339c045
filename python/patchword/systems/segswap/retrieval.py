# SPDX-License-Identifier: Apache-2.0
"""Scores of one query against many pictures, with the last layer evaluated only where it is read.

Exact to rounding against evaluating everything: the head's outputs are needed at the query's cells,
and, of each candidate, at the four cells around each place that the query's cells point to.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from patchword.nn.cross_transformer import CrossTransformer, ImageTokens
from patchword.ops import match_score
from patchword.systems.segswap.cycles import self_mask

Rounding = Literal["cell", "published"]


def query_weights(transformer: CrossTransformer, query: ImageTokens, region: Tensor) -> Tensor:
    """What each cell of a query counts, from relating it to itself; once a query.

    Args:
        transformer: In evaluation mode.
        query: One picture.
        region: ``[h, w]``, 1 where the query is asked about, else 0.

    Returns:
        ``[h * w]``.
    """
    out0, out1 = transformer.relate(query, query)
    return self_mask(out0, out1, region[None].to(out0)).flatten()


def score_candidates(
    transformer: CrossTransformer,
    query: ImageTokens,
    candidates: ImageTokens,
    features0: Tensor,
    features1: Tensor,
    weights: Tensor,
    cells: Tensor,
    *,
    rounding: Rounding = "cell",
    lazy: bool | None = None,
) -> Tensor:
    """Score a query against candidates of one grid.

    Args:
        transformer: In evaluation mode.
        query: One picture.
        candidates: ``B`` pictures.
        features0: ``[N0, C]`` unit descriptors of the query.
        features1: ``[B, N1, C]`` those of the candidates.
        weights: ``[N0]`` of :func:`query_weights`.
        cells: int64 ``[Q]``: the query cells that take part.
        rounding: See :func:`patchword.ops.match_score`.
        lazy: Evaluate the last layer only where it is read; None decides by the number of cells.

    Returns:
        float32 ``[B]``, larger is better; not symmetric in query and candidate.
    """
    rows0, mask1 = relate_cells(transformer, query, candidates, cells, lazy=lazy)
    return match_score(
        features0[cells],
        features1,
        rows0[..., :2],
        weights[cells] * rows0[..., 2],
        mask1,
        grid=candidates.grid,
        rounding=rounding,
    )


def relate_cells(
    transformer: CrossTransformer,
    query: ImageTokens,
    candidates: ImageTokens,
    cells: Tensor,
    *,
    lazy: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """What the network says of some cells of a query, and the candidates' masks where it matters.

    Args:
        transformer: In evaluation mode.
        query: One picture.
        candidates: ``B`` pictures of one grid.
        cells: int64 ``[Q]``: the query cells that take part.
        lazy: See :func:`score_candidates`.

    Returns:
        ``[B, Q, 3]`` x, y and mask of the query's cells, and ``[B, h, w]`` masks of the
        candidates, 0 where ``lazy`` left out what reading at these x, y does not touch.
    """
    batch, grid = candidates.tokens.shape[0], candidates.grid
    count = grid[0] * grid[1]
    state0, state1 = transformer.before_last(query, candidates)
    # Four reads a cell: with many cells nearly all of the candidate is read anyway.
    if lazy is None:
        lazy = 4 * len(cells) < count
    wanted0 = cells.expand(batch, -1)
    rows0 = transformer.last_at(state0, state1, wanted0)
    if lazy:
        wanted1 = _touched(rows0[..., :2], grid)
        read = transformer.last_at(state1, state0, wanted1)[..., 2]
        mask1 = read.new_zeros(batch, count).scatter_(1, wanted1, read)
    else:
        everywhere = torch.arange(count, device=cells.device).expand(batch, -1)
        mask1 = transformer.last_at(state1, state0, everywhere)[..., 2]
    return rows0, mask1.reshape(batch, *grid)


def _touched(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """Row-major cells ``[B, 4 Q]`` that bilinear reading at ``[B, Q, 2]`` in [0, 1] touches."""
    height, width = grid
    # In float64, as the reading is: a place on the border between cells must not be misjudged.
    x = (points[..., 0].double() * width - 0.5).floor().long()
    y = (points[..., 1].double() * height - 0.5).floor().long()
    taps = [
        (y + down).clamp(0, height - 1) * width + (x + right).clamp(0, width - 1)
        for down in (0, 1)
        for right in (0, 1)
    ]
    return torch.cat(taps, dim=1)
