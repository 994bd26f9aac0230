"""Gathers the out-of-fold answers of all fits: probabilities of studies and of slices, and figures of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from lumbar.chains.baseline import slice_probs
from lumbar.io.tables import csv_text
from lumbar.labels import COLUMNS, CONDITIONS, LEVELS, SEVERITIES, SEVERITY_COLUMNS, SEVERITY_WEIGHTS, row_ids
from lumbar_train.baseline.calibrate import HeldOut, temperatures
from lumbar_train.baseline.fit import LOGITS
from lumbar_train.data.tables import Cohort
from lumbar_train.files import write_text
from lumbar_train.outputs.oof import Part, gather
from lumbar_train.outputs.store import read_frame

Probs = NDArray[np.float64]
_WEIGHTS = np.array(SEVERITY_WEIGHTS)


@dataclass
class Answers:
    """Out-of-fold probabilities of a cohort.

    Attributes:
        probs: (N, 25, 3) the answer; a column without a fit or a study without an image has its fold's prior.
        untempered: (N, 25, 3) the same, but the logits are not divided by a temperature.
        balanced: (N, 25, 3) untempered and for balanced classes, as the networks give them after upsampling.
        prior: (N, 25, 3) weighted frequencies of the studies outside each study's fold.
        folds: (N,) fold of each study.
        slices: by column, one row per slice: study, series, path, fold, probabilities, label.
        temperatures: by condition, for each fold and for ``all``.
    """

    probs: Probs
    untempered: Probs
    balanced: Probs
    prior: Probs
    folds: NDArray[np.int64]
    slices: dict[str, pd.DataFrame]
    temperatures: dict[str, dict[str, float]]


def out_of_fold(
    fits: Path, results: Mapping[tuple[str, int], Mapping[str, Any]], cohort: Cohort, folds: pd.DataFrame
) -> Answers:
    """Gather the held-out slices of every column and fold, with the same check for leaks as the chain's outputs.

    Args:
        fits: folder of all fits.
        results: content of each ``fit.json``, by column and fold.
        cohort: labelled studies.
        folds: ``study_id, fold``.

    Raises:
        LeakError: a slice is from a study that the fit has seen.
    """
    fold_of = dict(zip(folds["study_id"], folds["fold"], strict=True))
    own = np.array([fold_of[int(study)] for study in cohort.study_ids])
    priors = {int(f): cohort.prior(cohort.study_ids[own != f]) for f in np.unique(own)}
    prior = np.stack([priors[f] for f in own])
    answers = Answers(prior.copy(), prior.copy(), prior.copy(), prior, own, {}, {})
    row_of = {int(study): k for k, study in enumerate(cohort.study_ids)}
    fitted = {key: result for key, result in results.items() if key[1] in priors and result["status"] == "fitted"}
    tables = {
        (column, fold): read_frame(fits / column / f"fold{fold}" / "oof.parquet")
        for column, fold in sorted(fitted, key=lambda key: (COLUMNS.index(key[0]), key[1]))
    }
    held_out = {
        (column, fold): _held_out(
            column, fold, table, cohort.labels[:, COLUMNS.index(column)], row_of,
            priors[fold][COLUMNS.index(column)], fitted[column, fold]["network"]["balance"],
        )
        for (column, fold), table in tables.items()
    }  # fmt: skip
    answers.temperatures = temperatures(list(held_out.values()))
    for column in dict.fromkeys(column for column, _ in tables):
        c = COLUMNS.index(column)
        parts: list[Part[Probs]] = []
        frames = []
        for (name, fold), table in tables.items():
            if name != column:
                continue
            part = held_out[column, fold]
            frame = answer_frame(table, part.prior, part.balance, answers.temperatures[part.condition][str(fold)])
            frame.insert(3, "fold", fold)
            by_study = {int(k): g for k, g in study_means(frame)}
            parts.append(Part(fold, frozenset(fitted[column, fold]["seen"]), by_study))
            frames.append(frame)
            rows = [row_of[int(study)] for study in np.unique(table["study_id"])]
            answers.untempered[rows, c] = part.probs(1.0)
            even = replace(part, prior=np.array(part.balance) / sum(part.balance)).probs(1.0)
            answers.balanced[rows, c] = np.clip(even, 1e-6, 1) / np.clip(even, 1e-6, 1).sum(axis=1, keepdims=True)
        for study, probs in gather(parts, folds).items():
            answers.probs[row_of[study], c] = probs
        frame = pd.concat(frames, ignore_index=True).sort_values(["study_id", "series_id", "image_path"])
        grades = cohort.labels[[row_of[int(s)] for s in frame["study_id"]], c]
        frame["label"] = [SEVERITIES[g] if g >= 0 else "" for g in grades]
        answers.slices[column] = frame.reset_index(drop=True)
    return answers


def _held_out(
    column: str,
    fold: int,
    table: pd.DataFrame,
    labels: NDArray[Any],
    row_of: Mapping[int, int],
    prior: Probs,
    balance: Sequence[float],
) -> HeldOut:
    studies, study_index = np.unique(table["study_id"].to_numpy(), return_inverse=True)
    own = np.array([labels[row_of[int(study)]] for study in studies], dtype=np.int64)
    condition = CONDITIONS[COLUMNS.index(column) // len(LEVELS)]
    return HeldOut(condition, fold, table[LOGITS].to_numpy(), study_index, own, prior, balance)


def study_means(frame: pd.DataFrame) -> list[tuple[int, Probs]]:
    """Each study with the mean probabilities (3,) of its slices."""
    means = frame.groupby("study_id")[list(SEVERITY_COLUMNS)].mean()
    return list(zip(map(int, means.index), means.to_numpy(), strict=True))


def answer_frame(frame: pd.DataFrame, prior: Probs, balance: Sequence[float], temperature: float = 1.0) -> pd.DataFrame:
    """Turn logits into answers: ``study_id, series_id, image_path, predicted_label`` and the probabilities.

    Args:
        frame: one row per slice, with its logits.
        prior: (3,) weighted frequencies.
        balance: shares of the classes that the network was fitted on.
        temperature: divides the logits.

    Returns:
        the same rows; the label is the most likely class when the metric's weights 1/2/4 are divided out.
    """
    probs = slice_probs(frame[LOGITS].to_numpy(), prior, balance, temperature)
    out = frame[["study_id", "series_id", "image_path"]].copy()
    out["predicted_label"] = [SEVERITIES[k] for k in (probs / _WEIGHTS).argmax(axis=1)]
    out[list(SEVERITY_COLUMNS)] = probs
    return out


def write_predictions(folder: Path, slices: Mapping[str, pd.DataFrame]) -> None:
    """Write ``{column}_predictions.csv`` for each column."""
    for column, frame in slices.items():
        write_text(folder / f"{column}_predictions.csv", csv_text(frame, float_format="%.6f"))


def submission_frame(study_ids: Sequence[int | str], probs: Probs) -> pd.DataFrame:
    """The submission of some studies; ``probs`` is (N, 25, 3)."""
    frame = pd.DataFrame(probs.reshape(-1, 3), columns=list(SEVERITY_COLUMNS))
    frame.insert(0, "row_id", [row for study in study_ids for row in row_ids(int(study))])
    return frame


def column_figures(labels: NDArray[Any], probs: Probs, prior: Probs) -> dict[str, Any]:
    """Figures of one column: accuracy, macro F1, log loss weighted 1/2/4, and the same of the constant answer.

    Args:
        labels: (N,) class or -1.
        probs: (N, 3) answer.
        prior: (N, 3) the constant answer to compare with.
    """
    is_known = labels >= 0
    label, p, constant = labels[is_known], probs[is_known], prior[is_known]
    if not len(label):
        return {"studies": 0}
    weight = _WEIGHTS[label]
    guess = (p / _WEIGHTS).argmax(axis=1)

    def loss(values: Probs) -> float:
        picked = np.clip(values[np.arange(len(label)), label], 1e-15, 1.0)
        return float((weight * -np.log(picked)).sum() / weight.sum())

    return {
        "studies": len(label),
        "accuracy": float((guess == label).mean()),
        "constant_accuracy": float(np.bincount(label, minlength=3).max() / len(label)),
        "macro_f1": float(f1_score(label, guess, average="macro", labels=np.unique(label), zero_division=0.0)),
        "log_loss": loss(p),
        "constant_log_loss": loss(constant),
        "confusion": np.bincount(label * 3 + guess, minlength=9).reshape(3, 3).tolist(),
    }


def all_figures(labels: NDArray[Any], answers: Answers, columns: Sequence[str]) -> dict[str, Any]:
    """Figures by column, over all folds and for each, and the columns that are not better than their constant."""
    by_column: dict[str, Any] = {}
    for column in columns:
        c = COLUMNS.index(column)
        whole = column_figures(labels[:, c], answers.probs[:, c], answers.prior[:, c])
        if whole["studies"]:
            whole["untempered_log_loss"] = column_figures(labels[:, c], answers.untempered[:, c], answers.prior[:, c])[
                "log_loss"
            ]
        whole["folds"] = {
            str(f): column_figures(labels[rows, c], answers.probs[rows, c], answers.prior[rows, c])
            for f in np.unique(answers.folds)
            for rows in [answers.folds == f]
        }
        by_column[column] = whole
    not_better = [k for k, v in by_column.items() if v["studies"] and not v["log_loss"] < v["constant_log_loss"]]
    return {"columns": by_column, "not_better_than_constant": not_better, "temperatures": answers.temperatures}
