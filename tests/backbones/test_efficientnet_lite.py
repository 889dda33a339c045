# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pictures import textured

from patchword.backbones import BACKBONES, create_backbone, extract_features
from patchword.backbones.efficientnet_lite import (
    EfficientNetLite0,
    convert_name,
    load_efficientnet_lite0,
    same_padding,
)
from patchword.backbones.weights import EFFICIENTNET_LITE0, load_state_dict
from patchword.errors import CheckpointError, OptionError


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.from_numpy(textured(96, 128, seed=0)).permute(2, 0, 1)[None].float() / 255


def test_parameter_count_is_the_published_one() -> None:
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008


def test_strides_and_channels_of_every_block(network: EfficientNetLite0) -> None:
    outputs = network.forward_blocks(torch.zeros(1, 3, 64, 96), tuple(range(16)))
    strides = [2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32]
    channels = [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    for index, (stride, width) in enumerate(zip(strides, channels, strict=True)):
        assert outputs[index].shape == (1, width, 64 // stride, 96 // stride)


def test_first_layers_equal_the_published_tensors_used_by_hand(
    network: EfficientNetLite0, picture: torch.Tensor
) -> None:
    """Stem and block 0 written out from the checkpoint's own names, padding done by hand."""
    state = load_state_dict(EFFICIENTNET_LITE0)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        shape = (1, -1, 1, 1)
        unit = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-3)
        return unit * weight.view(shape) + bias.view(shape)

    x = F.pad((picture * 255 - 127) / 128, (0, 1, 0, 1))
    x = norm(F.conv2d(x, state["_conv_stem.weight"], stride=2), "_bn0").clamp(0, 6)
    x = F.conv2d(F.pad(x, (1, 1, 1, 1)), state["_blocks.0._depthwise_conv.weight"], groups=32)
    x = norm(x, "_blocks.0._bn1").clamp(0, 6)
    x = norm(F.conv2d(x, state["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    found = network.forward_blocks(picture, (0,))[0]
    assert torch.allclose(found, x, atol=1e-4)


def test_folding_changes_rounding_only(network: EfficientNetLite0, picture: torch.Tensor) -> None:
    plain = load_efficientnet_lite0(fold=False)
    assert (network(picture) - plain(picture)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("kernel", "stride", "expected"), [(3, 2, 0), (5, 2, 1), (3, 1, 1), (5, 1, 2)]
)
def test_padding_is_asymmetric_at_stride_two(kernel: int, stride: int, expected: int) -> None:
    left, right, top, bottom = same_padding(kernel, stride)
    assert (left, top) == (expected, expected)
    assert right - left == bottom - top == stride - 1


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 224)])
def test_any_size_from_32_runs(network: EfficientNetLite0, size: tuple[int, int]) -> None:
    assert network(torch.rand(1, 3, *size)).shape == (1, 1000)


def test_unknown_tensor_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"surprise\.weight must be a layer"):
        convert_name("surprise.weight")


@pytest.mark.parametrize("name", BACKBONES)
def test_descriptors_have_unit_length_and_repeat_exactly(name: str) -> None:
    backbone = create_backbone(name)
    picture = textured(64, 96, seed=1)
    first = extract_features(backbone, picture, size=(64, 96))
    second = extract_features(backbone, picture, size=(64, 96))
    assert first.grid == (4, 6)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.allclose(first.tokens.norm(dim=2), torch.ones(1, 24), atol=1e-5)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(OptionError, match="name must be one of efficientnet-lite0, xfeat"):
        create_backbone("resnet")
