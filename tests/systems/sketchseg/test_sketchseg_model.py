# SPDX-License-Identifier: Apache-2.0
"""The network has the published sizes; its adapter is blind to text; one pass serves all taps."""

import math

import pytest
import torch
import torch.nn.functional as F
from sketch_models import TINY, published_shapes, tiny_model, twelve_blocks

from patchword.backbones.clip import Clip
from patchword.backbones.clip.preprocess import MEAN, STD
from patchword.errors import OptionError, ShapeError
from patchword.systems.sketchseg.adapter import ContextAdapter, StdNorm
from patchword.systems.sketchseg.model import SketchSegModel, normalize_features, prompt_bound


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(5))


def count(shapes, keep=lambda name: True):
    return sum(math.prod(shape) for name, shape in shapes.items() if keep(name))


def test_published_counts():
    shapes = published_shapes()
    assert len(shapes) == 407
    assert count(shapes) == 176_413_953
    unique = {n: s for n, s in shapes.items() if not n.startswith("visual.attn.")}
    assert count(unique) == 174_051_585
    assert count(unique, lambda n: n.startswith("visual.")) == 98_409_216
    assert sum(".ca." in n for n in shapes) == 100
    with torch.device("meta"):
        live = sum(p.numel() for p in SketchSegModel().parameters())
    # All but two clones of the adapter's layer, the text tower's adapter and the logit scale.
    assert live == 174_051_585 - 2 * 3_940_096 - 12_214_272 - 1


def test_adapter_and_prompt_sizes():
    adapter = ContextAdapter(768, 512, 8, 1024)
    sizes = {name: p.numel() for name, p in adapter.named_parameters()}
    text = sizes["text.weight"] + sizes["text.bias"]
    assert text == 393_984
    assert sum(sizes.values()) - text == 3_940_096
    assert prompt_bound(16, 768) == 0.0625
    prompts = SketchSegModel(TINY).prompts
    assert prompts.shape == (1, 3, 64)
    assert prompts.abs().max() <= prompt_bound(16, 64)


def test_std_norm_is_unbiased():
    got = StdNorm(4)(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(
        got, torch.tensor([-1.1619, -0.3873, 0.3873, 1.1619]), atol=1e-4, rtol=0
    )
    assert torch.isfinite(StdNorm(4)(torch.ones(4))).all()


def test_tokens_are_class_prompts_patches(model, image):
    features = model.encode_image(image)
    assert features.shape == (1, 200, 32)
    assert model.first_patch == 4
    tokens = model._embed(image)
    assert tokens[:, 1:4].equal(model.prompts)
    torch.testing.assert_close(tokens[:, 4:], model.visual.embed(image)[:, 1:])


def test_the_plain_form_does_not_depend_on_text(model, image):
    generator = torch.Generator().manual_seed(2)
    one, other = torch.randn(2, 3, 32, generator=generator)
    plain = model.encode_image(image, one, plain=True)
    assert plain.shape == (3, 200, 32)
    torch.testing.assert_close(
        plain, model.encode_image(image, other, plain=True), atol=1e-5, rtol=1e-5
    )
    collapsed = model.encode_image(image, one)
    torch.testing.assert_close(collapsed, plain, atol=1e-5, rtol=1e-5)
    assert collapsed.equal(model.encode_image(image, other))


def test_text_side_of_the_adapter_gets_no_gradient():
    torch.manual_seed(0)
    adapter = ContextAdapter(48, 16, 8, 32).eval()
    out = adapter.plain(torch.randn(2, 20, 48), torch.randn(2, 16))
    out.mul(torch.randn(out.shape)).sum().backward()
    scale = adapter.value.weight.grad.abs().max()
    for name in ("query", "key", "text"):
        assert adapter.get_submodule(name).weight.grad.abs().max() < 1e-6 * scale, name


def test_class_token_comes_from_the_ordinary_path(model, image):
    tokens = model.visual.ln_pre(model._embed(image))
    x = model.visual.transformer(tokens)
    expected = model.visual.project(model.adapter(x))[:, 0]
    torch.testing.assert_close(model.encode_image(image)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_value_path_is_the_sum_of_value_attentions(model, image):
    tokens = model.visual.ln_pre(model._embed(image))
    start = tokens
    for block in model.visual.transformer.resblocks[:2]:
        start = block(start)
    x, total = start, torch.zeros_like(start)
    for block in model.visual.transformer.resblocks[2:]:
        x, values = block.dual(x)
        total = total + values
    path, _ = model.visual.transformer.dual(tokens, 3, (4,))[4]
    torch.testing.assert_close(path - start, total, atol=1e-5, rtol=1e-5)


def test_one_pass_equals_separate_runs(model, image):
    both = model.encode_taps(image)
    assert both.shape == (2, 1, 200, 32)
    for index, tap in enumerate(TINY.taps):
        torch.testing.assert_close(both[index], model.encode_taps(image, (tap,))[0])
    torch.testing.assert_close(both[1], model.encode_image(image))


def test_pairs_of_image_and_text_and_wrong_counts(model, image):
    images = image.expand(3, -1, -1, -1)
    text = torch.randn(3, 32)
    torch.testing.assert_close(
        model.encode_image(images, text, plain=True), model.encode_image(images)
    )
    with pytest.raises(ShapeError, match="must hold 1 or 3 sketches, as many as text_features"):
        model.encode_image(images[:2], text)
    with pytest.raises(OptionError, match="must be given text_features"):
        model.encode_image(image, plain=True)
    with pytest.raises(OptionError, match="taps must be blocks 3 to 4"):
        SketchSegModel(type(TINY)(clip=TINY.clip, dual_start=3, taps=(2,)))


def test_sign_norm_is_the_published_one_over_copies():
    feature = torch.randn(1, 1, 10, 6).expand(1, 5, 10, 6)
    published = feature / feature.norm(dim=1, keepdim=True)
    ours = normalize_features(feature[0, :1], "sign") / math.sqrt(5)
    torch.testing.assert_close(published[0, :1], ours)


def test_token_norm_may_be_moved_to_the_text():
    features, text = torch.randn(1, 200, 32), torch.randn(4, 32)
    scaled = text / features.norm(dim=1)
    torch.testing.assert_close(
        normalize_features(features, "tokens") @ text.T, features @ scaled.T, atol=1e-6, rtol=1e-5
    )


def test_channel_norm_zero_channels_and_unknown_norm():
    features = torch.randn(2, 7, 5)
    torch.testing.assert_close(
        normalize_features(features, "channel").norm(dim=2), torch.ones(2, 7)
    )
    assert normalize_features(torch.zeros(1, 3, 2)).equal(torch.zeros(1, 3, 2))
    with pytest.raises(OptionError, match="norm must be tokens, sign or channel"):
        normalize_features(features, "batch")


def test_grey_input_folds_to_one_channel(model):
    kernel = model.visual.conv1.weight
    grey = torch.rand(1, 1, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    full = F.conv2d((grey.expand(-1, 3, -1, -1) - mean) / std, kernel, stride=16)
    folded = (kernel / std).sum(1, keepdim=True)
    bias = -(kernel * mean / std).sum((1, 2, 3))
    torch.testing.assert_close(F.conv2d(grey, folded, bias, 16), full, atol=1e-5, rtol=1e-5)


def test_other_sizes_leave_positions_alone(model):
    before = model.visual.positional_embedding.clone()
    assert model.encode_image(torch.randn(1, 3, 160, 288)).shape == (1, 4 + 180, 32)
    assert model.visual.positional_embedding.equal(before)


def test_starting_from_clip():
    torch.manual_seed(4)
    clip = Clip(TINY.clip)
    model = SketchSegModel.from_clip(clip, prompts=2)
    assert model.config.taps == (3, 3, 4)
    assert SketchSegModel.from_clip(Clip(twelve_blocks().config.clip)).config.taps == (7, 10, 12)
    assert model.visual.proj.equal(clip.visual.proj)
    assert model.visual.proj is not clip.visual.proj
    assert model.text is clip.text
    assert model.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 199, 32)
