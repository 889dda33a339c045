# SPDX-License-Identifier: Apache-2.0
"""Relating all pairs: mirrored pictures turned back, what scores, and the order of pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from discovery_makers import (
    blank,
    identity_flow,
    output,
    ramp,
)
from torch import Tensor

from patchword.systems.segswap.cycles import pair_masks
from patchword.systems.segswap.relations import (
    all_pairs,
    relate_pairs,
    score_outputs,
    unmirror,
)


def test_mirrored_result_turns_back_to_one_minus_x() -> None:
    """Picture 1 is picture 0 mirrored; against the mirrored one the network says identity."""
    mask = blank()
    mask[2:6, 1:4] = 0.9
    raw = torch.from_numpy(output(mask))[None]
    out0, out1 = unmirror(raw, raw.clone())
    x, y = (torch.from_numpy(part).float() for part in identity_flow())
    torch.testing.assert_close(out0[0, 0], 1 - x)
    torch.testing.assert_close(out0[0, 1], y)
    torch.testing.assert_close(out1[0, 0], 1 - x)
    torch.testing.assert_close(out1[0, 1], y)
    torch.testing.assert_close(out1[0, 2], torch.from_numpy(mask[:, ::-1].copy()).float())
    # What one picture says of the other agrees, so nothing is lost by asking both.
    agreed0, agreed1 = pair_masks(out0, out1)
    torch.testing.assert_close(agreed0[0], out0[0, 2] ** 2)
    torch.testing.assert_close(agreed1[0], out1[0, 2] ** 2)

    wrong0, wrong1 = unmirror(raw, raw.clone(), published=True)
    torch.testing.assert_close(wrong0, raw)
    torch.testing.assert_close(wrong1[0, 0], 1 - x)
    torch.testing.assert_close(wrong1[0, 2], torch.from_numpy(mask[::-1].copy()).float())


class Stripes:
    """Pictures of colour columns; two are related by identity when equal, else not at all."""

    def __init__(self) -> None:
        self.described = 0

    def fingerprint(self) -> str:
        return "stripes"

    def describe(self, image: np.ndarray) -> Tensor:
        self.described += 1
        cells = torch.from_numpy(np.asarray(image)[8::16, 8::16].astype(np.float32) + 1)
        return torch.nn.functional.normalize(cells, dim=-1)

    def features(self, described: Tensor) -> Tensor:
        return described.flatten(0, 1)

    def relate(self, first: list[Tensor], second: list[Tensor]) -> tuple[Tensor, Tensor]:
        grid = tuple(first[0].shape[:2])
        shared = torch.from_numpy(output(np.full(grid, 0.95)))  # type: ignore[arg-type]
        alien = torch.from_numpy(output(np.full(grid, 0.05)))  # type: ignore[arg-type]
        both = [shared if torch.equal(a, b) else alien for a, b in zip(first, second, strict=True)]
        return torch.stack(both), torch.stack(both).clone()


def test_flip_is_taken_where_it_explains_more() -> None:
    model = Stripes()
    pictures = [ramp(), ramp()[:, ::-1].copy()]
    described = [model.describe(picture) for picture in pictures]
    mirrored = [model.describe(picture[:, ::-1].copy()) for picture in pictures]
    pairs = all_pairs(2)
    plain = relate_pairs(model, described, pairs)
    assert plain.scores.tolist() == [[0.0, 0.0]]
    turned = relate_pairs(model, described, pairs, mirrored=mirrored)
    # 30 cells of weight 0.95 squared, and descriptors that agree exactly.
    assert turned.scores[0] == pytest.approx([30 * 0.95**2] * 2, rel=1e-5)
    np.testing.assert_allclose(turned.output0[0, 0], 1 - identity_flow((5, 6))[0], atol=1e-6)
    faulty = relate_pairs(model, described, pairs, mirrored=mirrored, published_flip=True)
    np.testing.assert_allclose(faulty.output0[0, 0], identity_flow((5, 6))[0], atol=1e-6)
    assert faulty.scores[0, 0] < turned.scores[0, 0]


def test_small_agreement_scores_nothing() -> None:
    features = torch.nn.functional.normalize(torch.rand(1, 900, 8), dim=-1)
    for cells, scored in ((8, False), (10, True)):
        mask = np.zeros((30, 30))
        mask.flat[:cells] = 1.0
        out = torch.from_numpy(output(mask))[None]
        scores = score_outputs(out, out.clone(), features, features)
        assert scores[0].tolist() == pytest.approx([cells * scored] * 2, abs=1e-4)


def test_all_pairs_are_lexicographic() -> None:
    assert all_pairs(4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert len(all_pairs(100)) == 4950
