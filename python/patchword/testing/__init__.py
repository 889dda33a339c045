# SPDX-License-Identifier: Apache-2.0
"""Helpers for tests of ops, ours and those of people who build on them."""

from patchword.testing.contract import (
    Mode,
    assert_attention,
    assert_dot,
    assert_gradient,
    assert_indices,
    assert_interpolation,
    assert_labels,
    assert_log_sum_exp,
    assert_matches,
    assert_probability,
    assert_within,
    dot_tolerance,
    rounding,
)
from patchword.testing.layouts import expanded, layouts, strided

__all__ = [
    "Mode",
    "assert_attention",
    "assert_dot",
    "assert_gradient",
    "assert_indices",
    "assert_interpolation",
    "assert_labels",
    "assert_log_sum_exp",
    "assert_matches",
    "assert_probability",
    "assert_within",
    "dot_tolerance",
    "expanded",
    "layouts",
    "rounding",
    "strided",
]
