# SPDX-License-Identifier: Apache-2.0
"""Screened ranks equal those of the float32 scores, whatever the rows are like."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import _library
from patchword.ops import retrieval_ranks
from patchword.ops.retrieval_ranks.reference import TIES

pytestmark = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")

TOO_FEW = 64
"""So few rows on one side are never screened."""


def unscreened(queries: Tensor, gallery: Tensor, truth: Tensor, ties: str) -> tuple[Tensor, Tensor]:
    """Ranks from float32 scores alone: one side is taken a few rows at a time.

    A float32 score depends on its two rows only, so these are the same scores.
    """
    ranks0 = [
        retrieval_ranks(some, gallery, named, ties=ties, backend="native").ranks0
        for some, named in zip(queries.split(TOO_FEW), truth.split(TOO_FEW), strict=True)
    ]
    ranks1 = []
    for first in range(0, len(gallery), TOO_FEW):
        some = gallery[first : first + TOO_FEW]
        named = torch.where((truth >= first) & (truth < first + len(some)), truth - first, -1)
        ranks = retrieval_ranks(queries, some, named, ties=ties, both=True, backend="native")
        ranks1.append(ranks.ranks1)
    return torch.cat(ranks0), torch.cat(ranks1)


def check(queries: Tensor, gallery: Tensor, truth: Tensor, what: str, rules=tuple(TIES)) -> None:
    truth = truth if truth.ndim == 2 else truth[:, None]
    for ties in rules:
        want = unscreened(queries, gallery, truth, ties)
        got = retrieval_ranks(queries, gallery, truth, ties=ties, both=True, backend="native")
        assert torch.equal(got.ranks0, want[0]), f"{what}, {ties}: queries"
        assert torch.equal(got.ranks1, want[1]), f"{what}, {ties}: gallery"
        alone = retrieval_ranks(queries, gallery, truth, ties=ties, backend="native")
        assert torch.equal(alone.ranks0, want[0]), f"{what}, {ties}: one way"


def trained(rows: int, columns: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of few latent dimensions, most of whose scores are far from the true ones."""
    embed, points = torch.randn(12, dim), torch.randn(columns, 12)
    truth = torch.randint(0, columns, (rows,))
    queries = (points[truth] + 0.7 * torch.randn(rows, 12)) @ embed
    return F.normalize(queries, dim=1), F.normalize(points @ embed, dim=1), truth


@pytest.mark.parametrize("dim", [127, 128, 129, 300])
def test_equals_float32_scores(cpu_level, dim):
    check(*trained(200, 150, dim), f"{cpu_level} {dim}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_and_several_truths(cpu_level, dtype):
    queries, gallery, truth = trained(150, 170, 192)
    truth = torch.stack((truth, torch.randint(-1, 171, truth.shape)), 1)
    check(queries.to(dtype), gallery.to(dtype), truth, f"{cpu_level}", ("legacy",))


def test_more_than_one_block_of_everything(cpu_level):
    check(*trained(210, 1200, 600), cpu_level, ("pessimistic",))


def test_equal_and_nearly_equal_rows(cpu_level):
    queries, gallery, truth = trained(160, 120, 200)
    nearly = torch.nextafter(gallery, torch.full_like(gallery, torch.inf))
    one_element = gallery.clone()
    one_element[:, 3] = nearly[:, 3]
    gallery = torch.cat((gallery, nearly, gallery, one_element))[torch.randperm(480)]
    truth = (queries @ gallery.T).argsort(1, descending=True)[:, torch.randint(0, 40, (160,))[0]]
    check(queries, gallery, truth, cpu_level)
    same = queries[:1].expand(160, -1)
    check(same, gallery, truth, "one query for all")
    check(queries, queries[:1].expand(130, -1), truth % 130, "one item for all", ("legacy",))


def test_norms_far_apart(cpu_level):
    queries, gallery, truth = trained(160, 140, 200)
    check(queries * 10 ** (6 - 12 * torch.rand(160, 1)), gallery, truth, cpu_level)
    gallery *= 10 ** (3 - 6 * torch.rand(140, 1))
    check(queries * 1e-9, gallery, truth, "gallery", ("legacy",))
    gallery[:, ::17] *= 300
    check(queries, gallery, truth, "a few large elements", ("legacy",))


def test_rows_that_cannot_be_screened(cpu_level):
    queries, gallery, truth = trained(160, 140, 200)
    for rows in (queries, gallery):
        rows[3, 2], rows[5, 1], rows[6, 1] = torch.nan, torch.inf, -torch.inf
        rows[8], rows[9] = 0, torch.nan
        rows[10] *= 1e-42 / rows[10].abs().max()
        rows[11] *= 1e30
        rows[12] *= 1e-30
        rows[13, 1:] = 0
    truth[:20] = torch.arange(20) % 14
    check(queries, gallery, truth, cpu_level)


def test_sums_of_extreme_integers(cpu_level):
    # Every product of bytes at its largest, of one sign: only the scale keeps sums from wrapping.
    signs = torch.tensor([1.0, -1.0])[torch.randint(0, 2, (150, 1))]
    level = signs * (1 + 1e-3 * torch.randn(150, 256))
    level[::3, 64:] *= 1e-3
    level[1::3, ::2] *= -1
    single = torch.zeros(150, 256)
    single[torch.arange(150), torch.randint(0, 256, (150,))] = 1.0
    truth = torch.randint(0, 150, (150,))
    check(level, level.flip(0), truth, cpu_level)
    check(level, single, truth, "one element each", ("legacy",))
    check(single, single.flip(0), truth, "one element each, both", ("legacy",))


def test_ties_of_small_integers(cpu_level):
    queries, gallery = torch.randint(-2, 3, (150, 140)), torch.randint(-2, 3, (130, 140))
    truth = (queries @ gallery.T).topk(2, dim=1).indices
    for ties in TIES:
        got = retrieval_ranks(queries.float(), gallery.float(), truth, ties=ties, both=True)
        want = retrieval_ranks(queries.double(), gallery.double(), truth, ties=ties, both=True)
        assert torch.equal(got.ranks0, want.ranks0), ties
        assert torch.equal(got.ranks1, want.ranks1), ties


def test_blocks_that_screening_gives_up(cpu_level):
    queries, gallery, truth = trained(400, 300, 256)
    queries[96:200] = F.normalize(torch.randn(104, 256), dim=1)
    check(queries, gallery, truth, "some blocks", ("legacy",))
    gallery[64:] = F.normalize(torch.randn(236, 256), dim=1)
    check(queries, gallery, truth, "most columns", ("legacy",))
    noise = torch.randn(200, 256), torch.randn(150, 256), torch.randint(0, 150, (200,))
    check(*noise, "nothing to screen", ("legacy",))


def test_layouts_and_threads(cpu_level):
    queries, gallery, truth = trained(230, 140, 200)
    wide = torch.randn(230, 400)
    wide[:, ::2] = queries
    want = retrieval_ranks(queries, gallery, truth, both=True)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        got = retrieval_ranks(wide[:, ::2], gallery.T.contiguous().T, truth, both=True)
        assert torch.equal(got.ranks0, want.ranks0), threads
        assert torch.equal(got.ranks1, want.ranks1), threads
