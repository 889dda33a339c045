# SPDX-License-Identifier: Apache-2.0
"""Measures of how good an answer is, each a function of arrays."""

from patchword.metrics.correspondence import matching_accuracy
from patchword.metrics.localization import average_precision, pointing_hit
from patchword.metrics.retrieval import area_under_curve, recall_at, true_ranks

__all__ = [
    "area_under_curve",
    "average_precision",
    "matching_accuracy",
    "pointing_hit",
    "recall_at",
    "true_ranks",
]
