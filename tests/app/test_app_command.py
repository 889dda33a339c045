# SPDX-License-Identifier: Apache-2.0
"""``patchword app``: its flags, and a port that is taken."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from patchword.cli.main import main

pytest.importorskip("starlette", reason="the extra app is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_dry_run_names_the_address(capsys: Any) -> None:
    port = free_port()
    assert main(["app", "--port", str(port), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["url"] == f"http://127.0.0.1:{port}/"


def test_taken_port_is_said(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    assert "must be free to listen on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"), [("--port", "0"), ("--max-megapixels", "0"), ("--max-megabytes", "nan")]
)
def test_flags_out_of_range(flag: str, value: str, capsys: Any) -> None:
    assert main(["app", flag, value]) == 2
    assert flag in capsys.readouterr().err
