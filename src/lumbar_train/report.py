"""``RUN/report/index.html``: one self-contained page with every figure of an evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from lumbar import labels
from lumbar.errors import CohortError
from lumbar.io.tables import csv_text
from lumbar.io.text import page_value
from lumbar_train.baseline.gather import submission_frame
from lumbar_train.baseline.measure import evaluate_baseline, is_baseline
from lumbar_train.data.external_points import POINTS_FILE, describe
from lumbar_train.data.tables import Cohort, read_cohort, read_study_ids
from lumbar_train.data.usable import as_trained, read_dropped
from lumbar_train.engine.distributed import pick_device
from lumbar_train.evaluation.discrimination import FIGURES, discrimination
from lumbar_train.evaluation.evaluate import Evaluation, evaluate_oof, evaluate_run
from lumbar_train.evaluation.page_parts import (
    about,
    case_pictures,
    column_title,
    costliest,
    grouped_reasons,
    level_rows,
    summed_up,
    warnings,
)
from lumbar_train.evaluation.plots import data_uri, plot_answers, plot_curves, plot_errors, plot_reliability, png_uri
from lumbar_train.evaluation.point_errors import summarise
from lumbar_train.evaluation.scoring import TERMS, confusion, reliability, scores, study_losses
from lumbar_train.files import write_text
from lumbar_train.stages.registry import STAGES

N_WORST = 6
_MAX_PROBLEMS = 60


def write_report(evaluation: Evaluation, folder: Path | str, *, run: Path | str | None = None) -> Path:
    """Write ``index.html``, ``figures.json`` and the answer as ``submission.csv`` into a folder; returns the page.

    Args:
        evaluation: what to show.
        folder: ``RUN/report``, or anywhere.
        run: the run folder whose stages' curves and choices are shown beside; None leaves that section out.
    """
    folder = Path(folder)
    figures = evaluation.figures()
    figures["discrimination"] = {
        group: {name: interval.as_list() for name, interval in rows.items()}
        for group, rows in discrimination(evaluation.labels, evaluation.answer).items()
    }
    file = Path(run) / POINTS_FILE if run is not None else None
    if file is not None and file.is_file():
        figures["points"] = json.loads(file.read_text("utf-8"))
    page = render(evaluation, figures, Path(run) if run is not None else None)
    write_text(folder / "figures.json", json.dumps(_finite(figures), indent=1) + "\n")
    answer = submission_frame(list(map(int, evaluation.study_ids)), evaluation.answer)
    write_text(folder / "submission.csv", csv_text(answer))
    write_text(folder / "index.html", page)
    return folder / "index.html"


def report_on(
    run: Path | str,
    root: Path | str,
    *,
    points: str = "predicted",
    split: str = "train",
    out: Path | str | None = None,
    device: str = "auto",
) -> tuple[Path, Evaluation]:
    """What ``evaluate`` does: measure a run on a labelled cohort and write the page.

    On the cohort that the run was fitted on, its out-of-fold outputs are measured; on any other, what it would ship.

    Args:
        run: a run folder, or a sealed bundle.
        root: competition folder.
        points: ``predicted``, or ``true`` to show the answer with true points beside (other cohorts only).
        split: ``train``, or ``test`` with ``solution.csv``.
        out: folder of the page; by default ``RUN/report`` for the run's own cohort, ``RUN/report-<root's name>``
            for another.
        device: where networks run; ``auto`` is a GPU where there is one.

    Raises:
        LumbarError: as ``evaluate_oof`` and ``evaluate_run``.
    """
    run, root = Path(run), Path(root)
    if (run / "recipe.json").is_file() and not (run / "export").is_dir() and not (run / "aggregator").is_dir():
        goes_on = "go on with the command that began it and --resume"
        raise CohortError(f"{run}: found a run that is not finished, expected one that is; {goes_on}")
    cohort = read_cohort(root, split=split)
    is_own = _is_own_cohort(run, cohort)
    if is_own:
        evaluation = evaluate_oof(run, as_trained(run, cohort))
    elif is_baseline(run):
        evaluation = evaluate_baseline(run, cohort, device=str(pick_device(device)))
    else:
        evaluation = evaluate_run(run, root, points, split=split, device=str(pick_device(device)))
    folder = Path(out) if out is not None else run / ("report" if is_own else f"report-{root.resolve().name}")
    return write_report(evaluation, folder, run=run if is_own else None), evaluation


def _is_own_cohort(run: Path, cohort: Cohort) -> bool:
    """Whether a run was trained on a cohort, by its studies: the fingerprint also changes with external points."""
    folds = run / "folds.csv"
    if not folds.is_file() or not (run / "aggregator" / "oof.parquet").is_file():
        return False
    trained_on = read_study_ids(folds)
    return trained_on == set(cohort.study_ids.tolist()) - set(read_dropped(run)["studies"])


def render(evaluation: Evaluation, figures: dict[str, Any], run: Path | None) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=page_value,
    )
    worse = warnings(evaluation)
    stages, curves = _stages(run) if run is not None else ([], [])
    sections = [("score", "Metric"), ("parts", "Parts"), ("places", "Localisation"), ("reliability", "Reliability")]
    sections += [("confusion", "Confusion"), *([("stages", "Stages")] if stages else []), ("cases", "Worst cases")]
    names = [name for name in figures["scores"] if name != "true points"]
    return environment.get_template("report.html.j2").render(
        title="Lumbar spine grading: how good is it?",
        about=about(evaluation, run),
        warnings=worse,
        warned=summed_up(worse),
        levels=[labels.level_title(level) for level in labels.LEVELS],
        level_rows=level_rows(evaluation),
        ranking_names=FIGURES,
        ranking_rows=[
            (group, [figures["discrimination"][group][name] for name in FIGURES]) for group in figures["discrimination"]
        ],
        subtitle=f"{evaluation.title[:1].upper()}{evaluation.title[1:]}.",
        sections=[*sections, ("data", "Data")],
        headline=_headline(figures, names[-1]),
        terms=[term.replace("_", " ") for term in TERMS],
        answer=names[-1],
        score_rows=[(name, [rows[t] for t in TERMS]) for name, rows in figures["scores"].items()],
        fold_rows=[(name, [rows[t] for t in TERMS]) for name, rows in figures.get("folds", {}).items()],
        added_rows=[
            (name, [rows[t] for t in TERMS], *_judge(rows["total"])) for name, rows in figures["added"].items()
        ],
        place_rows=_place_rows(evaluation.sagittal),
        axial_rows=_axial_rows(evaluation.axial),
        plots=_plots(evaluation),
        severities=labels.SEVERITIES,
        confusion=_confusion_rows(evaluation),
        stages=stages,
        reasons=grouped_reasons(stages) if stages else [],
        curves=curves,
        cases=_worst_cases(evaluation),
        data_line=f"{figures['studies']} studies of the cohort with fingerprint {figures['cohort'][:16]}.",
        dropped=sorted(figures["dropped"].items()),
        point_lines=describe(figures["points"]) if "points" in figures else [],
        problems=sorted(evaluation.problems.items())[:_MAX_PROBLEMS],
    )


def _headline(figures: dict[str, Any], answer: str) -> list[tuple[str, str]]:
    total = figures["scores"][answer]["total"]
    values = [
        (f"{total[0]:.3f}", f"total, 95 % {total[1]:.3f}–{total[2]:.3f}"),
        (f"{figures['ratio_to_prior'][0]:.2f}", "of the prior's total"),
    ]
    if figures["sagittal"]:
        sagittal = figures["sagittal"]
        values.append((f"{sagittal['median_mm']:.1f} mm", f"median of sagittal points, 95 % {sagittal['p95_mm']:.1f}"))
    if figures["axial"]:
        values.append((f"{100 * figures['axial']['right']:.1f} %", "of axial levels given their own slice"))
    if "predicted_over_true" in figures:
        values.append((f"{figures['predicted_over_true'][0]:.2f}", "total with predicted points / with true points"))
    return values


def _judge(total: list[float]) -> tuple[str, str]:
    if total[1] > 0:
        return "worse", "bad"
    return ("better", "good") if total[2] < 0 else ("no clear difference", "")


def _plots(evaluation: Evaluation) -> dict[str, str]:
    figures = {
        "answers": plot_answers({name: scores(evaluation.labels, probs) for name, probs in evaluation.answers.items()}),
        "weighted": plot_reliability(reliability(evaluation.labels, evaluation.answer, is_weighted=True)),
        "plain": plot_reliability(reliability(evaluation.labels, evaluation.answer, is_weighted=False)),
    }
    if len(evaluation.sagittal):
        figures["errors"] = plot_errors(evaluation.sagittal)
    return {name: data_uri(figure) for name, figure in figures.items()}


def _place_rows(errors: pd.DataFrame) -> list[tuple[str, dict[str, float]]]:
    if not len(errors):
        return []
    rows = [("all", summarise(errors))]
    names = {"spinal": "canal", "foraminal": "foraminal"}
    for word, name in names.items():
        some = errors[errors["condition"].str.contains(word)]
        if len(some):
            rows.append((name, summarise(some)))
    rows += [(labels.level_title(str(level)), summarise(some)) for level, some in errors.groupby("level")]
    return rows


def _axial_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    if not len(table):
        return []
    groups = [("all", table), *((labels.level_title(str(level)), rows) for level, rows in table.groupby("level"))]
    rows = []
    for name, levels in groups:
        is_missing = levels["belongs_to"].isna()
        distances = levels[["left_mm", "right_mm"]].to_numpy(float)
        rows.append(
            {
                "name": name,
                "n": len(levels),
                "right": float(levels["is_right"].mean()),
                "wrong": float((~levels["is_right"] & ~is_missing).mean()),
                "missing": float(is_missing.mean()),
                "median_mm": float(np.nanmedian(distances)) if np.isfinite(distances).any() else float("nan"),
            }
        )
    return rows


def _confusion_rows(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, list[tuple[int, float]]]]]]:
    groups = []
    for group, table in confusion(evaluation.labels, evaluation.answer).items():
        rows = []
        for severity, counts in zip(labels.SEVERITIES, table, strict=True):
            total = max(int(counts.sum()), 1)
            rows.append((severity, [(int(count), int(count) / total) for count in counts]))
        groups.append((group, rows))
    return groups


def _stages(run: Path) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """A row for each fit of each stage, and its curves, from the folders that the loop left."""
    rows, curves = [], []
    order = {stage.name: k for k, stage in enumerate(STAGES)}
    folders = sorted(
        {path.parent.parent for path in run.glob("*/*/log.csv")}, key=lambda p: (order.get(p.name, 99), p.name)
    )
    for folder in folders:
        logs = {path.parent.name: pd.read_csv(path) for path in sorted(folder.glob("*/log.csv"))}
        for fold, log in logs.items():
            rows.append({"stage": folder.name, "fold": fold} | _fit_row(log, folder / fold / "fit.json"))
        curves.append((folder.name, data_uri(plot_curves(logs))))
    return rows, curves


def _fit_row(log: pd.DataFrame, path: Path) -> dict[str, str]:
    last = log.iloc[-1]
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return {
        "epochs": str(len(log)),
        "loss": f"{last['loss']:.4f}",
        "held_out": f"{last['val_loss']:.4f}" if "val_loss" in log.columns else "",
        "rate": f"{log['samples_per_s'].median():.1f}",
        "minutes": f"{last['seconds'] / 60:.1f}",
        "reason": content.get("reason", "not finished").partition(" (best ")[
            0
        ],  # each fit's own figures are in the row
    }


def _worst_cases(evaluation: Evaluation) -> list[dict[str, Any]]:
    losses = study_losses(evaluation.labels, evaluation.answer)
    total = max(float(losses.sum()), 1e-12)
    cases = []
    for row in np.argsort(-losses)[:N_WORST]:
        study_id = int(evaluation.study_ids[row])
        cases.append(
            {
                "study_id": study_id,
                "share": float(losses[row]) / total,
                "rows": _worst_rows(evaluation, int(row)),
                "problems": evaluation.problems.get(study_id, [])[:5],
                "pictures": [(p.title, png_uri(p.png)) for p in case_pictures(evaluation, study_id)],
            }
        )
    return cases


def _worst_rows(evaluation: Evaluation, row: int) -> str:
    """The columns that cost a study most, in words."""
    said = [
        f"{column_title(column)}: {labels.SEVERITIES[grade]}, given {100 * given:.0f} %"
        for column, grade, given in costliest(evaluation, row, labels.SEVERITY_WEIGHTS)
    ]
    return "; ".join(said)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by None, because JSON has no word for them."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
