"""Compares baseline and chain on the same studies, term by term of the metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.bundle.manifest import FILE_NAME, read_manifest, verify
from lumbar.errors import CohortError
from lumbar.metric import align_submission, read_table
from lumbar.run import predict
from lumbar.stages.aggregate import prior_array
from lumbar_train.baseline.floor import floor_probs
from lumbar_train.data.folds import read_folds
from lumbar_train.data.tables import Cohort, read_cohort
from lumbar_train.evaluation.evaluate import check_not_trained_on
from lumbar_train.evaluation.scoring import TERMS, difference, scores
from lumbar_train.outputs.store import read_frame

Probs = NDArray[np.float64]
_SEVERITIES = ["normal_mild", "moderate", "severe"]


@dataclass(frozen=True)
class Comparison:
    """Several answers to the same studies.

    Attributes:
        title: what is compared, in words.
        study_ids: (N,).
        labels: (N, 25) class, -1 without label.
        answers: probabilities (N, 25, 3) by name, from ``uniform`` to ``floor``.
    """

    title: str
    study_ids: NDArray[np.int64]
    labels: NDArray[Any]
    answers: Mapping[str, Probs]

    def figures(self) -> dict[str, Any]:
        """Scores and paired differences, each ``[value, low, high]`` by term of the metric, and the verdict."""
        figures: dict[str, Any] = {"title": self.title, "studies": len(self.study_ids), "scores": {}, "differences": {}}
        for name, probs in self.answers.items():
            figures["scores"][name] = {term: v.as_list() for term, v in scores(self.labels, probs).items()}
        for after, before in (("baseline", "prior"), ("chain", "prior"), ("chain", "baseline")):
            if after in self.answers and before in self.answers:
                pair = difference(self.labels, self.answers[before], self.answers[after])
                figures["differences"][f"{after} minus {before}"] = {term: v.as_list() for term, v in pair.items()}
        figures["verdict"] = self.verdict(figures["differences"].get("chain minus baseline"))
        return figures

    def verdict(self, pair: Mapping[str, list[float]] | None) -> str:
        """In words, whether the chain beats the baseline: clearly, if the whole interval is below 0."""
        if pair is None:
            return ""
        value, low, high = pair["total"]
        if high < 0:
            return f"The chain beats the baseline clearly: {value:+.3f} in total ({low:+.3f} to {high:+.3f})."
        worst = max(TERMS[1:], key=lambda term: pair[term][0])
        return (
            f"The chain does not beat the baseline clearly: {value:+.3f} in total ({low:+.3f} to {high:+.3f}); "
            f"it gains least in {worst.replace('_', ' ')}."
        )


def chain_oof(run: Path, cohort: Cohort, folds: pd.DataFrame) -> Probs:
    """A chain run's out-of-fold answers (N, 25, 3).

    Raises:
        CohortError: there are none, or the run has other studies or other folds.
    """
    chain_fold = read_folds(run / "folds.csv", cohort).set_index("study_id")["fold"]
    own_fold = folds.set_index("study_id")["fold"]
    differing = [int(study) for study in own_fold.index if int(chain_fold[study]) != int(own_fold[study])]
    if differing:
        raise CohortError(
            f"{run / 'folds.csv'}: study {differing[0]} is in another fold than here ({len(differing)} such), expected "
            f"the same folds: train the baseline with --folds {run / 'folds.csv'}"
        )
    frame = read_frame(run / "aggregator" / "oof.parquet")[["row_id", *_SEVERITIES]]
    answered = {int(row.split("_", 1)[0]) for row in frame["row_id"]}
    absent = [int(study) for study in cohort.study_ids if int(study) not in answered]
    if absent:
        raise CohortError(f"{run}: study {absent[0]} has no out-of-fold answer ({len(absent)} without), expected all")
    return align_submission(frame, list(map(int, cohort.study_ids)))


def with_floor(answers: dict[str, Probs], cohort: Cohort) -> dict[str, Probs]:
    """The answers and, on a synthetic cohort, the floor."""
    floor = floor_probs(cohort.root, cohort.split, list(map(int, cohort.study_ids)))
    return answers if floor is None else answers | {"floor": floor}


def compare_unseen(root: Path, split: str, baseline: Path, chain: Path, prior: Path) -> Comparison:
    """Compare both on a labelled cohort that neither was fitted on.

    Args:
        root: folder of the cohort.
        split: train or test.
        baseline: a run folder, a sealed bundle, or a submission of these studies.
        chain: the same of the chain.
        prior: a bundle or run whose prior is shown.

    Raises:
        LeakError: weights were fitted on one of the studies.
        ManifestError: a bundle is damaged or incomplete.
        CohortError: a table is damaged or incomplete.
    """
    cohort = read_cohort(root, split=split)
    ids = list(map(int, cohort.study_ids))
    answers: dict[str, Probs] = {"uniform": np.full((len(ids), 25, 3), 1 / 3)}
    bundle = _bundle(prior)
    if (bundle / FILE_NAME).is_file():
        answers["prior"] = np.tile(prior_array(read_manifest(bundle).prior), (len(ids), 1, 1))
    answers["baseline"] = _answers(baseline, "baseline", cohort)
    answers["chain"] = _answers(chain, "main", cohort)
    title = f"{len(ids)} studies never trained on"
    return Comparison(title, cohort.study_ids, cohort.labels, with_floor(answers, cohort))


def _bundle(path: Path) -> Path:
    """The bundle itself, or the one that a run folder exported."""
    return path / "export" if (path / "export").is_dir() else path


def _answers(path: Path, chain: str, cohort: Cohort) -> Probs:
    """Probabilities (N, 25, 3): read from a submission, or predicted with a bundle."""
    ids = list(map(int, cohort.study_ids))
    if path.is_file():
        return align_submission(read_table(path, "a submission"), ids)
    manifest = verify(_bundle(path))
    check_not_trained_on(path, manifest, cohort, cohort.study_ids)
    frame, _ = predict(cohort.root, _bundle(path), split=cohort.split, chain=chain, studies=ids, progress=True)
    return align_submission(frame, ids)
