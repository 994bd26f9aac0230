"""Finds the numbers that turn the height of a point's peak into a probability, on phantoms unseen by the weights.

    python benchmarks/calibrate_points.py --data ROOT [ROOT ...] --weights runs/mine/export [--split test] [--write]
        [--plot FILE]

ROOT is a synthetic cohort of another seed than the weights were trained on (100 studies of ``lumbar-phantom --pitfalls
all --wild 0.6`` beside 100 ordinary ones are enough). Every study is localised as in prediction. A point is right
within 5 mm of the true one; offset and slope of each kind (canal, foramen, axial) are fitted by maximum likelihood,
times the numbering's probability where the weights have it. Each half of the studies shows the reliability of a fit on
the other, and ``--plot`` draws it. ``--write`` puts the numbers into the folder's weights_manifest.json, which sealing
keeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from inputs import add_calibration_options, are_given
from scipy.optimize import minimize

from lumbar.bundle.manifest import FILE_NAME, read_manifest, write_manifest
from lumbar.bundle.weights import load_networks
from lumbar.labels import AXIAL_T2, SIDES
from lumbar.models.inference import Networks
from lumbar.stages.localise import localise
from lumbar.stages.point_probability import KINDS, NEAR_MM, logit
from lumbar.stages.points import Localisation
from lumbar.study import list_studies, read_descriptions, read_study

EDGES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the bins in which the reliability is shown
MIN_BIN = 10  # points of a bin that is shown
MIN_EACH = 10  # right and wrong points of a kind that a fit needs
RIDGE = 0.05  # keeps both finite where nearly all points are right
_XYZ = ["x_mm", "y_mm", "z_mm"]


def points_of(study_id: int, localisation: Localisation, axial_mm: dict[int, tuple], truth: pd.DataFrame) -> list[dict]:
    """One row a point that truth has on the same series: its kind, height, numbering, and distance in mm."""
    numbering = 1.0 if localisation.numbering is None else localisation.numbering.confidence
    true = {
        (str(row["series_id"]), row["level"], row["side"] if row["side"] in SIDES else None): np.array(
            [row[name] for name in _XYZ]
        )
        for row in truth.to_dict("records")
    }
    located = [
        ("canal" if p.side is None else "foramen", p.series_id, p.level, p.side, p.xyz_mm, p.confidence)
        for p in localisation.sagittal_points
    ]
    for k, a in enumerate(localisation.axial_levels):
        located += [
            ("axial", a.series_id, a.level, side, xyz, a.confidence)
            for side, xyz in zip(SIDES, axial_mm[k], strict=True)
        ]
    rows = []
    for kind, series_id, level, side, xyz, height in located:
        place = true.get((str(series_id), level, side))
        if place is not None:
            error = float(np.linalg.norm(np.asarray(xyz) - place))
            rows.append(
                {"study_id": study_id, "kind": kind, "height": height, "numbering": numbering, "error_mm": error}
            )
    return rows


def collect(root: Path, split: str, networks: Networks, n_studies: int) -> pd.DataFrame:
    """The points of a cohort with their distances from the truth."""
    descriptions = read_descriptions(root, split)
    truth = pd.read_parquet(root / "truth.parquet").groupby("study_id")
    rows = []
    for study_id in list_studies(root, split)[:n_studies]:
        study = read_study(root, split, study_id, descriptions, 1)
        localisation = localise(study, networks)
        axial_mm = {}
        for k, a in enumerate(localisation.axial_levels):
            stack = study.series[AXIAL_T2][a.stack]
            axial_mm[k] = tuple(stack.to_patient(a.slice_index, y, x) for x, y in (a.left_px, a.right_px))
        rows += points_of(int(study_id), localisation, axial_mm, truth.get_group(int(study_id)))
    return pd.DataFrame(rows)


def chances(numbers: np.ndarray, frame: pd.DataFrame) -> np.ndarray:
    """The probabilities of a table's points, as ``point_probability.probability`` has them."""
    scores = numbers[0] + numbers[1] * frame["height"].map(logit).to_numpy()
    return frame["numbering"].to_numpy() / (1.0 + np.exp(-np.clip(scores, -50, 50)))


def fit(frame: pd.DataFrame) -> np.ndarray:
    """Offset and slope of the highest likelihood; a higher peak never makes a point less probable."""
    is_right = frame["error_mm"].to_numpy() <= NEAR_MM

    def loss(numbers: np.ndarray) -> float:
        likely = np.clip(chances(numbers, frame), 1e-6, 1 - 1e-6)
        return float(-np.log(np.where(is_right, likely, 1 - likely)).sum() + RIDGE * (numbers**2).sum())

    return minimize(loss, np.array([1.0, 1.0]), bounds=[(None, None), (0.0, None)]).x


def reliability(frame: pd.DataFrame, sure: np.ndarray) -> list[tuple[float, float, int]]:
    """By bins of the probability: its mean, the share of right points, and their number."""
    is_right = frame["error_mm"].to_numpy() <= NEAR_MM
    bins = np.digitize(sure, EDGES[1:-1])
    parts = [np.flatnonzero(bins == k) for k in range(len(EDGES) - 1)]
    return [(float(sure[k].mean()), float(is_right[k].mean()), len(k)) for k in parts if len(k) >= MIN_BIN]


def plot(path: Path, curves: dict[str, list[tuple[float, float, int]]]) -> None:
    """Draw said against true shares, one curve a kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="exact")
    for (kind, rows), colour, mark in zip(curves.items(), ("#0072b2", "#d55e00", "#009e73"), "os^", strict=False):
        said, true = [row[0] for row in rows], [row[1] for row in rows]
        axes.plot(said, true, color=colour, marker=mark, label=f"{kind} ({sum(row[2] for row in rows):,} points)")
    axes.set(xlabel="probability said", ylabel=f"share within {NEAR_MM:.0f} mm", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("Points of unseen phantoms, held back by halves", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(words: Sequence[str] | None = None) -> int:
    """Collect the points, fit, show the reliability, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="synthetic cohorts that the weights have not seen")
    add_calibration_options(parser, 200)
    parser.add_argument("--plot", type=Path, help="a PNG of the reliability")
    args = parser.parse_args(words)
    if not are_given(parser, "calibrate_points", "nothing is calibrated", data=args.data, weights=args.weights):
        return 0
    manifest = read_manifest(args.weights)
    networks = load_networks(manifest.folder, manifest)
    frame = pd.concat([collect(root, args.split, networks, args.studies) for root in args.data], ignore_index=True)
    numbers, curves = {}, {}
    for kind in KINDS:
        points = frame[frame["kind"] == kind].reset_index(drop=True)
        n_right = int((points["error_mm"] <= NEAR_MM).sum())
        if min(n_right, len(points) - n_right) < MIN_EACH:
            parser.error(
                f"{kind}: found {n_right} right points of {len(points)}, expected {MIN_EACH} right and as many wrong"
            )
        numbers[kind] = [round(float(value), 4) for value in fit(points)]
        half = pd.factorize(points["study_id"])[0] % 2 == 0
        sure = np.zeros(len(points))
        for held in (half, ~half):
            sure[held] = chances(fit(points[~held]), points[held])
        curves[kind] = reliability(points, sure)
        median, share = points["error_mm"].median(), n_right / len(points)
        print(f"{kind}: {len(points)} points, median {median:.1f} mm, within {NEAR_MM:.0f} mm {share:.3f}")
        print("\n".join(f"  sure {said:.2f}: right {true:.2f} of {n}" for said, true, n in curves[kind]))
    print(json.dumps(numbers))
    if args.plot is not None:
        plot(args.plot, curves)
    if args.write:
        write_manifest(manifest.folder / FILE_NAME, manifest.data | {"point_probability": numbers})
    return 0


if __name__ == "__main__":
    sys.exit(main())
