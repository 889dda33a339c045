# SPDX-License-Identifier: Apache-2.0
"""Op tests run with poisoned memory: an output element that nobody wrote cannot pass by luck."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """Fill fresh memory with NaN (integers: the largest value), in Python and in C++."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # Warnings would be errors here, and an op without a deterministic form is none of ours. On a
    # GPU the references and the checks use some (cumsum, products), and only the filling matters.
    torch.use_deterministic_algorithms(True, warn_only=GPU)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill
