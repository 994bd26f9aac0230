"""report.html: what a run did, as one self-contained page, with ids of studies and series but no name of a patient."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from lumbar import __version__
from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome, Probs
from lumbar.io.text import page_value
from lumbar.labels import CONDITIONS, LEVELS, level_title
from lumbar.output.report_page import TEMPLATE
from lumbar.output.submission import Submission
from lumbar.output.versions import rehearsal_line

_PROBLEMS_SHOWN = 3  # of a study in the table of all
_PROBLEM_LENGTH = 160
_PROBLEMS_LISTED = 12  # of a study with pictures
_STAGE_ORDER = ("load", "read", "localise", "classify", "aggregate", "draw")


def render(
    record: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    submission: Submission,
    manifest: Manifest,
    limit_s: float,
) -> str:
    """Fill in the page of a run.

    Args:
        record: the run record.
        outcomes: what became of each study, with the pictures of the first.
        submission: the rows that stand.
        manifest: of the bundle that was used.
        limit_s: the time limit in seconds.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=page_value)
    pictured = [outcome for outcome in outcomes if outcome.pictures]
    # A small run shows every study in full; a large one those with pictures, and all studies in the table.
    shown = outcomes if len(outcomes) <= max(4, len(pictured)) else pictured
    predicted = [outcome.seconds.get("study", 0.0) for outcome in outcomes if outcome.probs is not None]
    devices = list(record["devices"])
    return environment.from_string(TEMPLATE).render(
        version=__version__,
        n_studies=len(outcomes),
        n_predicted=len(predicted),
        n_prior=len(outcomes) - len(predicted),
        n_troubled=sum(bool(outcome.problems) for outcome in outcomes),
        seconds_a_study=_number(float(np.median(predicted))) if predicted else "–",
        devices=devices,
        device_kind="GPU" if devices and devices[0].startswith("cuda") else "CPU",
        stages=_stages(record["seconds"], len(outcomes)),
        limit=_duration(limit_s),
        dataset=manifest.dataset.get("id", "unnamed"),
        recipe=f"recipe {manifest.recipe}",
        manifest_hash=manifest.hash,
        cohort=f"{manifest.cohort.get('studies', '?')} studies, {manifest.cohort.get('description', 'not described')}",
        problems=list(record.get("problems", ()))[:_PROBLEMS_LISTED],
        versions=", ".join(f"{name} {value}" for name, value in record["versions"].items()),
        rehearsed=rehearsal_line(record["versions"], manifest.data.get("rehearsed")),
        levels=[level_title(level) for level in LEVELS],
        shown=[_shown(outcome, submission.probs(outcome.study_id)) for outcome in shown],
        table=[_line(outcome, submission.probs(outcome.study_id)) for outcome in outcomes]
        if len(shown) < len(outcomes)
        else [],
    )


def _stages(seconds: Mapping[str, float], n_studies: int) -> list[dict[str, Any]]:
    names = [name for name in _STAGE_ORDER if name in seconds]
    names += sorted(set(seconds) - set(names))
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        {
            "name": "load weights" if name == "load" else name,
            "percent": round(100.0 * seconds[name] / longest, 1),
            "total": _number(seconds[name]),
            "each": "" if name == "load" else _number(seconds[name] / max(1, n_studies)),
        }
        for name in names
    ]


def _shown(outcome: Outcome, probs: Probs) -> dict[str, Any]:
    n_canal = len({p["level"] for p in outcome.sagittal_points if p["side"] is None})
    n_axial = len({level["level"] for level in outcome.axial_levels})
    problems = outcome.problems[:_PROBLEMS_LISTED]
    if len(outcome.problems) > len(problems):
        problems.append(f"and {len(outcome.problems) - len(problems)} more")
    return {
        "study_id": outcome.study_id,
        "status": outcome.status,
        "seconds": _number(outcome.seconds.get("study", 0.0)),
        "found": f"{n_canal} of 5 levels on sagittal, {n_axial} of 5 on axial images",
        "problems": problems,
        "rows": _rows(probs),
        "pictures": [
            {
                "title": picture.title,
                "data": base64.b64encode(picture.png).decode(),
                "is_sagittal": picture.title.startswith("Sagittal"),
            }
            for picture in outcome.pictures
        ],
    }


def _rows(probs: Probs) -> list[dict[str, Any]]:
    percent = probs.reshape(len(CONDITIONS), len(LEVELS), 3) * 100.0
    return [
        {"title": _title(condition), "cells": [_whole(percent[row, column]) for column in range(len(LEVELS))]}
        for row, condition in enumerate(CONDITIONS)
    ]


def _whole(percent: NDArray[np.float64]) -> list[int]:
    """Three percentages as whole numbers that sum to 100, rounded by the method of largest remainders."""
    floors = np.floor(percent).astype(int)
    for index in np.argsort(floors - percent)[: 100 - int(floors.sum())]:
        floors[index] += 1
    return [int(value) for value in floors]


def _line(outcome: Outcome, probs: Probs) -> dict[str, Any]:
    worst = int(probs[:, 2].argmax())
    condition, level = CONDITIONS[worst // len(LEVELS)], LEVELS[worst % len(LEVELS)]
    return {
        "study_id": outcome.study_id,
        "status": outcome.status,
        "seconds": _number(outcome.seconds.get("study", 0.0)),
        "worst": round(float(probs[worst, 2]) * 100),
        "worst_title": f"{_title(condition)} {level_title(level)}",
        "problems": [problem[:_PROBLEM_LENGTH] for problem in outcome.problems[:_PROBLEMS_SHOWN]],
        "n_more": max(0, len(outcome.problems) - _PROBLEMS_SHOWN),
    }


def _title(condition: str) -> str:
    return condition.replace("_", " ").capitalize()


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
