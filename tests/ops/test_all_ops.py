# SPDX-License-Identifier: Apache-2.0
"""What every public op must do: run without compiled parts, refuse clearly, explain itself."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from patchword import _library
from patchword.errors import BackendError, OptionError, PatchwordError
from patchword.ops import OPS, explain, use_backend
from patchword.ops._backends import BACKENDS


def _descriptors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 5, 8), torch.randn(2, 7, 8)


def _tokens(count: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(count, 2, 3, 5, 8).unbind(0))


# Small valid arguments of each op: positional ones, then options.
EXAMPLES: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "attention": lambda: (_tokens(3), {}),
    "co_attention": lambda: (_tokens(6), {}),
    "confusion_counts": lambda: (
        (torch.randint(0, 3, (2, 9, 7)), torch.randint(0, 3, (2, 9, 7)), 3),
        {},
    ),
    "cycle_consistency": lambda: ((*_descriptors(), torch.rand(2, 5, 2)), {}),
    "dual_attention": lambda: (_tokens(3), {}),
    "dual_softmax_matches": lambda: (_descriptors(), {}),
    "fold_units": lambda: ((torch.randn(2, 6), torch.randn(6, 5), 3), {}),
    "folded_heatmap": lambda: ((torch.randn(1, 5, 3, 4), torch.randn(2, 5)), {}),
    "keypoint_join": lambda: (
        (torch.tensor([1, 4, 6, 4, 5, 6]), torch.tensor([0, 3, 6]), torch.tensor([[0, 1], [1, 1]])),
        {},
    ),
    "mask_upsample": lambda: ((torch.randn(1, 3, 4, 4), (9, 7)), {"output": "labels"}),
    "match_logsumexp": lambda: (_descriptors(), {}),
    "match_score": lambda: (
        (*_descriptors(), torch.rand(2, 5, 2), torch.rand(2, 5)),
        {"grid": (1, 7)},
    ),
    "mutual_nearest_neighbors": lambda: (_descriptors(), {}),
    "nearest_neighbors": lambda: (_descriptors(), {}),
    "pair_attention": lambda: (_tokens(6), {"cross": True}),
    "pamr": lambda: ((torch.rand(1, 3, 5, 4), torch.rand(1, 2, 5, 4), (1, 2), 2), {}),
    "patch_similarity": lambda: ((torch.randn(1, 6, 8), torch.randn(3, 8)), {}),
    "point_infonce": lambda: (
        (
            torch.randn(2, 3, 4, 4),
            torch.tensor([0, 1]),
            torch.rand(2, 2),
            torch.tensor([[1, 0], [0, 1]]),
            torch.rand(2, 2, 2),
        ),
        {},
    ),
    "retrieval_ranks": lambda: (
        (torch.randn(4, 8), torch.randn(5, 8), torch.tensor([0, 4, 2, -1])),
        {},
    ),
    "sample_features": lambda: ((torch.randn(1, 3, 4, 4), torch.rand(1, 5, 2) * 4), {}),
    "score_ranks": lambda: ((torch.randn(4, 5), torch.tensor([0, 4, 2, -1])), {}),
    "sru": lambda: ((torch.randn(3, 2, 4, 6), torch.randn(12), torch.randn(12)), {}),
    "upsampled_confusion": lambda: (
        (torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 9, 7))),
        {},
    ),
    "value_attention": lambda: (_tokens(1), {}),
    "weldon_pool": lambda: ((torch.randn(2, 3, 4, 5), 3, 2), {}),
}


def call(op: str, **more: Any) -> Any:
    torch.manual_seed(0)
    arguments, options = EXAMPLES[op]()
    function = getattr(import_module(f"patchword.ops.{OPS[op]}"), op)
    return function(*arguments, **options, **more)


@pytest.fixture(params=sorted(OPS))
def op(request: pytest.FixtureRequest) -> str:
    assert request.param in EXAMPLES, f"give {request.param} an entry in EXAMPLES of this file"
    return request.param


def test_public_and_documented(op):
    ops = import_module("patchword.ops")
    assert op in ops.__all__
    function = getattr(ops, op)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, f"{op} documents no {section[:-1].lower()}"
    parameters = inspect.signature(function).parameters
    assert list(parameters)[-1] == "backend"
    assert parameters["backend"].default is None
    for name in list(parameters)[list(parameters).index("backend") :]:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_reference_always_runs(op):
    assert call(op, backend="reference") is not None


def test_unknown_backend_is_refused_by_name(op):
    with pytest.raises(OptionError, match="must be one of native, triton, reference, got 'fast'"):
        call(op, backend="fast")
    with pytest.raises(OptionError, match="got 'fast'"), use_backend("fast"):
        pass


def refusal(op: str, **more: Any) -> BackendError | None:
    try:
        call(op, **more)
    except BackendError as error:
        return error
    return None


@pytest.mark.parametrize("name", BACKENDS)
def test_forced_backend_runs_or_says_why(op, name):
    error = refusal(op, backend=name)
    with use_backend(name):
        assert (refusal(op) is None) == (error is None)
    if error is None:
        return
    text = str(error)
    assert text.startswith(f'{op}: backend "{name}" cannot run here: ')
    assert text.endswith(".")
    assert "\n" not in text
    assert "Use backend=" in text
    assert error.reasons[name] in text


def test_explain_names_every_backend(op):
    arguments, options = EXAMPLES[op]()
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    room = import_module(f"patchword.ops.{OPS[op]}")
    assert "reference" in room.refusals
    try:
        reasons = explain(op, *tensors, **options)
    except TypeError:
        reasons = explain(op, *tensors)  # the answers depend on no option
    assert set(reasons) == set(BACKENDS)
    assert reasons["reference"] is None
    if _library.C is not None:
        assert reasons["native"] is None
    else:
        assert reasons["native"] == _library.missing_reason


ALONE = """
import torch
from importlib import import_module
import sys
sys.path.insert(0, {here!r})
from test_all_ops import EXAMPLES, OPS, call
from patchword import _library
from patchword.ops import explain
assert _library.C is None
for op in sorted(OPS):
    call(op)
    try:
        call(op, backend="native")
    except Exception as error:
        print(op, "|", type(error).__name__, "|", error)
    else:
        raise SystemExit(op + " ran natively without the compiled module")
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    package = os.path.dirname(os.path.dirname(inspect.getfile(_library)))  # noqa: PTH120
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_everything_runs_without_the_compiled_module():
    here = os.path.dirname(__file__)  # noqa: PTH120
    result = run_python(ALONE.format(here=here), PATCHWORD_NATIVE="0")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(OPS)
    for line in lines:
        assert "BackendError" in line
        assert "switched off by PATCHWORD_NATIVE=0" in line


@pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")
@pytest.mark.parametrize(
    ("level", "sentence"),
    [("avx9", "the levels are auto, generic, avx2"), ("neon2", "PATCHWORD_CPU_LEVEL=neon2")],
)
def test_a_wrong_cpu_level_gives_one_sentence(level, sentence):
    result = run_python("import patchword.ops", PATCHWORD_CPU_LEVEL=level)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: patchword: PATCHWORD_CPU_LEVEL=")
    assert last.endswith(".")
    assert sentence in last


def test_a_wrong_backend_in_the_environment_gives_one_sentence():
    result = run_python("import patchword.ops", PATCHWORD_BACKEND="fast")
    last = result.stderr.strip().splitlines()[-1]
    assert "PATCHWORD_BACKEND: backend must be one of native, triton, reference" in last


def test_errors_are_ours():
    assert issubclass(BackendError, PatchwordError)
    assert issubclass(BackendError, RuntimeError)
    assert issubclass(OptionError, PatchwordError)
    assert issubclass(OptionError, ValueError)
