# SPDX-License-Identifier: Apache-2.0
"""The path language of SVG: commands to polylines."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Pair = tuple[float, float]

MAX_POINTS = 2_000_000
"""Most points of one drawing."""

_COMMANDS = re.compile(r"([MmLlHhVvCcSsQqTtAaZz])([^MmLlHhVvCcSsQqTtAaZz]*)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# The two flags of an arc may stand without blanks between them and the next number.
_ARC = re.compile(
    r"[\s,]*({n})[\s,]*({n})[\s,]*({n})[\s,]*([01])[\s,]*([01])[\s,]*({n})[\s,]*({n})".replace(
        "{n}", _NUMBER.pattern
    )
)
_ARGUMENTS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
# Straight pieces a curve or half a turn becomes: at 512 pixels a side the error is below one.
_PIECES = 16


def path_strokes(text: str) -> list[Points]:
    """Polylines ``[n, 2]`` of a path's ``d`` attribute, one for each part that starts with M.

    Raises:
        ValueError: The text is no path.
    """
    if text.strip() and not text.lstrip().startswith(("M", "m")):
        raise ValueError("a path does not start with M")
    walker = _Walker()
    for letter, inside in _COMMANDS.findall(text):
        kind = letter.upper()
        numbers = _arc_numbers(inside) if kind == "A" else _numbers(inside)
        count = _ARGUMENTS[kind]
        if (count == 0) != (len(numbers) == 0) or (count and len(numbers) % count):
            raise ValueError(f"path command {letter} has {len(numbers)} numbers")
        if count == 0:
            walker.close()
        for start in range(0, len(numbers), max(count, 1)):
            # Further pairs after M are lines.
            step = "L" if kind == "M" and start else kind
            walker.step(step, numbers[start : start + count], relative=letter.islower())
        if walker.points > MAX_POINTS:
            raise ValueError(f"it has more than {MAX_POINTS} points")
    return walker.strokes()


def arc_points(centre: Pair, radius: Pair, tilt: float, start: float, sweep: float) -> Points:
    """Points along an ellipse from an angle over a signed sweep, in radians."""
    count = max(2, math.ceil(abs(sweep) / math.pi * _PIECES) + 1)
    angles = start + np.linspace(0.0, sweep, count)
    x, y = radius[0] * np.cos(angles), radius[1] * np.sin(angles)
    cos, sin = math.cos(tilt), math.sin(tilt)
    return np.column_stack([centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y])


def _numbers(text: str) -> list[float]:
    if _NUMBER.sub(" ", text).replace(",", " ").strip():
        raise ValueError(f"a path holds {text.strip()[:20]!r}")
    return [float(one) for one in _NUMBER.findall(text)]


def _arc_numbers(text: str) -> list[float]:
    if _ARC.sub("", text).strip(" \t\r\n,"):
        raise ValueError(f"an arc holds {text.strip()[:20]!r}")
    return [float(one) for found in _ARC.findall(text) for one in found]


class _Walker:
    """Follows a path and remembers what its next command refers to."""

    def __init__(self) -> None:
        self.points = 0
        self._parts: list[list[Points]] = []
        self._here = np.zeros(2)
        self._start = np.zeros(2)
        self._cubic: Points | None = None
        self._quadratic: Points | None = None

    def strokes(self) -> list[Points]:
        """All parts; a part of one point is a dot."""
        return [np.vstack(part) for part in self._parts]

    def close(self) -> None:
        """Draw back to where the part started."""
        self._go(self._start[None])
        self._cubic = self._quadratic = None

    def step(self, kind: str, numbers: list[float], *, relative: bool) -> None:
        """Follow one command with its numbers."""
        cubic, quadratic, self._cubic, self._quadratic = self._cubic, self._quadratic, None, None
        origin = self._here if relative else np.zeros(2)
        if kind == "A":
            self._arc(numbers, origin + numbers[5:])
            return
        if kind in "HV":
            target = self._here.copy()
            target["HV".index(kind)] = origin["HV".index(kind)] + numbers[0]
            self._go(target[None])
            return
        points = np.array(numbers).reshape(-1, 2) + origin
        if kind == "M":
            self._here = self._start = points[0]
            self._parts.append([points])
            self.points += 1
        elif kind == "L":
            self._go(points)
        elif kind in "CS":
            first = points[0] if kind == "C" else self._mirrored(cubic)
            second, end = points[-2], points[-1]
            here = self._here
            self._curve(
                lambda t: (
                    (1 - t) ** 3 * here
                    + 3 * (1 - t) ** 2 * t * first
                    + 3 * (1 - t) * t**2 * second
                    + t**3 * end
                )
            )
            self._cubic = second
        else:
            middle = points[0] if kind == "Q" else self._mirrored(quadratic)
            end, here = points[-1], self._here
            self._curve(lambda t: (1 - t) ** 2 * here + 2 * (1 - t) * t * middle + t**2 * end)
            self._quadratic = middle

    def _mirrored(self, control: Points | None) -> Points:
        return self._here if control is None else 2 * self._here - control

    def _curve(self, at: Callable[[Points], Points]) -> None:
        self._go(at(np.linspace(0, 1, _PIECES + 1)[1:, None]))

    def _go(self, points: Points) -> None:
        if not self._parts:
            return
        if np.array_equal(self._here, self._start) and len(self._parts[-1]) > 1:
            # Drawing goes on after the part was closed.
            self._parts.append([self._here[None]])
        self._parts[-1].append(points)
        self._here = points[-1]
        self.points += len(points)

    def _arc(self, numbers: list[float], end: Points) -> None:
        """Endpoint form to centre form, as the standard's appendix F.6 derives it."""
        rx, ry, degrees, large, clockwise = abs(numbers[0]), abs(numbers[1]), *numbers[2:5]
        tilt = math.radians(degrees)
        if rx == 0 or ry == 0 or np.array_equal(end, self._here):
            self._go(end[None])
            return
        turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        half = turn @ (self._here - end) / 2
        excess = (half[0] / rx) ** 2 + (half[1] / ry) ** 2
        if excess > 1:
            rx, ry = rx * math.sqrt(excess), ry * math.sqrt(excess)
        room = max(0.0, 1 / min(max(excess, 1e-30), 1.0) - 1) if excess <= 1 else 0.0
        sign = -1 if large == clockwise else 1
        middle = sign * math.sqrt(room) * np.array([rx * half[1] / ry, -ry * half[0] / rx])
        centre = turn.T @ middle + (self._here + end) / 2
        first = math.atan2((half[1] - middle[1]) / ry, (half[0] - middle[0]) / rx)
        last = math.atan2((-half[1] - middle[1]) / ry, (-half[0] - middle[0]) / rx)
        sweep = (last - first) % (2 * math.pi)
        if not clockwise:
            sweep -= 2 * math.pi
        points = arc_points((centre[0], centre[1]), (rx, ry), tilt, first, sweep)[1:]
        points[-1] = end
        self._go(points)
