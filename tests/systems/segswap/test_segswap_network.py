# SPDX-License-Identifier: Apache-2.0
"""SegSwap's network: recorded outputs, sizes, and every way of evaluating it against the others."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published_segswap import encoder, seeded
from torch import Tensor, nn

from patchword.backbones.resnet import ResNet, ResNet50Backbone
from patchword.errors import OptionError, ShapeError
from patchword.nn.cross_transformer import CrossTransformer, CrossTransformerConfig
from patchword.nn.positional import sine_encoding
from patchword.systems.segswap import SegSwapNetwork, from_published, make_config

HERE = Path(__file__).parent
SHAPES = {
    "square": ((2, 1024, 30, 30), (2, 1024, 30, 30)),
    "mixed": ((2, 1024, 12, 17), (2, 1024, 20, 9)),
}


def golden_inputs(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maps, padding = [], []
    for side, shape in zip("xy", SHAPES[case], strict=True):
        raw = seeded(f"segswap.{side}.{case}", shape)
        maps.append(raw / raw.norm(dim=1, keepdim=True))
        padding.append(torch.zeros(2, 1, *shape[2:], dtype=torch.bool))
    padding[0][..., SHAPES[case][0][3] // 2 :] = True
    padding[1][0, :, :3] = True
    return maps[0], maps[1], padding[0], padding[1]


def check_golden(case: str, recorded: dict[str, np.ndarray]) -> None:
    network = from_published(encoder())
    x, y, x_padding, y_padding = golden_inputs(case)
    with torch.no_grad():
        plain = network.cross_transformer(x, y)
        masked = network.cross_transformer(x, y, x_pad_mask=x_padding, y_pad_mask=y_padding)
    for name, outputs in ((case, plain), (f"{case}_masked", masked)):
        for side, output in zip("xy", outputs, strict=True):
            want = torch.from_numpy(recorded[f"{name}_{side}"])
            torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-6)


def test_recorded_outputs():
    check_golden("mixed", dict(np.load(HERE / "golden_mixed.npz")))


@pytest.mark.skipif("PATCHWORD_SHARED" not in os.environ, reason="PATCHWORD_SHARED is not set")
def test_recorded_outputs_at_full_size():
    check_golden(
        "square", dict(np.load(Path(os.environ["PATCHWORD_SHARED"], "golden/segswap.npz")))
    )


def small(pattern: str = "ICICIN", **fields: object) -> CrossTransformer:
    config = CrossTransformerConfig(
        channels=12, width=16, heads=2, hidden=24, pattern=pattern, **fields
    )
    return CrossTransformer(config).eval()


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(shape), dim=1)


@pytest.mark.parametrize(
    ("mode", "count"),
    [("tiny", 793_987), ("small", 2_242_051), ("base", 16_288_259), ("large", 35_202_563)],
)
def test_parameter_counts(mode, count):
    with torch.device("meta"):
        transformer = CrossTransformer(make_config(mode).transformer)
    assert sum(p.numel() for p in transformer.parameters()) == count
    if mode == "small":
        assert len(transformer.state_dict()) == 64
        layer = transformer.layers[0]
        assert sum(p.numel() for p in layer.parameters()) == 395_776


def test_backbone_tensors_and_shapes():
    with torch.device("meta"):
        network = ResNet(50, stages=3)
        sizes = {(480, 480): (30, 30), (320, 400): (20, 25), (480, 640): (30, 40)}
        sizes |= {(640, 640): (40, 40), (640, 639): (40, 40)}
        for size, grid in sizes.items():
            assert network(torch.empty(1, 3, *size)).shape == (1, 1024, *grid)
        whole = ResNet(50, classes=1000)
        assert whole(torch.empty(2, 3, 64, 64)).shape == (2, 1000)
    assert sum(p.numel() for p in network.parameters()) == 8_543_296
    state = network.state_dict()
    assert len(state) == 258
    counts = {
        first: sum(name.startswith(f"{first}.") for name in state)
        for first in ("conv1", "bn1", "layer1", "layer2", "layer3")
    }
    assert list(counts.values()) == [1, 5, 60, 78, 114]
    assert sum(p.numel() for p in whole.parameters()) == 25_557_032


def test_folding_keeps_the_function():
    torch.manual_seed(1)
    network = ResNet(50, stages=2).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        plain = network(images)
        torch.testing.assert_close(network.fold()(images), plain, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_impossible_networks_are_refused():
    with pytest.raises(OptionError, match=r"depth must be one of \[50, 101, 152\]"):
        ResNet(18)
    with pytest.raises(OptionError, match="a classifier needs all 4"):
        ResNet(50, stages=3, classes=10)


def test_normalisation_and_its_published_slip():
    state = ResNet(50, stages=3).state_dict()
    pixels = torch.full((1, 3, 2, 2), 0.5)
    right = ResNet50Backbone(state)
    assert right.normalise(pixels)[0, 0, 0, 0].item() == pytest.approx(0.065502, abs=1e-6)
    slip = ResNet50Backbone(state, normalisation="segswap_eval")
    assert slip.normalise(pixels)[0, 0, 0, 0].item() == pytest.approx(0.5995, abs=1e-6)
    with pytest.raises(OptionError, match='must be "correct" or "segswap_eval"'):
        ResNet50Backbone(state, normalisation="none")
    assert not right.train().network.training  # frozen, batch norms too
    maps = right.describe(torch.rand(1, 3, 32, 48))
    assert maps.shape == (1, 1024, 2, 3)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(1, 2, 3))
    assert bool((maps >= 0).all())


def test_positions():
    code = sine_encoding((30, 30), 256).reshape(30, 30, 256)
    first = torch.tensor([0.207912, 0.978148, 0.180374, 0.983598])
    torch.testing.assert_close(code[0, 0, :4], first, rtol=0, atol=1e-6)
    assert code[0, 0, 128].item() == pytest.approx(0.207912, abs=1e-6)
    assert code[14, 0, 1].item() == pytest.approx(-1.0)
    assert code[29, 0, 0].item() == pytest.approx(-3.0e-7, abs=2e-7)
    assert code[29, 0, 1].item() == pytest.approx(1.0)
    code = sine_encoding((20, 25), 256).reshape(20, 25, 256)
    assert code[0, 0, 0].item() == pytest.approx(0.309017, abs=1e-6)
    assert code[0, 0, 128].item() == pytest.approx(0.248690, abs=1e-6)
    assert code[4, 0, 0].item() == pytest.approx(1.0)
    assert code[0, 4, 128].item() == pytest.approx(0.951057, abs=1e-6)
    assert code[3, 0, 126].item() == pytest.approx(
        math.sin(2 * math.pi * 4 / (20 + 1e-6) / 8659.64), rel=1e-4
    )


def test_outputs_of_two_sizes():
    network = SegSwapNetwork(make_config("small")).eval()
    with torch.no_grad():
        out0, out1 = network(unit(2, 1024, 30, 30), unit(2, 1024, 20, 25))
    assert out0.shape == (2, 3, 30, 30)
    assert out1.shape == (2, 3, 20, 25)
    for out in (out0, out1):
        assert bool(((out >= 1e-7) & (out <= 1 - 1e-7)).all())


@torch.no_grad()
def test_swapping_pictures_swaps_outputs():
    transformer = small()
    maps0, maps1 = unit(2, 12, 4, 5), unit(2, 12, 3, 7)
    out0, out1 = transformer(maps0, maps1)
    back1, back0 = transformer(maps1, maps0)
    torch.testing.assert_close(back0, out0)
    torch.testing.assert_close(back1, out1)


def joined(
    transformer: CrossTransformer, maps: list[Tensor], valid: list[Tensor | None]
) -> list[Tensor]:
    """The network as published: one sequence of all tokens under a block mask."""
    counts = [m.shape[2] * m.shape[3] for m in maps]
    own = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor(counts))
    config = transformer.config
    tokens = torch.cat([transformer.project(m.flatten(2).transpose(1, 2)) for m in maps], dim=1)
    places = torch.cat([sine_encoding((m.shape[2], m.shape[3]), config.width) for m in maps])
    padding = torch.cat(
        [
            torch.zeros(len(m), c, dtype=torch.bool) if v is None else ~v.flatten(1)
            for m, c, v in zip(maps, counts, valid, strict=True)
        ],
        dim=1,
    )
    for kind, number in transformer.plan:
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.hidden, 0.0, config.activation, batch_first=True
        ).eval()
        ours = transformer.layers[number]
        layer.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        for theirs, name in (
            (layer.self_attn.out_proj, "out"),
            (layer.linear1, "widen"),
            (layer.linear2, "narrow"),
            (layer.norm1, "norm1"),
            (layer.norm2, "norm2"),
        ):
            theirs.load_state_dict(getattr(ours, name).state_dict())
        if kind == "I":
            tokens = config.feature_weight * tokens + config.position_weight * places
        same = own[:, None] == own[None]
        forbidden = ~same if kind == "I" else same
        # Gradient mode keeps torch off its fused path, which refuses two masks.
        with torch.enable_grad():
            tokens = layer(tokens, src_mask=forbidden, src_key_padding_mask=padding).detach()
    rows = transformer.head(tokens).sigmoid().clamp(1e-7, 1 - 1e-7).transpose(1, 2)
    parts = rows.split(counts, dim=2)
    return [p.unflatten(2, m.shape[2:]) for p, m in zip(parts, maps, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["ICICIN", "CI", "IICC", "NICN", "IN", "NCIC"])
@pytest.mark.parametrize("masked", [False, True])
def test_pair_form_equals_the_joined_sequence(pattern, masked):
    transformer = small(pattern, activation="gelu", feature_weight=0.9, position_weight=0.3)
    maps = [unit(2, 12, 4, 5), unit(2, 12, 3, 7)]
    valid: list[Tensor | None] = [None, None]
    if masked:
        valid = [torch.rand(2, 4, 5) > 0.3, torch.rand(2, 3, 7) > 0.3]
    wanted = joined(transformer, maps, valid)
    for got, want in zip(transformer(*maps, *valid), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_equal_letters_of_a_block_share_weights():
    assert len(small("IICC").layers) == 2
    assert small("IICC").plan == [("I", 0), ("I", 0), ("C", 1), ("C", 1)]
    assert [kind for kind, _ in small("ICICICICICIN").plan] == list("ICICICICICI")
    with pytest.raises(OptionError, match="even number of the letters I, C and N, got 'ICX'"):
        CrossTransformerConfig(pattern="ICX")
    with pytest.raises(OptionError, match="width must be a multiple of 4 and of heads"):
        CrossTransformerConfig(width=30)
    with pytest.raises(OptionError, match='activation must be "relu" or "gelu"'):
        CrossTransformerConfig(activation="tanh")


@torch.no_grad()
def test_masked_keys_do_not_matter():
    transformer = small()
    maps0, maps1 = unit(1, 12, 4, 5), unit(1, 12, 3, 7)
    valid1 = torch.rand(1, 3, 7) > 0.4
    valid1[0, 0, 0] = False
    out0, _ = transformer(maps0, maps1, None, valid1)
    changed = maps1.clone()
    changed[:, :, 0, 0] = unit(1, 12)
    again, _ = transformer(maps0, changed, None, valid1)
    torch.testing.assert_close(again, out0)
    unmasked, _ = transformer(maps0, changed)
    assert not torch.allclose(unmasked, out0, atol=1e-4)


@torch.no_grad()
def test_a_mask_that_hides_everything_is_no_mask():
    transformer = small()
    maps0, maps1 = unit(2, 12, 4, 5), unit(2, 12, 3, 7)
    valid1 = torch.ones(2, 3, 7, dtype=torch.bool)
    valid1[1] = False
    for got, want in zip(
        transformer(maps0, maps1, None, valid1), transformer(maps0, maps1), strict=True
    ):
        torch.testing.assert_close(got, want)
        assert bool(got.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["ICICIN", "ICCI", "ICIC", "II"])
def test_cached_and_lazy_evaluation_are_exact(pattern):
    transformer = small(pattern)
    maps0, maps1 = unit(1, 12, 4, 5), unit(3, 12, 3, 7)
    valid1 = torch.rand(3, 3, 7) > 0.2
    want0, want1 = transformer(maps0.expand(3, -1, -1, -1), maps1, None, valid1)
    first, second = transformer.embed(maps0), transformer.embed(maps1, valid1)
    # One query meets a batch.
    for got, want in zip(transformer.relate(first, second), (want0, want1), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    one = transformer.relate(first, second[1:2])
    torch.testing.assert_close(one[1], want1[1:2], rtol=1e-5, atol=1e-6)
    state0, state1 = transformer.before_last(first, second)
    cells0, cells1 = torch.randint(0, 20, (3, 6)), torch.randint(0, 21, (3, 9))
    for own, other, cells, want in (
        (state0, state1, cells0, want0),
        (state1, state0, cells1, want1),
    ):
        rows = want.flatten(2).transpose(1, 2)
        rows = rows.gather(1, cells[..., None].expand(-1, -1, 3))
        torch.testing.assert_close(transformer.last_at(own, other, cells), rows)


def test_training_drops_and_learns():
    transformer = small().train()
    maps0, maps1 = unit(2, 12, 4, 5), unit(2, 12, 3, 7)
    first, again = transformer(maps0, maps1)[0], transformer(maps0, maps1)[0]
    assert not torch.equal(first, again)
    first.sum().backward()
    assert all(p.grad is not None for p in transformer.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert transformer(maps0, maps1)[0].dtype == torch.float32
    # As torch builds such layers: packed projections Xavier, their biases 0.
    fresh = small()
    assert not fresh.layers[0].qkv.bias.any()
    assert fresh.layers[0].qkv.weight.abs().max() <= math.sqrt(6 / (16 + 48))


def test_wrong_shapes():
    transformer = small()
    with pytest.raises(ShapeError, match=r"maps must have shape \[B, 12, h, w\]"):
        transformer(unit(1, 11, 4, 5), unit(1, 12, 4, 5))
    with pytest.raises(ShapeError, match="at least one cell"):
        transformer(unit(1, 12, 0, 5), unit(1, 12, 4, 5))
    with pytest.raises(ShapeError, match=r"valid must have shape \[1, 4, 5\]"):
        transformer(unit(1, 12, 4, 5), unit(1, 12, 4, 5), torch.ones(1, 5, 4).bool())
    with pytest.raises(ShapeError, match="same batch or one of 1, got 2 and 3"):
        transformer(unit(2, 12, 4, 5), unit(3, 12, 4, 5))
    with pytest.raises(OptionError, match="features needs a backbone"):
        SegSwapNetwork(make_config("tiny")).features(torch.rand(1, 3, 32, 32))
    with pytest.raises(OptionError, match="mode must be one of tiny, small, base, large"):
        make_config("huge")
    with pytest.raises(OptionError, match="backbone must be one of"):
        make_config(backbone="vgg")
