"""An aggregator that reads the five levels as a sequence, so that the neighbours of a level count as well."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lumbar.config import LevelSequenceConfig
from lumbar.models.aggregator import Aggregator


class OverLevels(nn.Module):
    """Features of five levels (N, 5, n_in) → corrections (N, 5, 3) by a bidirectional GRU from L1/L2 to L5/S1."""

    def __init__(self, n_in: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(2 * hidden, 3)
        nn.init.zeros_(self.last.weight)  # training starts from the weighted mean of the classifiers
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, 5, n_in) → (N, 5, 3)."""
        steps, _ = self.rnn(F.leaky_relu(self.first(features), 0.05))
        return self.last(self.drop(steps))


class LevelSequenceAggregator(Aggregator):
    """An ``Aggregator`` whose correction of a level depends on all five levels; its input and base are the same."""

    def __init__(self, config: LevelSequenceConfig) -> None:
        super().__init__(config)
        self.groups = nn.ModuleList(OverLevels(self.n_in, config.hidden, config.dropout) for _ in range(3))
