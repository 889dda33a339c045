# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs a shape of attention: ours or one of torch's, as measured (``routes.json``)."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch

from patchword import _library
from patchword.errors import ConfigError, OptionError

F = TypeVar("F", bound=Callable[..., Any])

NATIVE = "native"
SDPA_ROUTES = ("sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math")
"""torch's ``scaled_dot_product_attention``: its own choice, or one of its kernels preferred."""
ROUTES = (NATIVE, *SDPA_ROUTES)
FORMS = ("plain", "pair", "dual", "masked", "ragged")
DIRECTIONS = ("inference", "training")
DTYPES = ("float32", "bfloat16", "float16")
AXES = ("problems", "queries", "keys", "dim")
PROVENANCE = ("processor", "torch", "date", "command")

TABLE = Path(__file__).with_name("routes.json")
TABLE_VARIABLE = "PATCHWORD_ATTENTION_ROUTES"

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

Cell = tuple[str, str, str, int, int, int, int]
"""Dtype, form, direction, and the grid point of each axis."""


class Entry(NamedTuple):
    """The routes of one device: where they differ from ``native``, on a grid of shapes."""

    match: Mapping[str, Any]
    grid: tuple[tuple[int, ...], ...]
    """Points of each of ``AXES``, ascending."""

    edges: tuple[tuple[float, ...], ...]
    """Where the nearest point changes: between two points, at their geometric mean."""

    cells: Mapping[Cell, str]
    provenance: Mapping[str, Any]
    measured: bool


@dataclass(frozen=True)
class AttentionRoute:
    """Which kernel an attention op takes, and where that is known from."""

    name: str
    """``native``, or torch's ``scaled_dot_product_attention`` (``sdpa``), ``sdpa_flash``,
    ``sdpa_efficient``, ``sdpa_cudnn``, ``sdpa_math`` where one of its kernels is preferred."""

    source: str


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Reader:
    """Turns the decoded file into entries; every complaint names the file and the rule."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, rule: str, got: Any) -> ConfigError:
        return ConfigError(
            f"attention routes: {self.path} must {rule}, got {got!r}. "
            f"Measure it anew with python -m benchmarks.routes."
        )

    def read(self) -> tuple[Entry, ...]:
        try:
            table = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self.fail("be a file that can be read", error.strerror) from error
        except ValueError as error:
            raise self.fail("be JSON", str(error)) from error
        if not isinstance(table, dict) or not isinstance(table.get("devices"), list):
            raise self.fail('hold a list "devices"', table if not isinstance(table, dict) else None)
        return tuple(self.entry(device) for device in table["devices"])

    def entry(self, device: Any) -> Entry:
        if not isinstance(device, dict) or not isinstance(device.get("match"), dict):
            raise self.fail('give every device a "match"', device)
        match, grid = device["match"], []
        for axis in AXES:
            points = device.get("grid", {}).get(axis)
            good = isinstance(points, list) and all(type(n) is int and n > 0 for n in points)
            if not good or not points or sorted(set(points)) != points:
                raise self.fail(f"list the points of {axis} of {match} ascending", points)
            grid.append(tuple(points))
        provenance = device.get("provenance", {})
        measured = "not_measured" not in provenance
        if measured and (missing := [name for name in PROVENANCE if not provenance.get(name)]):
            raise self.fail(f"say where the routes of {match} come from", f"no {missing[0]}")
        cells: dict[Cell, str] = {}
        for rule in device.get("routes", []):
            if rule.get("route") not in ROUTES:
                raise self.fail(f"name only routes of {', '.join(ROUTES)}", rule.get("route"))
            for cell in self.expand(rule, grid):
                if cell in cells:
                    raise self.fail("give every shape one route", f"two for {cell}")
                cells[cell] = rule["route"]
        edges = tuple(tuple(math.sqrt(a * b) for a, b in pairwise(points)) for points in grid)
        return Entry(match, tuple(grid), edges, cells, provenance, measured)

    def expand(self, rule: Mapping[str, Any], grid: Sequence[tuple[int, ...]]) -> Iterator[Cell]:
        """Cells of a rule; what it leaves out means every value, a list means each of them."""
        every = dict(zip(AXES, grid, strict=True), dtype=DTYPES, form=FORMS, direction=DIRECTIONS)
        names = ("dtype", "form", "direction", *AXES)
        chosen = []
        for name in names:
            values = _as_list(rule.get(name, list(every[name])))
            if unknown := [value for value in values if value not in every[name]]:
                raise self.fail(f"route only values of {name} that exist", unknown[0])
            chosen.append(values)
        for cell in product(*chosen):
            yield cast(Cell, cell)


def read_table(path: str | Path) -> tuple[Entry, ...]:
    """Read and check a table of routes.

    Raises:
        ConfigError: It cannot be read, is not JSON, names an unknown route, gives a shape two
            routes, or does not say where they were measured.
    """
    return _Reader(Path(path)).read()


_table: tuple[Entry, ...] | None = None
_cache: dict[Any, str] = {}
_CACHED = 4096
_forced: str | None = None


def table() -> tuple[Entry, ...]:
    """The table in use, read once: the package's, or the one that the environment names."""
    global _table  # noqa: PLW0603 - read once per process
    if _table is None:
        _table = read_table(os.environ.get(TABLE_VARIABLE) or TABLE)
    return _table


def _forget() -> None:
    _cache.clear()
    _library.settings_changed()


@contextlib.contextmanager
def use_table(path: str | Path) -> Iterator[None]:
    """Take routes from another file for a while, in the whole process."""
    global _table  # noqa: PLW0603 - restored on exit
    before, _table = _table, read_table(path)
    _forget()
    try:
        yield
    finally:
        _table = before
        _forget()


@contextlib.contextmanager
def use_route(name: str | None) -> Iterator[None]:
    """Force a route for a while, in the whole process: for measurements and tests.

    Raises:
        OptionError: There is no such route.
    """
    global _forced  # noqa: PLW0603 - restored on exit
    if name is not None and name not in ROUTES:
        raise OptionError(f"use_route: name must be one of {', '.join(ROUTES)}, got {name!r}.")
    before, _forced = _forced, name
    _library.settings_changed()
    try:
        yield
    finally:
        _forced = before
        _library.settings_changed()


def forced() -> str | None:
    """The route that :func:`use_route` forces, if any."""
    return _forced


def _rank(match: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
    """How closely an entry describes a device: by name, by capability or level, by kind; or 0."""
    order = ("device", "cpu_level", "capability", "gpu")
    if any(facts.get(name) != value for name, value in match.items()):
        return 0
    return 1 + max((order.index(name) for name in match if name in order), default=-1)


def find_entry(facts: Mapping[str, Any]) -> Entry | None:
    """The entry that describes a device most closely, or None."""
    ranked = [(_rank(entry.match, facts), -i) for i, entry in enumerate(table())]
    best, place = max(ranked, default=(0, 0))
    return table()[-place] if best else None


def device_facts(is_cuda: bool, index: int) -> dict[str, Any]:
    """What entries are matched against."""
    if not is_cuda:
        level = None if _library.C is None else _library.C.cpu_level()
        return {"device": "cpu", "cpu_level": level}
    return {
        "device": "cuda",
        "gpu": torch.cuda.get_device_name(index),
        "capability": list(torch.cuda.get_device_capability(index)),
    }


def _constant(function: F) -> F:
    """Mark as ``torch.compiler.assume_constant_result`` does, without its import of 1.4 s."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# Under torch.compile a size may be symbolic and device names cannot be asked for: what is known of
# a device enters the trace as numbers and words, and sizes meet it in comparisons alone.
@_constant
def _edge(is_cuda: bool, index: int, axis: int, place: int) -> float:
    """Above which size a point of an axis is no longer the nearest."""
    entry = find_entry(device_facts(is_cuda, index))
    edges = () if entry is None else entry.edges[axis]
    return edges[place] if place < len(edges) else math.inf


@_constant
def _at(is_cuda: bool, index: int, dtype: str, form: str, direction: str, *places: int) -> str:
    """The route of a cell of the grid."""
    entry = find_entry(device_facts(is_cuda, index))
    if entry is None:
        return NATIVE
    problems, queries, keys, dim = (
        points[place] for points, place in zip(entry.grid, places, strict=True)
    )
    return entry.cells.get((dtype, form, direction, problems, queries, keys, dim), NATIVE)


def _look_up(
    is_cuda: bool, index: int, dtype: str, form: str, direction: str, sizes: tuple[int, ...]
) -> str:
    places = []
    for axis, size in enumerate(sizes):
        place = 0
        while size > _edge(is_cuda, index, axis, place):
            place += 1
        places.append(place)
    return _at(is_cuda, index, dtype, form, direction, *places)


def route(
    is_cuda: bool,
    index: int,
    dtype: torch.dtype,
    form: str,
    training: bool,
    sizes: tuple[int, int, int, int],
) -> str:
    """The route of a shape.

    Args:
        is_cuda: Whether the tensors are on a CUDA device, else the CPU.
        index: Number of that device; -1 for the CPU.
        dtype: Of queries, keys and values.
        form: One of ``FORMS``.
        training: Whether a gradient will be asked for.
        sizes: Batch elements times heads, queries, keys, head size.

    Returns:
        One of ``ROUTES``; ``native`` for a device without an entry.

    Raises:
        ConfigError: The table is not valid.
    """
    direction = "training" if training else "inference"
    if torch.compiler.is_compiling():
        name = _NAMES.get(dtype, "")
        return _look_up(is_cuda, index, name, form, direction, sizes)
    level = None if _library.C is None else _library.C.cpu_level()
    key = (index, is_cuda, level, dtype, form, training, sizes)
    found = _cache.get(key)
    if found is None:
        name = _NAMES.get(dtype, "")
        found = _look_up(is_cuda, index, name, form, direction, sizes)
        if len(_cache) >= _CACHED:
            _cache.clear()
        _cache[key] = found
    return found


def source(is_cuda: bool, index: int) -> str:
    """Where the routes of a device are known from, in words."""
    entry = find_entry(device_facts(is_cuda, index))
    if entry is None:
        return "not measured on this device: ours throughout"
    if not entry.measured:
        return f"not measured on this device: {entry.provenance['not_measured']}"
    facts = entry.provenance
    return f"measured on {facts['processor']}, torch {facts['torch']}, {facts['date']}"
