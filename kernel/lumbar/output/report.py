"""report.html: what a run did, as one self-contained page, with ids of studies and series but no name of a patient."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from lumbar import __version__
from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome, Probs
from lumbar.competitions.contract import Competition
from lumbar.competitions.registry import DEFAULT
from lumbar.io.file_names import file_stem
from lumbar.io.text import counted, page_value
from lumbar.output.findings import rows_at_prior
from lumbar.output.findings_table import normalised_prior
from lumbar.output.left_out import left_out_words
from lumbar.output.notes import distances_of, lines_of
from lumbar.output.report_page import TEMPLATE
from lumbar.output.report_study import PROBLEMS_LISTED, study_block, what_of, within
from lumbar.output.submission import Submission
from lumbar.output.truth import Truth
from lumbar.output.versions import rehearsal_line
from lumbar.stages.grade_calibration import calibration_words

_PROBLEMS_SHOWN = 3  # of a study in the table of all
_PROBLEM_LENGTH = 160
_TABLE_PROBLEMS_LISTED = 12
_TROUBLED_LISTED = 20  # studies in the list of problems
_STAGE_ORDER = ("load", "read", "localise", "classify", "aggregate", "draw")


MAX_PAGE_BYTES = 5_000_000
_PICTURE_BYTES = 4_200_000  # of a page's pictures: the rest is room for its text


@functools.cache
def template(text: str) -> jinja2.Template:
    """A page's template, compiled once."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=page_value)
    return environment.from_string(text)


def render(
    record: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    submission: Submission,
    manifest: Manifest,
    limit_s: float,
    truth: Truth | None = None,
) -> str:
    """Fill in the one page of a run.

    Args:
        record: the run record; its studies may be missing, since they are taken from ``outcomes``.
        outcomes: what became of each study, with the pictures of the first.
        submission: the rows that stand.
        manifest: of the bundle that was used.
        limit_s: the time limit in seconds.
        truth: labels and marked points, where they are known; drawn beside the answers.
    """
    truth = truth or Truth()
    pictured = [outcome for outcome in outcomes if outcome.pictures]
    # A small run shows every study in full; a large one those with pictures, and all studies in the table.
    shown = outcomes if len(outcomes) <= max(4, len(pictured)) else pictured
    predicted = [outcome.seconds.get("study", 0.0) for outcome in outcomes if outcome.probs is not None]
    competition = manifest.competition
    prior = normalised_prior(manifest)
    is_prior = [rows_at_prior(outcome, submission.probs(outcome.study_id), prior) for outcome in outcomes]
    troubled = [
        line
        for outcome, rows in zip(outcomes, is_prior, strict=True)
        if (line := _troubled(outcome, rows, truth, what_of(manifest))) is not None
    ]
    return template(TEMPLATE).render(
        n_studies=len(outcomes),
        n_predicted=len(predicted),
        n_prior=len(outcomes) - len(predicted),
        n_prior_rows=sum(int(rows.sum()) for rows in is_prior),
        n_rows=sum(len(rows) for rows in is_prior),
        what=what_of(manifest),
        troubled=troubled[:_TROUBLED_LISTED],
        n_troubled=len(troubled),
        seconds_a_study=number_text(float(np.median(predicted))) if predicted else "–",
        shown=[study_of(outcome, submission, manifest, truth, len(shown)) for outcome in shown],
        has_truth=any(outcome.study_id in truth.grades or outcome.study_id in truth.points for outcome in shown),
        shown_ids={outcome.study_id for outcome in shown},
        table=[_line(outcome, submission.probs(outcome.study_id), competition) for outcome in outcomes]
        if len(shown) < len(outcomes)
        else [],
        **run_lines(record, manifest, limit_s, len(outcomes)),
        **words_of(manifest),
    )


def study_of(
    outcome: Outcome,
    submission: Submission,
    manifest: Manifest,
    truth: Truth,
    n_shown: int = 1,
    n_problems: int = PROBLEMS_LISTED,
) -> dict[str, Any]:
    """What a page shows of a study, which shares the page's room for pictures with the others shown there."""
    kept = within(outcome.pictures, _PICTURE_BYTES // n_shown)
    if n_left_out := len(outcome.pictures) - len(kept):
        line = f"{counted(n_left_out, 'picture')} left out, to keep the page under {MAX_PAGE_BYTES // 1_000_000} MB"
        outcome = replace(outcome, pictures=kept, problems=[*outcome.problems, line])
    block = study_block(outcome, submission.probs(outcome.study_id), manifest, truth, n_problems)
    return block | {"seconds": number_text(outcome.seconds.get("study", 0.0))}


def run_lines(record: Mapping[str, Any], manifest: Manifest, limit_s: float, n_studies: int) -> dict[str, Any]:
    """What a page says about the run, the bundle and the installed versions."""
    cohort, versions, devices = manifest.cohort, record["versions"], list(record["devices"])
    return {
        "devices": devices,
        "device_kind": "GPU" if devices and devices[0].startswith("cuda") else "CPU",
        "stages": _stages(record["seconds"], n_studies),
        "limit": _duration(limit_s),
        "left_out": left_out_words(record.get("left_out", {})),
        "problems": list(record.get("problems", ()))[:_TABLE_PROBLEMS_LISTED],
        "dataset": manifest.dataset.get("id", "unnamed"),
        "recipe": f"recipe {manifest.recipe}",
        "manifest_hash": manifest.hash,
        "cohort": f"{cohort.get('studies', '?')} studies, {cohort.get('description', 'not described')}",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "calibration": calibration_words(manifest.data.get("grade_calibration", {})),
        "rehearsed": rehearsal_line(versions, manifest.data.get("rehearsed")),
    }


def words_of(manifest: Manifest) -> dict[str, Any]:
    """What the pages call things in this competition."""
    competition = manifest.competition
    return {
        "version": __version__,
        "is_graded": manifest.competition_name == DEFAULT,
        "title": competition.title,
        "answer": _answer(competition),
        "columns": competition.grid_columns,
        "value_titles": competition.titles,
        "colours": _colours(competition),
        "highest": f"{competition.titles[-1]}, highest" if competition.sums_to_one else "highest",
    }


def _stages(seconds: Mapping[str, float], n_studies: int) -> list[dict[str, Any]]:
    names = [name for name in _STAGE_ORDER if name in seconds]
    names += sorted(set(seconds) - set(names))
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        {
            "name": "load weights" if name == "load" else name,
            "percent": round(100.0 * seconds[name] / longest, 1),
            "total": number_text(seconds[name]),
            "each": "" if name == "load" else number_text(seconds[name] / max(1, n_studies)),
        }
        for name in names
    ]


def _troubled(outcome: Outcome, is_prior: NDArray[np.bool_], truth: Truth, what: str) -> dict[str, Any] | None:
    """A study's line in the list of problems, which begins with its notes; None where there is nothing to tell."""
    distances = distances_of(outcome.pictures, truth.points.get(outcome.study_id, []))
    lines = lines_of(outcome, is_prior, distances, what)
    if not lines:
        return None
    return {
        "study_id": outcome.study_id,
        "anchor": file_stem(outcome.study_id),
        "status": outcome.status,
        "n": len(lines),
        "first": lines[0][:_PROBLEM_LENGTH],
    }


def _answer(competition: Competition) -> str:
    """What a study's answer is, in words."""
    n_rows, n_values = competition.shape
    if n_rows > 1 and competition.sums_to_one:
        return f"{n_rows} graded findings each"
    return f"{n_rows * n_values} probabilities each"


def _colours(competition: Competition) -> list[str]:
    """The page's class of each value: from mild to severe where a row is one distribution."""
    n_values = len(competition.values)
    if not competition.sums_to_one:
        return ["m1"] * n_values
    return {1: ["m2"], 2: ["m0", "m2"]}.get(n_values, [f"m{index % 3}" for index in range(n_values)])


def _line(outcome: Outcome, probs: Probs, competition: Competition) -> dict[str, Any]:
    """A study's line in the table of all: its highest value, of the last column where a row is one distribution."""
    worst, title = worst_of(probs, competition)
    return {
        "study_id": outcome.study_id,
        "anchor": file_stem(outcome.study_id),
        "status": outcome.status,
        "seconds": number_text(outcome.seconds.get("study", 0.0)),
        "worst": round(worst * 100),
        "worst_title": title,
        "problems": [problem[:_PROBLEM_LENGTH] for problem in outcome.problems[:_PROBLEMS_SHOWN]],
        "n_more": max(0, len(outcome.problems) - _PROBLEMS_SHOWN),
    }


def worst_of(probs: Probs, competition: Competition) -> tuple[float, str]:
    """The highest value of a study, of the last column where a row is one distribution, and what it is of."""
    first = len(competition.values) - 1 if competition.sums_to_one else 0
    row, value = np.unravel_index(int(probs[:, first:].argmax()), probs[:, first:].shape)
    n_columns = len(competition.grid_columns)
    titles = [competition.grid_rows[int(row) // n_columns], competition.grid_columns[int(row) % n_columns]]
    if not competition.sums_to_one:
        titles.append(competition.titles[int(value)])
    return float(probs[row, first + value]), " ".join(filter(None, titles))


def number_text(value: float) -> str:
    """Seconds with as many digits as tell something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    if seconds == math.inf:
        return "none"
    if seconds >= 3600:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
