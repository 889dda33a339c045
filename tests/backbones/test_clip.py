# SPDX-License-Identifier: Apache-2.0
"""CLIP's towers compute what a plain transformer does, at any input size and text length."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from patchword.backbones.clip import (
    VIT_B16,
    VIT_B32,
    VIT_L14,
    Clip,
    ClipConfig,
    ImageConfig,
    TextConfig,
    preprocess,
)
from patchword.backbones.clip.image import ImageTower
from patchword.backbones.clip.layers import quick_gelu
from patchword.backbones.clip.prefix_tree import grow_trees
from patchword.backbones.clip.preprocess import MEAN, STD
from patchword.errors import OptionError, ShapeError

SMALL = ClipConfig(
    image=ImageConfig(width=128, layers=4, heads=2, patch=8, grid=4),
    text=TextConfig(vocabulary=60, context=20, width=64, layers=3, heads=1),
    embed=48,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Clip(SMALL).eval().requires_grad_(False)


def oracle_block(block, heads):
    """A block of ours as torch's own layer with the norm first."""
    width = block.ln_1.weight.shape[0]
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, quick_gelu, batch_first=True, norm_first=True
    ).eval()
    state = {
        "self_attn.in_proj_weight": block.attn.in_proj_weight,
        "self_attn.in_proj_bias": block.attn.in_proj_bias,
    }
    for ours, theirs in (
        ("attn.out_proj", "self_attn.out_proj"),
        ("mlp.c_fc", "linear1"),
        ("mlp.c_proj", "linear2"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
    ):
        for part in ("weight", "bias"):
            state[f"{theirs}.{part}"] = block.get_parameter(f"{ours}.{part}")
    layer.load_state_dict(state)
    return layer.requires_grad_(False)


def test_image_tower_equals_torchs_own_layers(model):
    pixels = torch.randn(2, 3, 32, 32)
    tower = model.visual
    x = F.layer_norm(tower.embed(pixels), (128,))
    for block in tower.transformer.resblocks:
        x = oracle_block(block, 2)(x)
    expected = F.layer_norm(x[:, 0], (128,)) @ tower.proj
    torch.testing.assert_close(model.encode_image(pixels), expected, atol=1e-5, rtol=1e-5)


def test_value_path_adds_up_projected_value_attention(model):
    pixels = torch.randn(1, 3, 32, 32)
    tower = model.visual
    x = tower.ln_pre(tower.embed(pixels))
    x = tower.transformer.resblocks[1](tower.transformer.resblocks[0](x))
    path = x
    for block in tower.transformer.resblocks[2:]:
        value = F.linear(
            block.ln_1(x), block.attn.in_proj_weight[256:], block.attn.in_proj_bias[256:]
        )
        heads = value.view(1, 17, 2, 64).transpose(1, 2)
        mixed = (heads @ heads.transpose(2, 3) / 8).softmax(-1) @ heads
        path = path + block.attn.out_proj(mixed.transpose(1, 2).reshape(1, 17, 128))
        x = block(x)
    expected = tower.project(path[:, 1:])
    got = model.encode_patches(pixels)
    assert got.shape == (1, 16, 48)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(OptionError, match=r"start must be in \[1, 4\], got 5"):
        tower.patches(pixels, start=5)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (8, 40)])
def test_any_grid_by_interpolated_positions(model, size):
    tower = model.visual
    assert tower.patches(torch.randn(1, 3, *size)).shape[1] == size[0] * size[1] // 64


def test_positions_follow_a_linear_table_and_leave_it_alone(model):
    tower = ImageTower(SMALL.image, 48)
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    with torch.no_grad():
        tower.positional_embedding[1:] = rows.reshape(16, 1).expand(16, 128)
    before = tower.positional_embedding.clone()
    wide = tower.positions((4, 8), "bilinear")
    assert wide[0].equal(before[0])
    torch.testing.assert_close(wide[1:, 0], torch.arange(4.0).repeat_interleave(8))
    tall = tower.positions((8, 4), "bilinear")[1:, 0].view(8, 4)[:, 0]
    torch.testing.assert_close(tall, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert tower.positional_embedding.equal(before)


@pytest.mark.parametrize("shape", [(1, 3, 33, 32), (1, 1, 32, 32), (3, 32, 32), (1, 3, 0, 8)])
def test_unfit_inputs_are_refused(model, shape):
    with pytest.raises(ShapeError, match="ImageTower"):
        model.encode_image(torch.zeros(shape))


def test_text_of_any_lengths_equals_the_padded_way(model):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.zeros(40, 20, dtype=torch.int64)
    for row in range(40):
        length = int(torch.randint(2, 21, (), generator=generator))
        tokens[row, :length] = torch.randint(1, 4, (length,), generator=generator)
        tokens[row, 0], tokens[row, length - 1] = 58, 59
    for size in (1, 30, 512):
        rows = [row[: row.argmax() + 1].tolist() for row in tokens]
        torch.testing.assert_close(
            model.text.encode_sequences(rows, tree_size=size),
            model.text.padded(tokens),
            atol=1e-5,
            rtol=1e-5,
        )
    torch.testing.assert_close(model.encode_text(tokens[:3]), model.text.padded(tokens[:3]))
    assert model.encode_text(tokens[:0]).shape == (0, 48)


def test_shared_beginnings_are_computed_once():
    texts = [[1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 3, 9], [5, 9]]
    (tree,) = grow_trees(texts, 100)
    assert len(tree.ids) == 8
    for row, end in tree.ends:
        node, chain = end, []
        while node >= 0:
            chain.append(tree.ids[node])
            node = tree.parents[node]
        assert chain[::-1] == texts[row]
    assert sum(len(tree.ends) for tree in grow_trees(texts, 4)) == 4
    assert all(len(tree.ids) <= 4 for tree in grow_trees(texts, 4))


def test_bad_ids_are_refused(model):
    with pytest.raises(OptionError, match="1 to 20 ids, got 21"):
        model.text.encode_sequences([[1] * 21])
    with pytest.raises(OptionError, match=r"ids must be in \[0, 60\)"):
        model.text.encode_sequences([[1, 60]])
    with pytest.raises(ShapeError, match="tokens must be"):
        model.encode_text(torch.zeros(2, 21, dtype=torch.int64))


@pytest.mark.parametrize(
    ("config", "count"),
    [(VIT_B16, 149_620_737), (VIT_B32, 151_277_313), (VIT_L14, 427_616_513)],
)
def test_published_parameter_counts(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Clip(config).parameters()) == count


def test_preprocessing_is_pillows():
    image = np.random.default_rng(1).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    got = preprocess(image, 32)
    resized = Image.fromarray(image).resize((50, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((9, 0, 41, 32)), dtype=np.float32) / 255
    back = got[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    np.testing.assert_allclose(back.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert preprocess(image, 32, "stretch").shape == (1, 3, 32, 32)
    with pytest.raises(OptionError, match="fit must be crop or stretch"):
        preprocess(image, 32, "pad")
