"""The whole baseline: prepare the images, fit every column on every fold, gather, score, export."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lumbar.errors import CohortError
from lumbar.io.progress import Progress
from lumbar.io.tables import csv_text
from lumbar.io.text import counted
from lumbar.labels import COLUMNS
from lumbar.metric import score
from lumbar_train.baseline.export import RECIPE, export
from lumbar_train.baseline.fit import Job, finished, fold_title, run_fit, start_worker
from lumbar_train.baseline.gather import Answers, all_figures, out_of_fold, submission_frame, write_predictions
from lumbar_train.baseline.network import make_network
from lumbar_train.baseline.prepare import Images, describe_problems, prepare, write_label_tables
from lumbar_train.baseline.settings import Settings, check_settings, refuse_fits
from lumbar_train.data.folds import FULL, make_folds, read_folds, split, write_folds
from lumbar_train.data.tables import LABELS, Cohort, read_study_ids, write_labels
from lumbar_train.engine.distributed import pick_device
from lumbar_train.engine.fold_pool import hand_out, usable_devices
from lumbar_train.engine.process_pool import processes
from lumbar_train.errors import TrainingError
from lumbar_train.files import read_object, write_text
from lumbar_train.outputs.store import write_frame

Results = dict[tuple[str, int], dict[str, Any]]


@dataclass
class BaselineRun:
    """The options of a run.

    Attributes:
        cohort: labelled studies.
        out: run folder.
        settings: of images and fits.
        columns: label columns, in the order of ``labels.COLUMNS``.
        folds: ``study_id, fold``.
        with_full: also fit on all data; these fits are the ones that ship.
        jobs: fits at the same time.
        resume: continue in a folder that has fits.
        amp_asked: the precision that was asked for; ``settings`` has the one that is used.
    """

    cohort: Cohort
    out: Path
    settings: Settings
    columns: list[str]
    folds: pd.DataFrame
    with_full: bool = True
    jobs: int = 1
    resume: bool = False
    amp_asked: str = "auto"

    @property
    def work(self) -> Path:
        """Folder of the converted slices."""
        return self.out / "work"

    @property
    def use_folds(self) -> list[int]:
        """Folds to hold out, then FULL if it is asked for."""
        return [*sorted(map(int, self.folds["fold"].unique())), *([FULL] if self.with_full else [])]


def choose_folds(text: str | None, out: Path, cohort: Cohort, seed: int) -> tuple[Cohort, pd.DataFrame]:
    """Parse --folds: a number of folds, or a table; by default those of the run folder, or three.

    Args:
        text: the option's value.
        out: run folder.
        cohort: labelled studies.
        seed: of new folds.

    Returns:
        the cohort without the studies that a given table leaves out, and the folds. (The chain leaves out studies
        without a readable series, and both must be scored on the same studies.)

    Raises:
        CohortError: as in ``make_folds`` and ``read_folds``.
        LeakError: as in ``read_folds``.
    """
    if text is not None and not text.isdigit():
        cohort = without_unlisted(cohort, Path(text))
        return cohort, read_folds(text, cohort)
    kept = out / "folds.csv"
    if kept.is_file():
        cohort = without_unlisted(cohort, kept)
        folds = read_folds(kept, cohort)
        if text is not None and folds["fold"].nunique() != int(text):
            n_kept = folds["fold"].nunique()
            raise CohortError(f"{kept}: holds {n_kept} folds, --folds says {text}; expected the same")
        return cohort, folds
    return cohort, make_folds(cohort, int(text or 3), seed)


def without_unlisted(cohort: Cohort, path: Path) -> Cohort:
    """Leave out the studies that a table of folds does not list; ``read_folds`` checks the table itself."""
    try:
        listed = read_study_ids(path)
    except CohortError:
        return cohort
    absent = [int(study) for study in cohort.study_ids if int(study) not in listed]
    if not absent or len(absent) == len(cohort):
        return cohort
    return cohort.without(absent, {f"studies: not in {path.name}": len(absent)})


def check_run_folder(run: BaselineRun) -> None:
    """Refuse a folder with another run.

    Raises:
        CohortError: the folder has fits and ``resume`` is not asked for, or it has a run of the chain.
    """
    refuse_fits(run.out, run.resume)
    recipe = run.out / "recipe.json"
    if recipe.is_file() and read_object(recipe).get("name") != RECIPE:
        raise CohortError(f"{run.out}: holds a run of the chain, expected a folder of its own for the baseline")


def execute(run: BaselineRun, *, batch: int, start_batch: int) -> tuple[Answers, dict[str, Any], Results, Images]:
    """Prepare, fit and score; what is already finished is kept.

    Args:
        run: options.
        batch: studies per batch of the conversion.
        start_batch: earlier batches are trusted without a check.

    Returns:
        out-of-fold answers, figures of ``gather.all_figures``, content of each ``fit.json``, images.

    Raises:
        LumbarError: of any part; what is finished stays, and ``resume`` continues.
    """
    check_settings(run.settings)
    check_run_folder(run)
    # A network that cannot be built, or weights that cannot be downloaded, are noticed before hours of conversion
    make_network(run.settings.network(run.columns[0]), 0, pretrained=run.settings.pretrained)
    images = prepare_run(run, batch, start_batch)
    write_folds(run.out / "folds.csv", run.folds)
    write_labels(run.out / LABELS, run.cohort)
    amp = {"asked": run.amp_asked, "used": run.settings.amp}
    recipe = {"name": RECIPE, "columns": run.columns} | asdict(run.settings) | {"amp": amp}
    write_text(run.out / "recipe.json", json.dumps(recipe, indent=1) + "\n")
    started = time.monotonic()
    results = fit_all(run)
    answers = out_of_fold(run.out / "fits", results, run.cohort, run.folds)
    figures = summarise(run, answers, results)
    _write_seconds(run, time.monotonic() - started)
    return answers, figures, results, images


def prepare_run(run: BaselineRun, batch: int, start_batch: int) -> Images:
    """Convert the cohort's slices and write the label tables."""
    settings, cohort = run.settings, run.cohort
    images = prepare(
        run.work, cohort.root, cohort.split, cohort.series, description=settings.description, size=settings.size,
        slices=settings.slices, batch=batch, start_batch=start_batch,
    )  # fmt: skip
    for line in describe_problems(images.problems):
        print(line)
    n_without = len(set(map(int, cohort.study_ids)) - set(images.table["study_id"]))
    print(f"{len(images.table)} slices of {len(cohort) - n_without} studies; {n_without} studies have none")
    write_label_tables(run.work, images, cohort.labels, cohort.study_ids, run.columns)
    return images


def jobs_of(run: BaselineRun) -> list[Job]:
    """All fits of a run, the fits on all data last: an interrupted run then has more folds to be scored on."""
    cohort = run.cohort
    jobs = []
    for fold in run.use_folds:
        _, held_out = split(run.folds, fold)
        for column in run.columns:
            name = "full" if fold == FULL else f"fold{fold}"
            classes = cohort.labels[:, COLUMNS.index(column)]
            jobs.append(
                Job(
                    column=column,
                    fold=fold,
                    settings=run.settings,
                    folder=run.out / "fits" / column / name,
                    work=run.work,
                    studies=tuple(map(int, cohort.study_ids)),
                    classes=tuple(map(int, classes)),
                    held_out=frozenset(map(int, held_out)),
                )
            )
    return jobs


def fit_all(run: BaselineRun) -> Results:
    """Do all fits that are not finished; one that fails ends the run, and what is finished stays.

    Raises:
        TrainingError: every fit had labels of one class only.
    """
    jobs = jobs_of(run)
    results: Results = {}
    results |= {(job.column, job.fold): done for job in jobs if (done := finished(job)) is not None}
    todo = [job for job in jobs if (job.column, job.fold) not in results]
    if results:
        print(f"{counted(len(results), 'fit')} of {len(jobs)} finished before", flush=True)
    with Progress(len(todo), "fit", title="baseline") as shown:
        for job, result in _run(todo, run.jobs):
            results[job.column, job.fold] = result
            shown.say(_line_of(job, result))
            shown.update(shown.n_done + 1)
    if all(result["status"] != "fitted" for result in results.values()):
        raise TrainingError(f"{run.out}: no fit found two classes: {next(iter(results.values()))['reason']}")
    return results


def _line_of(job: Job, result: dict[str, Any]) -> str:
    """One line about a fit that has just been done: epochs, loss, seconds; or why there was none."""
    if result["status"] != "fitted":
        return str(result["reason"])
    last, stop = result["log"][-1], result.get("stop")
    line = f"{job.column} {fold_title(job.fold)}: {counted(result['epochs'], 'epoch')}, loss {last['loss']:.4f}"
    return f"{line}, {result['seconds']:.1f} s" + (f"; {stop}" if stop else "")


def _run(jobs: Sequence[Job], n: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if n <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, run_fit(job)
        return
    n_threads = max(1, (os.cpu_count() or 1) // n)
    with processes(n, start_worker, n_threads) as pool:
        yield from hand_out(
            jobs, n, usable_devices(), lambda job, device: pool.submit(run_fit, replace(job, device=str(device)))
        )


def summarise(run: BaselineRun, answers: Answers, results: Results) -> dict[str, Any]:
    """Write the predictions and the figures; returns the figures."""
    cohort = run.cohort
    ids = list(map(int, cohort.study_ids))
    frame = submission_frame(ids, answers.probs)
    write_frame(run.out / "oof.parquet", frame)
    write_predictions(run.out / "predictions", answers.slices)
    write_text(run.out / "predictions" / "submission.csv", csv_text(frame))
    figures = all_figures(cohort.labels, answers, run.columns)
    figures["oof"] = asdict(score(cohort.frame(ids), frame))
    figures["constant_fits"] = [r["reason"] for r in results.values() if r["status"] == "constant"]
    for (column, fold), result in results.items():
        if fold != FULL and result["status"] == "fitted":
            names = ("lr", "lr_reason", "train_images", "upsampled_images", "copies_left_out", "epochs")
            figures["columns"][column]["folds"][str(fold)] |= {name: result[name] for name in names}
    write_text(run.out / "metrics.json", json.dumps(figures, indent=1) + "\n")
    return figures


def _write_seconds(run: BaselineRun, seconds: float) -> None:
    """Write ``seconds.json``; the seconds of a resumed run are added up."""
    path = run.out / "seconds.json"
    training = read_object(path)
    training["fits"] = round(training.get("fits", 0.0) + seconds, 1)
    training["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {run.jobs} jobs, {pick_device('auto').type}"
    training["torch_threads"] = torch.get_num_threads()
    write_text(path, json.dumps(training, indent=1))


def export_run(run: BaselineRun, figures: dict[str, Any], results: Results) -> Path:
    """Write ``RUN/export``, which can be sealed."""
    training = read_object(run.out / "seconds.json")
    return export(run.out, results, run.cohort, figures["oof"], training, figures["temperatures"])
