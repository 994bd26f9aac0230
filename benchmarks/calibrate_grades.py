"""Finds how far grades must be softened to be as sure as they are right, on phantoms that look unlike the training's.

    python benchmarks/calibrate_grades.py --data ROOT [ROOT ...] --weights runs/mine/export [--split test] [--write]
        [--plot FILE]

Each ROOT is a synthetic cohort of one appearance that the weights have not seen (``lumbar_phantom --family contrast``,
``noise``, ``thickness``, ``resolution``; ``--hard 1``), of another seed than theirs. Every study is predicted without a
calibration. A temperature and a share of the prior for each group of conditions are fitted to the metric, every cohort
weighing alike; no temperature lies below 1, so that no grade becomes surer than it was. The table shows each cohort
with the numbers that all others choose, so that none speaks for itself; ``--plot`` draws said against true shares of
the severe class. ``--write`` puts the numbers of all into the folder's weights_manifest.json (``grade_calibration``),
which sealing keeps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from inputs import add_calibration_options, are_given

from lumbar import predict
from lumbar.bundle.manifest import FILE_NAME, Manifest, read_manifest, verify, write_manifest
from lumbar.labels import COLUMNS, GROUPS, SEVERITIES, SEVERITY_COLUMNS
from lumbar.stages.aggregate import prior_array
from lumbar.study import list_studies
from lumbar_train.data.tables import read_cohort
from lumbar_train.evaluation.grade_calibration import Answers, fit, held_back
from lumbar_train.evaluation.scoring import TERMS, difference, ratio, reliability, scores

KEY = "grade_calibration"
MIN_STUDIES = 10
SOFTER_ONLY = 1.0  # the lowest temperature: phantoms are no reason to be surer of real images
_COLOURS = {"spinal": "#0072b2", "foraminal": "#d55e00", "subarticular": "#009e73"}


def plain_copy(manifest: Manifest, folder: Path) -> Path:
    """The weights in another folder, with a manifest that says nothing of a calibration."""
    for entry in manifest.weights:
        target = folder / entry.file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(manifest.path(entry), target)
    data = {name: value for name, value in manifest.data.items() if name not in (KEY, "code_files")}
    write_manifest(folder / FILE_NAME, data | {"code_sha256": ""})
    return folder


def answers_of(root: Path, split: str, weights: Path, n_studies: int, workers: int | None, part: int) -> Answers:
    """The answers to a cohort's studies, with their labels; a row that is the prior was seen by no classifier."""
    cohort = read_cohort(root, split=split)
    frame, _ = predict(root, weights, split=split, time_limit="none", studies=n_studies, workers=workers)
    ids = list(dict.fromkeys(int(row.split("_", 1)[0]) for row in frame["row_id"]))
    probs = frame[list(SEVERITY_COLUMNS)].to_numpy(float).reshape(len(ids), len(COLUMNS), 3)
    probs /= probs.sum(axis=-1, keepdims=True)
    prior = np.broadcast_to(prior_array(read_manifest(weights).prior), probs.shape)
    labels = cohort.labels[cohort.rows(ids)]
    is_seen = np.abs(probs - prior).max(axis=-1) > 1e-6
    return Answers(labels, probs, prior, is_seen, np.full(len(ids), part))


def common_study(roots: Sequence[Path], split: str) -> int | None:
    """A study that two cohorts have: the same patient would speak for itself."""
    ids = [int(study_id) for root in roots for study_id in list_studies(root, split)]
    return next((study_id for study_id, count in Counter(ids).items() if count > 1), None)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers to all cohorts."""
    names = ("labels", "probs", "prior", "is_seen", "parts")
    return Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def expected_error(labels: np.ndarray, probs: np.ndarray) -> float:
    """The expected calibration error over all groups and classes, in plain frequencies."""
    return float(np.mean([curve.error for curve in reliability(labels, probs, is_weighted=False)]))


def row_of(name: str, answers: Answers, after: np.ndarray) -> dict[str, str]:
    """A cohort's line of the table."""
    labels, before, prior = answers.labels, answers.probs, answers.prior
    of_prior, gain = scores(labels, prior), difference(labels, before, after)["total"]
    row = {"cohort": name, "studies": str(len(labels))}
    for title, probs in (("as graded", before), ("calibrated", after)):
        total, share = scores(labels, probs), ratio(labels, probs, prior)
        row[f"{title}, of the prior"] = f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f})"
        row[f"{title}: {', '.join(TERMS[1:])}"] = ", ".join(
            f"{total[term].value / of_prior[term].value:.2f}" for term in TERMS[1:]
        )
        row[f"{title}: calibration error"] = f"{expected_error(labels, probs):.3f}"
    row["change of the total"] = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    return row


def plot(path: Path, answers: Answers, after: np.ndarray) -> None:
    """Draw said against true shares of the severe class, before and after, one curve a group of conditions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    for axes, title, probs in zip(
        figure.subplots(1, 2, sharey=True), ("as graded", "calibrated by the other cohorts"), (answers.probs, after),
        strict=True,
    ):  # fmt: skip
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        for curve in reliability(answers.labels, probs, is_weighted=False, n_bins=8):
            shown = curve.rows >= 10
            if curve.severity == SEVERITIES[2]:
                label = f"{curve.group}, error {curve.error:.3f}"
                axes.plot(curve.predicted[shown], curve.observed[shown], "o-", color=_COLOURS[curve.group], label=label)
        axes.set(xlabel="probability said of severe", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("share that is severe")
    figure.savefig(path, dpi=150)


def main(words: Sequence[str] | None = None) -> int:
    """Predict the cohorts, fit, show each by the others' numbers, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="synthetic cohorts, each of one appearance")
    add_calibration_options(parser, 60)
    parser.add_argument("--workers", type=int, help="processes; default: as predict takes them")
    parser.add_argument("--plot", type=Path, help="a PNG of the reliability")
    args = parser.parse_args(words)
    if not are_given(parser, "calibrate_grades", "nothing is calibrated", data=args.data, weights=args.weights):
        return 0
    if len(args.data) < 2:
        parser.error("--data: found one cohort, expected two or more, so that each is judged by the others")
    if twice := common_study(args.data, args.split):
        parser.error(f"--data: found study {twice} in two cohorts, expected other patients in each (another --seed)")
    manifest = verify(args.weights)
    with tempfile.TemporaryDirectory() as scratch:
        weights = plain_copy(manifest, Path(scratch))
        parts = [
            answers_of(root, args.split, weights, args.studies, args.workers, part)
            for part, root in enumerate(args.data)
        ]
    for root, part in zip(args.data, parts, strict=True):
        if len(part.labels) < MIN_STUDIES:
            parser.error(f"{root}: found {len(part.labels)} studies, expected {MIN_STUDIES} or more")
    answers = joined(parts)
    after, numbers = held_back(answers, SOFTER_ONLY), fit(answers, SOFTER_ONLY)
    rows = [
        row_of(root.name, part, after[answers.parts == k])
        for k, (root, part) in enumerate(zip(args.data, parts, strict=True))
    ]
    table = pd.DataFrame([*rows, row_of("all", answers, after)]).set_index("cohort").T
    print(table.to_string())
    print(json.dumps(numbers))
    if args.plot is not None:
        plot(args.plot, answers, after)
    if args.write:
        write_manifest(manifest.folder / FILE_NAME, manifest.data | {KEY: {group: numbers[group] for group in GROUPS}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
