# SPDX-License-Identifier: Apache-2.0
"""The accuracy contract accepts what it should, refuses the rest, and names the worst element."""

from __future__ import annotations

import pytest
import torch

from patchword import testing


def test_worst_element_is_named():
    want = torch.zeros(2, 3, dtype=torch.float64)
    got = want.clone()
    got[1, 2] = 0.5
    got[0, 1] = 0.1
    with pytest.raises(AssertionError, match=r"op: 2 of 6 .* at \[1, 2\], is 0.5 .* allowed 0.01"):
        testing.assert_within(got, want, 0.01, "op")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_never_passes(bad):
    want = torch.ones(3, dtype=torch.float64)
    got = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(AssertionError, match=r"at \[1\]"):
        testing.assert_within(got, want, 1e9, "op")
    testing.assert_within(torch.tensor([bad]), torch.tensor([bad]), 0.0, "op")


def test_half_precision_gets_half_a_unit_and_no_more():
    want = torch.tensor([1.0 + 2.0**-11], dtype=torch.float64)
    testing.assert_interpolation(torch.tensor([1.0], dtype=torch.float16), want, 1.0, "op")
    above = torch.tensor([1.0 + 2.0**-9], dtype=torch.float16)
    with pytest.raises(AssertionError, match="op"):
        testing.assert_interpolation(above, want, 1.0, "op")
    with pytest.raises(AssertionError, match="op"):
        testing.assert_interpolation(torch.tensor([1.00001]), want * 0 + 1, 1.0, "op")


def test_index_rules():
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0 + 1e-7, 0.0]], dtype=torch.float64)
    testing.assert_indices(torch.tensor([1, 1]), scores, 0.0, "op")
    testing.assert_indices(torch.tensor([1, 0]), scores, 1e-6, "op")
    with pytest.raises(AssertionError, match=r"at \[0\], is 2 "):
        testing.assert_indices(torch.tensor([2, 1]), scores, 0.0, "op")
    with pytest.raises(AssertionError, match=r"at \[1\], is 2 "):
        testing.assert_indices(torch.tensor([1, 2]), scores, 1e-6, "op")
    nothing = torch.full((1, 2), torch.nan)
    testing.assert_indices(torch.tensor([-1]), nothing, 1e-6, "op")
    with pytest.raises(AssertionError, match="instead of -1"):
        testing.assert_indices(torch.tensor([0]), nothing, 1e-6, "op")


def test_gradient_is_relative():
    want = torch.tensor([1000.0, 1.0], dtype=torch.float64)
    testing.assert_gradient(torch.tensor([1000.005, 1.0]), want, "op")
    with pytest.raises(AssertionError, match="relative Frobenius error"):
        testing.assert_gradient(torch.tensor([1000.05, 1.0]), want, "op")
    with pytest.raises(AssertionError, match="worst element, at"):
        testing.assert_gradient(torch.tensor([1000.0, torch.nan]), want, "op")


def test_layouts_keep_values():
    tensor = torch.randn(2, 3, 5, 4)
    names = set()
    for name, view in testing.layouts(tensor):
        names.add((name, view.stride()))
        assert torch.equal(view, tensor), name
    assert len(names) == 8
    assert testing.expanded(tensor).stride(0) == 0
