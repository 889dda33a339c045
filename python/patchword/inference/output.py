# SPDX-License-Identifier: Apache-2.0
"""The result folder of a run: whose it is, whether it may be used, and the lock on it."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from patchword.data.io import printable
from patchword.errors import ConfigError
from patchword.inference.atomic import make_folder, output_error, write_json

RUN_FILE = "run.json"
JOURNAL_FILE = "journal.jsonl"
# What a run may leave in its folder; --overwrite removes these and nothing else.
_OWN_FOLDERS = ("items", "hits", "pages")
_OWN_FILES = (
    *(RUN_FILE, JOURNAL_FILE, "result.json", "ranking.json*", "index.html"),
    *("mask[01].png", "heatmap_*.png", "labels.png", "overlay.png", "query.jpg"),
    *("coloured.png", "isolated_*.png", "maps.npy"),
)
_FORMAT = "patchword-run/1"


def check_output(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    inputs: tuple[Path, ...] = (),
    overwrite: bool = False,
) -> None:
    """Refuse a result folder that would damage something; writes nothing.

    Args:
        folder: Where results shall go; it need not exist.
        settings: JSON-ready settings of the run. A folder that holds results of the same
            settings is continued; one with others needs ``overwrite``.
        inputs: Folders that are read; results may not go to one of them or around it.
        overwrite: Allow a folder that is in use for something else.

    Raises:
        ConfigError: ``folder`` is or contains an input, or is in use and ``overwrite`` is off.
        OutputError: Something that is no folder is in the way.
    """
    target = folder.resolve()
    for given in inputs:
        source = given.resolve()
        if target == source or target in source.parents:
            raise ConfigError(
                f"output: the result folder must not be or contain the input folder, got "
                f"{printable(folder)}. Choose another with -o."
            )
    try:
        in_use = folder.exists() and next(folder.iterdir(), None) is not None
    except OSError as error:
        raise output_error(folder, error) from error
    if not in_use or overwrite:
        return
    before = _read_settings(folder)
    if before is None:
        raise ConfigError(
            f"output: the result folder must be new, empty or of the same run, but "
            f"{printable(folder)} holds other files. Choose another or pass --overwrite."
        )
    changed = sorted(
        name for name in {*before, *settings} if before.get(name) != settings.get(name)
    )
    if changed:
        raise ConfigError(
            f"output: {printable(folder)} holds results of other settings (different: "
            f"{', '.join(changed)}). Choose another folder or pass --overwrite."
        )


@contextmanager
def open_output(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    inputs: tuple[Path, ...] = (),
    overwrite: bool = False,
) -> Iterator[Path]:
    """Make the result folder, lock it against other runs, and note the settings in ``run.json``.

    With ``overwrite``, what an earlier run left is removed first; foreign files stay. Arguments
    and errors are those of :func:`check_output`, and ConfigError when another process is writing
    there.
    """
    check_output(folder, settings, inputs=inputs, overwrite=overwrite)
    make_folder(folder)
    lock_path = folder / ".lock"
    try:
        lock = lock_path.open("wb")
    except OSError as error:
        raise output_error(lock_path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"output: another run is writing to {printable(folder)}. Wait for it or choose "
                "another folder."
            ) from error
        before = _read_settings(folder)
        if before is not None and overwrite:
            _remove_results(folder)
        write_json(folder / RUN_FILE, {"format": _FORMAT, **settings})
        yield folder


def _read_settings(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        settings = json.loads((folder / RUN_FILE).read_text("utf-8"))
        if isinstance(settings, dict) and settings.pop("format", None) == _FORMAT:
            return settings
    return None


def _remove_results(folder: Path) -> None:
    try:
        for name in _OWN_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for pattern in _OWN_FILES:
            for path in folder.glob(pattern):
                path.unlink()
    except OSError as error:
        raise output_error(folder, error) from error
