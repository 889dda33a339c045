# SPDX-License-Identifier: Apache-2.0
"""A stack of simple recurrent units with the tensor names of published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from patchword.errors import CheckpointError, OptionError
from patchword.ops import sru

Dropout = Literal["activation", "difference"]


class SRULayer(nn.Module):
    """One layer: a product with ``weight``, then the recurrence of :func:`patchword.ops.sru`.

    ``weight [n_in, d k]`` is interleaved as published: column ``j k + g`` is gate ``g`` of unit
    ``j``. There are 4 gates when the input size differs from ``d``, else 3 and the input itself is
    the highway input.

    Args:
        input_size: Length of the input vectors.
        units: ``d``, over both directions.
        activation: ``"tanh"`` or ``"identity"``.
        bidirectional: The second half of the units runs from the last step to the first.
        input_dropout: Probability of dropping an input element, the same at all steps.
        dropout: Probability of dropping a cell output, the same at all steps.
        placement: Where the cell mask acts, see :func:`patchword.ops.sru`.
    """

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        activation: Literal["tanh", "identity"] = "tanh",
        bidirectional: bool = False,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        placement: Dropout = "activation",
    ) -> None:
        """Draw the product's weights uniformly within ``sqrt(3 / input_size)``; the rest is 0."""
        super().__init__()
        if bidirectional and units % 2:
            raise OptionError(f"SRULayer: units must be even in two directions, got {units}.")
        self.units, self.gates = units, 3 if input_size == units else 4
        self.activation: Literal["tanh", "identity"] = activation
        self.bidirectional, self.placement = bidirectional, placement
        self.input_dropout, self.dropout = input_dropout, dropout
        bound = math.sqrt(3 / input_size)
        self.weight = nn.Parameter(
            torch.empty(input_size, units * self.gates).uniform_(-bound, bound)
        )
        self.weight_c = nn.Parameter(torch.zeros(2 * units))
        self.bias = nn.Parameter(torch.zeros(2 * units))
        self.scale = 1.0  # of the highway input; published as the tensor scale_x

    def _mask(self, x: Tensor, size: int, probability: float) -> Tensor | None:
        if not self.training or probability == 0:
            return None
        keep = 1 - probability
        return x.new_empty(x.shape[1], size).bernoulli_(keep).div_(keep)

    def forward(
        self,
        x: Tensor,
        initial: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run ``x [L, B, n_in]``; see :func:`patchword.ops.sru` for the arguments and results."""
        mask = self._mask(x, x.shape[2], self.input_dropout)
        product = (x if mask is None else x * mask) @ self.weight
        gates = product.view(*x.shape[:2], self.units, self.gates).transpose(2, 3)
        return sru(
            gates,
            self.bias,
            self.weight_c,
            highway=x if self.gates == 3 else None,
            initial=initial,
            mask=self._mask(x, self.units, self.dropout),
            lengths=lengths,
            scale_x=self.scale,
            activation=self.activation,
            dropout=self.placement,
            bidirectional=self.bidirectional,
            last_only=last_only,
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.scale != 1.0:
            destination[f"{prefix}scale_x"] = self.bias.new_tensor([self.scale]).detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Before 2.0 there was no weight_c, and scale_x came and went; both have one neutral value.
        state_dict.setdefault(f"{prefix}weight_c", torch.zeros(2 * self.units))
        self.scale = float(state_dict.pop(f"{prefix}scale_x", 1.0))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SRU(nn.Module):
    """Layers of simple recurrent units, each on the outputs of the one before.

    The layers are called ``rnn_lst.<i>``, so that ``load_state_dict`` takes a published stack
    (``rnn_lst.<i>.weight``, ``weight_c``, ``bias`` and, where present, ``scale_x``) as it is.

    Args:
        input_size: Length of the input vectors.
        units: Units of every layer, over both directions.
        layers: Number of layers.
        dropout: Of the cell outputs, on all layers but the last.
        options: Further options of :class:`SRULayer`.
    """

    def __init__(
        self, input_size: int, units: int, layers: int, *, dropout: float = 0.0, **options: Any
    ) -> None:
        """Make the layers with fresh weights."""
        super().__init__()
        self.rnn_lst = nn.ModuleList(
            SRULayer(
                input_size if i == 0 else units,
                units,
                dropout=dropout if i + 1 < layers else 0.0,
                **options,
            )
            for i in range(layers)
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **options: Any) -> SRU:
        """Build and fill a stack from published tensors, its sizes read off their shapes.

        Args:
            tensors: ``<anything>rnn_lst.<i>.<name>`` to tensor; names without ``rnn_lst.`` are
                left alone.
            options: Further options of the stack.

        Raises:
            CheckpointError: No layer is there, or the tensors do not make a stack.
        """
        found = {
            "rnn_lst." + name.split("rnn_lst.", 1)[1]: tensor
            for name, tensor in tensors.items()
            if "rnn_lst." in name
        }
        layers = len({name.split(".")[1] for name in found})
        first, bias = found.get("rnn_lst.0.weight"), found.get("rnn_lst.0.bias")
        if first is None or bias is None:
            raise CheckpointError(
                "SRU.from_tensors: tensors must hold rnn_lst.0.weight and rnn_lst.0.bias, "
                f"got {sorted(found) or 'neither'}."
            )
        stack = cls(first.shape[0], bias.shape[0] // 2, layers, **options)
        try:
            stack.load_state_dict(found)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise CheckpointError(f"SRU.from_tensors: the tensors make no stack: {text}") from error
        return stack

    def forward(
        self,
        x: Tensor,
        initial: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run the stack.

        Args:
            x: ``[L, B, n_in]``.
            initial: ``[layers, B, d]`` states before the first step.
            lengths: ``[B]`` steps of each sample.
            last_only: Return the last layer's output of each unit's last step only.

        Returns:
            Outputs of the last layer ``[L, B, d]`` (or ``[B, d]``) and the last states of all
            layers ``[layers, B, d]``.
        """
        states = []
        for i, layer in enumerate(self.rnn_lst):
            before = None if initial is None else initial[i]
            final = last_only and i + 1 == len(self.rnn_lst)
            x, state = layer(x, before, lengths=lengths, last_only=final)
            states.append(state)
        return x, torch.stack(states)
