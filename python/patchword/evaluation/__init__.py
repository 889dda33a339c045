# SPDX-License-Identifier: Apache-2.0
"""Fixed protocols that measure ``match`` and ``locate`` on labelled folders."""

from patchword.evaluation.locate import evaluate_locate
from patchword.evaluation.match import evaluate_match
from patchword.evaluation.report import EvaluationReport

__all__ = ["EvaluationReport", "evaluate_locate", "evaluate_match"]
