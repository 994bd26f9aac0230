"""Parts of the report of a training: what was trained when, warnings, and the pictures of the worst cases."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path

import numpy as np

from lumbar.chains.contract import Picture
from lumbar.chains.overlay import draw
from lumbar.config import FUSION
from lumbar.errors import LumbarError
from lumbar.io.progress import duration
from lumbar.io.text import counted
from lumbar.labels import CONDITIONS, LEVELS, level_title
from lumbar.study import read_study
from lumbar_train.data.true_points import true_localisation
from lumbar_train.evaluation.evaluate import Evaluation
from lumbar_train.evaluation.point_errors import truth_points
from lumbar_train.evaluation.scoring import Interval, difference, level_difference
from lumbar_train.files import read_object

TEXT_SIZE = 1.5  # of the worst cases' labels: their pictures are shown smaller than they are
_IS_WORSE = ": worse than the prior"
GROUP_TITLES = {"spinal": "spinal canal", "foraminal": "foramina", "subarticular": "subarticular recesses"}


def about(evaluation: Evaluation, run: Path | None) -> list[tuple[str, str]]:
    """Run, recipe, cohort, date and duration, each with its name; what is not known is left out."""
    rows = [("cohort", f"{evaluation.cohort.root.resolve().name}, {len(evaluation.study_ids)} studies")]
    if run is not None:
        recipe = read_object(run / "recipe.json")
        words = recipe.get("set") or []
        more = f" and {len(words) - 3} other changed values" if len(words) > 3 else ""
        changes = f" with {', '.join(words[:3])}{more}" if words else ""
        if name := recipe.get("name"):
            rows = [("recipe", f"{name}{changes}"), *rows]
        rows = [("run", run.resolve().name), *rows]
        seconds = read_object(run / "seconds.json")
        spent = sum(value for value in seconds.values() if isinstance(value, (int, float)))
        if spent:
            machine = f" ({seconds['machine']})" if "machine" in seconds else ""
            rows.append(("stages took", f"{duration(spent)}{machine}"))
        if recipe.get(FUSION) and (decision := read_object(run / FUSION / "decision.json")):
            rows.append((FUSION, str(decision["line"]).removeprefix(f"{FUSION} ")))
    return [*rows, ("date", time.strftime("%Y-%m-%d %H:%M %Z"))]


def warnings(evaluation: Evaluation) -> list[str]:
    """A line for each figure in which an answer is worse than the prior, which knows nothing of the study.

    The total and its terms are named wherever the final answer is worse, a condition at a level or the total of an
    answer on the way where that is no chance: with so many of them some would be worse by luck.
    """
    prior = evaluation.answers.get("prior")
    if prior is None:
        return []
    lines = [
        _worse(term.replace("_", " "), change)
        for term, change in difference(evaluation.labels, prior, evaluation.answer).items()
        if change.value > 0
    ]
    lines += [
        _worse(f"{GROUP_TITLES[group]} {level_title(level)}", change)
        for (group, level), change in level_difference(evaluation.labels, prior, evaluation.answer).items()
        if change.is_worse
    ]
    for name in list(evaluation.answers)[:-1]:
        if name not in ("uniform", "prior"):
            change = difference(evaluation.labels, prior, evaluation.answers[name])["total"]
            lines += [_worse(f"total of the answer {name}", change)] if change.is_worse else []
    return lines


def _worse(what: str, change: Interval) -> str:
    sure = "" if change.is_worse else ", which may be chance"
    interval = f"95 % {change.low:+.3f} to {change.high:+.3f}"
    return f"{what}{_IS_WORSE} by {change.value:.3f} ({interval}){sure}"


def summed_up(lines: list[str]) -> str:
    """The warnings in one line: how many figures are worse than the prior, and which."""
    names = ", ".join(line.partition(_IS_WORSE)[0] for line in lines)
    return f"{counted(len(lines), 'figure')} are worse than the prior, which knows nothing of the study: {names}"


def level_rows(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each group a row of changes against the prior by level, each with its judgement ``good``, ``bad`` or none."""
    prior = evaluation.answers.get("prior")
    if prior is None:
        return []
    cells = level_difference(evaluation.labels, prior, evaluation.answer)
    return [(title, [_judged(cells.get((group, level))) for level in LEVELS]) for group, title in GROUP_TITLES.items()]


def _judged(change: Interval | None) -> tuple[str, str]:
    if change is None:
        return "no label", ""
    kind = "bad" if change.is_worse else "good" if change.high < 0 else ""
    return f"{change.value:+.3f}", kind


def grouped_reasons(rows: list[dict[str, str]]) -> list[str]:
    """Why which weights are used: a sentence that is the same for all fits once, others with the fits' names."""
    ordered = sorted(rows, key=lambda row: row["reason"])
    groups = [(reason, list(some)) for reason, some in groupby(ordered, key=lambda row: row["reason"])]
    if len(groups) == 1:
        return [f"All {len(rows)} fits: {groups[0][0]}."] if len(rows) > 1 else [f"{groups[0][0]}."]
    groups.sort(key=lambda group: -len(group[1]))
    lines = []
    for reason, some in groups:
        names = ", ".join(f"{row['stage']} {row['fold']}" for row in some)
        lines.append(f"{names}: {reason}.")
    return lines


def column_title(column: int) -> str:
    """A label column as radiologists name it: ``left foraminal, L5/S1``."""
    condition, level = divmod(column, len(LEVELS))
    words = CONDITIONS[condition].replace("_", " ")
    for long, short in (("neural foraminal narrowing", "foramen"), ("spinal canal stenosis", "spinal canal"),
                        ("subarticular stenosis", "subarticular recess")):  # fmt: skip
        words = words.replace(long, short)
    return f"{words} {level_title(LEVELS[level])}"


def case_pictures(evaluation: Evaluation, study_id: int) -> list[Picture]:
    """A study's slices with the predicted points, then the same with the true ones; none where it cannot be read."""
    cohort = evaluation.cohort
    localisation = evaluation.localisations.get(study_id)
    if localisation is None:
        return []
    try:
        study = read_study(cohort.root, cohort.split, study_id, cohort.series)
        predicted = [_titled(picture, "predicted") for picture in draw(study, localisation, TEXT_SIZE)]
        truth = truth_points(cohort.without(set(map(int, cohort.study_ids)) - {study_id}, {}))
        truth = truth[truth["study_id"] == study_id]
        true = draw(study, true_localisation(study, truth), TEXT_SIZE) if len(truth) else []
    except LumbarError:
        return []
    return predicted + [_titled(picture, "true") for picture in true]


def _titled(picture: Picture, whose: str) -> Picture:
    return Picture(f"{picture.title}: {whose} points", picture.png)


def costliest(evaluation: Evaluation, row: int, weights: tuple[float, ...], n: int = 3) -> list[tuple[int, int, float]]:
    """The columns that cost a study most: (column, true class, probability that it was given)."""
    grades, probs = evaluation.labels[row], evaluation.answer[row]
    picked = probs[np.arange(len(grades)), np.maximum(grades, 0)]
    order = np.argsort(np.array((*weights, 0.0))[grades] * np.log(np.maximum(picked, 1e-12)))[:n]
    return [(int(k), int(grades[k]), float(picked[k])) for k in order if grades[k] >= 0]
