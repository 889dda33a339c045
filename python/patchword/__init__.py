# SPDX-License-Identifier: Apache-2.0
"""Which patch of this picture is the same thing as that patch, or as these words?

Public names are imported on first use, so that ``import patchword`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "match": "patchword.systems.segswap.joint",
    "Matcher": "patchword.matching",
    "locate": "patchword.localization",
    "Localizer": "patchword.localization",
    "MatchResult": "patchword.structures",
    "LocateResult": "patchword.structures",
    "ops": "patchword.ops",
    "use_backend": "patchword.ops",
    "explain": "patchword.ops",
    "load": "patchword.systems",
}

__all__ = [
    "Localizer",
    "LocateResult",
    "MatchResult",
    "Matcher",
    "__version__",
    "explain",
    "load",
    "locate",
    "match",
    "ops",
    "use_backend",
]

if TYPE_CHECKING:
    from patchword import ops as ops
    from patchword.localization import Localizer as Localizer
    from patchword.localization import locate as locate
    from patchword.matching import Matcher as Matcher
    from patchword.ops import explain as explain
    from patchword.ops import use_backend as use_backend
    from patchword.structures import LocateResult as LocateResult
    from patchword.structures import MatchResult as MatchResult
    from patchword.systems import load as load
    from patchword.systems.segswap.joint import match as match


def __getattr__(name: str) -> Any:
    """Import a public name the first time somebody asks for it."""
    if name not in _LAZY:
        raise AttributeError(f"module 'patchword' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    value = module if _LAZY[name] == f"patchword.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
