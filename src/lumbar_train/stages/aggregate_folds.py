"""The aggregators of a run: fitted on out-of-fold logits, each scored on the studies of a fold that it has not seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from lumbar.config import FUSION
from lumbar.io.tables import csv_text
from lumbar.io.text import counted
from lumbar.labels import COLUMNS, SEVERITY_COLUMNS
from lumbar.metric import score, score_arrays
from lumbar.models.aggregator import Aggregator
from lumbar.stages.aggregate import aggregate, level_confidence
from lumbar_train.data.folds import check_split, fold_name, is_full
from lumbar_train.data.tables import Cohort
from lumbar_train.engine.checkpoint import save_weights
from lumbar_train.errors import TrainingError
from lumbar_train.evaluation.grade_calibration import Answers
from lumbar_train.evaluation.grade_calibration import decide as decide_on_calibration
from lumbar_train.files import read_object, write_text
from lumbar_train.outputs.oof import write_seen
from lumbar_train.outputs.store import read_localisations, read_logits, write_frame
from lumbar_train.recipes import StageRecipe
from lumbar_train.stages.aggregate import PoolStart, fit_aggregator, loss_on, pool_of
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fused_recipe import aggregator_of, members_of
from lumbar_train.stages.fusion import Decision, decide, write_decision

FITTED, POOL = "fitted", "pool"
CALIBRATION = "grade_calibration.json"
_REASONS = {
    FITTED: "last weights, which score better out of fold than the plain pool of the classifiers",
    POOL: "the plain pool of the classifiers, which scores as well out of fold",
}


def run_aggregator(run: RunContext) -> None:
    """Fit the aggregators of a run, once every classifier's table of logits is known not to leak.

    A fusion joins them where it helps out of fold.
    """
    for name in run.recipe.stages["aggregator"].network.models:
        run.out_of_fold(name)
    if run.recipe.fusion is not None:
        decide_on_fusion(run)
    folds = run.all_folds() + run.full_fits()
    stage = aggregator_of(run.out, run.recipe)
    fit_aggregator_folds(run.out, run.cohort, run.fold_of, folds, stage, seed=run.seed)


def decide_on_fusion(run: RunContext) -> Decision:
    """Decide out of fold whether the aggregator joins the fusion; note it in the run folder, and say it."""
    run.out_of_fold(FUSION)
    ids = np.array(sorted(run.fold_of))
    logits, mask, _ = _inputs(run.out, ids, (*members_of(run.recipe), FUSION), needs_confidence=False)
    folds = np.array([run.fold_of[int(k)] for k in ids])
    prior = np.stack([run.cohort.prior(ids[folds != fold]) for fold in folds])
    decision = decide(logits, mask, run.cohort.labels[run.cohort.rows(ids)], folds, prior)
    write_decision(run.out, decision)
    print(decision.line)
    return decision


def fit_aggregator_folds(
    run: Path,
    cohort: Cohort,
    fold_of: Mapping[int, int],
    use_folds: list[int],
    stage: StageRecipe,
    *,
    seed: int,
    start: Callable[[int], PoolStart] | None = None,
) -> None:
    """Fit an aggregator for each fold and those on all studies; score the former on studies that they have not seen.

    Where the plain pool of the classifiers scores as well on those studies, all fits become that pool.

    Args:
        run: its folder, with the classifiers' out-of-fold logits.
        cohort: labels.
        fold_of: fold by study.
        use_folds: folds to fit on, all that hold out studies among them; their logits are there.
        stage: configuration of the network, and how it is fitted.
        seed: of initial weights and order.
        start: the pool that the fit of a fold begins with, which no label of the fold has a say in; None: equal
            weights.

    Raises:
        TrainingError: no held-out fold, or one that holds every study.
    """
    ids = np.array(sorted(k for k, fold in fold_of.items() if fold in use_folds))
    if not len(ids):
        raise TrainingError(f"{run}: no held-out fold among {use_folds}, expected one to fit on")
    logits, mask, sure = _inputs(run, ids, stage.network.models, needs_confidence=stage.network.confidence)
    labels = cohort.labels[cohort.rows(ids)]
    folds = np.array([fold_of[int(k)] for k in ids])
    probs = {name: np.zeros((len(ids), 25, 3)) for name in (FITTED, POOL)}
    fits: dict[int, Fitted] = {}
    for fold in use_folds:
        rows = np.flatnonzero(folds != fold)
        if not len(rows):
            raise TrainingError(f"{run}: fold {fold} holds every out-of-fold study, expected at least two folds")
        check_split(ids[rows], ids[folds == fold])
        begun = None if start is None else start(fold)
        prior = cohort.prior(ids[rows])
        of_fit = seed + (-1 - fold if is_full(fold) else 0)
        out = np.flatnonzero(folds == fold)
        held_out, began = HeldOut((logits[out], mask[out], labels[out], prior, sure[out])), time.monotonic()
        network, losses = fit_aggregator(
            logits[rows], mask[rows], labels[rows], prior, stage.network, stage.fit, of_fit, sure[rows],
            held_out.measure if len(out) else None, begun,
        )  # fmt: skip
        folder, seconds = run / "aggregator" / fold_name(fold), time.monotonic() - began
        log_fit(folder, "aggregator", losses, held_out.losses, len(rows), seconds)
        fits[fold] = Fitted(network, pool_of(stage.network, begun), losses, rows)
        for name, chosen in ((FITTED, network), (POOL, fits[fold].pool)):
            for row in out:
                probs[name][row] = aggregate(logits[row], mask[row], prior, [chosen], sure[row])
    kept = better(labels, probs)
    for fold, one in fits.items():
        _save(run / "aggregator", fold, one, ids, kept)
    _score(run, cohort, ids, probs, kept)
    _calibrate(run, cohort, ids, folds, probs[kept], mask)


@dataclass(frozen=True)
class Fitted:
    """The aggregator of a fold, and the pool that it began with.

    Attributes:
        network: as it was fitted.
        pool: the same without any correction.
        losses: one of each epoch.
        rows: of the studies that it was fitted on.
    """

    network: nn.Module
    pool: nn.Module
    losses: list[float]
    rows: np.ndarray


@dataclass
class HeldOut:
    """The studies that a fold holds out, and the loss on them after each epoch of its fit.

    Attributes:
        inputs: logits, mask, labels, prior and confidence, as ``loss_on`` takes them.
        losses: one of each epoch.
    """

    inputs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    losses: list[float] = field(default_factory=list)

    def measure(self, network: Aggregator) -> None:
        """Add the loss of a network."""
        self.losses.append(loss_on(network, *self.inputs))


def _save(folder: Path, fold: int, fitted: Fitted, ids: np.ndarray, kept: str) -> None:
    """Leave the weights of a fold, the studies that they have seen, and which of network and pool they are."""
    weights = folder / f"{fold_name(fold)}.safetensors"
    save_weights(weights, fitted.network if kept == FITTED else fitted.pool)
    write_seen(weights, fold, map(int, ids[fitted.rows]))
    ends = {"first": fitted.losses[0], "last": fitted.losses[-1], "kept": kept}
    write_text(weights.with_suffix(".json"), json.dumps(ends))
    write_text(folder / fold_name(fold) / "fit.json", json.dumps({"reason": _REASONS[kept]}))


def log_fit(
    folder: Path, title: str, losses: list[float], held_out: list[float], n_studies: int, seconds: float
) -> None:
    """Write a fit's ``log.csv`` and say how it went in one line: there are hundreds of epochs within seconds."""
    each_s = seconds / max(len(losses), 1)
    log = pd.DataFrame({"epoch": np.arange(len(losses)), "loss": losses})
    log["seconds"] = each_s * (log["epoch"] + 1)
    log["samples_per_s"] = n_studies / max(each_s, 1e-9)
    line = f"{title} {folder.name}: {counted(len(losses), 'epoch')}, loss {losses[-1]:.4f}"
    if held_out:
        log["val_loss"] = held_out
        line += f", held out {held_out[-1]:.4f}"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "log.csv", csv_text(log))
    print(f"{line}, {seconds:.1f} s", flush=True)


def _calibrate(
    run: Path, cohort: Cohort, ids: np.ndarray, folds: np.ndarray, probs: np.ndarray, mask: np.ndarray
) -> None:
    """Decide out of fold whether the grades are calibrated; note it, and say it."""
    prior = np.stack([cohort.prior(ids[folds != fold]) for fold in folds])
    is_seen = mask.any(axis=1).reshape(len(ids), 25)
    decision = decide_on_calibration(Answers(cohort.labels[cohort.rows(ids)], probs, prior, is_seen, folds))
    write_text(run / "aggregator" / CALIBRATION, json.dumps(decision.as_json(), indent=1))
    print(decision.line)


def with_calibration(manifest: dict[str, Any], run: Path) -> dict[str, Any]:
    """A manifest with a run's decision among the notes on its training, and with the numbers where they were kept."""
    decision = read_object(run / "aggregator" / CALIBRATION)
    if not decision:  # of a run of before it was made
        return manifest
    kept = {"grade_calibration": decision["numbers"]} if decision["kept"] else {}
    return manifest | {"training": manifest["training"] | {"grade_calibration": decision}} | kept


def _inputs(
    run: Path, ids: np.ndarray, classifiers: Sequence[str], *, needs_confidence: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Out-of-fold logits (N, M, 5, 5, 3), mask (N, M, 5, 5) and, where it is read, confidence (N, 5, 4) of studies."""
    pairs = [read_logits(run / name / "oof.parquet", ids) for name in classifiers]
    sure = np.zeros((len(ids), 5, 4), np.float32)
    if needs_confidence:
        localisations = read_localisations(run / "localise", map(int, ids))
        sure = np.stack([level_confidence(localisations[int(k)]) for k in ids])
    return np.stack([pair[0] for pair in pairs], axis=1), np.stack([pair[1] for pair in pairs], axis=1), sure


def better(labels: np.ndarray, probs: Mapping[str, np.ndarray]) -> str:
    """Which out-of-fold probabilities (N, 25, 3) score better on the labels (N, 25): ``fitted``, else ``pool``."""
    totals = {name: score_arrays(labels.astype(np.int64), values).total for name, values in probs.items()}
    return FITTED if totals[FITTED] < totals[POOL] else POOL


def _score(run: Path, cohort: Cohort, ids: np.ndarray, probs: Mapping[str, np.ndarray], kept: str) -> None:
    frame = pd.DataFrame(probs[kept].reshape(-1, 3), columns=list(SEVERITY_COLUMNS))
    frame.insert(0, "row_id", [f"{study_id}_{column}" for study_id in ids for column in COLUMNS])
    write_frame(run / "aggregator" / "oof.parquet", frame)
    result = score(cohort.frame(ids), frame)
    labels = cohort.labels[cohort.rows(ids)].astype(np.int64)
    each = {name: asdict(score_arrays(labels, values)) for name, values in probs.items()}
    write_text(run / "aggregator" / "metrics.json", json.dumps({"oof": asdict(result), "kept": kept} | each, indent=1))
    if kept == POOL:
        print(
            f"the aggregator is the plain pool of the classifiers: fitted it scored {each[FITTED]['total']:.4f} "
            f"out of fold, the pool {each[POOL]['total']:.4f}"
        )
    print(f"out of fold, {len(ids)} studies: {result}")
