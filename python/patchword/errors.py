# SPDX-License-Identifier: Apache-2.0
"""The exception tree.

Every message is one sentence, ``function: argument must rule, got value. remedy.``
Every class also derives from the built-in exception that a caller would expect.
"""

from __future__ import annotations

from collections.abc import Mapping


class PatchwordError(Exception):
    """Base of every error that patchword raises on purpose."""


class ShapeError(PatchwordError, ValueError):
    """A tensor has the wrong rank or size."""

    def __init__(self, message: str, expected: object = None, actual: object = None) -> None:
        """Store the message and, where known, the expected and the actual shape."""
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class DTypeError(PatchwordError, TypeError):
    """Element types or devices that do not fit together."""


class OptionError(PatchwordError, ValueError):
    """An option has a value outside its documented choices or range."""


class BackendError(PatchwordError, RuntimeError):
    """A forced backend cannot run these inputs; ``reasons`` says why, per backend."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        """Store the message and the refusals by backend name."""
        super().__init__(message)
        self.reasons = dict(reasons or {})


class ConfigError(PatchwordError, ValueError):
    """A configuration or command line is wrong or contradicts itself."""


class CheckpointError(PatchwordError, RuntimeError):
    """A weights file is damaged, unsafe, or made for something else."""


class DatasetError(PatchwordError, RuntimeError):
    """A file or record cannot be read; ``path`` and ``record`` say which."""

    def __init__(self, message: str, path: object = None, record: object = None) -> None:
        """Store the message, the path of the file and the record's name."""
        super().__init__(message)
        self.path = path
        self.record = record


class OutputError(PatchwordError, OSError):
    """A result cannot be written where it was asked to go."""
