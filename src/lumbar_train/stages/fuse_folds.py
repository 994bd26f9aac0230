"""The stage ``fusion`` on one fold: a head on the features of frozen classifiers, and its logits out of fold."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.config import FusionConfig, to_dict
from lumbar.models import build, name_of
from lumbar.stages.classify import fits_logits
from lumbar.stages.fuse import Features, fused
from lumbar_train.data.folds import check_split, fold_name, is_full, split
from lumbar_train.errors import LeakError
from lumbar_train.outputs.oof import read_seen
from lumbar_train.stages.aggregate_folds import log_fit
from lumbar_train.stages.classifiers import Outputs, localisations, write_logits
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fitting import load_network
from lumbar_train.stages.fused_recipe import head_config, members_of
from lumbar_train.stages.fusion import FusionRecipe
from lumbar_train.stages.fusion_features import Shown, training_features
from lumbar_train.stages.losses import competition_loss
from lumbar_train.stages.stage import Stage

MEMBER_DROP = 0.1  # chance that a classifier is hidden from the head in training, so that it can do without a view
_CLIP = 1.0


def fuse_fold(run: RunContext, stage: Stage, fold: int) -> None:
    """Fit the head of a fold on its training studies, and leave its logits for the studies that the fold holds out.

    Raises:
        LeakError: a classifier of the fold has seen a study that the fold holds out, or is another fold's.
    """
    recipe, names = run.recipe.fusion, members_of(run.recipe)
    assert recipe is not None
    train, held_out = split(run.folds, fold)
    check_split(train, held_out)
    seen = check_members(run, names, fold, held_out) | set(map(int, train))
    members = {name: load_network(run, name, fold) for name in names}
    began = time.monotonic()
    shown = training_features(run, members, [int(k) for k in train], fold)
    check_split(shown.study_ids, held_out)
    config, seed = head_config(run.recipe), run.seed * 1000 + fold + 1
    head, losses = run.distributed.on_main(lambda: fit_head(shown, config, recipe, seed, run.distributed.device))
    head = head.to(run.distributed.device).eval()
    if not is_full(fold):
        studies = run.held_out_studies(fold, stage.name, names)
        outputs = fused_logits(run, list(members.values()), head, studies)
        run.join_outputs(outputs, partial(write_logits, run, fold, stage=stage.name))
    run.distributed.on_main(lambda: _leave(run, stage, fold, head, losses, seen, time.monotonic() - began))


def _leave(
    run: RunContext, stage: Stage, fold: int, head: nn.Module, losses: list[float], seen: set[int], seconds: float
) -> None:
    """Write the fit's log, then its weights: they say that the stage is done on the fold."""
    log_fit(run.folder.fit(stage.name, fold), stage.name, losses, [], len(seen), seconds)
    run.folder.save_network(head, stage.name, fold, seen)


def check_members(run: RunContext, names: Sequence[str], fold: int, held_out: NDArray[np.int64]) -> set[int]:
    """Every study that the classifiers of a fold have seen, none of which may be held out.

    Raises:
        LeakError: one is, or weights are of another fold, whose features the head would not understand.
    """
    every: set[int] = set()
    for name in names:
        run.folder.check_unseen(name, fold, map(int, held_out))
        own, seen = read_seen(run.folder.weights(name, fold))
        if own != fold:
            raise LeakError(
                f"{run.folder.weights(name, fold)}: found weights of {fold_name(own)}, expected of {fold_name(fold)}"
            )
        every |= seen
    return every


def fit_head(
    shown: Shown, config: FusionConfig, recipe: FusionRecipe, seed: int, device: torch.device
) -> tuple[nn.Module, list[float]]:
    """Fit a head on the competition's metric with AdamW and a cosine schedule.

    Args:
        shown: what the classifiers say of the training studies.
        config: of the head.
        recipe: how it is fitted.
        seed: of initial weights, order and what is hidden.
        device: that it is fitted on.

    Returns:
        The head on the CPU, and the mean loss of each epoch.
    """
    torch.manual_seed(seed)
    network = build(name_of(config), to_dict(config)).to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = -(-len(shown) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * steps)
    losses = []
    for _ in range(recipe.epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(shown)), recipe.batch):
            hidden = torch.rand(len(rows), shown.mask.shape[1], 1, 1) < MEMBER_DROP
            loss = head_loss(network, shown, rows, hidden, device)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(shown))
    return network.cpu().eval(), losses


def head_loss(
    head: nn.Module, shown: Shown, rows: torch.Tensor, hidden: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """The metric of a head on some shown studies; ``hidden`` (n, M, 1, 1) are classifiers that it must do without."""
    n = len(rows)
    logits, mask = shown.logits[rows], shown.mask[rows] & ~hidden  # (n, M, 5 levels, …)
    labels = torch.where(mask.any(dim=1).transpose(1, 2), shown.labels[rows], -1)  # (n, 5 conditions, 5 levels)
    level = torch.arange(5).repeat(n)
    inputs = [logits.transpose(1, 2).flatten(0, 1), mask.transpose(1, 2).flatten(0, 1), level]
    inputs += [features[rows].flatten(0, 1).float() for features in shown.features]
    out = head(*(tensor.to(device) for tensor in inputs))
    return competition_loss(out.view(n, 5, 5, 3).transpose(1, 2), labels.to(device))


def fused_logits(run: RunContext, members: Sequence[nn.Module], head: nn.Module, study_ids: Iterable[int]) -> Outputs:
    """Logits (5 conditions, 5 levels, 3) and mask (5, 5) of each study, at its out-of-fold points, as in the kernel."""
    places = localisations(run)
    outputs: Outputs = {}
    for study_id in study_ids:
        features: dict[int, Features] = {}
        study = run.cache.study(study_id)
        answers = fits_logits(study, places[study_id], members, flip=True, features=features)
        logits, shown = fused(head, answers, [features.get(k) for k in range(len(members))])
        outputs[study_id] = logits.permute(1, 0, 2).numpy(), shown.T.numpy()
    return outputs
