# SPDX-License-Identifier: Apache-2.0
"""What the tests of most ops share: what they run over, far strides, threads and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from patchword import _library

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")
BACKENDS = ["reference", pytest.param("native", marks=native)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# With elements this far apart, offsets do not fit into 32 bits.
FAR = 2**31 + 5


def far_apart(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """An unwritten view with a stride of FAR or so: memory in between is never touched."""
    # Filling it, as these tests otherwise want, would touch all of it.
    torch.utils.deterministic.fill_uninitialized_memory = False
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    memory = torch.UntypedStorage(dtype.itemsize * (last + 1))
    return torch.empty(0, dtype=dtype).set_(memory).as_strided(shape, stride)


def assert_repeats(run: Callable[[], Tensor | Sequence[Tensor]]) -> None:
    """Assert the same bits again and again, with any number of threads."""
    results = []
    for threads in (1, 2, 3, 8, 1):
        torch.set_num_threads(threads)
        made = run()
        results.append([made] if isinstance(made, Tensor) else made)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def assert_graph_replays(run: Callable[[], Tensor]) -> None:
    """Assert that a call can be captured, so it waits and allocates nowhere, and replayed."""
    want = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)
