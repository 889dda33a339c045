# SPDX-License-Identifier: Apache-2.0
"""The attention rows again with the kernel for capability 9.0, which runs only for who asks.

They come last: a fault or a hang of that kernel ends the process, and must not take the rows of
the kernel that everybody gets with it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common import NotAvailable, Run
from benchmarks.gpu import attention
from benchmarks.registry import Inputs, OwnBuild, Peer, Row

GENERAL = "patchword, the general kernel"


def _asking_for_wgmma(run: Run) -> Any:
    os.environ["PATCHWORD_ATTENTION_WGMMA"] = "must"
    try:
        return run()
    finally:
        del os.environ["PATCHWORD_ATTENTION_WGMMA"]


def wgmma(inputs: Inputs, backend: str, *, ours: OwnBuild) -> Run:
    """``ours`` by the kernel for capability 9.0, which runs only for who asks, or its refusal."""
    run = partial(_asking_for_wgmma, ours(inputs, backend))
    try:
        run()
    except NotImplementedError as error:
        raise NotAvailable(str(error)) from error
    return run


def _again(row: Row) -> Row:
    general = Peer(GENERAL, partial(row.ours, backend="native"), devices=attention.CUDA)
    return replace(
        row,
        id=f"{row.id}_wgmma",
        title=f"{row.title}, wgmma",
        ours=partial(wgmma, ours=row.ours),
        peers=(general, *(peer for peer in row.peers if not peer.compiled)),
        targets=(),
    )


KINDS = ("plain", "dual", "intra", "cross")
ROWS = tuple(
    _again(row)
    for row in attention.ROWS
    if row.dtype == "bfloat16" and row.id.split("_")[1] in KINDS
)
