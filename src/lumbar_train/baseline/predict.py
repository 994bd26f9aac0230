"""Predicts new studies with a run's full fits: a CSV file per column, and the submission."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.bundle.manifest import verify
from lumbar.chains.baseline import load, slice_logits, view_of
from lumbar.io.progress import Progress
from lumbar.io.tables import csv_text
from lumbar.labels import COLUMNS
from lumbar.metric import Score, read_table, score
from lumbar.output.submission import expected_studies, normalise
from lumbar.stages.aggregate import prior_array
from lumbar.study import list_studies, read_descriptions
from lumbar_train.baseline.fit import LOGITS
from lumbar_train.baseline.gather import answer_frame, study_means, submission_frame, write_predictions
from lumbar_train.baseline.prepare import describe_problems, prepare
from lumbar_train.engine.distributed import pick_device
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_text


def predict_split(out: Path, root: Path, split: str, *, batch: int, start_batch: int) -> tuple[Path, Score | None]:
    """Predict a split with the networks that a run exported; score it if there are labels.

    Args:
        out: run folder.
        root: competition folder.
        split: train or test.
        batch: studies per batch of the conversion.
        start_batch: earlier batches are trusted without a check.

    Returns:
        path of the submission, and its score if the labels are known.

    Raises:
        TrainingError: the run has exported nothing.
        ManifestError: the weights are damaged or incomplete.
        CohortError: the data are damaged or incomplete.
    """
    if not (out / "export").is_dir():
        raise TrainingError(f"{out / 'export'}: not found, expected a baseline run with its fits on all data")
    manifest = verify(out / "export")
    networks = load(manifest, str(pick_device("auto")))
    series = read_descriptions(root, split)
    study_ids = expected_studies(root, split, list_studies(root, split), [int(k) for k in series["study_id"]])
    first = next(iter(networks.by_column.values()))[0]
    description, size, slices = view_of(first)
    images = prepare(
        out / f"work-{split}-{root.resolve().name}", root, split, series, description=description, size=size,
        slices=slices, batch=batch, start_batch=start_batch,
    )  # fmt: skip
    for line in describe_problems(images.problems):
        print(line, flush=True)
    prior = prior_array(manifest.prior)
    probs = np.tile(prior, (len(study_ids), 1, 1))
    row_of = {study: k for k, study in enumerate(study_ids)}
    by_column: dict[str, pd.DataFrame] = {}
    shown = Progress(len(networks.by_column), "column", title=f"predict {split}")
    for column, (network, *_) in shown.each(networks.by_column.items()):
        c = COLUMNS.index(column)
        frame = images.table[["study_id", "series_id", "image_path"]].copy()
        frame[LOGITS] = slice_logits(network, np.asarray(images.pixels))
        by_column[column] = answer_frame(frame, prior[c], network.config.balance, network.config.temperature)
        for study, values in study_means(by_column[column]):
            if study in row_of:
                probs[row_of[study], c] = values
    folder = out / f"predictions-{split}-{root.resolve().name}"
    write_predictions(folder, by_column)
    frame = submission_frame(study_ids, np.stack([normalise(p) for p in probs]) if len(probs) else probs)
    write_text(folder / "submission.csv", csv_text(frame))
    solution = root / ("solution.csv" if split == "test" else "train.csv")
    return folder / "submission.csv", score(read_table(solution, "the solution"), frame) if solution.is_file() else None
