# SPDX-License-Identifier: Apache-2.0
"""SegSwap's benchmark rows: peers compute the same, and the gates refuse what is a little wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accuracy import ScoreGate
from benchmarks.end_to_end import segswap
from benchmarks.ops.match_score import score_inputs
from benchmarks.peers import masked_transformer, match_score


@pytest.fixture(scope="module")
def scores() -> dict:
    inputs = score_inputs(True)
    cells = torch.arange(0, 1200, 37)
    for name in ("points01", "weights0"):
        inputs[name] = inputs[name][:, cells]
    inputs["features0"] = inputs["features0"][cells]
    return inputs


def test_score_gate_and_peers(scores):
    gate = ScoreGate(scores)
    plain = match_score.per_cell(scores)()
    assert gate(plain, "full").within
    function, arguments = match_score.vectorised(scores)
    assert gate(function(*arguments), "full").within
    assert not gate(plain * 1.0001, "full").within
    assert not gate(plain[:1], "full").within


def test_pair_gate_and_peer():
    inputs = segswap.pair_inputs(3, True)
    gate = segswap.PairGate(inputs)
    for output in (
        masked_transformer.pairs(inputs)(),
        segswap.whole(inputs, "reference")(),
        segswap.kept(inputs, "reference")(),
    ):
        assert gate(output, "full").within
        assert not gate([out + 1e-4 for out in output], "full").within
