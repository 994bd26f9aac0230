"""Fusion: the features of all classifiers of one fit, of both views → logits of one classifier more.

Each fit's head reads the features of the classifiers of the same fit alone: those of another fit lie in a space of
their own, in which the head knows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lumbar.labels import MIRRORED
from lumbar.models.fusion import FusionHead
from lumbar.models.inference import forward


@dataclass
class Features:
    """What one network's logits of a study rest on, summed over its looks.

    Attributes:
        total: (views, 5 levels, 3, F), a level's features added over the looks that show it; views are the patient and,
            where that was asked for, the mirrored patient.
        looks: (5 levels,) how many show the level.
    """

    total: Tensor
    looks: Tensor

    @property
    def mean(self) -> Tensor:
        """(views, 5 levels, 3, F), 0 where no look shows the level."""
        return self.total / self.looks.clamp(min=1)[:, None, None]

    def plus(self, other: Features) -> Features:
        """The same with the looks of another."""
        return Features(self.total + other.total, self.looks + other.looks)

    @classmethod
    def of_look(cls, views: Sequence[Tensor], shown: Tensor) -> Features:
        """Those of one look: features (5 levels, 3, F) of each view, and which targets (5 levels, 5) it shows."""
        looks = shown.any(dim=1).float()
        return cls(torch.stack(list(views)) * looks[:, None, None], looks)


Answer = tuple[Tensor, Tensor]  # logits (5 levels, 5 conditions, 3) and mask (5, 5) of one network


def members_of(heads: Sequence[nn.Module]) -> tuple[str, ...]:
    """The classifiers that fusion heads read, in the order of their input; none without a head."""
    first = heads[0] if heads else None
    return first.config.members if isinstance(first, FusionHead) else ()


def fused(head: nn.Module, answers: Sequence[Answer], features: Sequence[Features | None]) -> Answer:
    """Logits (5 levels, 5 conditions, 3) of one fit's head, averaged over views; which rest on images.

    Args:
        head: of the fit.
        answers: of its members, averaged over looks and views.
        features: of the same members; None of one whose view is missing.
    """
    assert isinstance(head, FusionHead)
    logits, mask = (torch.stack(parts, dim=1) for parts in zip(*answers, strict=True))  # (5 levels, M, …)
    n_views = max((len(one.total) for one in features if one is not None), default=1)
    empty = [torch.zeros(n_views, len(logits), 3, width) for width in head.config.widths]
    means = [zeros if one is None else one.mean for one, zeros in zip(features, empty, strict=True)]
    level = torch.arange(len(logits))
    views = []
    for view in range(n_views):
        order = list(MIRRORED) if view else list(range(5))
        out = forward(head, logits[:, :, order], mask[:, :, order], level, *(mean[view] for mean in means))
        views.append(out[:, order])
    return torch.stack(views).mean(dim=0), mask.any(dim=1)


def fused_fits(
    heads: Sequence[nn.Module],
    answers: Mapping[str, Sequence[Answer]],
    features: Mapping[str, Sequence[Features | None]],
) -> list[Answer]:
    """What each fit's head answers, of the fits that ran.

    Args:
        heads: of one bundle, in the order of its fits.
        answers: of each classifier that ran, one for each of its fits.
        features: the same.
    """
    members = members_of(heads)
    n_fits = min((len(answers[member]) for member in members), default=0)
    return [
        fused(head, [answers[m][fit] for m in members], [features[m][fit] for m in members])
        for fit, head in enumerate(heads[:n_fits])
    ]
