# SPDX-License-Identifier: Apache-2.0
"""Settings of SegSwap in use: which masks are returned, how scores round, how much at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from patchword.errors import OptionError
from patchword.systems.segswap import cycles, retrieval
from patchword.systems.segswap.model import SegSwapNetwork

CONSISTENCY: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "none": cycles.raw_masks,
    "pair": cycles.pair_masks,
    "demo": cycles.demo_masks,
}


@dataclass(frozen=True)
class SegswapOptions:
    """Settings of :class:`Segswap`.

    Attributes:
        consistency: Which masks are returned: ``"none"`` the network's own, ``"pair"`` each times
            the other seen from it, ``"demo"`` there and back as in the published notebook.
        refine: Pull the edges of the masks to those of the pictures; the published code does not.
        rounding: Cell that a predicted place means in scores: ``"cell"`` the one that holds it,
            ``"published"`` ``round(x (w - 1))`` (trap T10).
        min_match: Least agreement of both masks for a cell to be listed as a match.
        max_matches: Longest list of matches.
        score_cells: Share of the cells, the surest ones, that a pair's score is the mean of.
        score_consistency: Which masks that is: ``"pair"`` or ``"none"`` as for ``consistency``.
        batch: Pairs, or pictures to describe, in one call of the network.
        box_share: A query box is enlarged until its longest side is this share of the input's.
    """

    consistency: Literal["none", "pair", "demo"] = "none"
    refine: bool = True
    rounding: retrieval.Rounding = "cell"
    min_match: float = 0.25
    max_matches: int = 1000
    score_cells: float = 0.01
    score_consistency: Literal["none", "pair"] = "pair"
    batch: int = 32
    box_share: float = 0.25

    def __post_init__(self) -> None:
        """Refuse values that are not documented.

        Raises:
            OptionError: With the value.
        """
        if self.consistency not in CONSISTENCY:
            raise OptionError(
                f"SegswapOptions: consistency must be one of {', '.join(CONSISTENCY)}, "
                f"got {self.consistency!r}."
            )
        if self.batch < 1 or not 0 < self.score_cells <= 1 or not 0 < self.box_share <= 1:
            raise OptionError(
                "SegswapOptions: batch must be at least 1, score_cells and box_share in (0, 1], "
                f"got {self.batch}, {self.score_cells:g} and {self.box_share:g}."
            )


def default_options(network: SegSwapNetwork) -> SegswapOptions:
    """Options that suit a network: those that refine masks were tuned on their own masks."""
    if network.refiner is None:
        return SegswapOptions()
    return SegswapOptions(score_consistency="none", score_cells=0.0055)


def published_options(**changes: Any) -> SegswapOptions:
    """Options that follow the published code bit for bit where it differs (``compat``)."""
    return replace(
        SegswapOptions(consistency="demo", refine=False, rounding="published"), **changes
    )
