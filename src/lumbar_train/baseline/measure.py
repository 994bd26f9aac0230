"""Evaluates a sealed baseline, or a run's export, on an unseen cohort, in the same way as the chain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.bundle.manifest import FILE_NAME, read_manifest, verify
from lumbar.chains.registry import baseline_chain
from lumbar.errors import LumbarError, ManifestError
from lumbar.io.progress import Progress
from lumbar.io.text import one_line, study_text
from lumbar.output.submission import normalise
from lumbar.stages.aggregate import prior_array
from lumbar.stages.points import Localisation
from lumbar.workers.budget import Effort
from lumbar_train.data.tables import Cohort
from lumbar_train.evaluation.evaluate import Evaluation, check_not_trained_on

STAGE = "baseline"


def is_baseline(run: Path) -> bool:
    """Whether a run folder or bundle has the networks of a baseline and no others."""
    folder = run / "export" if (run / "export").is_dir() else run
    try:
        return {entry.stage for entry in read_manifest(folder).weights} == {STAGE}
    except ManifestError:
        return False


def evaluate_baseline(run: Path, cohort: Cohort, *, device: str = "cpu", progress: bool = True) -> Evaluation:
    """Predict a labelled cohort with the kernel's own chain; a study that fails keeps the prior.

    Raises:
        LeakError: the weights were fitted on one of these studies.
        ManifestError: the bundle is damaged or incomplete.
    """
    folder = run if (run / FILE_NAME).is_file() else run / "export"
    manifest = verify(folder)
    check_not_trained_on(run, manifest, cohort, cohort.study_ids)
    chain = baseline_chain(manifest)
    networks = chain.load(manifest, device)
    prior = prior_array(manifest.prior)
    answers = np.tile(prior, (len(cohort), 1, 1))
    problems: dict[int, list[str]] = {}
    shown = Progress(len(cohort), "study", title="evaluate", is_shown=progress)
    for row, study_id in enumerate(shown.each(cohort.study_ids)):
        try:
            study = chain.read(cohort.root, cohort.split, int(study_id), cohort.series, None)
            result = chain.predict(study, networks, prior, Effort.FULL)
            answers[row] = normalise(result.probs)
            lines = [*study.problems, *result.problems]
        except LumbarError as error:
            lines = [one_line(error, study_text(cohort.root, cohort.split, int(study_id)))]
        if lines:
            problems[int(study_id)] = lines
    answers_by_name = {
        "uniform": np.full(answers.shape, 1 / 3),
        "prior": np.tile(prior, (len(cohort), 1, 1)),
        "baseline": answers,
    }
    return Evaluation(
        title=f"baseline {manifest.hash[:12]} on {len(cohort)} studies never trained on",
        cohort=cohort,
        study_ids=cohort.study_ids,
        labels=cohort.labels,
        answers=answers_by_name,
        localisations={int(study): Localisation() for study in cohort.study_ids},  # the baseline localises nothing
        sagittal=pd.DataFrame(),
        axial=pd.DataFrame(),
        problems=problems,
    )
