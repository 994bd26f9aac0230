"""Writes ``RUN/report/index.html`` of a baseline, and the page that compares baseline and chain."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from lumbar.io.text import page_value
from lumbar.labels import COLUMNS
from lumbar_train.baseline.calibrate import MAX_TEMPERATURE
from lumbar_train.baseline.compare import chain_oof, with_floor
from lumbar_train.baseline.gather import Answers
from lumbar_train.baseline.plots import plot_confusion, plot_finder, plot_samples
from lumbar_train.baseline.prepare import Images
from lumbar_train.baseline.run import BaselineRun
from lumbar_train.ensemble.comparison import Comparison
from lumbar_train.evaluation.plots import data_uri, plot_answers
from lumbar_train.evaluation.scoring import TERMS, Interval
from lumbar_train.files import write_bytes, write_text

N_SAMPLES = 6  # slices shown of each severity


def report_run(
    run: BaselineRun, answers: Answers, figures: dict[str, Any], images: Images, chain_run: Path | None = None
) -> Path:
    """Write the page of a run, its figures, and for each column a picture with sample slices.

    Args:
        run: what was asked for.
        answers: the out-of-fold answers.
        figures: of ``gather.all_figures``.
        images: the converted slices.
        chain_run: a chain's run on the same studies and folds, to be compared with.

    Raises:
        CohortError: the chain's run has other studies or folds.
    """
    cohort = run.cohort
    by_name = {
        "uniform": np.full(answers.probs.shape, 1 / 3),
        "prior": answers.prior,
        "baseline, balanced": answers.balanced,
        "baseline, untempered": answers.untempered,
        "baseline": answers.probs,
    }
    if chain_run is not None:
        by_name["chain"] = chain_oof(chain_run, cohort, run.folds)
    title = f"out of fold: {len(cohort)} studies, each by the fold that held it out"
    compared = with_floor(by_name, cohort.root, cohort.split, cohort.study_ids)
    comparison = Comparison(title, cohort.study_ids, cohort.labels, compared)
    folder = run.out / "report"
    columns = [_column(run, column, figures["columns"][column], images, folder) for column in run.columns]
    return _write(folder, comparison, comparison.figures(), columns, figures)


def write_comparison(comparison: Comparison, scored: dict[str, Any], out: Path) -> Path:
    """Write the page of a comparison whose figures are ``scored``, and the figures; returns the page."""
    return _write(out, comparison, scored, [], {})


def _write(
    folder: Path,
    comparison: Comparison,
    scored: dict[str, Any],
    columns: list[dict[str, Any]],
    figures: dict[str, Any],
) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=page_value,
    )
    # Intermediate answers of the baseline are left out of the bars, which they would only crowd
    drawn = {name: rows for name, rows in scored["scores"].items() if not name.startswith("baseline, ")}
    bars = {name: {term: Interval(*rows[term]) for term in TERMS} for name, rows in drawn.items()}
    text = environment.get_template("page.html.j2").render(
        title="The FastAI baseline, done right" if columns else "Runs compared",
        subtitle=comparison.title,
        verdicts=[entry["line"] for entry in scored["verdicts"]],
        left_out=list(scored["left_out"].items()),
        notes=scored["notes"],
        has_floor="floor" in scored["scores"],
        terms=[term.replace("_", " ") for term in TERMS],
        score_rows=[(name, [rows[t] for t in TERMS]) for name, rows in scored["scores"].items()],
        difference_rows=[(name, [rows[t] for t in TERMS]) for name, rows in scored["differences"].items()],
        bars=data_uri(plot_answers(bars)),
        columns=columns,
        not_better=figures.get("not_better_than_constant", []),
        constant_fits=figures.get("constant_fits", []),
        max_temperature=f"{MAX_TEMPERATURE:g}",
        temperatures=[
            (name.replace("_", " "), values["all"], [value for fold, value in values.items() if fold != "all"])
            for name, values in figures.get("temperatures", {}).items()
        ],
    )
    write_text(folder / "figures.json", json.dumps(scored, indent=1) + "\n")
    write_text(folder / "index.html", text)
    return folder / "index.html"


def _column(run: BaselineRun, column: str, figures: dict[str, Any], images: Images, folder: Path) -> dict[str, Any]:
    row_of = {int(study): k for k, study in enumerate(run.cohort.study_ids)}
    rows = [row_of[int(study)] for study in images.table["study_id"]]
    classes = run.cohort.labels[rows, COLUMNS.index(column)]
    samples = plot_samples(images.pixels, images.table, classes, N_SAMPLES)
    finder = plot_finder(run.out / "fits" / column, figures.get("folds", {}))
    uri = data_uri(samples)

    write_bytes(folder / "samples" / f"{column}.png", base64.b64decode(uri.partition(",")[2]))
    return {
        "name": column,
        "title": column.replace("_", " "),
        "figures": figures,
        "samples": uri,
        "finder": data_uri(finder) if finder else "",
        "confusion": data_uri(plot_confusion(figures["confusion"])) if figures["studies"] else "",
    }
