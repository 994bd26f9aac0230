"""Draws the README's picture: one study's predicted points (crosses) and true points (circles).

    python benchmarks/prediction_picture.py --data ROOT --weights dist/dataset --study ID --out docs/prediction.png

ROOT is a synthetic cohort with ``truth.parquet``. Without it only the prediction is drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lumbar.bundle.manifest import verify
from lumbar.bundle.weights import load_networks
from lumbar.chains.contract import StudyResult
from lumbar.chains.main import predict_study
from lumbar.chains.overlay import COLOURS
from lumbar.geometry import Grid, make_grid
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title
from lumbar.stages.aggregate import prior_array
from lumbar.study import Study, list_studies, read_descriptions, read_study

SIZE = 460
SAGITTAL_MM, AXIAL_MM = 250.0, 110.0


def canvas_of(
    study: Study, description: str, stack_index: int, index: int, centre: tuple[float, float], field_mm: float
) -> tuple[np.ndarray, Grid]:
    """A square of one slice around a point, as a colour image, and the grid on which it was sampled."""
    stack = study.series[description][stack_index]
    grid = make_grid(stack, size=SIZE, mm_per_px=field_mm / SIZE, centre_px=centre)
    grey = (study.sampled(stack, index, grid) ** 0.85 * 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), grid


def mark(
    canvas: np.ndarray, grid: Grid, xy: tuple[float, float], level: str, text: str = "", *, is_truth: bool = False
) -> None:
    """Draw a point given in pixels of the slice: a circle for the truth, a cross for a prediction."""
    x, y = (round(v) for v in grid.to_grid(np.array(xy, float)))
    colour = COLOURS[level][::-1]
    if is_truth:
        cv2.circle(canvas, (x, y), 9, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.circle(canvas, (x, y), 9, colour, 1, cv2.LINE_AA)
        return
    cv2.drawMarker(canvas, (x, y), (0, 0, 0), cv2.MARKER_TILTED_CROSS, 12, 3, cv2.LINE_AA)
    cv2.drawMarker(canvas, (x, y), colour, cv2.MARKER_TILTED_CROSS, 10, 1, cv2.LINE_AA)
    if text:
        cv2.putText(canvas, text, (x + 24, y + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(canvas, text, (x + 24, y + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


def sagittal_panel(
    study: Study, result: StudyResult, truth: pd.DataFrame, description: str, side: str | None
) -> np.ndarray:
    """The sagittal slice nearest to the points of one side, or of the canal if side is None."""
    points = [result.localisation.best(description, level, side) for level in LEVELS]
    points = [p for p in points if p is not None]
    points = [p for p in points if p.stack == points[0].stack]  # a series in parts, or two: those of one picture
    if not points:
        return np.zeros((SIZE, SIZE, 3), np.uint8)
    index = int(np.median([p.slice_index for p in points]))
    centre = (float(np.mean([p.x_px for p in points])), float(np.mean([p.y_px for p in points])))
    canvas, grid = canvas_of(study, description, points[0].stack, index, centre, SAGITTAL_MM)
    stack = study.series[description][points[0].stack]
    kind = "spinal_canal_stenosis" if side is None else f"{side}_neural_foraminal_narrowing"
    for row in truth[truth["condition"] == kind].drop_duplicates("level").to_dict("records"):
        _, y, x = stack.to_voxel(np.array([row["x_mm"], row["y_mm"], row["z_mm"]]))
        mark(canvas, grid, (float(x), float(y)), row["level"], is_truth=True)
    for p in points:
        mark(canvas, grid, (p.x_px, p.y_px), p.level, f"{level_title(p.level)}{' ' + side[0].upper() if side else ''}")
    return titled(canvas, f"{description}, slice {stack.instance_numbers[index]}{', ' + side if side else ''}")


def axial_panel(study: Study, result: StudyResult, truth: pd.DataFrame, level: str) -> np.ndarray:
    """The axial slice of a level."""
    chosen_slice = result.localisation.axial(level)
    if chosen_slice is None:
        return titled(np.zeros((SIZE, SIZE, 3), np.uint8), f"{level_title(level)}: no axial slice")
    stack = study.series[AXIAL_T2][chosen_slice.stack]
    centre = tuple((np.array(chosen_slice.left_px) + np.array(chosen_slice.right_px)) / 2)
    canvas, grid = canvas_of(study, AXIAL_T2, chosen_slice.stack, chosen_slice.slice_index, centre, AXIAL_MM)
    chosen = truth[truth["condition"].str.contains("subarticular") & (truth["level"] == level)]
    for row in chosen.to_dict("records"):
        _, y, x = stack.to_voxel(np.array([row["x_mm"], row["y_mm"], row["z_mm"]]))
        mark(canvas, grid, (float(x), float(y)), level, is_truth=True)
    mark(canvas, grid, chosen_slice.left_px, level, "L")
    mark(canvas, grid, chosen_slice.right_px, level, "R")
    return titled(canvas, f"Axial T2, {level_title(level)}, slice {chosen_slice.instance_number}")


def titled(canvas: np.ndarray, text: str) -> np.ndarray:
    """The canvas with a line of text at its top."""
    cv2.putText(canvas, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def main(words: Sequence[str] | None = None) -> int:
    """Predict one study and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path, default=Path("dist/dataset"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--study", type=int, help="default: the first")
    parser.add_argument("--out", type=Path, default=Path("docs/prediction.png"))
    args = parser.parse_args(words)
    if args.data is None:
        print("prediction_picture: no --data given, so no picture is drawn")
        return 0
    manifest = verify(args.weights)
    networks = load_networks(args.weights, manifest)
    study_id = args.study or list_studies(args.data, args.split)[0]
    study = read_study(args.data, args.split, study_id, read_descriptions(args.data, args.split))
    result = predict_study(study, networks, prior_array(manifest.prior))
    table = args.data / "truth.parquet"
    empty = pd.DataFrame({"study_id": [], "condition": pd.Series([], dtype=str), "level": []})
    truth = pd.read_parquet(table) if table.is_file() else empty
    truth = truth[truth["study_id"] == study_id]
    panels = [
        sagittal_panel(study, result, truth, SAGITTAL_T2, None),
        sagittal_panel(study, result, truth, SAGITTAL_T1, "left"),
        sagittal_panel(study, result, truth, SAGITTAL_T1, "right"),
        axial_panel(study, result, truth, "l4_l5"),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), np.hstack(panels), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
