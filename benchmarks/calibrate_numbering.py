"""Finds the numbers that tell how sure the numbering is, on phantoms whose images were made hard to read.

    python benchmarks/calibrate_numbering.py --data ROOT [ROOT ...] --weights runs/mine/export --write

ROOT is a synthetic cohort that the weights have not seen (200 studies of ``lumbar-phantom`` are enough). Each series
gives one sagittal slice near its canal, as a series of its own; its image is bent, cut, darkened, blurred, covered and
scaled at random, until about one in six is numbered wrongly. How the heatmaps and the sacrum then tell right from wrong
is fitted by maximum likelihood (``lumbar.stages.numbering``). No real image takes part. ``--write`` puts the
numbers into the folder's weights_manifest.json, which sealing keeps. What S1 tells, and what further looks tell, gets a
number only where it makes the truth likelier beyond chance. Each half of the patients shows the reliability of a fit on
the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from inputs import add_calibration_options, are_given
from real_spines import one_slice_study, steps_off
from scipy.optimize import minimize

from lumbar.bundle.manifest import FILE_NAME, read_manifest, write_manifest
from lumbar.bundle.weights import load_networks
from lumbar.geometry import make_grid, project, sample
from lumbar.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2, SPINAL
from lumbar.models.inference import Networks
from lumbar.stages.localise import read_levels
from lumbar.stages.looks import look_again
from lumbar.stages.numbering import DOUBTFUL, NUMBERS, evidence_of
from lumbar.stages.points import Localisation
from lumbar.study import list_studies, read_descriptions, read_study

Image = np.ndarray
SEED = 2201
HALF_STEP = 0.5
MIN_EACH = 20
RIDGE = 0.05  # keeps the slopes finite where all is told apart
READINGS = ("as read", "one higher", "one lower", "elsewhere")
PARTS = {"S1": slice(5, 7), "looks": slice(7, 10)}  # columns of the evidence that a fit may do without
LEAST = 5  # numbers that every bundle has


@dataclass
class Case:
    """An image (n, n) in 0..1 with its five canal points (5, 2) in pixels, L1/2 first."""

    image: Image
    points: np.ndarray
    spacing_mm: float

    def mesh(self) -> tuple[Image, Image]:
        """x and y of every pixel."""
        rows, columns = self.image.shape
        yy, xx = np.mgrid[:rows, :columns].astype(np.float32)
        return xx, yy


# ---- what makes an image hard to read -----------------------------------------------------------------------------


def bend_sacrum(case: Case, rng: np.random.Generator) -> None:
    """All below L5/S1 is turned about it: a steeper or a flatter sacrum."""
    xx, yy = case.mesh()
    x0, y0 = case.points[4]
    course = (case.points[4] - case.points[3]) / np.linalg.norm(case.points[4] - case.points[3])
    below = ((xx - x0) * course[0] + (yy - y0) * course[1]) * case.spacing_mm
    angle = np.deg2rad(rng.uniform(-22, 22)) / (1 + np.exp(-below / 6))
    x = x0 + np.cos(angle) * (xx - x0) - np.sin(angle) * (yy - y0)
    y = y0 + np.sin(angle) * (xx - x0) + np.cos(angle) * (yy - y0)
    case.image = _moved(case.image, x, y)


def stretch(case: Case, rng: np.random.Generator) -> None:
    """The lower part is drawn out or pressed together along the body: low or high discs."""
    rows, columns = case.image.shape
    factor, y0 = np.exp(rng.uniform(-0.25, 0.25)), case.points[rng.integers(2, 5), 1]
    share = 1 / (1 + np.exp(-(np.arange(rows) - y0) * case.spacing_mm / 10))
    source = np.cumsum(1 + (factor - 1) * share)
    source += y0 - source[int(np.clip(y0, 0, rows - 1))]
    case.image = _moved(case.image, case.mesh()[0], np.repeat(source[:, None], columns, axis=1))
    case.points[:, 1] = np.interp(case.points[:, 1], source, np.arange(rows))


def turn(case: Case, rng: np.random.Generator) -> None:
    """The patient lies at an angle."""
    n = case.image.shape[0]
    matrix = cv2.getRotationMatrix2D((n / 2, n / 2), rng.uniform(-18, 18), 1.0)
    case.image = cv2.warpAffine(case.image, matrix, case.image.shape[::-1])
    case.points = case.points @ matrix[:, :2].T + matrix[:, 2]


def coil(case: Case, rng: np.random.Generator) -> None:
    """Brighter towards the coil in the back, and along the body."""
    xx, yy = case.mesh()
    back = rng.uniform(0.5, 3.0) * (xx - case.points[:, 0].mean()) * case.spacing_mm / 100
    along = rng.uniform(-1, 1) * (yy - case.image.shape[0] / 2) * case.spacing_mm / 150
    case.image = case.image * np.clip(np.exp(back + along), 0.02, 12)


def band(case: Case, rng: np.random.Generator) -> None:
    """A saturation band darkens all before the spine."""
    edge = case.points[:, 0].mean() - rng.uniform(38, 70) / case.spacing_mm
    case.image = case.image * (0.03 + 0.97 / (1 + np.exp(-(case.mesh()[0] - edge) * case.spacing_mm / 4)))


def contrast(case: Case, rng: np.random.Generator) -> None:
    """Another rising curve of intensities."""
    curve = np.concatenate([[0.0], np.sort(rng.uniform(0, 1, 4))])
    case.image = np.interp(_scaled(case.image).clip(0, 1), [0, 0.2, 0.45, 0.75, 1], curve).astype(np.float32)


def blotches(case: Case, rng: np.random.Generator) -> None:
    """Smooth dark and bright patches."""
    cells = int(rng.integers(4, 10))
    field = cv2.resize(rng.uniform(0.35, 1.5, (cells, cells)), case.image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    case.image = case.image * np.clip(field, 0.1, 3)


def metal(case: Case, rng: np.random.Generator) -> None:
    """Holes without signal and with bright rims, behind and in the column."""
    xx, yy = case.mesh()
    for _ in range(int(rng.integers(1, 5))):
        away = np.array([rng.uniform(-15, 30), rng.uniform(-15, 15)]) / case.spacing_mm
        x0, y0 = case.points[rng.integers(1, 5)] + away
        radius = rng.uniform(4, 14) / case.spacing_mm
        distance = np.hypot(xx - x0, (yy - y0) * rng.uniform(0.6, 1.6))
        rim = np.exp(-(((distance - radius) * case.spacing_mm / 2) ** 2))
        case.image = np.where(distance < radius, case.image * 0.05, case.image) + rim * rng.uniform(0, 1)


def blur(case: Case, rng: np.random.Generator) -> None:
    """A coarser resolution."""
    case.image = cv2.GaussianBlur(case.image, (0, 0), rng.uniform(0.6, 1.8) / case.spacing_mm)


def noise(case: Case, rng: np.random.Generator) -> None:
    """Noise of up to a seventh of the window."""
    image = _scaled(case.image)
    case.image = image + rng.normal(0, rng.uniform(0.03, 0.15), image.shape)


def cut_below(case: Case, rng: np.random.Generator) -> None:
    """The image ends 15 to 90 mm below L5/S1."""
    case.image = case.image[: int(case.points[4, 1] + rng.uniform(15, 90) / case.spacing_mm)]


def cut_above(case: Case, rng: np.random.Generator) -> None:
    """The image begins 15 to 120 mm above L1/2."""
    first = int(max(0, case.points[0, 1] - rng.uniform(15, 120) / case.spacing_mm))
    case.image, case.points = case.image[first:], case.points - (0, first)


def wrong_scale(case: Case, rng: np.random.Generator) -> None:
    """The spacing that the header says is up to 40 % too large, or as much too small."""
    case.spacing_mm *= float(np.exp(rng.uniform(-0.34, 0.34)))


HARDSHIPS: tuple[tuple[float, Callable[[Case, np.random.Generator], None]], ...] = (
    (0.5, bend_sacrum), (0.4, stretch), (0.4, turn), (0.5, coil), (0.35, band), (0.4, contrast), (0.35, blotches),
    (0.2, metal), (0.4, blur), (0.4, noise), (0.4, cut_below), (0.4, cut_above), (0.35, wrong_scale),
)  # fmt: skip


def made_hard(case: Case, rng: np.random.Generator) -> Case:
    """A case under hardships drawn at random, as an image of 8 bits."""
    case = Case(case.image.astype(np.float32), case.points.copy(), case.spacing_mm)
    strength = rng.uniform(0.3, 1.3)
    for share, hardship in HARDSHIPS:
        if rng.random() < share * strength:
            hardship(case, rng)
    case.image = np.round(_scaled(case.image).clip(0, 1) * 255).astype(np.float32)
    return case


def _moved(image: Image, x: Image, y: Image) -> Image:
    return cv2.remap(
        image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _scaled(image: Image) -> Image:
    low, high = np.percentile(image, (1, 99))
    return (image - low) / max(high - low, 1e-6)


# ---- the cases and their evidence ---------------------------------------------------------------------------------


def cases(root: Path, split: str, n_studies: int, rng: np.random.Generator) -> Iterator[tuple[int, str, Case]]:
    """One slice near the canal of each sagittal series: study, kind and case."""
    descriptions = read_descriptions(root, split)
    sagittal = descriptions[descriptions["series_description"].isin([SAGITTAL_T1, SAGITTAL_T2])]
    truth = pd.read_parquet(root / "truth.parquet")
    truth = truth[truth["condition"] == SPINAL].drop_duplicates(["study_id", "level"])
    for study_id in list_studies(root, split)[:n_studies]:
        levels = truth[truth["study_id"] == study_id].set_index("level")
        if len(levels) < len(LEVELS):
            continue
        xyz = levels.loc[list(LEVELS), ["x_mm", "y_mm", "z_mm"]].to_numpy(float)
        study = read_study(root, split, study_id, sagittal, 1)
        for kind in (SAGITTAL_T1, SAGITTAL_T2):
            for stack in study.series[kind][:1]:
                places = np.array([project(stack, point) for point in xyz])
                index = int(np.clip(round(np.median(places[:, 0]) + rng.normal(0, 0.8)), 0, len(stack.volume) - 1))
                spacing = min(stack.spacing_mm)
                side = max(np.array(stack.volume.shape[1:]) * stack.spacing_mm)
                grid = make_grid(stack, size=int(np.ceil(side / spacing)), mm_per_px=spacing)
                if not stack.is_geometry_guessed:
                    image = sample(study.normalised(stack, index), grid)
                    yield int(study_id), kind, Case(image, grid.to_grid(places[:, 1:]), spacing)


def evidence_and_truth(case: Case, kind: str, networks: Networks) -> tuple[list[float], int] | None:
    """The evidence on an image, and which of ``READINGS`` is true; None where nothing was localised."""
    study, localisation = one_slice_study(case.image, kind, case.spacing_mm), Localisation()
    maps, _ = read_levels(study, [(kind, 0)], networks, localisation, all_folds=True, augment=True)
    looks = look_again(study, maps, networks.stage("sagittal_xy"), localisation.levels_mm)
    evidence = evidence_of(maps, localisation.levels_mm, looks)
    if evidence is None:
        return None
    places = {level: project(maps[0].stack, np.array(xyz))[1:] for level, xyz in localisation.levels_mm.items()}
    steps = np.array(list(steps_off(places, case.points[::-1]).values()))
    by = next((by for by in (0, -1, 1) if len(steps) == len(LEVELS) and (np.abs(steps - by) < HALF_STEP).all()), None)
    row = [*evidence.heat, *evidence.sacrum, evidence.height, *evidence.first, *evidence.looks]
    return row, {0: 0, -1: 1, 1: 2, None: 3}[by]


# ---- the fit ------------------------------------------------------------------------------------------------------


def probabilities(numbers: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """The probability (n, 4) of each of ``READINGS`` for evidence (n, 10), as ``numbering_of`` has it."""
    shift, heat, sacrum, chain, height, first, looks = (*numbers, 0.0, 0.0)[: len(NUMBERS)]
    off = -(shift + heat * evidence[:, :2] + sacrum * evidence[:, 2:4] + first * evidence[:, 5:7])
    logits = np.column_stack([np.zeros(len(evidence)), off, -(chain + height * evidence[:, 4])])
    logits[:, 1:] += looks * evidence[:, 7:]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def fit(evidence: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The numbers of the highest likelihood; 0 for a part of the evidence that is 0 in all images."""
    start = np.array([1.0, 0.5, 0.5, 3.0, 1.0, 0.3, 0.5])
    is_known = np.array([True] * LEAST + [bool(evidence[:, columns].any()) for columns in PARTS.values()])
    slopes = [k for k, name in enumerate(NUMBERS) if name not in ("shift", "chain")]

    def loss(numbers: np.ndarray) -> float:
        used = numbers * is_known
        return float(surprise(used, evidence, truth).sum() + RIDGE * (used[slopes] ** 2).sum())

    return minimize(loss, start, method="BFGS").x * is_known


def surprise(numbers: np.ndarray, evidence: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Minus the logarithm (n,) of the probability that the numbers give to the true reading of each image."""
    return -np.log(probabilities(numbers, evidence)[np.arange(len(truth)), truth] + 1e-9)


def without(part: str, evidence: np.ndarray) -> np.ndarray:
    """The evidence (n, 10) as it would be had one of ``PARTS`` not been told."""
    less = evidence.copy()
    less[:, PARTS[part]] = 0.0
    return less


def worth_of(part: str, evidence: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """What one of ``PARTS`` changes in `surprise`, each half of the patients by a fit on the other.

    Mean over images, with a 95 % interval over patients (normal, of a ratio: Cochran 1977, Sampling Techniques, 6.3).
    """
    change, less, half = np.zeros(len(truth)), without(part, evidence), patients % 2 == 0
    for held in (half, ~half):
        told = surprise(fit(evidence[~held], truth[~held]), evidence[held], truth[held])
        change[held] = told - surprise(fit(less[~held], truth[~held]), less[held], truth[held])
    mean = float(change.mean())
    error = float(np.sqrt((np.bincount(patients, change - mean) ** 2).sum()) / len(change))
    return mean, mean - 1.96 * error, mean + 1.96 * error


def as_told(numbers: np.ndarray) -> list[float]:
    """The numbers as a manifest has them: without those at the end that are 0."""
    rounded = [round(float(value), 4) for value in numbers]
    while len(rounded) > LEAST and not rounded[-1]:
        rounded.pop()
    return rounded


def show(title: str, numbers: np.ndarray, evidence: np.ndarray, truth: np.ndarray) -> None:
    """Print how well the confidence tells right from wrong, by its fifths."""
    confidence, is_right = probabilities(numbers, evidence)[:, 0], truth == 0
    print(f"{title}: {len(truth)} images, right {is_right.mean():.3f}, mean confidence {confidence.mean():.3f}")
    for part in np.array_split(np.argsort(confidence), 5):
        print(f"  sure {confidence[part].mean():.2f}: right {is_right[part].mean():.2f}")
    print(f"  minus logarithm of the true reading's probability, mean: {surprise(numbers, evidence, truth).mean():.4f}")
    doubtful = confidence < DOUBTFUL
    wrong = f"{doubtful[~is_right].mean():.2f} of wrong" if (~is_right).any() else "no wrong"
    print(f"  in doubt: {doubtful[is_right].mean():.3f} of right and {wrong} ones")


def main(words: Sequence[str] | None = None) -> int:
    """Collect the evidence, fit, show the reliability, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="synthetic cohorts that the weights have not seen")
    add_calibration_options(parser, 200)
    parser.add_argument("--draws", type=int, default=3, help="how often each slice is made hard, each time otherwise")
    args = parser.parse_args(words)
    if not are_given(parser, "calibrate_numbering", "nothing is calibrated", data=args.data, weights=args.weights):
        return 0
    manifest = read_manifest(args.weights)
    networks = load_networks(manifest.folder, manifest)
    networks.numbering = networks.numbering or (0.0,) * len(NUMBERS)  # so that the tissue is kept
    rows = []
    rng = np.random.default_rng(SEED)
    drawn = (case for root in args.data for case in cases(root, args.split, args.studies, rng))
    for place, (study_id, kind, case) in enumerate(drawn):
        for draw in range(args.draws):
            told = evidence_and_truth(made_hard(case, np.random.default_rng([SEED, place, draw])), kind, networks)
            if told is not None:
                rows.append((study_id, *told))
    if min(sum(row[2] == 0 for row in rows), sum(row[2] > 0 for row in rows)) < MIN_EACH:
        parser.error(
            f"{' '.join(map(str, args.data))}: found {len(rows)} images, expected {MIN_EACH} read rightly and as many "
            "read wrongly"
        )
    studies, evidence, truth = (np.array(column) for column in zip(*rows, strict=True))
    print("; ".join(f"{name} {(truth == k).sum()}" for k, name in enumerate(READINGS)))
    patients = pd.factorize(studies)[0]
    half = patients % 2 == 0
    for part in PARTS:
        if not evidence[:, PARTS[part]].any():
            continue
        mean, low, high = worth_of(part, evidence, truth, patients)
        change = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"{part}: minus the logarithm of the true reading's probability changes, held back, by {change}")
        if high >= 0.0:
            print(f"{part} is left aside: it does not help beyond chance")
            evidence = without(part, evidence)
    for name, fitted in (("held back, first half", ~half), ("held back, second half", half)):
        show(name, fit(evidence[fitted], truth[fitted]), evidence[~fitted], truth[~fitted])
    numbers = as_told(fit(evidence, truth))
    print(json.dumps(dict(zip(NUMBERS, numbers, strict=False))))
    if args.write:
        write_manifest(manifest.folder / FILE_NAME, manifest.data | {"numbering": numbers})
    return 0


if __name__ == "__main__":
    sys.exit(main())
