# SPDX-License-Identifier: Apache-2.0
"""The journal of a folder run: one JSON line per picture, appended once its results are on disk."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from patchword.inference.atomic import make_folder, output_error

Record = dict[str, Any]


class Journal:
    """Append-only JSON lines that survive a kill at any byte.

    A line holds ``key``, ``stamp`` and ``status`` (``"ok"`` or ``"failed"``) beside the caller's
    own fields. The last line of a key counts. Memory is 24 bytes per line, not the lines
    themselves: a million pictures cost 24 MB.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` for reading and appending, and cut off a half-written last line.

        Raises:
            OutputError: The file cannot be opened or written.
        """
        self.path = path
        make_folder(path.parent)
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise output_error(path, error) from error
        keys, versions, offsets = array("Q"), array("Q"), array("Q")
        end = 0
        self._file.seek(0)
        for line in self._file:
            record = _parse(line)
            if record is not None:
                keys.append(_digest(record["key"]))
                versions.append(_version(record["key"], record["stamp"], record["status"]))
                offsets.append(end)
            elif not line.endswith(b"\n"):
                break
            end += len(line)
        self._file.truncate(end)
        self._keys, self._versions, self._offsets = keys, versions, offsets
        # Looked up only for lines of earlier runs: a run meets each key once.
        self._order = np.argsort(np.asarray(versions, dtype=np.uint64), kind="stable")
        self._sorted = np.asarray(versions, dtype=np.uint64)[self._order]

    def find(self, key: str, stamp: tuple[int, int]) -> Record | None:
        """Give the successful record of this version of a picture, if an earlier run has it."""
        version = np.uint64(_version(key, stamp, "ok"))
        position = int(np.searchsorted(self._sorted, version, side="right")) - 1
        if position < 0 or self._sorted[position] != version:
            return None
        return self._read(self._offsets[int(self._order[position])])

    def append(self, record: Record) -> None:
        """Add a line and wait until it is on disk.

        Raises:
            OutputError: It cannot be written, for instance because the disk is full.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error
        self._keys.append(_digest(record["key"]))
        self._versions.append(_version(record["key"], record["stamp"], record["status"]))
        self._offsets.append(offset)

    def latest(self, seen: array[int]) -> Iterator[Record]:
        """Yield the last record of each key in ``seen`` (values of :func:`key_digest`).

        The order is that of the lines, which for an uninterrupted run is that of the folder.
        """
        for index in self._last(seen):
            yield self._read(self._offsets[index])

    def ranked(self, seen: array[int], field: str) -> Iterator[Record]:
        """Yield the successful ones of :meth:`latest` by falling ``field``; ties as they came.

        Memory holds two numbers per record; lines are read again one by one.
        """
        values, indices = array("d"), array("Q")
        for index in self._last(seen):
            record = self._read(self._offsets[index])
            if record["status"] == "ok":
                values.append(record[field])
                indices.append(index)
        for place in np.argsort(-np.asarray(values, dtype=np.float64), kind="stable"):
            yield self._read(self._offsets[indices[int(place)]])

    def _last(self, seen: array[int]) -> list[int]:
        keys = np.asarray(self._keys, dtype=np.uint64)
        _, from_end = np.unique(keys[::-1], return_index=True)
        last = np.sort(len(keys) - 1 - from_end)
        wanted = np.isin(keys[last], np.asarray(seen, dtype=np.uint64))
        return [int(index) for index in last[wanted]]

    def close(self) -> None:
        """Close the file; lines are on disk already."""
        self._file.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def _read(self, offset: int) -> Record:
        self._file.seek(offset)
        record: Record = json.loads(self._file.readline())
        return record


def key_digest(key: str) -> int:
    """Give the 64-bit digest under which a journal knows a key."""
    return _digest(key)


def _digest(text: str) -> int:
    hashed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


def _version(key: str, stamp: Any, status: str) -> int:
    return _digest(f"{key}\0{stamp[0]}\0{stamp[1]}\0{status}")


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        return record if {"key", "stamp", "status"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None
