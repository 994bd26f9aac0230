"""The fusion head: features of frozen classifiers of both views → logits of one level."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumbar.config import FusionConfig
from lumbar.models.classifier import N_LEVELS
from lumbar.models.examples import Examples

_SHARED, _OWN = (0, 1, 1, 2, 2), (0, 1, 2, 3, 4)  # the part of the head that answers each condition
_SIDES = ((1, 2), (1,), (2,), (1,), (2,))  # what each condition reads besides the middle: both sides, left or right


class FusionHead(nn.Module):
    """Logits, mask and features of M classifiers of one fit at N levels → logits (N, 5, 3).

    The answer is a base plus a correction. The base is the mean of the log probabilities of the classifiers that saw
    the target. The correction reads the features of all classifiers that saw anything of the level, those that do not
    answer the target included. It starts from 0, so a head that learns nothing is the mean of its members.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.part_of = _SHARED if config.share_sides else _OWN
        n_parts = max(self.part_of) + 1
        self.drop = nn.Dropout(config.dropout)
        self.read = nn.ModuleList(
            nn.ModuleList(nn.Linear(2 * width, config.hidden) for width in config.widths) for _ in range(n_parts)
        )
        self.level = nn.ModuleList(nn.Embedding(N_LEVELS, config.hidden) for _ in range(n_parts))
        self.last = nn.ModuleList(nn.Linear(config.hidden, 3) for _ in range(n_parts))
        for last in self.last:
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two levels, one of them without the last classifier's view."""
        rng = np.random.default_rng(examples.seed)
        n_members = len(self.config.members)
        logits = torch.from_numpy(rng.random((2, n_members, 5, 3), dtype=np.float32) * 4 - 2)
        mask = torch.ones(2, n_members, 5, dtype=torch.bool)
        mask[1, -1] = False
        features = [torch.from_numpy(rng.random((2, 3, w), dtype=np.float32) - 0.5) for w in self.config.widths]
        return logits, mask, torch.tensor([1, 4]), *features

    def forward(self, logits: Tensor, mask: Tensor, level: Tensor, *features: Tensor) -> Tensor:
        """Logits (N, M, 5, 3), mask (N, M, 5) bool, level (N,) in 0..4, M times features (N, 3, width) → (N, 5, 3).

        The three rows of features are those of the middle, the patient's left and right.
        """
        shown = mask.to(logits.dtype)
        total = (F.log_softmax(logits, dim=-1) * shown[..., None]).sum(dim=1)
        base = total / shown.sum(dim=1).clamp(min=1.0)[..., None]
        is_there = mask.any(dim=2).to(logits.dtype)
        return base + torch.stack([self._correction(c, is_there, level, features) for c in range(5)], dim=1)

    def _correction(self, condition: int, is_there: Tensor, level: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        part = self.part_of[condition]
        hidden: Tensor = self.level[part](level)
        read = self.read[part]
        assert isinstance(read, nn.ModuleList)
        for m, (of_member, layer) in enumerate(zip(features, read, strict=True)):
            side = of_member[:, list(_SIDES[condition])].mean(dim=1)
            seen = self.drop(torch.cat([of_member[:, 0], side], dim=1))
            hidden = hidden + layer(seen) * is_there[:, m, None]
        out: Tensor = self.last[part](self.drop(F.leaky_relu(hidden, 0.05)))
        return out
