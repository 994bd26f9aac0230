"""Baseline beside chain, term by term, on the same studies; and where the answers of each come from."""

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
    """Answers to the same studies: ``steps`` (N, 25, 3) by name, from knowing nothing to knowing the truth."""

    title: str
    study_ids: NDArray[np.int64]
    labels: NDArray[Any]
    steps: Mapping[str, Probs]

    def figures(self) -> dict[str, Any]:
        """Scores, and paired differences to the prior and of the chain to the baseline: ``[value, low, high]``."""
        found: dict[str, Any] = {"title": self.title, "studies": len(self.study_ids), "scores": {}, "differences": {}}
        for name, probs in self.steps.items():
            found["scores"][name] = {term: v.as_list() for term, v in scores(self.labels, probs).items()}
        for after, before in (("baseline", "prior"), ("chain", "prior"), ("chain", "baseline")):
            if after in self.steps and before in self.steps:
                pair = difference(self.labels, self.steps[before], self.steps[after])
                found["differences"][f"{after} minus {before}"] = {term: v.as_list() for term, v in pair.items()}
        found["verdict"] = self.verdict(found["differences"].get("chain minus baseline"))
        return found

    def verdict(self, pair: Mapping[str, list[float]] | None) -> str:
        """Whether the chain beats the baseline clearly, in words."""
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
    """A chain run's out-of-fold answers (N, 25, 3), refused unless its studies and folds are the same.

    Raises:
        CohortError: no out-of-fold answers, other studies, or other folds.
    """
    theirs = read_folds(run / "folds.csv", cohort).set_index("study_id")["fold"]
    ours = folds.set_index("study_id")["fold"]
    differing = [int(study) for study in ours.index if int(theirs[study]) != int(ours[study])]
    if differing:
        raise CohortError(
            f"{run / 'folds.csv'}: study {differing[0]} is in another fold than here ({len(differing)} such), expected "
            f"the same folds: train the baseline with --folds {run / 'folds.csv'}"
        )
    frame = read_frame(run / "aggregator" / "oof.parquet")[["row_id", *_SEVERITIES]]
    have = {int(row.split("_", 1)[0]) for row in frame["row_id"]}
    absent = [int(study) for study in cohort.study_ids if int(study) not in have]
    if absent:
        raise CohortError(f"{run}: study {absent[0]} has no out-of-fold answer ({len(absent)} without), expected all")
    return align_submission(frame, list(map(int, cohort.study_ids)))


def with_floor(steps: dict[str, Probs], cohort: Cohort) -> dict[str, Probs]:
    """The steps and, on a synthetic cohort, the floor."""
    found = floor_probs(cohort.root, cohort.split, list(map(int, cohort.study_ids)))
    return steps if found is None else steps | {"floor": found}


def compare_unseen(root: Path, split: str, baseline: Path, chain: Path, prior: Path) -> Comparison:
    """Both on a labelled cohort that neither was fitted on.

    Args:
        root, split: the cohort.
        baseline, chain: a run folder, a sealed bundle, or a submission of these studies.
        prior: a bundle or run whose prior is shown.

    Raises:
        LeakError: weights that were fitted on one of the studies.
        ManifestError, CohortError: a bundle or table that is not what it should be.
    """
    cohort = read_cohort(root, split=split)
    ids = list(map(int, cohort.study_ids))
    steps: dict[str, Probs] = {"uniform": np.full((len(ids), 25, 3), 1 / 3)}
    known = _bundle(prior)
    if (known / FILE_NAME).is_file():
        steps["prior"] = np.tile(prior_array(read_manifest(known).prior), (len(ids), 1, 1))
    steps["baseline"] = _answers(baseline, "baseline", cohort)
    steps["chain"] = _answers(chain, "main", cohort)
    title = f"{len(ids)} studies never trained on"
    return Comparison(title, cohort.study_ids, cohort.labels, with_floor(steps, cohort))


def _bundle(path: Path) -> Path:
    return path / "export" if (path / "export").is_dir() else path


def _answers(path: Path, chain: str, cohort: Cohort) -> Probs:
    ids = list(map(int, cohort.study_ids))
    if path.is_file():
        return align_submission(read_table(path, "a submission"), ids)
    manifest = verify(_bundle(path))
    check_not_trained_on(path, manifest, cohort, cohort.study_ids)
    frame, _ = predict(cohort.root, _bundle(path), split=cohort.split, chain=chain, studies=ids, progress=True)
    return align_submission(frame, ids)
