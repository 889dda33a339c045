# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for ops: small sizes biased to edges, dtypes, magnitudes and layouts.

hypothesis is imported inside each function, so that the module loads without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchword.testing.layouts import layouts

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

# Around the vector widths of the CPU levels and the tile sizes of the kernels.
EDGE_SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)


def sizes(lowest: int = 0, highest: int = 33) -> SearchStrategy[int]:
    """Sizes of a dimension: edges first, any number in the range otherwise."""
    from hypothesis import strategies as st

    edges = [size for size in EDGE_SIZES if lowest <= size <= highest]
    return st.one_of(st.sampled_from(edges or [lowest]), st.integers(lowest, highest))


def dtypes(
    choices: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16),
) -> SearchStrategy[torch.dtype]:
    """Element types, float32 first."""
    from hypothesis import strategies as st

    return st.sampled_from(list(choices))


def seeds() -> SearchStrategy[int]:
    """Seeds for ``torch.Generator``; drawing values one by one would be slow and shrink badly."""
    from hypothesis import strategies as st

    return st.integers(0, 2**31 - 1)


def tensors(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    magnitudes: Sequence[float] = (1.0, 1e-3, 1e3),
) -> SearchStrategy[Tensor]:
    """Normal random values of one of the magnitudes, in one of the layouts of the same values."""
    from hypothesis import strategies as st

    def build(seed: int, magnitude: float, layout: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = (torch.randn(tuple(shape), generator=generator) * magnitude).to(dtype)
        views = [view for _, view in layouts(values)]
        return views[layout % len(views)]

    return st.builds(build, seeds(), st.sampled_from(list(magnitudes)), st.integers(0, 7))


def integers(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, highest: int = 4
) -> SearchStrategy[Tensor]:
    """Small whole numbers, for which sums of products are exact in every dtype: ties occur."""
    from hypothesis import strategies as st

    def build(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-highest, highest + 1, tuple(shape), generator=generator).to(dtype)

    return st.builds(build, seeds())
