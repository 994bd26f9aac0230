"""The whole baseline: prepare, fit every column and fold side by side, gather, score, export."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from lumbar.errors import CohortError
from lumbar.io.tables import csv_text
from lumbar.labels import COLUMNS
from lumbar.metric import score
from lumbar_train.baseline.export import RECIPE, export
from lumbar_train.baseline.fit import Job, finished, fold_title, run_fit, start_worker
from lumbar_train.baseline.gather import Answers, all_figures, out_of_fold, submission_frame, write_predictions
from lumbar_train.baseline.network import make_network
from lumbar_train.baseline.prepare import Images, describe_problems, prepare, write_label_tables
from lumbar_train.baseline.settings import Settings, check_settings
from lumbar_train.data.folds import FULL, make_folds, read_folds, split, write_folds
from lumbar_train.data.tables import Cohort, read_study_ids
from lumbar_train.engine.distributed import pick_device
from lumbar_train.engine.fold_pool import hand_out, usable_devices
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_text
from lumbar_train.outputs.store import write_frame

Results = dict[tuple[str, int], dict[str, Any]]


@dataclass
class BaselineRun:
    """What a run is asked for.

    Attributes:
        cohort: labelled studies.
        out: run folder.
        settings: how to see and fit.
        columns: which label columns, in the order of ``labels.COLUMNS``.
        folds: ``study_id, fold``.
        with_full: also fit on all data, which is what ships.
        jobs: fits side by side.
        resume: go on in a folder that holds fits.
    """

    cohort: Cohort
    out: Path
    settings: Settings
    columns: list[str]
    folds: pd.DataFrame
    with_full: bool = True
    jobs: int = 1
    resume: bool = False

    @property
    def work(self) -> Path:
        """Folder of the converted slices."""
        return self.out / "work"

    @property
    def use_folds(self) -> list[int]:
        """Folds to hold out; FULL last, where it is asked for."""
        return [*sorted(map(int, self.folds["fold"].unique())), *([FULL] if self.with_full else [])]


def choose_columns(names: str | None) -> list[str]:
    """Comma-separated columns, or all 25; a whole condition may be named.

    Raises:
        CohortError: a name that is no column and no condition.
    """
    if not names:
        return list(COLUMNS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(column == name or column.startswith(f"{name}_l") for column in COLUMNS):
            raise CohortError(f"--columns: found {name!r}, expected label columns such as {COLUMNS[0]}")
    return [c for c in COLUMNS if any(c == name or c.startswith(f"{name}_l") for name in wanted)]


def choose_folds(text: str | None, out: Path, cohort: Cohort, seed: int) -> tuple[Cohort, pd.DataFrame]:
    """A number of folds, a table of them, or what the run folder holds; three by default.

    Returns:
        the cohort, less the studies that a given table leaves out (the chain leaves out what has no readable series,
        and both must be scored on the same studies), and the folds.

    Raises:
        CohortError, LeakError: as ``make_folds`` and ``read_folds``.
    """
    if text is not None and not text.isdigit():
        cohort = as_listed(cohort, Path(text))
        return cohort, read_folds(text, cohort)
    kept = out / "folds.csv"
    if kept.is_file():
        cohort = as_listed(cohort, kept)
        folds = read_folds(kept, cohort)
        if text is not None and folds["fold"].nunique() != int(text):
            n_kept = folds["fold"].nunique()
            raise CohortError(f"{kept}: holds {n_kept} folds, --folds says {text}; expected the same")
        return cohort, folds
    return cohort, make_folds(cohort, int(text or 3), seed)


def as_listed(cohort: Cohort, path: Path) -> Cohort:
    """The studies that a table of folds lists; what is wrong with the table is found by ``read_folds``."""
    try:
        listed = read_study_ids(path)
    except CohortError:
        return cohort
    absent = [int(study) for study in cohort.study_ids if int(study) not in listed]
    if not absent or len(absent) == len(cohort):
        return cohort
    return cohort.without(absent, {f"studies: not in {path.name}": len(absent)})


def check_free(run: BaselineRun) -> None:
    """Refuse to mix with another run's fits.

    Raises:
        CohortError: the folder holds fits and ``resume`` is not asked for, or holds another kind of run.
    """
    if (run.out / "fits").is_dir() and not run.resume:
        raise CohortError(f"{run.out}: holds fits, add --resume to go on with it or name another folder")
    recipe = run.out / "recipe.json"
    if recipe.is_file() and json.loads(recipe.read_text("utf-8")).get("name") != RECIPE:
        raise CohortError(f"{run.out}: holds a run of the chain, expected a folder of its own for the baseline")


def execute(run: BaselineRun, *, batch: int, start_batch: int) -> tuple[Answers, dict[str, Any], Results, Images]:
    """Train and score; what was done before is kept.

    Raises:
        LumbarError: as the steps; what is finished stays, and ``resume`` goes on.
    """
    check_settings(run.settings)
    check_free(run)
    # found now, not after hours of conversion: a network that cannot be built, weights that cannot be had
    make_network(run.settings.network(run.columns[0]), 0, pretrained=run.settings.pretrained)
    images = prepare_run(run, batch, start_batch)
    write_folds(run.out / "folds.csv", run.folds)
    recipe = {"name": RECIPE, "columns": run.columns} | asdict(run.settings)
    write_text(run.out / "recipe.json", json.dumps(recipe, indent=1) + "\n")
    started = time.monotonic()
    results = fit_all(run)
    answers = out_of_fold(run.out / "fits", results, run.cohort, run.folds)
    figures = summarise(run, answers, results)
    _note(run, figures, time.monotonic() - started)
    return answers, figures, results, images


def prepare_run(run: BaselineRun, batch: int, start_batch: int) -> Images:
    """Convert the cohort's slices and write the label tables."""
    settings, cohort = run.settings, run.cohort
    images = prepare(
        run.work, cohort.root, cohort.split, cohort.series, description=settings.description, size=settings.size,
        slices=settings.slices, batch=batch, start_batch=start_batch,
    )  # fmt: skip
    for line in describe_problems(images.problems):
        tqdm.write(line)
    n_without = len(set(map(int, cohort.study_ids)) - set(images.table["study_id"]))
    tqdm.write(f"{len(images.table)} slices of {len(cohort) - n_without} studies; {n_without} studies have none")
    write_label_tables(run.work, images, cohort.labels, cohort.study_ids, run.columns)
    return images


def jobs_of(run: BaselineRun) -> list[Job]:
    """Every fit of a run; the fits on all data last, so that a run that is cut short can be scored soonest."""
    cohort = run.cohort
    found = []
    for fold in run.use_folds:
        _, held_out = split(run.folds, fold)
        for column in run.columns:
            name = "full" if fold == FULL else f"fold{fold}"
            classes = cohort.labels[:, COLUMNS.index(column)]
            found.append(
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
    return found


def fit_all(run: BaselineRun) -> Results:
    """Do all fits that are not done; a failing one ends the run, and what is finished stays.

    Raises:
        TrainingError: no fit could learn anything, because each found one class alone.
    """
    jobs = jobs_of(run)
    results: Results = {}
    with tqdm(total=len(jobs), desc="fits", unit="fit") as bar:
        todo = []
        for job in jobs:
            done = finished(job)
            if done is None:
                todo.append(job)
            else:
                results[job.column, job.fold] = done
        bar.update(len(jobs) - len(todo))
        for job, result in _run(todo, run.jobs):
            results[job.column, job.fold] = result
            bar.update()
            bar.set_postfix_str(f"{job.column} {fold_title(job.fold)}", refresh=False)
            for line in (result["reason"], result.get("stop", "")):
                if line:
                    tqdm.write(line)
    if all(result["status"] != "fitted" for result in results.values()):
        raise TrainingError(f"{run.out}: no fit found two classes: {next(iter(results.values()))['reason']}")
    return results


def _run(jobs: Sequence[Job], n: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if n <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, run_fit(job)
        return
    n_threads = max(1, (os.cpu_count() or 1) // n)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n, mp_context=context, initializer=start_worker, initargs=(n_threads,)) as pool:
        try:
            yield from hand_out(
                jobs, n, usable_devices(), lambda job, device: pool.submit(run_fit, replace(job, device=str(device)))
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def summarise(run: BaselineRun, answers: Answers, results: Results) -> dict[str, Any]:
    """Score, predictions and figures on disk."""
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


def _note(run: BaselineRun, figures: dict[str, Any], seconds: float) -> None:
    """``seconds.json``, summed over resumes."""
    path = run.out / "seconds.json"
    noted = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    noted["fits"] = round(noted.get("fits", 0.0) + seconds, 1)
    noted["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {run.jobs} jobs, {pick_device('auto').type}"
    noted["torch_threads"] = torch.get_num_threads()
    write_text(path, json.dumps(noted, indent=1))


def export_run(run: BaselineRun, figures: dict[str, Any], results: Results) -> Path:
    """``RUN/export``, ready to be sealed."""
    training = json.loads((run.out / "seconds.json").read_text("utf-8"))
    return export(run.out, results, run.cohort, figures["oof"], training, figures["temperatures"])
