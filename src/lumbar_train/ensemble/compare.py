"""Compares runs out of fold, on the folds that they share, or on studies that none of them was fitted on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lumbar.bundle.manifest import FILE_NAME, Manifest, read_manifest, verify
from lumbar.errors import CohortError
from lumbar.io.text import counted, printable
from lumbar.metric import align_submission, read_table
from lumbar.run import predict
from lumbar.stages.aggregate import prior_array
from lumbar_train.data.tables import Cohort, read_cohort, read_study_ids
from lumbar_train.ensemble.comparison import NOTES, Comparison
from lumbar_train.ensemble.guards import check_same_cohort
from lumbar_train.ensemble.out_of_fold import common_studies, labelled, prior_by_fold, read_out_of_fold
from lumbar_train.evaluation.evaluate import check_not_trained_on

Probs = NDArray[np.float64]
BASELINE = "baseline"


def compare(runs: Mapping[str, Path], root: Path | None, split: str, prior: Path | None = None) -> Comparison:
    """Compare runs on the studies of a cohort, or without one out of fold by the labels that the runs have noted.

    Where one of the runs was trained on studies of the cohort, all are compared out of fold.

    Args:
        runs: run folders, sealed bundles or submissions by name; out of fold run folders alone.
        root: folder of the cohort.
        split: train or test.
        prior: bundle or run whose prior is shown beside predictions; the first that has one where none is given. Out
            of fold it is refused.

    Raises:
        LeakError: a run's answers are not out of fold, or its weights were fitted on one of the studies.
        CohortError: different cohorts or folds, answers that are missing, a damaged table.
        ManifestError: a bundle is damaged or incomplete.
    """
    if root is None:
        return _without_prior(prior, runs, None)
    cohort = read_cohort(root, split=split)
    ids = set(map(int, cohort.study_ids))
    if any(ids & read_study_ids(path / "folds.csv") for path in runs.values() if (path / "folds.csv").is_file()):
        return _without_prior(prior, runs, cohort)
    return compare_unseen(runs, cohort, prior)


def _without_prior(prior: Path | None, runs: Mapping[str, Path], cohort: Cohort | None) -> Comparison:
    """Compare out of fold, where beside each study stands the prior of the folds that do not hold it."""
    if prior is not None:
        raise CohortError(
            f"--prior {printable(prior)}: found runs that are compared out of fold, expected a cohort that none was "
            "trained on; leave it out: the prior of the other folds is shown"
        )
    return compare_out_of_fold(runs, cohort)


def compare_out_of_fold(runs: Mapping[str, Path], cohort: Cohort | None) -> Comparison:
    """Compare runs on the studies that all of them held out in the same folds.

    Raises:
        LeakError, CohortError: as ``compare``.
    """
    read = [read_out_of_fold(name, path) for name, path in runs.items()]
    ids, left_out = common_studies(read)
    check_same_cohort(runs, cohort)
    known = labelled(runs, ids, cohort)
    answers = {"uniform": np.full((len(ids), 25, 3), 1 / 3), "prior": prior_by_fold(known, read[0].fold_of)}
    answers |= {run.name: run.probs(ids) for run in read}
    title = f"out of fold: {counted(len(ids), 'study')}, each by the fold that held it out"
    notes = tuple(
        f"{name} is an ensemble: its members were chosen on all studies, those of each fold included, so that its "
        f"score is a little too good; {NOTES} in its folder has the score of a choice without the fold"
        for name, path in runs.items()
        if (path / NOTES).is_file()
    )
    return Comparison(title, known.study_ids, known.labels, answers, tuple(runs), left_out, notes)


def compare_unseen(runs: Mapping[str, Path], cohort: Cohort, prior: Path | None = None) -> Comparison:
    """Compare runs, bundles or submissions on a labelled cohort that none was fitted on.

    Raises:
        LeakError, CohortError, ManifestError: as ``compare``.
    """
    n = len(cohort)
    answers: dict[str, Probs] = {"uniform": np.full((n, 25, 3), 1 / 3)}
    for path in [prior] if prior is not None else runs.values():
        if (bundle_of(path) / FILE_NAME).is_file():
            answers["prior"] = np.tile(prior_array(read_manifest(bundle_of(path)).prior), (n, 1, 1))
            break
    answers |= {name: _answers(path, cohort) for name, path in runs.items()}
    title = f"{counted(n, 'study')} never trained on"
    return Comparison(title, cohort.study_ids, cohort.labels, answers, tuple(runs))


def bundle_of(path: Path) -> Path:
    """The bundle itself, or the one that a run folder exported."""
    return path / "export" if (path / "export").is_dir() else path


def _answers(path: Path, cohort: Cohort) -> Probs:
    """Probabilities (N, 25, 3): read from a submission, or predicted with a bundle."""
    ids = list(map(int, cohort.study_ids))
    if path.is_file():
        return align_submission(read_table(path, "a submission"), ids)
    bundle = bundle_of(path)
    if not os.path.lexists(bundle / FILE_NAME):
        raise CohortError(
            f"{path}: found no {FILE_NAME}, expected a run with weights that ship, a bundle or a submission"
        )
    manifest = verify(bundle)
    check_not_trained_on(path, manifest, cohort, cohort.study_ids)
    frame, _ = predict(
        cohort.root,
        bundle,
        split=cohort.split,
        chain=chain_of(manifest),
        studies=ids,
        progress=True,
        trust_members=bundle != path,  # code of a run of one's own
    )
    return align_submission(frame, ids)


def chain_of(manifest: Manifest) -> str:
    """The chain that a bundle's networks are made for."""
    return BASELINE if {entry.stage for entry in manifest.weights} == {BASELINE} else "main"
