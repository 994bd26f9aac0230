"""Measures a run or a bundle on labelled studies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.bundle.manifest import Manifest, verify
from lumbar.errors import CohortError, LumbarError
from lumbar.io.progress import Progress
from lumbar.io.text import one_line
from lumbar.labels import COLUMNS
from lumbar.metric import align_submission
from lumbar.models.inference import Networks
from lumbar.stages.aggregate import aggregate, level_confidence, mixed_readings, prior_array
from lumbar.stages.classifiers import SAGITTAL
from lumbar.stages.classify import classify
from lumbar.stages.localise import localise
from lumbar.stages.points import Localisation
from lumbar.study import Study, read_study
from lumbar_train.data.folds import read_folds
from lumbar_train.data.tables import Cohort, read_cohort, read_study_ids
from lumbar_train.data.true_points import true_localisation
from lumbar_train.errors import LeakError
from lumbar_train.evaluation.point_errors import axial_assignments, sagittal_errors, summarise, truth_points
from lumbar_train.evaluation.scoring import Interval, Probs, confusion, difference, ratio, reliability, scores
from lumbar_train.outputs.oof import check_oof_frame
from lumbar_train.outputs.run_classifiers import classifiers_of_run
from lumbar_train.outputs.store import read_frame, read_localisations, read_logits

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]

# What an answer rests on: two constants, then one more part of the chain each time.
ANSWERS = ("uniform", "prior", "sagittal only", "+ axial", "+ MLP")


@dataclass
class Evaluation:
    """What was measured; the report shows all of it.

    Attributes:
        title: what was scored, in words.
        cohort: the labelled studies.
        study_ids: (N,) those that were scored.
        labels: (N, 25) class index or -1.
        answers: probabilities (N, 25, 3) by what they rest on (``ANSWERS``), from constants to the whole chain's, the
            last.
        localisations: by study.
        sagittal: ``point_errors.sagittal_errors``.
        axial: ``point_errors.axial_assignments``.
        true_points: probabilities with true points instead of predicted ones, where asked for.
        folds: (N,) fold of each study, where the outputs are out of fold.
        problems: lines by study.
    """

    title: str
    cohort: Cohort
    study_ids: NDArray[np.int64]
    labels: NDArray[np.int8]
    answers: dict[str, Probs]
    localisations: dict[int, Localisation]
    sagittal: pd.DataFrame
    axial: pd.DataFrame
    true_points: Probs | None = None
    folds: NDArray[np.int64] | None = None
    problems: dict[int, list[str]] = field(default_factory=dict)

    @property
    def answer(self) -> Probs:
        """The last of the answers: that of all stages together."""
        return self.answers[list(self.answers)[-1]]

    def figures(self) -> dict[str, Any]:
        """All figures as plain JSON types; intervals are ``[value, low, high]``."""
        names = list(self.answers)
        out: dict[str, Any] = {
            "title": self.title,
            "studies": len(self.study_ids),
            "cohort": self.cohort.fingerprint,
            "dropped": dict(self.cohort.dropped),
            "scores": {name: _lists(scores(self.labels, self.answers[name])) for name in names},
            "added": {
                after: _lists(difference(self.labels, self.answers[before], self.answers[after]))
                for before, after in pairwise(names[1:])
            },
            "ratio_to_prior": ratio(self.labels, self.answer, self.answers["prior"]).as_list(),
            "sagittal": summarise(self.sagittal),
            "axial": self.axial_figures(),
            "confusion": {group: table.tolist() for group, table in confusion(self.labels, self.answer).items()},
            "calibration_error": {
                "weighted" if is_weighted else "plain": {
                    f"{r.group} {r.severity}": r.error
                    for r in reliability(self.labels, self.answer, is_weighted=is_weighted)
                }
                for is_weighted in (True, False)
            },
            "failed": sum(1 for study in map(int, self.study_ids) if study not in self.localisations),
        }
        if self.true_points is not None:
            out["scores"]["true points"] = _lists(scores(self.labels, self.true_points))
            out["predicted_over_true"] = ratio(self.labels, self.answer, self.true_points).as_list()
        if self.folds is not None:
            out["folds"] = {
                str(fold): _lists(scores(self.labels[self.folds == fold], self.answer[self.folds == fold]))
                for fold in np.unique(self.folds)
            }
        return out

    def axial_figures(self) -> dict[str, float]:
        """Share of true axial levels given their own slice, share given none, median distance of the two points."""
        if not len(self.axial):
            return {}
        distances = self.axial[["left_mm", "right_mm"]].to_numpy(float)
        return {
            "n": float(len(self.axial)),
            "right": float(self.axial["is_right"].mean()),
            "missing": float(self.axial["belongs_to"].isna().mean()),
            "point_median_mm": float(np.nanmedian(distances)) if np.isfinite(distances).any() else float("nan"),
        }


def _lists(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: interval.as_list() for name, interval in intervals.items()}


def partial_answers(logits: Logits, mask: Mask, prior: Probs, is_sagittal: Sequence[bool]) -> dict[str, Probs]:
    """One study's answers before the aggregator: by the sagittal classifiers alone, and by all classifiers.

    Args:
        logits: (M, 5, 5, 3) of the classifiers.
        mask: (M, 5, 5) which rest on images.
        prior: (25, 3) for what no model saw.
        is_sagittal: (M,) which classifiers read the sagittal view.
    """
    return {
        "sagittal only": _mean_probs(logits[list(is_sagittal)], mask[list(is_sagittal)], prior),
        "+ axial": _mean_probs(logits, mask, prior),
    }


def _mean_probs(logits: Logits, mask: Mask, prior: Probs) -> Probs:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probs = shifted / shifted.sum(axis=-1, keepdims=True)
    count = mask.sum(axis=0)[..., None]
    mean = (probs * mask[..., None]).sum(axis=0) / np.maximum(count, 1)
    return np.asarray(np.where(count > 0, mean, prior.reshape(5, 5, 3)).reshape(25, 3))


# A bundle on another cohort


def evaluate_run(
    weights_dir: Path | str,
    root: Path | str,
    points: str = "predicted",
    *,
    split: str = "train",
    studies: Iterable[int] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Predict a labelled cohort with the weights of a run folder or a sealed bundle, and measure.

    Args:
        weights_dir: a run folder (its ``export`` is used) or a folder with ``weights_manifest.json``.
        root: competition folder; ``split="test"`` takes labels from ``solution.csv``.
        points: ``predicted``, or ``true``: then both are done, and the answer with true points stands beside.
        split: which images.
        studies: only these.
        device: where the networks run.
        progress: say how far it has come.

    Raises:
        LeakError: the weights were fitted on this cohort, or on one of its studies.
        ManifestError, CohortError: a bundle or a cohort that is not what it should be.
    """
    from lumbar.bundle.probes import check_probes
    from lumbar.bundle.weights import load_networks

    if points not in ("predicted", "true"):
        raise CohortError(f"points: found {points!r}, expected predicted or true")
    folder = Path(weights_dir)
    bundle = folder / "export" if (folder / "export").is_dir() else folder
    manifest = replace(verify(bundle), trusts_members=bundle != folder)  # code of a run of one's own
    cohort = read_cohort(root, split=split, progress=progress)
    ids = cohort.study_ids if studies is None else cohort.study_ids[cohort.rows(sorted(studies))]
    check_not_trained_on(folder, manifest, cohort, ids)
    networks = load_networks(bundle, manifest, device)
    check_probes(networks, manifest)
    truth = truth_points(cohort)
    is_sagittal = [one.view == SAGITTAL for one in manifest.classifiers]
    bench = _Bench(cohort, networks, prior_array(manifest.prior), truth, points == "true", is_sagittal)
    outcomes = bench.run(ids, progress=progress)
    answers = {name: np.stack([outcomes[int(k)].answers[name] for k in ids]) for name in ANSWERS}
    localisations = {k: o.localisation for k, o in outcomes.items() if o.localisation is not None}
    truth = truth[truth["study_id"].isin(ids)]
    return Evaluation(
        title=f"weights {manifest.hash[:12]} (recipe {manifest.recipe}) on {len(ids)} studies never trained on",
        cohort=cohort,
        study_ids=ids,
        labels=cohort.labels[cohort.rows(ids)],
        answers=answers,
        localisations=localisations,
        sagittal=sagittal_errors(truth, localisations),
        axial=axial_assignments(truth, localisations, cohort),
        true_points=np.stack([outcomes[int(k)].true_points for k in ids]) if points == "true" else None,
        problems={k: o.problems for k, o in outcomes.items() if o.problems},
    )


def check_not_trained_on(folder: Path, manifest: Manifest, cohort: Cohort, ids: NDArray[np.int64]) -> None:
    """Refuse to score a fit on studies that it has seen, as far as manifest and run folder tell.

    Raises:
        LeakError: the same cohort, or a study that stands in the run's ``folds.csv``.
    """
    if manifest.cohort.get("fingerprint") == cohort.fingerprint:
        raise LeakError(f"{cohort.root}: is the cohort that these weights were fitted on, expected studies never seen")
    path = folder / "folds.csv"
    if path.is_file():
        seen = read_study_ids(path)
        both = [int(study) for study in ids if int(study) in seen]
        if both:
            raise LeakError(f"{path}: study {both[0]} was trained on ({len(both)} of {len(ids)}), expected none")


@dataclass
class _Outcome:
    answers: dict[str, Probs]
    localisation: Localisation | None
    true_points: Probs
    problems: list[str]


@dataclass
class _Bench:
    """Leads studies through the stages, reading one ahead; a study that fails keeps its prior, as in the kernel."""

    cohort: Cohort
    networks: Networks
    prior: Probs
    truth: pd.DataFrame
    with_true_points: bool
    is_sagittal: Sequence[bool]

    def run(self, ids: Iterable[int], *, progress: bool) -> dict[int, _Outcome]:
        by_study = dict(list(self.truth.groupby("study_id")))
        waiting = [int(study) for study in ids]
        outcomes: dict[int, _Outcome] = {}
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, waiting[0]) if waiting else None
            shown = Progress(len(waiting), "study", title="evaluate", is_shown=progress)
            for place, study_id in enumerate(shown.each(waiting)):
                assert ahead is not None
                study = ahead.result()
                if place + 1 < len(waiting):
                    ahead = pool.submit(self._read, waiting[place + 1])
                outcomes[study_id] = self._one(study, by_study.get(study_id, self.truth.iloc[:0]))
        return outcomes

    def _read(self, study_id: int) -> Study:
        return read_study(self.cohort.root, self.cohort.split, study_id, self.cohort.series)

    def _one(self, study: Study, truth: pd.DataFrame) -> _Outcome:
        constants = {"uniform": np.full((25, 3), 1 / 3), "prior": self.prior}
        failed = constants | {name: self.prior for name in ANSWERS[2:]}
        outcome = _Outcome(failed, None, self.prior, list(study.problems))
        try:
            localisation = localise(study, self.networks)
            logits, mask = classify(study, localisation, self.networks, problems=outcome.problems)
            answer = self._aggregated(logits, mask, localisation)
            answer = mixed_readings(answer, localisation, self.prior, partial(self._answer, study))
            n = len(self.is_sagittal)  # a fusion follows, which reads both views
            before = partial_answers(logits[:n], mask[:n], self.prior, self.is_sagittal)
            outcome.answers = constants | before | {"+ MLP": answer}
            outcome.localisation = localisation
            outcome.problems += localisation.problems
            if self.with_true_points:
                true = true_localisation(study, truth)
                outcome.true_points = self._answer(study, true)
        except LumbarError as error:
            outcome.problems.append(one_line(error))
        return outcome

    def _answer(self, study: Study, localisation: Localisation) -> Probs:
        return self._aggregated(*classify(study, localisation, self.networks), localisation)

    def _aggregated(self, logits: Logits, mask: Mask, localisation: Localisation) -> Probs:
        last = self.networks.stage("aggregator")
        calibration = self.networks.grade_calibration
        return aggregate(logits, mask, self.prior, last, level_confidence(localisation), calibration)


# A run's own out-of-fold outputs


def evaluate_oof(run: Path | str, cohort: Cohort) -> Evaluation:
    """The figures of a run from the out-of-fold outputs that its stages left, each table checked for leaks.

    Raises:
        LeakError: a table whose rows do not come from the fold that held the study out.
        CohortError: a table that is not there, because its stage has not run.
    """
    run = Path(run)
    folds = read_folds(run / "folds.csv", cohort)
    fold_of = dict(zip(folds["study_id"], folds["fold"], strict=True))
    classifiers = classifiers_of_run(run)
    for name in ("sagittal_xy", *classifiers):
        check_oof_frame(read_frame(run / name / "oof.parquet"), folds, run / name / "oof.parquet")
    for name in ("levels", "points", "axial"):
        path = run / "localise" / f"{name}.parquet"
        check_oof_frame(read_frame(path), folds, path)
    answer = read_frame(run / "aggregator" / "oof.parquet")
    ids = np.array(sorted({int(row.split("_", 1)[0]) for row in answer["row_id"]}), dtype=np.int64)
    answer = answer[["row_id", "normal_mild", "moderate", "severe"]]
    localisations = read_localisations(run / "localise", map(int, ids))
    pairs = [read_logits(run / name / "oof.parquet", map(int, ids)) for name in classifiers]
    is_sagittal = [view == SAGITTAL for view in classifiers.values()]
    own_folds = np.array([fold_of[int(k)] for k in ids])
    priors = {fold: cohort.prior(ids[own_folds != fold]) for fold in np.unique(own_folds)}
    before = [
        partial_answers(
            np.stack([p[0][n] for p in pairs]), np.stack([p[1][n] for p in pairs]), priors[own_folds[n]], is_sagittal
        )
        for n in range(len(ids))
    ]
    answers = {
        "uniform": np.full((len(ids), len(COLUMNS), 3), 1 / 3),
        "prior": np.stack([priors[fold] for fold in own_folds]),
        **{name: np.stack([b[name] for b in before]) for name in ("sagittal only", "+ axial")},
        "+ MLP": align_submission(answer, list(map(int, ids))),
    }
    truth = truth_points(cohort)
    truth = truth[truth["study_id"].isin(ids)]
    return Evaluation(
        title=f"out of fold: {len(ids)} studies, each by the fold that held it out",
        cohort=cohort,
        study_ids=ids,
        labels=cohort.labels[cohort.rows(ids)],
        answers=answers,
        localisations=localisations,
        sagittal=sagittal_errors(truth, localisations),
        axial=axial_assignments(truth, localisations, cohort),
        folds=own_folds,
        problems={k: v.problems for k, v in localisations.items() if v.problems},
    )
