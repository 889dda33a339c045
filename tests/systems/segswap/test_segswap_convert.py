# SPDX-License-Identifier: Apache-2.0
"""Published files in, our files out: every tensor accounted for, nothing hostile run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from published_segswap import backbone, encoder, encoder_shapes, moco, resnet, seeded
from safetensors.torch import save_file

import patchword
from patchword.cli.main import main
from patchword.errors import CheckpointError
from patchword.nn.checkpoint import read_weights, weights_bytes
from patchword.systems.segswap import (
    SegSwapNetwork,
    convert_file,
    from_published,
    load_backbone,
    load_network,
    make_config,
    save_network,
)
from patchword.systems.segswap.convert import read_published


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    adam = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]}
    return {"backbone": backbone(), "encoder": encoder(), "optimiser": adam}


@pytest.fixture(scope="module")
def published(checkpoint: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "hard_mining_neg5.pth"
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def converted(published: Path) -> Path:
    return convert_file(published, published.with_name("segswap.safetensors")).target


def test_every_tensor_of_the_published_layout(checkpoint):
    assert len(encoder_shapes()) == 64
    assert len(checkpoint["backbone"]) == 258
    network = from_published(checkpoint)
    state = network.transformer.state_dict()
    assert len(state) == 64
    source = checkpoint["encoder"]
    layer = "net.encoder_blocks.1.layer2.cross_encoder_layer."
    assert torch.equal(state["layers.3.qkv.weight"], source[f"{layer}self_attn.in_proj_weight"])
    assert torch.equal(state["layers.3.narrow.bias"], source[f"{layer}linear2.bias"])
    assert torch.equal(state["project.weight"], source["net.feat_proj.weight"][..., 0, 0])
    assert not network.training
    inner = network.backbone.network.state_dict()
    assert torch.equal(inner["layer3.5.bn3.weight"], checkpoint["backbone"]["6.5.bn3.weight"])


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        ({"width": 128}, 2),
        ({"width": 512, "hidden": 2048, "pattern": "ICICICICICIN"}, 8),
        ({"pattern": "CINI"}, 2),
    ],
)
def test_sizes_are_read_off_the_tensors(sizes, heads):
    state = {name: torch.zeros(shape) for name, shape in encoder_shapes(**sizes).items()}
    config = from_published({"encoder": state}).config.transformer
    assert config.width == sizes.get("width", 256)
    assert config.hidden == sizes.get("hidden", 256)
    assert config.pattern == sizes.get("pattern", "ICICIN")
    assert config.heads == heads


def test_blocks_of_equal_letters_hold_their_weights_twice():
    state = encoder(pattern="IICN")
    for name in list(state):
        if ".0.layer2." in name:
            state[name] = state[name.replace("layer2", "layer1")]
    assert len(from_published(state).transformer.layers) == 2
    with pytest.raises(CheckpointError, match="block 0 of twice the same letter"):
        from_published(encoder(pattern="IICN"))


def test_cli_converts_and_the_result_loads(checkpoint, published, tmp_path, capsys):
    target = tmp_path / "segswap.safetensors"
    assert main(["convert", "segswap", str(published), str(target)]) == 0
    assert "segswap: 322 tensors written" in capsys.readouterr().out
    system = patchword.load("segswap", checkpoint=target)
    features = torch.nn.functional.normalize(seeded("maps", (1, 1024, 3, 4)), dim=1)
    with torch.no_grad():
        want = from_published(checkpoint).cross_transformer(features, features)
        got = system.network.cross_transformer(features, features)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    pixels = torch.rand(1, 3, 32, 32)
    same = from_published(checkpoint).backbone.describe(pixels)
    assert torch.allclose(system.backbone.describe(pixels), same, atol=1e-5)
    assert main(["convert", "segswap", str(published), str(target)]) == 2
    assert "is there already. Pass --overwrite" in capsys.readouterr().err
    assert main(["convert", "segswap", str(published), str(tmp_path / "x.pth")]) == 2
    assert "must be called .safetensors" in capsys.readouterr().err


def test_raw_and_converted_moco(tmp_path):
    content = moco()
    read = read_published(content)
    assert read.kind == "moco"
    assert len(read.backbone) == 258
    assert read.transformer is None
    dropped = {name.split(".")[1] for name in read.ignored if name.startswith("module.")}
    assert dropped == {"encoder_k", "queue", "queue_ptr"}
    assert sum(name.startswith(("layer4.", "fc.")) for name in read.ignored) == 60 + 4
    state = resnet()
    state["fc.0.weight"] = torch.zeros(4, 4)
    converted = read_published({"model": state, "__author__": "MOCO"})
    assert converted.kind == "moco-converted"
    assert all(torch.equal(converted.backbone[name], read.backbone[name]) for name in read.backbone)
    path = tmp_path / "moco.pth.tar"
    torch.save(content, path)
    report = convert_file(path, tmp_path / "moco.safetensors")
    assert report.tensors == 258
    loaded = load_backbone(report.target)
    assert torch.equal(loaded.network.state_dict()["conv1.weight"], read.backbone["conv1.weight"])
    with pytest.raises(CheckpointError, match="must hold a transformer, got a backbone alone"):
        load_network(report.target)
    with pytest.raises(CheckpointError, match="got MoCo weights alone"):
        from_published(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "got a list"),
        ({}, "got entries none"),
        ({"cap_emb.weight": torch.zeros(2)}, "got entries 'cap_emb.weight'"),
        ({"encoder": {"net.feat_proj.weight": 3}}, "a part 'encoder' that is no table of tensors"),
        ({"encoder": {}}, "an encoder without feat_proj"),
        ({"encoder": {}, "decoder": {}}, "unexpected entry 'decoder' beside encoder"),
        ({"state_dict": {"module.fc": torch.zeros(1)}}, "unexpected tensor 'module.fc'"),
        ({"model": {"visual.conv1": torch.zeros(1)}}, "which is none of a ResNet-50"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        from_published(content)


def test_missing_superfluous_and_misshapen_tensors(checkpoint):
    def changed(**names: Any) -> dict[str, Any]:
        state = dict(checkpoint["encoder"])
        for name, value in names.items():
            state.pop(name) if value is None else state.update({name: value})
        return state

    with pytest.raises(CheckpointError, match=r"1 missing and 0 unexpected \(first: head.bias\)"):
        from_published(changed(**{"net.final_linear.bias": None}))
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'net.decoder.weight'"):
        from_published(changed(**{"net.decoder.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"head.bias must have shape \[3\], got \[4\]"):
        from_published(changed(**{"net.final_linear.bias": torch.zeros(4)}))
    with pytest.raises(CheckpointError, match=r"head.bias must be finite"):
        from_published(changed(**{"net.final_linear.bias": torch.tensor([1.0, 2.0, torch.nan])}))
    short = {k: v for k, v in checkpoint["backbone"].items() if not k.startswith("6.5.")}
    with pytest.raises(CheckpointError, match="18 missing and 0 unexpected"):
        from_published({**checkpoint, "backbone": short})
    with pytest.raises(CheckpointError, match=r"unexpected tensor '7.0.conv1.weight' in backbone"):
        from_published({**checkpoint, "backbone": {"7.0.conv1.weight": torch.zeros(1)}})


class Hostile:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_hostile_and_damaged_files(published, converted, tmp_path):
    trace = tmp_path / "hacked"
    hostile = tmp_path / "hostile.pth"
    torch.save({"encoder": Hostile(trace)}, hostile)
    target = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"hostile.pth must hold tensors .* posix.mkdir"):
        convert_file(hostile, target)
    assert not trace.exists()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(published.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointError, match=r"cut.pth must be a whole file of torch.save"):
        convert_file(cut, target)
    with pytest.raises(CheckpointError, match=r"absent.pth: there is no such file\."):
        convert_file(tmp_path / "absent.pth", target)
    half = tmp_path / "half.safetensors"
    half.write_bytes(converted.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"half.safetensors must be a whole safetensors file"):
        load_network(half)
    with pytest.raises(CheckpointError, match="goes through patchword convert segswap first"):
        load_network(published)
    with pytest.raises(CheckpointError, match=r"absent.safetensors: there is no such file\."):
        load_network(tmp_path / "absent.safetensors")
    for path in (hostile, cut, half):
        with pytest.raises(CheckpointError) as caught:
            load_network(path)
        assert "\n" not in str(caught.value)
    assert not target.exists()


def test_files_of_others(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(weights_bytes({"a": torch.zeros(1)}, system="sketchseg", header={}))
    with pytest.raises(CheckpointError, match='is for system "sketchseg", not "segswap"'):
        load_network(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="without its header"):
        load_network(path)
    wrong = {"config": {"backbone": "resnet50-layer3", "transformer": {"depth": 3}}}
    path.write_bytes(weights_bytes({"a": torch.zeros(1)}, system="segswap", header=wrong))
    with pytest.raises(CheckpointError, match="must describe a SegSwap network"):
        load_network(path)


def test_our_own_files_describe_themselves(tmp_path):
    config = make_config("tiny", "efficientnet-lite0", pattern="ICIN", dropout=0.2)
    network = SegSwapNetwork(config, load_backbone())
    facts = {"licence": "Apache-2.0", "data": ["photographs"]}
    path = save_network(tmp_path / "w.safetensors", network, dtype=torch.float16, header=facts)
    assert path.stat().st_size < 1_200_000
    tensors, header = read_weights(path, system="segswap")
    assert header["licence"] == "Apache-2.0"
    assert header["system"] == "segswap"
    assert all(name.startswith("transformer.") for name in tensors)
    again = load_network(path)
    assert again.config == config
    for name, tensor in again.transformer.state_dict().items():
        assert tensor.dtype == torch.float32
        want = network.transformer.state_dict()[name]
        assert torch.equal(tensor, want.half().float())


def test_normalisation_is_an_option_of_resnet_alone(converted, tmp_path):
    system = patchword.load("segswap", checkpoint=converted, normalisation="segswap_eval")
    assert system.backbone.normalisation == "segswap_eval"
    network = SegSwapNetwork(make_config("tiny", "efficientnet-lite0"), load_backbone())
    path = save_network(tmp_path / "w.safetensors", network)
    with pytest.raises(patchword.errors.OptionError, match='must be "correct" for backbone'):
        patchword.load("segswap", checkpoint=path, normalisation="segswap_eval")


def test_without_the_shipped_weights(monkeypatch, tmp_path):
    from patchword.systems.segswap import checkpoint

    monkeypatch.setattr(checkpoint, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match=r"segswap must come with its default weights.*\.$"):
        patchword.load("segswap")
