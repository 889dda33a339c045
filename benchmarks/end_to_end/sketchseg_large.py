# SPDX-License-Identifier: Apache-2.0
"""The sketch rows whose peers take many minutes a call, apart so that a full run stays short."""

from benchmarks.end_to_end.sketchseg import LARGE_ROWS as ROWS

__all__ = ["ROWS"]
