# SPDX-License-Identifier: Apache-2.0
"""Every gate passes torch's float32 result and refuses results that are wrong in small ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import accuracy
from benchmarks.peers import blas, eager
from benchmarks.registry import all_rows


def _descriptors(count0=70, count1=45, size=24):
    first, second = torch.randn(count0, size), torch.randn(count1, size)
    second[:20] = first[torch.randperm(count0)[:20]] + 0.05 * torch.randn(20, size)
    return F.normalize(first, dim=1), F.normalize(second, dim=1)


def _mutual(first, second):
    scores = first @ second.T
    forward, backward = scores.argmax(1), scores.argmax(0)
    return torch.where(backward[forward] == torch.arange(len(first)), forward, -1)


def test_match_gate_accepts_the_mutual_matches_and_the_one_way_ones():
    first, second = _descriptors()
    gate = accuracy.MatchGate(first, second)
    assert gate(_mutual(first, second), "full").within
    assert gate((first @ second.T).argmax(1), "forward").within


def test_match_gate_refuses_one_wrong_lost_or_invented_match():
    first, second = _descriptors()
    gate = accuracy.MatchGate(first, second)
    right = _mutual(first, second)
    kept, dropped = (right >= 0).nonzero()[0], (right < 0).nonzero()[0]
    for place, value in ((kept, -1), (kept, (right[kept] + 1) % 45), (dropped, 3), (kept, 45)):
        wrong = right.clone()
        wrong[place] = value
        assert not gate(wrong, "full").within


def test_match_gate_accepts_either_of_two_equal_descriptors():
    first = F.normalize(torch.randn(3, 8), dim=1)
    second = torch.cat([first, first[:1]])
    gate = accuracy.MatchGate(first, second)
    verdict = gate(torch.tensor([3, 1, 2]), "full")
    assert verdict.within
    assert verdict.ties == 1


def test_match_gate_merges_column_winners_across_blocks():
    first, second = _descriptors(count0=1100, count1=30)
    assert accuracy.MatchGate(first, second)(_mutual(first, second), "full").within


def test_softmax_gate_tells_float32_from_a_wrong_scale():
    patches, queries = torch.randn(2, 9, 32), torch.randn(5, 32)
    gate = accuracy.SoftmaxGate(patches, queries, 10.0)
    cosines = F.normalize(patches, dim=-1) @ F.normalize(queries, dim=-1).T
    assert gate(torch.softmax(10.0 * cosines, -1), "full").within
    assert not gate(torch.softmax(10.01 * cosines, -1), "full").within
    assert not gate(torch.softmax(10.0 * cosines, -1)[:, :-1], "full").within


def test_softmax_gate_allows_the_rounding_of_half_outputs_only():
    patches, queries = torch.randn(2, 9, 32).half(), torch.randn(5, 32).half()
    gate = accuracy.SoftmaxGate(patches, queries, 10.0)
    cosines = F.normalize(patches.double(), dim=-1) @ F.normalize(queries.double(), dim=-1).T
    exact = torch.softmax(10.0 * cosines, -1)
    assert gate(exact.half(), "full").within
    assert not gate(exact.half().float() + 1e-3, "full").within


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(5, 40), (7, 33), (33, 50)])
def test_axis_weights_agree_with_torch(mode, sizes):
    size_in, size_out = sizes
    identity = torch.eye(size_in)[None, :, :, None].expand(-1, -1, -1, size_in).contiguous()
    expected = F.interpolate(identity, size=(size_out, size_in), mode=mode)[0, :, :, 0].T
    weights, _ = accuracy.axis_weights(size_in, size_out, mode)
    torch.testing.assert_close(weights.float(), expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_label_gate_refuses_align_corners_and_one_wrong_pixel(mode):
    logits = torch.randn(1, 6, 7, 5)
    gate = accuracy.UpsampleGate(logits, (40, 33), mode)
    labels = F.interpolate(logits, size=(40, 33), mode=mode).argmax(1)
    assert gate(labels, "labels").within
    corners = F.interpolate(logits, size=(40, 33), mode=mode, align_corners=True).argmax(1)
    assert not gate(corners, "labels").within
    labels[0, 39, 32] = (labels[0, 39, 32] + 1) % 6
    assert not gate(labels, "labels").within


def test_label_gate_looks_only_at_its_rows():
    logits = torch.randn(1, 3, 4, 4)
    gate = accuracy.UpsampleGate(logits, (16, 16), "bilinear", torch.tensor([2, 9]))
    labels = F.interpolate(logits, size=(16, 16), mode="bilinear").argmax(1)
    labels[0, 5] = 77
    assert gate(labels, "labels").within
    labels[0, 9, 0] = 77
    assert not gate(labels, "labels").within


def test_mask_gate_refuses_one_flipped_pixel():
    logits = torch.randn(1, 3, 6, 6)
    gate = accuracy.UpsampleGate(logits, (30, 30), "bilinear")
    masks = F.interpolate(logits, size=(30, 30), mode="bilinear") > 0.5
    assert gate(masks, "binary").within
    masks[0, 1, 3, 3] ^= True
    assert not gate(masks, "binary").within


def test_sample_gate_knows_the_pixel_convention():
    features = torch.randn(1, 4, 6, 8)
    points = torch.rand(1, 20, 2) * torch.tensor([7, 5]) * 16 + 8
    gate = accuracy.SampleGate(features, points, 16)
    extent = torch.tensor([8, 6]) * 16.0

    def sample(shifted):
        grid = (2 * shifted.double() / extent - 1)[:, None]
        sampled = F.grid_sample(features.double(), grid, align_corners=False)
        return sampled[:, :, 0].mT.float()

    assert gate(sample(points), "full").within
    assert not gate(sample(points - 0.5), "full").within


def test_every_gate_refuses_not_a_number():
    features, points = torch.randn(1, 4, 6, 8), torch.rand(1, 5, 2) * 60 + 8
    assert not accuracy.SampleGate(features, points, 16)(
        torch.full((1, 5, 4), torch.nan), "x"
    ).within
    patches, queries = torch.randn(1, 3, 8), torch.randn(2, 8)
    poisoned = torch.full((1, 3, 2), torch.nan)
    assert not accuracy.SoftmaxGate(patches, queries, 1.0)(poisoned, "full").within


CPU_ROWS = [row for row in all_rows() if "cpu" in row.devices]


@pytest.mark.parametrize("row", CPU_ROWS, ids=lambda row: row.id)
def test_in_process_peers_of_every_row_pass_its_gate_on_small_inputs(row):
    inputs = {**row.inputs(True), "device": "cpu"}
    gate = row.gate(inputs)
    checked = 0
    for peer in row.peers:
        if peer.compiled or "cpu" not in peer.devices or peer.name.startswith("patchword"):
            continue
        if peer.where != "process":
            continue
        verdict = gate(peer.build(inputs)(), peer.part)
        assert verdict is None or verdict.mismatches == 0
        assert verdict is None or verdict.error <= 1000 * verdict.tolerance
        checked += 1
    assert checked


def test_array_peers_agree_with_torch():
    first, second = _descriptors()
    arrays = {"descriptors0": first.numpy(), "descriptors1": second.numpy()}
    gate = accuracy.MatchGate(first, second)
    assert gate(blas.numpy_mutual(arrays)(), "full").within
    maps = {"patches": torch.randn(1, 7, 16), "queries": torch.randn(3, 16), "scale": 5.0}
    softmax = accuracy.SoftmaxGate(**maps)
    assert softmax(blas.numpy_softmax_map({k: maps[k] for k in maps})(), "full").within
    assert softmax(eager.eager(eager.softmax_map, maps)(), "full").within
