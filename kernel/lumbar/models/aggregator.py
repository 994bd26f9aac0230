"""The aggregator: three small MLPs, shared over levels and sides, combine the logits of all classifiers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lumbar.config import AggregatorConfig
from lumbar.labels import MIRRORED
from lumbar.models.examples import Examples

_KINDS = (0, 1, 2, 3)  # of confidence: canal, left foramen, right foramen, axial slice
_MIRRORED_KINDS = (0, 2, 1, 3)


def _mlp(n_in: int, hidden: int, dropout: float) -> nn.Sequential:
    last = nn.Linear(hidden, 3)
    nn.init.zeros_(last.weight)  # training starts from the weighted mean of the classifiers
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, hidden), nn.LeakyReLU(0.05), nn.Dropout(dropout), last)


class Aggregator(nn.Module):
    """Logits of M models (N, M, 5 conditions, 5 levels, 3) with mask (N, M, 5, 5) → final logits (N, 5, 5, 3).

    The output of each target is a base plus a correction. The base is a weighted mean of the models that saw it (a
    logarithmic opinion pool, Genest & Zidek 1986; one weight for each model and group), or the log prior where none
    did. The correction comes from the MLP of the target's group, whose input are all logits of the level, the masks and
    the log prior. For targets on the right, left and right are swapped in the input, so that one MLP serves both sides.
    """

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.config = config
        n_models = len(config.models)
        self.n_in = n_models * 5 * 3 + n_models * 5 + 3 + (len(_KINDS) if config.confidence else 0)
        self.groups = nn.ModuleList(_mlp(self.n_in, config.hidden, config.dropout) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(3))
        self.pool = nn.Parameter(torch.zeros(3, n_models))  # softmax over the models that saw the target

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """One study's logits, some of them masked."""
        rng = np.random.default_rng(examples.seed)
        n_models = len(self.config.models)
        logits = torch.from_numpy(rng.random((1, n_models, 5, 5, 3), dtype=np.float32) * 4 - 2)
        mask = torch.from_numpy(rng.random((1, n_models, 5, 5)) > 0.3)
        log_prior = torch.from_numpy(np.log(rng.random((5, 5, 3), dtype=np.float32) + 0.1))
        if self.config.confidence:
            return logits, mask, log_prior, torch.from_numpy(rng.random((1, 5, 4), dtype=np.float32))
        return logits, mask, log_prior

    def forward(self, logits: Tensor, mask: Tensor, log_prior: Tensor, confidence: Tensor | None = None) -> Tensor:
        """Logits (N, M, 5, 5, 3), mask (N, M, 5, 5) bool, log_prior (5, 5, 3) → (N, 5, 5, 3).

        ``confidence`` (N, 5 levels, 4) in 0..1, of the canal, left and right foraminal points and the axial slice, is
        used only if the configuration asks for it; None counts as 0.
        """
        n, m = logits.shape[:2]
        weights = mask.to(logits.dtype)
        logits = torch.log_softmax(logits, dim=-1) * weights.unsqueeze(-1)
        seen = weights.sum(dim=1)  # (N, 5, 5)
        trust = torch.softmax(self.pool, dim=-1)
        prior = log_prior.to(logits.dtype).expand(n, 5, 5, 3)
        out = []
        for condition in range(5):
            group = (condition + 1) // 2
            order = list(range(5)) if condition in (0, 1, 3) else list(MIRRORED)
            level_logits = logits[:, :, order].permute(0, 3, 1, 2, 4).reshape(n, 5, m * 15)
            level_mask = weights[:, :, order].permute(0, 3, 1, 2).reshape(n, 5, m * 5)
            features = torch.cat([level_logits, level_mask, prior[:, condition]], dim=-1)  # (N, 5 levels, n_in)
            if self.config.confidence:
                level_confidence = (
                    logits.new_zeros(n, 5, len(_KINDS)) if confidence is None else confidence.to(logits.dtype)
                )
                kinds = _KINDS if condition in (0, 1, 3) else _MIRRORED_KINDS
                features = torch.cat([features, level_confidence[..., list(kinds)]], dim=-1)
            known = (seen[:, condition] > 0).unsqueeze(-1)
            share = weights[:, :, condition] * trust[group][:, None]  # (N, M, 5 levels)
            total = share.sum(dim=1).clamp(min=1e-6).unsqueeze(-1)
            pooled = (logits[:, :, condition] * share.unsqueeze(-1)).sum(dim=1) / total
            base = torch.where(known, pooled * self.scale[group], prior[:, condition])
            out.append(base + self.groups[group](features))
        return torch.stack(out, dim=1)
