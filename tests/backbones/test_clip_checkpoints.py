# SPDX-License-Identifier: Apache-2.0
"""Every published layout gives the same towers; nothing in a file runs; nothing is left over."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from patchword.backbones.clip import (
    Clip,
    ClipConfig,
    ImageConfig,
    TextConfig,
    clip_from_state_dict,
    load_clip,
)
from patchword.backbones.clip.archive import is_torchscript, read_torchscript
from patchword.backbones.clip.checkpoint import read_tensors
from patchword.errors import CheckpointError, OptionError

CONFIG = ClipConfig(
    image=ImageConfig(width=64, layers=2, heads=1, patch=8, grid=2),
    text=TextConfig(vocabulary=30, context=9, width=64, layers=2, heads=1),
    embed=24,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return Clip(CONFIG).eval().requires_grad_(False)


def openai_layout(model):
    return {name.removeprefix("text."): value for name, value in model.state_dict().items()}


HF_PARTS = (
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
HF_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
for kind in ("weight", "bias"):
    HF_NAMES[f"ln_final.{kind}"] = f"text_model.final_layer_norm.{kind}"
    HF_NAMES[f"visual.ln_pre.{kind}"] = f"vision_model.pre_layrnorm.{kind}"
    HF_NAMES[f"visual.ln_post.{kind}"] = f"vision_model.post_layernorm.{kind}"


def hugging_face_layout(model):
    out = {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    for name, value in openai_layout(model).items():
        if name in HF_NAMES:
            transposed = name in ("visual.proj", "text_projection")
            out[HF_NAMES[name]] = value.T.contiguous() if transposed else value
            continue
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        part = name.split("resblocks.")[1]
        if "in_proj" in part:
            stem, bias_or_weight = part.split("attn.in_proj_")
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                target = f"{stem}self_attn.{letter}_proj.{bias_or_weight}"
                out[f"{tower}.encoder.layers.{target}"] = piece.clone()
            continue
        for old, new in HF_PARTS:
            part = part.replace(old, new)
        out[f"{tower}.encoder.layers.{part}"] = value
    return out


def same(left, right):
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    tokens = torch.tensor([[1, 5, 29, 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(left.encode_image(pixels), right.encode_image(pixels))
    torch.testing.assert_close(left.encode_text(tokens), right.encode_text(tokens))


@pytest.mark.parametrize("layout", ["openai", "module", "open_clip", "custom_text", "hugging_face"])
def test_every_layout_gives_the_same_model(model, layout, tmp_path):
    state = openai_layout(model)
    if layout == "openai":
        state |= {"input_resolution": torch.tensor(16), "context_length": torch.tensor(9)}
    elif layout == "module":
        state = {f"module.{name}": value for name, value in state.items()}
    elif layout == "open_clip":
        state["attn_mask"] = torch.zeros(9, 9)
    elif layout == "custom_text":
        state = model.state_dict()
    else:
        state = hugging_face_layout(model)
    loaded = clip_from_state_dict(state)
    assert loaded.config == CONFIG
    same(loaded, model)
    path = tmp_path / "model.safetensors"
    save_file({name: value.clone().contiguous() for name, value in state.items()}, path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {}, "vision_config": {}}))
    same(load_clip(path), model)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pt")
    same(load_clip(tmp_path / "model.pt"), model)


class Holder(nn.Module):
    """A module whose tensors have the given dotted names, for scripting."""

    def __init__(self, state):
        super().__init__()
        nested = {}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if rest:
                nested.setdefault(head, {})[rest] = value
            else:
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for name, inner in nested.items():
            self.add_module(name, Holder(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def archive(model, tmp_path):
    path = tmp_path / "ViT.pt"
    state = {name: value.half() for name, value in openai_layout(model).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Holder(state)), str(path))
    return path


def test_a_scripted_archive_is_read_and_never_run(model, archive, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the archive's program was compiled")

    monkeypatch.setattr(torch.jit, "load", refuse)
    assert is_torchscript(archive)
    loaded = load_clip(archive)
    assert loaded.text.ln_final.weight.dtype == torch.float32
    for name, value in openai_layout(model).items():
        own = name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}"
        assert loaded.state_dict()[own].equal(value.half().float()), name


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def rewrite(source, target, member, content):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(member) else old.read(name))


def test_crafted_archives_are_refused_and_nothing_runs(archive, tmp_path, capsys):
    path = tmp_path / "evil.pt"
    rewrite(archive, path, "/data.pkl", pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"cannot be read safely: it names builtins\.print"):
        read_torchscript(path)
    rewrite(archive, path, "/data/0", b"\0")
    with pytest.raises(CheckpointError, match="shorter than it says"):
        read_torchscript(path)
    rewrite(archive, path, "/data.pkl", b"\x80\x02}.")
    assert read_torchscript(path) == {}
    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="weights only"):
        load_clip(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.ln_pre.bias"), "every tensor of the model, got none called"),
        (
            lambda s: s.update(extra=torch.zeros(1)),
            "only tensors of the model, got also text.extra",
        ),
        (
            lambda s: s.update({"visual.ln_pre.bias": torch.zeros(3)}),
            "another size of visual.ln_pre.bias",
        ),
        (lambda s: s.pop("text_projection"), "vision transformer, got one without text_projection"),
        (
            lambda s: s.update({"visual.conv1.weight": torch.zeros(1280, 3, 8, 8)}),
            "heads 64 wide",
        ),
    ],
)
def test_other_checkpoints_are_refused_in_one_sentence(model, change, message):
    state = openai_layout(model)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        clip_from_state_dict(state)


def test_activation_is_taken_from_beside_the_file(model, tmp_path, caplog):
    path = tmp_path / "open_clip_model.safetensors"
    save_file(openai_layout(model), path)
    load_clip(path)
    assert "does not say its activation" in caplog.text
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 24}}))
    assert load_clip(path).config.activation == "gelu"
    assert load_clip(path, activation="quick_gelu").config.activation == "quick_gelu"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    assert load_clip(path).config.activation == "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"hidden_act": "gelu"}}))
    assert load_clip(path).config.activation == "gelu"
    with pytest.raises(OptionError, match="activation must be"):
        load_clip(path, activation="relu")


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.pt").write_bytes(b"nothing")
    torch.save({"a": 3}, tmp_path / "b.pt")
    for name, message in (
        ("a.safetensors", "is damaged"),
        ("a.pt", "file of weights only"),
        ("b.pt", "table of tensors, got dict"),
        ("none.pt", "must be a file of weights, got none"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_tensors(tmp_path / name)


def test_names_go_to_the_hub(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    save_file(openai_layout(model), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        if not (tmp_path / name).exists():
            raise errors.LocalEntryNotFoundError("offline")
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    same(load_clip("ViT-B/16"), model)
    assert asked[-1] == ("openai/clip-vit-base-patch16", "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"reachable on the Hugging Face hub.*offline"):
        load_clip("someone/else")
    with pytest.raises(CheckpointError, match="must be a file, a name on the Hugging Face hub"):
        load_clip("missing.pt")
