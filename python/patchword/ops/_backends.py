# SPDX-License-Identifier: Apache-2.0
"""Choose a backend, force one, and say why the others refuse."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from patchword import _library
from patchword.errors import BackendError, OptionError

logger = logging.getLogger(__name__)

Backend = Literal["native", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

# Answers with the reason why a backend cannot run these inputs, or None when it can.
Refusal = Callable[..., str | None]


def _check(name: str | None, where: str) -> Backend | None:
    if name is None or name in ("", "auto"):
        return None
    if name not in BACKENDS:
        raise OptionError(f"{where}: backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
    return name


_forced: Backend | None = _check(os.environ.get("PATCHWORD_BACKEND"), "PATCHWORD_BACKEND")
_logged: set[tuple[str, str]] = set()


@contextlib.contextmanager
def use_backend(name: Backend | None) -> Iterator[None]:
    """Force one backend for every op inside the ``with`` block, in the whole process.

    Args:
        name: ``"native"``, ``"triton"``, ``"reference"``, or None for the automatic choice.

    Raises:
        OptionError: The name is none of these.
    """
    global _forced  # noqa: PLW0603 - restored on exit
    before = _forced
    _forced = _check(name, "use_backend")
    _library.settings_changed()
    try:
        yield
    finally:
        _forced = before
        _library.settings_changed()


def is_forced() -> bool:
    """Whether :func:`use_backend` or the environment forces a backend."""
    return _forced is not None


def choose(
    op: str, refusals: Mapping[Backend, Refusal], forced: str | None, *args: Any, **options: Any
) -> Backend:
    """Name the backend that will run ``op`` on these inputs.

    The first of native, triton, reference that does not refuse; a forced one runs or raises.

    Raises:
        BackendError: The forced backend refuses; the message holds its reason.
    """
    wanted = _forced if forced is None else _check(forced, op) or _forced
    if wanted is not None:
        refuse = refusals.get(wanted)
        reason = refuse(*args, **options) if refuse else f"{op} has no {wanted} version"
        if reason is None:
            return wanted
        others = [name for name in refusals if name != wanted]
        remedy = " or ".join(f'backend="{name}"' for name in others)
        raise BackendError(
            f'{op}: backend "{wanted}" cannot run here: {reason}. Use {remedy}.', {wanted: reason}
        )
    for name, refuse in refusals.items():
        reason = refuse(*args, **options)
        if reason is None:
            return name
        _log_once(op, f"{name} refuses: {reason}")
    raise BackendError(f"{op}: no backend can run these inputs.")


def reasons(
    refusals: Mapping[Backend, Refusal], *args: Any, **options: Any
) -> dict[str, str | None]:
    """Every backend's refusal for these inputs; None where it would run."""
    return {
        name: refusals[name](*args, **options) if name in refusals else "there is no such version"
        for name in BACKENDS
    }


def _log_once(op: str, text: str) -> None:
    if (op, text) not in _logged:
        _logged.add((op, text))
        logger.debug("%s: %s", op, text)
