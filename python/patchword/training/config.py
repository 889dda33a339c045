# SPDX-License-Identifier: Apache-2.0
"""What a run is configured by, and how YAML and ``key=value`` words fill it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from patchword.data.io import printable
from patchword.errors import ConfigError

logger = logging.getLogger(__name__)

C = TypeVar("C")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and how its learning rate moves, see :mod:`patchword.training.optim`.

    Attributes:
        name: ``adam``, ``adamw`` or ``sgd``.
        lr: Highest learning rate; a parameter group may name its own.
        betas: Of Adam and AdamW; the first is the momentum of SGD.
        eps: Of Adam and AdamW.
        weight_decay: Decay of all parameters that have more than one dimension.
        clip_norm: Gradients are scaled down to this norm; None leaves them.
        schedule: What follows the warm-up: ``constant``, ``cosine`` or ``step``.
        warmup_steps: Steps over which the rate rises from zero.
        warmup: ``linear``, or ``segswap`` as the published SegSwap code does it.
        milestones: Steps at which ``step`` multiplies the rate by ``gamma``.
        gamma: Factor of ``step``.
        final_factor: Share of ``lr`` where ``cosine`` ends.
    """

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_steps: int = 0
    warmup: Literal["linear", "segswap"] = "linear"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_factor: float = 0.0


@dataclass(frozen=True)
class LoopConfig:
    """How long, in which portions, and how often something is written.

    Attributes:
        steps: Optimiser steps of the whole run.
        batch_size: Samples of one optimiser step, over all processes.
        micro_batch_size: Samples of one forward pass; None for the whole batch. It must divide
            ``batch_size``; the processes share the micro-batches, so their number must divide that
            of the micro-batches.
        num_workers: Processes that make samples ahead; 0 makes them in the main process.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with a gradient scaler).
        ema_decay: Decay of a running mean of the weights, which then is what is validated and
            saved as the model; None keeps none.
        seed: Of the order of samples and of all that is random in the model.
        log_every: Steps between two records of losses.
        validate_every: Steps between two validations; 0 for none.
        picture_every: Steps between two sets of pictures; 0 for none.
        save_every: Steps between two checkpoints.
        keep_last: Checkpoints that are kept beside the best one.
        best_metric: Name of the validation metric that decides which checkpoint is best.
        best_is_lower: The smaller the better.
    """

    steps: int = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    num_workers: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema_decay: float | None = None
    seed: int = 0
    log_every: int = 20
    validate_every: int = 0
    picture_every: int = 0
    save_every: int = 1000
    keep_last: int = 2
    best_metric: str | None = None
    best_is_lower: bool = False


@dataclass(frozen=True)
class TrackingConfig:
    """Where records go besides ``metrics.jsonl``.

    Attributes:
        tensorboard: Write event files, where TensorBoard is installed.
        wandb: Project of Weights & Biases to report to; nothing is contacted without.
    """

    tensorboard: bool = True
    wandb: str | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """All that :func:`patchword.training.fit` is told; a system's configuration holds one."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load_config(
    config: type[C],
    *,
    system: str | None = None,
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> C:
    """Fill a configuration: its defaults, then a YAML file, then ``key=value`` words.

    Args:
        config: A frozen dataclass of frozen dataclasses.
        system: Folder of ``patchword/configs`` in which a bare name is looked up.
        source: A YAML file, or a bare name such as ``paper``; None for the defaults.
        overrides: Words such as ``training.optim.lr=1e-4``; the last one wins.

    Raises:
        ConfigError: A key is not known, a value has the wrong type, or the file cannot be read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(config)
    parts: list[tuple[str, Any]] = []
    if source is not None:
        path = _find(source, system)
        parts.append((printable(path), _read_yaml(path)))
    for word in overrides:
        key, sign, _ = word.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"config: an override must read like training.optim.lr=1e-4, got {word!r}."
            )
        parts.append((word, OmegaConf.from_dotlist([word])))
    for name, part in parts:
        try:
            merged = OmegaConf.merge(merged, part)
        except (OmegaConfBaseException, ValueError) as error:
            lines = str(error).splitlines()
            where = next((one.split(":")[1] for one in lines if "full_key:" in one), "")
            at = f" (at {where.strip()})" if where.strip() else ""
            raise ConfigError(f"config: {name}: {lines[0]}{at}.") from error
    filled = OmegaConf.to_object(merged)
    assert isinstance(filled, config)
    return filled


def to_plain(config: object) -> dict[str, Any]:
    """A configuration as nested dictionaries of plain values, as YAML and JSON hold them."""
    from omegaconf import OmegaConf

    # By way of the text, which has lists alone: a configuration that was written and read again
    # must equal the one it came from.
    plain = OmegaConf.to_container(OmegaConf.create(to_yaml(config)))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(config: object) -> str:
    """A configuration as the text of a YAML file that :func:`load_config` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in dict(plain).items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _find(source: str | Path, system: str | None) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or system is None:
        return path
    folder = Path(str(files("patchword"))) / "configs" / system
    shipped = folder / f"{source}.yaml"
    if not shipped.is_file():
        known = sorted(one.stem for one in folder.glob("*.yaml"))
        raise ConfigError(
            f"config: {system} has no configuration {str(source)!r}, it has: "
            f"{', '.join(known) or 'none'}. A file of your own is named with its suffix .yaml."
        )
    return shipped


def _read_yaml(path: Path) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.create(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {printable(path)} cannot be read: {error}.") from error
    except (YAMLError, OmegaConfBaseException) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"config: {printable(path)} is not a YAML table: {text}.") from error
