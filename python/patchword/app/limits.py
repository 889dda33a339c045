# SPDX-License-Identifier: Apache-2.0
"""What a visitor of the page may ask for, so that one request cannot exhaust the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one request.

    Attributes:
        max_bytes: Largest request body, both pictures of a match included.
        max_pixels: Largest ``H * W`` of a picture, refused from its header.
        max_words: Most phrases at once.
        max_phrase: Longest phrase in characters.
        max_waiting: Most requests that wait while another computes; the next gets "busy".
        max_side: Longest side at which pictures are worked on and shown; larger ones are reduced.
        kept_bytes: Heat maps kept so that moving the threshold computes nothing again; the newest
            result is always kept.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 12_000_000
    max_words: int = 60
    max_phrase: int = 120
    max_waiting: int = 4
    max_side: int = 1600
    kept_bytes: int = 512 * 1024 * 1024
