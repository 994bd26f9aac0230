"""Losses of the stages. Each takes a network and a batch and gives the loss and figures for the log."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumbar.labels import GROUPS, SEVERITY_WEIGHTS
from lumbar_train.data.batched import finished

Batch = dict[str, Tensor]
Figures = dict[str, Any]  # "weight" is what the loss was divided by: batches may be cut anywhere
SEGMENT_WEIGHT = 0.1
TINY = 1e-6  # a part of a batch may weigh nothing; the loop sees to it that a whole one weighs at least 1


def heatmap_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
    """Quality focal loss over the points' heat (Li et al. 2020), plus cross entropy of tissues where they are known.

    |target - p|² × binary cross entropy: the empty background hardly counts once it is empty. Normalised by the
    heat that is there.
    """
    batch = finished(batch)
    out = network(batch["images"]).float()
    heat, known = batch["heat"], batch["known"][:, :, None, None]
    logits = out[:, : heat.shape[1]]
    p = torch.sigmoid(logits)
    each = (heat - p).abs().square() * F.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    weight = (heat * known).sum().clamp(min=TINY)
    points = (each * known).sum() / weight
    loss = points
    figures: Figures = {"points": points.detach(), "weight": weight}
    segments = batch["segments"]
    if out.shape[1] > heat.shape[1] and bool((segments >= 0).any()):
        tissue = F.cross_entropy(out[:, heat.shape[1] :], segments, ignore_index=-1)
        loss = loss + SEGMENT_WEIGHT * tissue
        figures["tissue"] = tissue.detach()
    return loss, figures


def sagittal_regression_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
    """Squared error of the known points in slices that show the canal, plus binary cross entropy of presence.

    A point that is ``marked`` on the slice itself counts on any slice.
    """
    batch = finished(batch)
    out = network(batch["images"]).float()
    points = out[:, :10].view(-1, 5, 2)
    weight = torch.maximum(batch["known"] * batch["presence"][:, None], batch["marked"])
    position = ((points - batch["points"]).square().sum(-1) * weight).sum() / weight.sum().clamp(min=1.0)
    presence = F.binary_cross_entropy_with_logits(out[:, 10], batch["presence"])
    loss = 100 * position + presence
    return loss, {"position": position.detach(), "presence": presence.detach()}


def axial_regression_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
    """Masked L1 over left and right points in 0..1."""
    batch = finished(batch)
    out = network(batch["images"]).float().view(-1, 2, 2)
    weight = batch["known"]
    total = weight.sum().clamp(min=TINY)
    return ((out - batch["points"]).abs().sum(-1) * weight).sum() / total, {"weight": total}


def slice_role_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
    """Weighted L1 of the counts: slices that carry points weigh more, kinds that are not labelled nothing."""
    batch = finished(batch)
    out = network(batch["images"], batch["mask"]).float()
    weight = (1 + batch["counts"]) * batch["mask"][..., None] * batch["known"][:, None]
    total = weight.sum().clamp(min=TINY)
    return ((out - batch["counts"]).abs() * weight).sum() / total, {"weight": total}


def graded_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
    """Cross entropy, weighted 1/2/4 as the metric is, over the conditions that are labelled and whose crops exist.

    Where samples are mixed, ``share`` (B, 5) of a condition's crops belongs to ``labels``, the rest to ``labels2``.
    Softened labels are the mixtures of grades in ``soft`` (B, 5, 3), the second ones in ``soft2``.
    """
    batch = finished(batch)
    places = (batch["position_mm"],) if "position_mm" in batch else ()
    out = network(batch["crops"], batch["mask"], batch["level"], *places).float()  # (B, 5, 3)
    labels = batch["labels"]  # (B, 5), -1 missing or not to be graded
    each, weights = _weighted(out, labels, batch.get("soft"))
    if "share" not in batch:
        total = weights.sum().clamp(min=TINY)
        return (each * weights).sum() / total, {"weight": total}
    other, other_weights = _weighted(out, batch["labels2"], batch.get("soft2"))
    weights, other_weights = weights * batch["share"], other_weights * (1 - batch["share"])
    total = (weights + other_weights).sum().clamp(min=TINY)
    return (each * weights + other * other_weights).sum() / total, {"weight": total}


def _weighted(logits: Tensor, labels: Tensor, soft: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross entropies and weights (…) of logits (…, 3) and labels (…); the weight of a missing label is 0.

    With ``soft`` (…, 3) a label is that mixture of grades, each of which weighs what it weighs; NaN: the label alone.
    """
    if soft is not None:
        return _weighted_mixture(logits, labels, soft)
    weights = torch.tensor(SEVERITY_WEIGHTS, device=logits.device)[labels.clamp(min=0)] * (labels >= 0)
    each = F.cross_entropy(logits.flatten(0, -2), labels.clamp(min=0).flatten(), reduction="none")
    return each.view_as(weights), weights


def _weighted_mixture(logits: Tensor, labels: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
    own = F.one_hot(labels.clamp(min=0), 3).to(logits.dtype)
    target = torch.where(soft.isnan().any(dim=-1, keepdim=True), own, soft.to(logits.dtype))
    by_grade = target * torch.tensor(SEVERITY_WEIGHTS, device=logits.device) * (labels >= 0)[..., None]
    weights = by_grade.sum(dim=-1)
    sums = -(by_grade * F.log_softmax(logits, dim=-1)).sum(dim=-1)
    return sums / weights.clamp(min=TINY), weights


def metric_loss(logits: Tensor, labels: Tensor, per_study: Tensor) -> Tensor:
    """The competition's metric as a mean over studies, so that batches may be cut anywhere.

    Each term is divided by what a study of the cohort weighs on average instead of by the batch's own weights; over
    the whole cohort that is ``competition_loss``, and a batch estimates it without bias. An unknown canal label stays
    unknown in the any-severe term as well (``any_severe``), whereas the metric takes it for "not severe".

    Args:
        logits: (N, 5 conditions, 5 levels, 3).
        labels: (N, 5, 5), -1 missing.
        per_study: (4,) mean weight a study of the three groups and the any-severe term; 0: the term is left out.
    """
    each, weights = _weighted(logits, labels)
    terms = [(each[:, list(c)] * weights[:, list(c)]).sum() for c in GROUPS.values()]
    severe, heaviest = any_severe(labels[:, 0])
    of_level = torch.softmax(logits[:, 0], dim=-1)[..., 2] * (labels[:, 0] >= 0)  # an unknown level says nothing
    p = of_level.max(dim=1).values.clamp(1e-6, 1 - 1e-6)
    terms.append((F.binary_cross_entropy(p, severe.to(logits.dtype), reduction="none") * heaviest).sum())
    is_used = per_study > 0
    values = torch.stack(terms)[is_used] / (per_study[is_used] * len(logits))
    return values.mean()


def any_severe(canal: Tensor) -> tuple[Tensor, Tensor]:
    """Whether any canal label (N, 5), -1 unknown, of a study is severe (N,) bool, and what the study weighs (N,).

    One severe label settles it. Without one, a study with an unknown label may be severe or not: it weighs nothing.
    """
    is_severe = (canal == 2).any(dim=1)
    is_known = is_severe | (canal >= 0).all(dim=1)
    weights = torch.tensor(SEVERITY_WEIGHTS, device=canal.device)[canal.clamp(min=0)] * (canal >= 0)
    return is_severe, weights.max(dim=1).values * is_known


def competition_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The competition's metric as a loss: logits (N, 5 conditions, 5 levels, 3), labels (N, 5, 5) with -1 missing.

    Three weighted log losses, each divided by its weight sum, and the any-severe term whose prediction is the largest
    severe probability of the five canal levels.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    known = labels >= 0
    weights = torch.tensor(SEVERITY_WEIGHTS, device=logits.device)[labels.clamp(min=0)] * known
    each = -log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * weights
    terms = []
    for conditions in GROUPS.values():
        picked = list(conditions)
        terms.append(each[:, picked].sum() / weights[:, picked].sum().clamp(min=1.0))
    canal_known = known[:, 0].any(dim=1)
    severe = (labels[:, 0] == 2).any(dim=1).to(logits.dtype)
    weight = weights[:, 0].max(dim=1).values * canal_known
    p = log_probs[:, 0, :, 2].exp().max(dim=1).values.clamp(1e-6, 1 - 1e-6)
    any_severe = F.binary_cross_entropy(p, severe, reduction="none") * weight
    terms.append(any_severe.sum() / weight.sum().clamp(min=1.0))
    return torch.stack(terms).mean()
