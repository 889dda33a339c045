# SPDX-License-Identifier: Apache-2.0
"""Both recipes run through the shared loop: exact resume, overfitting, published switches."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sketch_drawings import toy_library, write_ndjson
from sketch_models import TINY
from torchrun import run_processes

from patchword.cli.main import main
from patchword.errors import CheckpointError, ConfigError
from patchword.nn.checkpoint import read_weights
from patchword.systems.sketchseg.compose import SceneConfig, compose_scene, scene_generator
from patchword.systems.sketchseg.data import write_captioned
from patchword.systems.sketchseg.task import TrainConfig, create_task
from patchword.systems.sketchseg.train_config import PaperTrainConfig, SmallTrainConfig
from patchword.training import (
    LoopConfig,
    OptimConfig,
    SampleKey,
    TrackingConfig,
    TrainingConfig,
    fit,
    load_config,
)
from patchword.training.config import to_yaml
from patchword.training.tracking import read_metrics


def fake_sentences(words, templates):
    """Unit vectors that follow from the sentence, in place of the sentence encoder's."""
    vectors = []
    for template in templates:
        for word in words:
            seed = zlib.crc32(template.format(word).encode())
            vectors.append(torch.randn(384, generator=torch.Generator().manual_seed(seed)))
    return F.normalize(torch.stack(vectors), dim=1).reshape(len(templates), len(words), 384)


@pytest.fixture
def no_encoder(monkeypatch):
    monkeypatch.setattr("patchword.systems.sketchseg.small_task.encode_templates", fake_sentences)
    name = "patchword.systems.sketchseg.small_encoder.encode_templates"
    monkeypatch.setattr(name, fake_sentences)


def training(steps, **loop):
    return TrainingConfig(
        loop=LoopConfig(steps=steps, log_every=1, **{"batch_size": 2, "save_every": 2, **loop}),
        optim=OptimConfig(lr=1e-3, clip_norm=5.0),
        tracking=TrackingConfig(tensorboard=False),
    )


def weights(folder, step):
    return read_weights(
        folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors", system="sketchseg"
    )


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioned")
    config = SceneConfig(min_objects=2, max_objects=3)
    scenes = (compose_scene(toy_library(), scene_generator(0, i), config) for i in range(5))
    write_captioned(folder, scenes)
    return folder


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return write_ndjson(tmp_path_factory.mktemp("drawings") / "toy.ndjson")


def paper(captioned, steps, **options):
    config = PaperTrainConfig(data=str(captioned), network=TINY, **options)
    return TrainConfig(recipe="paper", paper=config, training=training(steps))


def small(drawings, steps, **options):
    chosen = {
        "sizes": (32, 64),
        "points": 24,
        "validation_size": 64,
        "validation_scenes": 1,
        "templates": ("{}", "a {}"),
        "scene": SceneConfig(min_objects=2, max_objects=3),
        **options,
    }
    return TrainConfig(
        small=SmallTrainConfig(drawings=str(drawings), **chosen),
        training=training(steps, validate_every=2),
    )


def run(config, folder, resume=False):
    return fit(
        create_task(config),
        config.training,
        folder,
        whole_config=config,
        resume=resume,
        device="cpu",
    )


class Stop(Exception):
    """Ends a run as a lost machine would."""


def interrupted(config, folder, after):
    """Run until ``after`` steps are saved, then die."""
    task = create_task(config)
    before = task.before_step

    def dying(model, step):
        if step == after:
            raise Stop
        before(model, step)

    task.before_step = dying
    with pytest.raises(Stop):
        fit(task, config.training, folder, whole_config=config, device="cpu")


clip_words = pytest.mark.skipif(
    pytest.importorskip("importlib.util").find_spec("regex") is None,
    reason="CLIP's tokenizer needs the package regex",
)


@clip_words
def test_published_training_resumes_exactly(captioned, tmp_path):
    config = paper(captioned, 4)
    whole = run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "cut", after=2)
    again = run(config, tmp_path / "cut", resume=True)
    assert whole.losses == again.losses
    assert set(whole.losses) == {"total", "scene", "part3", "part4", "threshold"}
    first, header = weights(tmp_path / "whole", 4)
    second, _ = weights(tmp_path / "cut", 4)
    assert_same_weights(first, second)
    assert header["norm"] == "channel"


@clip_words
def test_published_training_learns_and_leaves_the_text_tower(captioned, tmp_path):
    config = paper(captioned, 12)
    config = replace(config, training=training(12, batch_size=4, save_every=12))
    task = create_task(config)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    losses = []
    original = task.losses

    def recorded(model, batch, step):
        found = original(model, batch, step)
        losses.append(found["total"].item())
        return found

    task.losses = recorded
    fit(task, config.training, tmp_path / "run", whole_config=config, device="cpu")
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    after = task.model.state_dict()
    text = [name for name in after if name.startswith("text.")]
    assert all(torch.equal(before[name], after[name]) for name in text)
    assert not torch.equal(before["prompts"], after["prompts"])
    from patchword.systems.sketchseg.inference import load

    segmenter = load(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    assert segmenter.encoder.norm == "channel"
    image = np.full((60, 60, 3), 255, np.uint8)
    image[20:24, 5:50] = 0
    assert segmenter.segment(image, ["kite", "sun"]).labels.max() >= 0


@clip_words
def test_published_switches(captioned):
    def trained(**options):
        model = create_task(paper(captioned, 2, **options)).model
        return {name for name, one in model.named_parameters() if one.requires_grad}

    everything = trained()
    assert "prompts" in everything
    assert not any(name.startswith(("text.", "adapter.query.")) for name in everything)
    frozen = everything - trained(freeze_surgery=True)
    assert {name.split(".")[3] for name in frozen} == {"2", "3"}
    assert all(".attn." in name for name in frozen)
    assert trained(prompts_only=True) == {"prompts"}


@clip_words
@pytest.mark.parametrize(
    "options",
    [
        {"first_norm": "tokens", "second_norm": "batch"},
        {"mask_minmax": "column", "negatives": "label", "parser": "legacy"},
        {"threshold_gradient": "straight_through"},
    ],
)
def test_published_faults_change_the_losses(captioned, options):
    def losses(**chosen):
        task = create_task(paper(captioned, 2, **chosen))
        samples = [task.dataset()[SampleKey(record, record)] for record in range(5)]
        task.model.train()
        torch.manual_seed(0)
        found = task.losses(task.model, task.collate(samples), 0)
        found["total"].backward()
        return found, task

    corrected, _ = losses()
    other, task = losses(**options)
    if "threshold_gradient" in options:
        torch.testing.assert_close(other["total"], corrected["total"])
        assert task.threshold.theta.grad != 0
        assert len(task.parameter_groups()) == 2
    else:
        assert other["total"] != corrected["total"]


@pytest.mark.usefixtures("no_encoder")
def test_small_training_resumes_exactly_and_loads(drawings, tmp_path):
    config = small(drawings, 4)
    whole = run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "cut", after=2)
    again = run(config, tmp_path / "cut", resume=True)
    assert whole.losses == again.losses
    assert 0 <= whole.metrics["miou"] <= whole.metrics["pixel_accuracy"] <= 1
    first, header = weights(tmp_path / "whole", 4)
    assert_same_weights(first, weights(tmp_path / "cut", 4)[0])
    assert header["kind"] == "small"

    from patchword.systems.sketchseg.small_encoder import load_small, save_small

    path = tmp_path / "whole" / "checkpoints" / "last" / "model.safetensors"
    encoder = load_small(path)
    shipped = load_small(save_small(encoder, tmp_path / "half.safetensors", {"license": "none"}))
    image = np.full((90, 60, 3), 255, np.uint8)
    image[20:24, 5:50] = 0
    one, other = encoder.encode_images([image])[0], shipped.encode_images([image])[0]
    assert one.grid == other.grid == (28, 20)
    torch.testing.assert_close(one.patches, other.patches, atol=5e-3, rtol=0)
    words = ["Kite", "sun", "walrus"]
    torch.testing.assert_close(
        encoder.encode_text(words), shipped.encode_text(words), atol=5e-3, rtol=0
    )

    on = small(drawings, 2, start=str(path))
    task = create_task(on)
    assert_same_weights(task.model.state_dict(), first)
    with pytest.raises(CheckpointError, match=r"small\.start must be an unfolded"):
        create_task(small(drawings, 2, start=str(tmp_path / "half.safetensors")))


@pytest.mark.usefixtures("no_encoder")
def test_small_training_keeps_the_first_blocks(drawings):
    config = small(drawings, 2)
    task = create_task(config)
    before = {name: one.detach().clone() for name, one in task.model.named_parameters()}
    optimizer = torch.optim.SGD(task.parameter_groups(), lr=0.1)
    batch = task.collate([task.dataset()[SampleKey(0, draw)] for draw in range(2)])
    task.losses(task.model.train(), batch, 0)["total"].backward()
    optimizer.step()
    moved = {name for name, one in task.model.named_parameters() if not one.equal(before[name])}
    assert not any(name.startswith(("stem.", "blocks.0.", "blocks.2.")) for name in moved)
    assert {"text.weight", "out.weight", "blocks.3.expand.conv.weight"} <= moved


@pytest.mark.usefixtures("no_encoder")
def test_samples_follow_from_seed_and_draw(drawings):
    data = create_task(small(drawings, 2)).dataset()
    one, again = data[SampleKey(3, 7)], data[SampleKey(0, 7)]
    assert torch.equal(one.ink, again.ink)
    assert torch.equal(one.points, again.points)
    assert not torch.equal(one.points, data[SampleKey(3, 6)].points)
    assert one.ink.shape == data[SampleKey(0, 6)].ink.shape
    # Every point lies on ink.
    at = F.grid_sample(one.ink[None], one.points[None, None], mode="nearest", align_corners=False)
    assert at.min() > 0


def test_shipped_configurations_load():
    recipes = {
        "default": "small",
        "default_finish": "small",
        "paper": "paper",
        "published": "paper",
    }
    for name, recipe in recipes.items():
        assert load_config(TrainConfig, system="sketchseg", source=name).recipe == recipe
    published = load_config(TrainConfig, system="sketchseg", source="published").paper
    assert published.freeze_surgery
    assert (published.mask_minmax, published.negatives) == ("column", "label")


def test_refusals(drawings):
    with pytest.raises(ConfigError, match=r"small\.drawings must name a file"):
        create_task(TrainConfig())
    with pytest.raises(ConfigError, match=r"paper\.data must name a folder"):
        create_task(TrainConfig(recipe="paper"))


@clip_words
def test_two_processes_train_as_one(captioned, tmp_path):
    words = ["train", "sketchseg", "--config", str(tmp_path / "tiny.yaml"), "--device", "cpu", "-q"]
    config = paper(captioned, 2)
    config = replace(config, training=training(2, batch_size=4, micro_batch_size=2))
    (tmp_path / "tiny.yaml").write_text(to_yaml(config))
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    run_processes("-m", "patchword", *words, "-o", tmp_path / "two")
    # Losses, not weights: keys' biases have no gradient but rounding, which Adam blows up to full
    # steps of either sign.
    one, two = (
        [row["train/loss/total"] for row in read_metrics(tmp_path / name)]
        for name in ("one", "two")
    )
    assert len(one) == 2
    assert two == pytest.approx(one, rel=1e-5)
