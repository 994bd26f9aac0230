"""Fits the network of one stage on one fold, and predicts the studies that the fold holds out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lumbar.config import CLASSIFIERS, to_dict
from lumbar.io.text import counted
from lumbar.models import build, name_of
from lumbar_train.data.folds import FULL, check_split, fold_name, is_full, split
from lumbar_train.engine.checkpoint import load_weights
from lumbar_train.engine.loop import Validate, fit
from lumbar_train.engine.loop_config import FitResult, LoopConfig
from lumbar_train.engine.optimisation import LossFunction
from lumbar_train.engine.sampling import Dataset
from lumbar_train.errors import TrainingError
from lumbar_train.recipes import StageRecipe
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fits import METRIC, epochs_after
from lumbar_train.stages.held_out import held_out_loss, held_out_metric
from lumbar_train.stages.metric_finetune import MetricLoss, StudyCrops
from lumbar_train.stages.stage import Fitted, Stage


def fit_seed(seed: int, fold: int) -> int:
    """The seed of a fit's order and augmentation: the run's, moved on for each further fit on all data."""
    return seed + max(0, FULL - fold) * 7919


def loop_config(stage: StageRecipe, seed: int, overrides: dict[str, Any]) -> LoopConfig:
    """How the loop fits a stage of a recipe; ``overrides`` are options that no recipe sets."""
    fit_ = stage.fit
    values = {
        "epochs": fit_.epochs,
        "batch_size": fit_.batch,
        "accumulate": fit_.accumulate,
        "checkpointing": fit_.checkpointing,
        "lr": fit_.lr,
        "weight_decay": fit_.weight_decay,
        "warmup": fit_.warmup,
        "clip_norm": fit_.clip,
        "ema_decay": fit_.ema or None,
        "seed": seed,
    }
    return LoopConfig(**(values | overrides))


def load_network(run: RunContext, stage: str, fold: int) -> nn.Module:
    """A stage's network with the weights that it left on a fold, ready to predict.

    Raises:
        TrainingError: the stage has not been fitted, or its weights are another network's.
    """
    config = run.recipe.stages[stage].network
    network = build(name_of(config), to_dict(config))
    load_weights(run.folder.weights(stage, fold), network)
    return network.to(run.distributed.device).eval()


def run_on_fold(run: RunContext, stage: Stage, fold: int) -> None:
    """Fit a stage on a fold, then leave its outputs for the studies that the fold holds out."""
    if stage.on_fold is not None:
        stage.on_fold(run, stage, fold)
        return
    network = fit_on_fold(run, stage, fold, stage.fitted) if stage.fitted else None
    if stage.predicted is None:
        return
    if stage.predicted.load is not None:
        network = stage.predicted.load(run, fold)
    studies = run.held_out_studies(fold, stage.name, stage.predictors())
    outputs = stage.predicted.predict(run, network, studies)
    if not is_full(fold):
        run.join_outputs(outputs, partial(stage.predicted.write, run, fold))


def fit_on_fold(
    run: RunContext, stage: Stage, fold: int, fitted: Fitted, *, without: Sequence[int] = (), suffix: str = ""
) -> nn.Module:
    """Fit a stage's network on the studies outside a fold (on all of them for a fit on all data), and keep it.

    Args:
        run: what is trained on what.
        stage: whose network.
        fold: whose studies are held out.
        fitted: how.
        without: further studies that are held out.
        suffix: of the fit's folder and weights, where there are several fits on a fold.

    Raises:
        LeakError: a study of the fold is among those that are trained on.
        TrainingError: as ``fit``.
    """
    recipe = stage.recipe_of(run.recipe)
    train, held_out = split(run.folds, fold)
    if without:
        train, held_out = train[~np.isin(train, without)], np.union1d(held_out, without)
    check_split(train, held_out)
    samples = fitted.dataset(run, recipe, [int(k) for k in train])
    if not len(samples):
        raise TrainingError(_no_sample(run, stage, fold, suffix, len(train)))
    seen = set(map(int, train)) | set(samples.studies)  # what is asked for and what is given
    if run.initial is not None:  # and what it has seen before
        seen |= run.initial.seen([stage.name, stage.recipe_name or stage.name], fold, held_out, suffix)
    check_split(seen, held_out)
    torch.manual_seed(run.seed * 1000 + fold + 1)
    network = build(name_of(recipe.network), to_dict(recipe.network))
    goes_on = run.resume and run.folder.has_begun(stage.name, fold, suffix)
    if run.distributed.is_main and not goes_on:  # the other processes receive the main process's weights
        run.start.apply(network)
        if run.initial is not None:
            run.initial.apply(network, [stage.name, stage.recipe_name or stage.name], fold, held_out, suffix)
    config = loop_config(recipe.for_fold(fold), fit_seed(run.seed, fold), run.loop)
    beyond = config.epochs_beyond + epochs_after(run.recipe, stage, fold, suffix)
    config = replace(config, epochs_beyond=beyond)
    loss = fitted.loss(recipe.network)
    validate = held_out_loss(run, stage, fold, fitted, loss, config, len(samples))
    result = _fit(run, stage, fold, network, samples, loss, config, suffix, validate)
    load_weights(result.weights, network)
    if isinstance(samples, LevelCrops) and recipe.fit.metric_epochs and not suffix:
        _fit_on_metric(run, stage, fold, network, samples, fitted)
    run.distributed.barrier()  # all have read the weights that are removed now
    run.distributed.on_main(partial(_leave, run, stage, fold, network, seen, suffix))
    return network.eval()


def _no_sample(run: RunContext, stage: Stage, fold: int, suffix: str, n_studies: int) -> str:
    """The refusal of a fit that has nothing to learn from; a filter that may have taken all is named."""
    studies = counted(n_studies, "study")
    said = f"{stage.name} {fold_name(fold)}{suffix}: found no sample in {studies}, expected at least one"
    if stage.recipe_name in CLASSIFIERS and run.recipe.consistency is not None:
        said += (
            f"; {run.out / 'consistency'} counts the labels that were left out because their points lie outside the "
            "predicted crops (--set recipe.consistency=off keeps them)"
        )
    return said


def _leave(run: RunContext, stage: Stage, fold: int, network: nn.Module, seen: set[int], suffix: str) -> None:
    """Write what the stage leaves on the fold, then remove the copies in the folders of its rounds."""
    run.folder.save_network(network, stage.name, fold, seen, suffix)
    for of_round in {suffix, suffix or METRIC}:
        run.folder.drop_copies(stage.name, fold, of_round)


def _fit_on_metric(
    run: RunContext, stage: Stage, fold: int, network: nn.Module, samples: LevelCrops, fitted: Fitted
) -> None:
    """A classifier's second round: a few epochs of whole studies on the metric itself, from the first's weights."""
    recipe = stage.recipe_of(run.recipe)
    studies = StudyCrops(samples)
    labels = {k: samples.labels[k] for k in studies.study_ids}
    config = loop_config(recipe, fit_seed(run.seed, fold), run.loop)
    config = replace(
        config,
        epochs=recipe.fit.metric_epochs,
        lr=recipe.fit.metric_lr or config.lr / 10,
        batch_size=max(1, config.batch_size // 4),  # a study holds five levels
    )
    loss = MetricLoss(labels, tuple(samples.targets))
    validate = held_out_metric(run, stage, fold, fitted, config, len(studies))
    result = _fit(run, stage, fold, network, studies, loss, config, METRIC, validate)
    load_weights(result.weights, network)


def _fit(
    run: RunContext,
    stage: Stage,
    fold: int,
    network: nn.Module,
    samples: Dataset,
    loss: LossFunction,
    config: LoopConfig,
    suffix: str = "",
    validate: Validate | None = None,
) -> FitResult:
    identity: dict[str, Any] = {"recipe": run.recipe.name, "cohort": run.cohort.fingerprint, "fold": fold}
    if run.points_use != "beside":
        identity["points"] = run.points_use
    if suffix:
        identity["step"] = suffix.removeprefix("-")  # the word that earlier runs have noted
    return fit(
        network,
        samples,
        loss,
        config=config,
        out_dir=run.folder.fit(stage.name, fold, suffix),
        validate=validate,
        resume=run.resume,
        distributed=run.distributed,
        identity=identity,
        kept=_kept(run, stage, fold, suffix),
    )


def _kept(run: RunContext, stage: Stage, fold: int, suffix: str) -> Path | None:
    """What the stage leaves on a fold, which after a complete fit are its weights; None where they are not its own."""
    has_metric = bool(stage.recipe_of(run.recipe).fit.metric_epochs)
    if not suffix and not has_metric and run.folder.has_begun(stage.name, fold, METRIC):
        return None  # they are those of a round that this recipe has no more
    return run.folder.weights(stage.name, fold, "" if suffix == METRIC else suffix)
