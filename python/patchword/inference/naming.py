# SPDX-License-Identifier: Apache-2.0
"""File names made from free text."""

import re
import unicodedata

_MAX_CHARS = 40


def slug(text: str) -> str:
    """Turn any text into a short file name of lower-case ASCII letters, digits and dashes."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:_MAX_CHARS].rstrip("-") or "x"
