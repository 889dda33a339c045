# SPDX-License-Identifier: Apache-2.0
"""The SRU stack against the published text encoder: names, shapes and outputs.

``sru_golden.npz`` holds outputs of the published network with generated weights: of the stack of
width 96 in full, of the one of width 2400 every 25th unit of the last step and the last layer.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from patchword.errors import CheckpointError, OptionError
from patchword.nn.sru import SRU, SRULayer

GOLDEN = np.load(Path(__file__).with_name("sru_golden.npz"))
WORDS = 620


def seeded(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy((generator.standard_normal(shape) * scale).astype(np.float32))


def published(width: int, layers: int = 4) -> dict[str, Tensor]:
    tensors = {}
    for i in range(layers):
        prefix = f"cap_emb.rnn.rnn_lst.{i}."
        rows, gates = (WORDS, 4) if i == 0 else (width, 3)
        name = f"{prefix}weight"
        tensors[name] = seeded(name, (rows, width * gates), rows**-0.5)
        for name in (f"{prefix}weight_c", f"{prefix}bias"):
            tensors[name] = seeded(name, (2 * width,), 0.1)
    return tensors


def test_reproduces_the_small_encoder():
    stack = SRU.from_tensors(published(96)).eval()
    words = seeded("dsve.words.small", (9, 3, WORDS), 1)
    with torch.no_grad():
        h, c = stack(words)
        last, _ = stack(words, last_only=True)
        short, _ = stack(words, lengths=torch.tensor([4, 9, 1]), last_only=True)
    torch.testing.assert_close(h, torch.from_numpy(GOLDEN["small_h"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(c, torch.from_numpy(GOLDEN["small_c"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, h[-1])
    torch.testing.assert_close(short, h[[3, 8, 0], [0, 1, 2]])


def test_reproduces_the_full_encoder():
    with torch.device("meta"):  # drawing 58 million weights first would take most of the time
        stack = SRU(WORDS, 2400, 4)
    tensors = {name.removeprefix("cap_emb.rnn."): t for name, t in published(2400).items()}
    stack.load_state_dict(tensors, assign=True)
    words = seeded("dsve.words.full", (9, 3, WORDS), 1)
    with torch.no_grad():
        last, c = stack.eval()(words, last_only=True)
    want = torch.from_numpy(GOLDEN["full_h"])
    torch.testing.assert_close(last[:, ::25], want, rtol=1e-4, atol=1e-5)
    want = torch.from_numpy(GOLDEN["full_c"])
    torch.testing.assert_close(c[-1, :, ::25], want, rtol=1e-4, atol=1e-5)


def test_old_and_new_checkpoints():
    tensors = published(96)
    old = {n: t for n, t in tensors.items() if not n.endswith("weight_c")}
    zeroed = {n: torch.zeros_like(t) if n.endswith("weight_c") else t for n, t in tensors.items()}
    scaled = {f"cap_emb.rnn.rnn_lst.{i}.scale_x": torch.ones(1) for i in range(4)}
    words = torch.randn(5, 2, WORDS)
    want, _ = SRU.from_tensors(zeroed)(words)
    assert torch.equal(SRU.from_tensors(old)(words)[0], want)
    assert torch.equal(SRU.from_tensors({**zeroed, **scaled})(words)[0], want)
    doubled = SRU.from_tensors({**zeroed, "rnn_lst.3.scale_x": torch.full((1,), 2.0)})
    assert not torch.equal(doubled(words)[0], want)


def test_wrong_tensors_give_one_sentence():
    with pytest.raises(CheckpointError, match=r"must hold rnn_lst\.0\.weight"):
        SRU.from_tensors({"img_emb.weight": torch.zeros(3)})
    tensors = published(96)
    tensors["rnn_lst.2.extra"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="Unexpected key"):
        SRU.from_tensors(tensors)
    with pytest.raises(OptionError, match="units must be even in two directions, got 3"):
        SRULayer(4, 3, bidirectional=True)


def test_fresh_weights_and_training_step():
    layer = SRULayer(WORDS, 2400)
    assert layer.weight.shape == (WORDS, 9600)
    assert float(layer.weight.detach().abs().max()) <= 0.06956083 + 1e-7
    stack = SRU(8, 6, 2, bidirectional=True, dropout=0.25, input_dropout=0.25)
    words = torch.randn(5, 3, 8)
    out, _ = stack(words, lengths=torch.tensor([5, 2, 4]))
    out.square().sum().backward()
    for name, parameter in stack.named_parameters():
        assert bool(parameter.grad.abs().sum() > 0), name
    assert not torch.equal(stack(words)[0], stack(words)[0])  # masks are drawn anew
    stack.eval()
    assert torch.equal(stack(words)[0], stack(words)[0])


def test_state_dict_round_trip():
    stack = SRU(8, 6, 3)
    stack.rnn_lst[1].scale = 1.5
    again = SRU.from_tensors(stack.state_dict())
    words = torch.randn(4, 2, 8)
    assert torch.equal(again(words)[0], stack(words)[0])
