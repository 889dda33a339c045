# SPDX-License-Identifier: Apache-2.0
"""Ceilings of this machine, measured in the same run: copy bandwidth and float32 products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.common import NotAvailable, Sample, summarize, time_call
from benchmarks.peers import blas
from benchmarks.worker import BlasWorker

COPY_BYTES = 1 << 28
SIDE = 2048
CUDA_SIDE = 8192
SAMPLES = 10

Measure = Callable[[], Sample]


def _best(measure: Measure, threads: int, samples: int) -> float:
    measure()
    return summarize([measure().seconds(threads) for _ in range(samples)]).minimum


def _factors(side: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randn(side, side, generator=generator) for _ in range(2))
    return left.to(device), right.to(device)


def probe_cpu(
    threads: int, workers: dict[str, BlasWorker | str], samples: int = SAMPLES
) -> dict[str, Any]:
    """Return copy GB/s (bytes read plus written) and float32 GFLOP/s at ``threads`` threads.

    The arithmetic ceiling is the best square product of torch and OpenBLAS; ``source`` says whose.
    """
    values = torch.randn(COPY_BYTES // 4)
    target = torch.empty_like(values)
    copy = partial(target.copy_, values)
    copy_seconds = _best(partial(time_call, copy), threads, samples)
    left, right = _factors(SIDE, "cpu")
    operations = 2.0 * SIDE**3 * 1e-9
    product = partial(torch.mm, left, right)
    gflops = {"torch": operations / _best(partial(time_call, product), threads, samples)}
    factors = {"left": left.numpy(), "right": right.numpy()}
    for where, label in (("blas", "OpenBLAS"), ("blas-skylakex", "OpenBLAS SkylakeX")):
        worker = workers[where]
        if isinstance(worker, str):
            continue
        try:
            worker.load("probe", blas.matmul_probe, factors)
            measure = partial(worker.measure, "probe", 1, False)
            gflops[label] = operations / _best(measure, threads, samples)
            worker.unload()
        except NotAvailable:
            continue
    source = max(gflops, key=lambda name: gflops[name])
    return {
        "threads": threads,
        "copy_gbs": 2 * COPY_BYTES * 1e-9 / copy_seconds,
        "gflops": gflops,
        "ceiling_gflops": gflops[source],
        "source": source,
    }


def probe_cuda(samples: int = SAMPLES) -> dict[str, Any]:
    """Return the same on the CUDA device, plus the half-precision product."""
    from benchmarks.cuda_timing import CudaTimer

    timer = CudaTimer()
    values = torch.randn(COPY_BYTES, device="cuda")
    copy = partial(torch.empty_like(values).copy_, values)
    copy_seconds = _best(partial(timer.warm, copy, 3), 2, samples)
    gflops: dict[str, float] = {}
    for name, dtype in (("torch float32", torch.float32), ("torch bfloat16", torch.bfloat16)):
        left, right = (factor.to(dtype) for factor in _factors(CUDA_SIDE, "cuda"))
        product = partial(torch.mm, left, right)
        seconds = _best(partial(timer.warm, product, 3), 2, samples)
        gflops[name] = 2.0 * CUDA_SIDE**3 * 1e-9 / seconds
    return {
        "threads": 1,
        "copy_gbs": 2 * 4 * COPY_BYTES * 1e-9 / copy_seconds,
        "gflops": gflops,
        "ceiling_gflops": gflops["torch float32"],
        "source": "torch float32",
    }
