# SPDX-License-Identifier: Apache-2.0
"""The published checkpoint is read with every tensor accounted for; ours survive a round trip."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sketch_models import published, published_shapes, twelve_blocks

from patchword.errors import CheckpointError
from patchword.systems.sketchseg.convert import (
    from_published,
    load_model,
    save_model,
)

SHARED = os.environ.get("PATCHWORD_SHARED")


@pytest.fixture(scope="module")
def model():
    return twelve_blocks()


def test_round_trip_through_the_published_names(model):
    state = published(model)
    assert set(state) == set(published_shapes())
    image = torch.randn(1, 3, 32, 32)
    expected = model.encode_image(image)
    for prefix in ("", "module."):
        again = from_published({prefix + name: tensor for name, tensor in state.items()})
        assert again.config == model.config
        torch.testing.assert_close(again.encode_image(image), expected)


def test_blocks_may_keep_clips_attention_names(model):
    state = published(model)
    for name in [n for n in state if ".attn.qkv." in n or ".attn.proj." in n]:
        new = name.replace("qkv.", "in_proj_").replace(".proj.", ".out_proj.")
        if not name.startswith("visual.attn."):
            state[new] = state[name]
        del state[name]
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(from_published(state).encode_image(image), model.encode_image(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.prompt_embeddings"), "must be of the sketch network"),
        (lambda s: s.pop("visual.ln_post.bias"), "got none called visual.ln_post.bias"),
        (lambda s: s.update(head=torch.zeros(2)), "got also text.head"),
        (
            lambda s: s.update({"visual.attn.qkv.bias": torch.zeros(192)}),
            "visual.attn.qkv.bias must equal",
        ),
        (
            lambda s: s.update({"visual.transformer.ca.text_projection.bias": torch.zeros(5)}),
            "another size of adapter.text.bias",
        ),
    ],
)
def test_wrong_checkpoints_are_refused_in_one_sentence(model, change, message):
    state = published(model)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        from_published(state)


def test_own_file_round_trip(model, tmp_path):
    path = save_model(model, tmp_path / "model.safetensors")
    again = load_model(path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].equal(tensor), name
    half = save_model(model, tmp_path / "half.safetensors", torch.float16)
    assert half.stat().st_size < 0.55 * path.stat().st_size
    assert load_model(half).prompts.dtype == torch.float32


def test_files_of_other_systems_are_refused(model, tmp_path):
    path = tmp_path / "other.safetensors"
    for notes, message in (
        ({"system": "segswap"}, 'is for system "segswap", not "sketchseg"'),
        ({"system": "sketchseg", "kind": "small"}, "must be of kind 'clip', got 'small'"),
        ({"system": "sketchseg", "kind": "clip", "config": "{}"}, "must say their sizes"),
        ({}, "must be of the sketch network"),
    ):
        header = {"patchword": json.dumps({"format": 1, **notes})} if notes else {}
        save_file({"a": torch.zeros(1)}, path, header)
        with pytest.raises(CheckpointError, match=message):
            load_model(path)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        load_model(path)
    torch.save({f"module.{n}": t for n, t in published(model).items()}, tmp_path / "model.pth")
    assert load_model(tmp_path / "model.pth").config == model.config


def seeded(name, shape, scale=1.0):
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return (generator.standard_normal(shape) * scale).astype(np.float32)


def seeded_state(shapes):
    """Weights made from names; tensors that no result depends on are zeros."""
    state = {}
    for name, shape in shapes.items():
        unused = name.startswith("transformer.ca.") or ".layers.0." in name or ".layer1.0." in name
        if unused:
            state[name] = torch.zeros(1).expand(shape)
            continue
        source = name.replace("visual.attn.", "visual.transformer.resblocks.6.attn.")
        last = source.rpartition(".")[2]
        if len(shape) >= 2:
            value = seeded(source, shape, 1 / np.sqrt(np.prod(shape[1:])))
        elif last in ("weight", "a", "gamma"):
            value = 1 + seeded(source, shape, 0.1)
        else:
            value = seeded(source, shape, 0.1)
        state[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return state


@pytest.mark.skipif(SHARED is None, reason="PATCHWORD_SHARED names no folder of golden outputs")
def test_golden_outputs_of_the_published_network():
    folder = Path(SHARED) / "golden"
    shapes = json.loads((folder / "sketch_keys.json").read_text())
    assert {name: tuple(shape) for name, shape in shapes.items()} == published_shapes()
    model = from_published({f"module.{n}": t for n, t in seeded_state(shapes).items()})
    golden = {k: torch.from_numpy(v) for k, v in np.load(folder / "sketch.npz").items()}
    image = torch.from_numpy(seeded("sketch.image", (1, 3, 224, 224)))
    with torch.inference_mode():
        text = model.encode_text(golden["tokens"])
        assert (text - golden["text"]).abs().max() < 1e-4 * golden["text"].abs().max()
        for plain in (True, False):
            features = model.encode_image(image, text, plain=plain)
            assert features.shape == (4, 200, 512)
            similarity = F.normalize(features, dim=1) @ F.normalize(text, dim=1).T
            for got, key in ((features[:, ::8], "feat"), (similarity, "sim")):
                assert (got - golden[key]).abs().max() < 1e-4 * golden[key].abs().max(), key
