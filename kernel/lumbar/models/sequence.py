"""Sequences of slices: a BiLSTM that leaves out padding, and the slice-role network (sagittal z)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lumbar.config import SliceRoleConfig
from lumbar.models.backbone import Backbone
from lumbar.models.examples import Examples, example_size


class MaskedBiLSTM(nn.Module):
    """Bidirectional LSTM over the valid steps of each sequence, wherever they are in it.

    Valid steps are moved to the front in their order, packed, and put back, so that the output depends neither on
    padding nor on the other sequences of the batch. It is 0 at invalid steps.
    """

    def __init__(self, n_in: int, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(n_in, hidden, batch_first=True, bidirectional=True)
        self.features = 2 * hidden

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """Steps (B, S, n_in), mask (B, S) bool → (B, S, features)."""
        lengths = mask.sum(dim=1)
        out = steps.new_zeros(*steps.shape[:2], self.features)
        rows = torch.nonzero(lengths).squeeze(1)
        if rows.numel() == 0:
            return out
        steps, mask, lengths = steps[rows], mask[rows], lengths[rows]
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        front = torch.gather(steps, 1, order.unsqueeze(-1).expand_as(steps))
        packed = pack_padded_sequence(front, lengths.cpu(), batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=steps.shape[1])
        back = torch.argsort(order, dim=1).unsqueeze(-1).expand_as(padded)
        return out.index_copy(0, rows, torch.gather(padded, 1, back).to(out.dtype))


class PositionMm(nn.Module):
    """Signed distances in mm as sines and cosines of ``width`` wavelengths; nothing in it is learnt.

    The solution's form (12y8), with distances clipped to 80 mm as there. Wavelengths run from two slices of 4 mm to
    twice the clipped range, so that neighbours differ and no two places look alike.
    """

    CLIP_MM = 80.0
    WAVELENGTHS_MM = (8.0, 320.0)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, position_mm: Tensor) -> Tensor:
        """(N,) float32 → (N, width)."""
        n = -(-self.width // 2)
        low, high = (math.log(value) for value in self.WAVELENGTHS_MM)
        exponents = torch.linspace(low, high, n, device=position_mm.device)
        angles = position_mm.float().clamp(-self.CLIP_MM, self.CLIP_MM)[:, None] * (2 * math.pi / exponents.exp())
        return torch.cat([angles.sin(), angles.cos()], dim=1)[:, : self.width]


def masked_mean(steps: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid steps: (B, S, F), (B, S) → (B, F); 0 where none is valid."""
    weights = mask.to(steps.dtype).unsqueeze(-1)
    return (steps * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class SliceRoleNet(nn.Module):
    """A sagittal series cut to the box around its five levels → how many levels are marked on each slice.

    Input (B, S, size, size) in 0..1 ordered from the patient's right to left, mask (B, S) bool; output (B, S, 3):
    left foraminal, right foraminal, canal counts, about 0..5.
    """

    def __init__(self, config: SliceRoleConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, size=config.size)
        self.rnn = MaskedBiLSTM(self.backbone.features, config.hidden)
        self.head = nn.Linear(self.rnn.features, 3)

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two series of four slices, of which the second has two masked ones."""
        size = example_size(self.config)
        images = examples.images(8, size).view(2, 4, size, size)
        return images, torch.tensor([[True, True, True, True], [True, True, False, False]])

    def forward(self, slices: Tensor, mask: Tensor) -> Tensor:
        """(B, S, size, size), (B, S) → (B, S, 3)."""
        b, s = mask.shape
        features = slices.new_zeros(b * s, self.backbone.features)
        flat = torch.nonzero(mask.reshape(-1)).squeeze(1)
        valid = self.backbone(slices.reshape(b * s, 1, *slices.shape[2:])[flat])
        features = features.to(valid.dtype).index_copy(0, flat, valid).view(b, s, -1)  # (B, S, F)
        return self.head(self.rnn(features, mask))
