# SPDX-License-Identifier: Apache-2.0
"""Parses the command line, runs one command, and turns its end into output and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import tyro

from patchword import __version__
from patchword.cli import common
from patchword.cli.app import App
from patchword.cli.common import CommonFlags, complain, envelope, json_line, print_line
from patchword.cli.convert import ConvertSegswap, ConvertSketchseg
from patchword.cli.data import DataSegswap
from patchword.cli.data_sketchseg import DataSketchseg
from patchword.cli.env import Env
from patchword.cli.evaluate import EvaluateLocate, EvaluateMatch
from patchword.cli.evaluate_segswap import EvaluateSegswapInternet
from patchword.cli.evaluate_segswap_retrieval import (
    EvaluateBrueghel,
    EvaluatePitts30k,
    EvaluateTokyo247,
)
from patchword.cli.evaluate_sketchseg import EvaluateSketchseg
from patchword.cli.locate import Locate
from patchword.cli.match import Match
from patchword.cli.ops import OpsExplain, OpsList
from patchword.cli.train import Train
from patchword.errors import ConfigError, OptionError, PatchwordError

COMMANDS: dict[str, type[CommonFlags]] = {
    "match": Match,
    "locate": Locate,
    "app": App,
    "evaluate match": EvaluateMatch,
    "evaluate locate": EvaluateLocate,
    "evaluate segswap brueghel": EvaluateBrueghel,
    "evaluate segswap tokyo247": EvaluateTokyo247,
    "evaluate segswap pitts30k": EvaluatePitts30k,
    "evaluate segswap internet": EvaluateSegswapInternet,
    "evaluate sketchseg": EvaluateSketchseg,
    "train": Train,
    "data segswap": DataSegswap,
    "data sketchseg": DataSketchseg,
    "convert segswap": ConvertSegswap,
    "convert sketchseg": ConvertSketchseg,
    "env": Env,
    "ops list": OpsList,
    "ops explain": OpsExplain,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``patchword`` with ``arguments`` (by default those of the process).

    Returns:
        0 done, 1 failed (also: some files could not be read), 2 wrong usage, 3 an ``--expect``
        was not met, 130 interrupted after saving.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        name, flags = _parse(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else common.USAGE
    if flags is None:
        return common.DONE
    return _run(name, flags)


def _parse(words: list[str]) -> tuple[str, CommonFlags | None]:
    if not words or words[0] in ("-h", "--help"):
        _top_help(to_error=not words)
        if not words:
            raise SystemExit(common.USAGE)
        return "", None
    if words[0] == "--version":
        print_line(f"patchword {__version__}")
        return "", None
    for length in (3, 2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, _parse_flags(name, words[length:])
    members = [name for name in COMMANDS if name.split()[0] == words[0]]
    if members and words[1:2] in ([], ["-h"], ["--help"]):
        _top_help(members, to_error=len(words) == 1)
        raise SystemExit(common.USAGE if len(words) == 1 else common.DONE)
    known = members or list(COMMANDS)
    complain(f"there is no command {' '.join(words[:2])!r}; known are: {', '.join(known)}.")
    raise SystemExit(common.USAGE)


def _parse_flags(name: str, words: list[str]) -> CommonFlags:
    command = COMMANDS[name]
    try:
        return tyro.cli(
            command,
            prog=f"patchword {name}",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as end:
        # tyro has no epilogue; a page of flags should still end with something to copy.
        if end.code in (0, None):
            print_line(f"example:\n  {command.example}")
        raise


def _top_help(members: Sequence[str] = tuple(COMMANDS), *, to_error: bool = False) -> None:
    width = max(map(len, members))
    lines = ["usage: patchword COMMAND ... [--help]", ""]
    lines += [f"  {name:<{width}}  {_first_line(COMMANDS[name])}" for name in members]
    lines += ["", "example:", f"  {COMMANDS[members[0]].example}"]
    text = "\n".join(lines)
    if to_error:
        sys.stderr.write(text + "\n")
    else:
        print_line(text)


def _first_line(command: type[CommonFlags]) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


def _run(name: str, flags: CommonFlags) -> int:
    with common.logging_to_stderr(flags) as notes, warnings.catch_warnings():
        if not flags.verbose:
            warnings.simplefilter("ignore")

        def fail(message: str, kind: str, code: int) -> int:
            return _fail(name, flags, notes, message=message, kind=kind, code=code)

        try:
            flags.check()
            outcome = flags.run(name)
            if flags.json:
                print_line(json_line(envelope(name, outcome.result, notes)))
            elif not flags.jsonl:
                print_line(outcome.text)
            return outcome.code
        except KeyboardInterrupt:
            return fail("interrupted", "KeyboardInterrupt", common.INTERRUPTED)
        except (ConfigError, OptionError) as error:
            return fail(str(error), type(error).__name__, common.USAGE)
        except PatchwordError as error:
            return fail(str(error), type(error).__name__, common.FAILED)
        except BrokenPipeError:
            # The reader of stdout has gone, as in `patchword ... | head -1`. Python would complain
            # once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return common.FAILED
        except Exception as error:
            text = " ".join(str(error).split())
            message = f"unexpected {type(error).__name__}: {text} (--verbose shows where)"
            return fail(message, type(error).__name__, common.FAILED)


def _fail(
    name: str, flags: CommonFlags, notes: list[str], *, message: str, kind: str, code: int
) -> int:
    if flags.verbose and sys.exc_info()[0] is not None:
        traceback.print_exc(file=sys.stderr)
    complain(message)
    if flags.json and not flags.jsonl:
        error = {"type": kind, "message": message}
        print_line(json_line(envelope(name, None, notes, error)))
    return code
