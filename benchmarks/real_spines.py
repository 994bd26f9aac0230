"""Measures how the localiser numbers real spines: the right levels, how far off, and whether it knows.

    python benchmarks/real_spines.py --weights dist/dataset --out dist/real_spines

Reads ``../shared/real`` (its README tells what lies there): ``spider_slices``, each slice as a series of one image,
once with its pixel spacing and once without, and the CC0 study with its marks set by hand. Where a part is not there, a
line says so. Patients are taken in ascending order of their number: those at odd places may be looked at, those at even
places are only measured. Writes figures.json, and a montage of the wrong images of the half that may be looked at.
Nothing of these images may be trained on or committed.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from lumbar.bundle.manifest import FILE_NAME, verify
from lumbar.bundle.weights import load_networks
from lumbar.dicom import Stack
from lumbar.labels import DESCRIPTIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title
from lumbar.models.inference import Networks
from lumbar.stages.localise import localise
from lumbar.stages.points import Localisation, SagittalPoint
from lumbar.study import Study, read_descriptions, read_study

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"
SEALED = Path("dist/dataset")
MARKS = ROOT / "tests" / "fixtures" / "real_marks.json"
FROM_BELOW = LEVELS[::-1]
UPSIDE_DOWN = {"52_t2_SPACE"}  # stored head down, while its marks belong to the upright image
GUESSED_SPACING_MM = 1.0  # what the reader of DICOM files takes where none of them has a PixelSpacing
SCALE_LINE = "pixel spacing"  # of a line that says nothing about the levels
HALF_STEP = 0.5  # a level is right within half the distance to the next disc
BOOTSTRAP = 2000
PANEL_PX = 480
COLOURS = {"l1_l2": (233, 180, 86), "l2_l3": (140, 190, 0), "l3_l4": (66, 228, 240), "l4_l5": (20, 160, 240),
           "l5_s1": (190, 130, 224)}  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """A real slice with its discs, from below: centres (n, 2), x and y in pixels."""

    name: str
    patient: int
    half: str
    kind: str
    spacing_mm: float
    image: np.ndarray
    discs_px: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What the localiser says of one image.

    ``steps`` has for each level how many discs too high it lies (fractions; negative: too low).
    """

    name: str
    patient: int
    half: str
    steps: dict[str, float]
    confidence: float  # mean confidence of its canal points
    numbering: float | None  # probability of the numbering, where the weights tell it
    is_flagged: bool
    points: tuple[SagittalPoint, ...] = ()

    @property
    def is_right(self) -> bool:
        """All five levels lie within half a step of their discs."""
        return len(self.steps) == len(LEVELS) and all(abs(step) < HALF_STEP for step in self.steps.values())

    @property
    def shift(self) -> int:
        """By how many levels the column is read too high, where most levels are off by the same; else 0."""
        return 0 if self.is_right or not self.steps else round(float(np.median(list(self.steps.values()))))


# ---- where a point lies among the discs ---------------------------------------------------------------------------


def spine_directions(discs: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 2) up the spine at discs (n, 2) from below; beyond the ends the spine bends on as before."""
    steps = np.diff(discs, axis=0)
    angles = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    bends = np.diff(angles) / 2
    ends = (bends[0], bends[-1]) if len(bends) else (0.0, 0.0)
    at = np.concatenate([[angles[0] - ends[0]], (angles[:-1] + angles[1:]) / 2, [angles[-1] + ends[1]]])
    return np.stack([np.cos(at), np.sin(at)], axis=1)


def disc_number(point: np.ndarray, discs: np.ndarray) -> float:
    """Where a point (2,) lies along discs (n, 2) from below: 1 at the lowest, 1.5 half way to the next.

    Each disc is a plane across the spine, so that a canal point counts as much as one in the disc.
    """
    above = ((point - discs) * spine_directions(discs)).sum(axis=1)
    between = [i for i in range(len(discs) - 1) if above[i] >= 0 > above[i + 1]]
    if between:
        i = min(between, key=lambda i: float(np.linalg.norm(point - (discs[i] + discs[i + 1]) / 2)))
        return 1 + i + float(above[i] / (above[i] - above[i + 1]))
    if np.linalg.norm(point - discs[0]) < np.linalg.norm(point - discs[-1]):
        return 1 + float(above[0] / np.linalg.norm(discs[1] - discs[0]))
    return len(discs) + float(above[-1] / np.linalg.norm(discs[-1] - discs[-2]))


def steps_off(points_px: dict[str, tuple[float, float]], discs_px: np.ndarray) -> dict[str, float]:
    """For each level how many discs its point lies too high; discs (n, 2) from L5/S1 upwards."""
    discs = discs_px * (1.0, -1.0)
    return {
        level: disc_number(np.array(xy) * (1.0, -1.0), discs) - 1 - FROM_BELOW.index(level)
        for level, xy in points_px.items()
    }


# ---- images -------------------------------------------------------------------------------------------------------


def read_slices(folder: Path) -> list[Slice]:
    """Every slice of ``spider_slices`` with its marks."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "discs.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["name"], []).append(row)
    patients = sorted({int(marks[0]["patient"]) for marks in rows.values()})
    halves = {patient: ("odd", "even")[place % 2] for place, patient in enumerate(patients)}
    slices = []
    for name, marks in rows.items():
        marks.sort(key=lambda row: int(row["disc_from_below"]))
        image = cv2.imread(str(folder / "images" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        image = np.ascontiguousarray(image[::-1]) if name in UPSIDE_DOWN else image
        discs = np.array([(float(row["x_px"]), float(row["y_px"])) for row in marks])
        patient, spacing = int(marks[0]["patient"]), float(marks[0]["spacing_mm"])
        slices.append(Slice(name, patient, halves[patient], marks[0]["kind"], spacing, image, discs))
    return slices


def one_slice_study(image: np.ndarray, kind: str, spacing_mm: float | None) -> Study:
    """A study of one series with one sagittal slice; without a spacing, as files that have none are read."""
    step = GUESSED_SPACING_MM if spacing_mm is None else spacing_mm
    stack = Stack(
        series_id="1",
        volume=image[None].astype(np.float32),
        origins_mm=np.zeros((1, 3)),
        row_mm=np.array([0.0, 0.0, -step]),
        column_mm=np.array([0.0, step, 0.0]),
        instance_numbers=[1],
        step_mm=4.0,
        is_geometry_guessed=spacing_mm is None,
        is_spacing_guessed=spacing_mm is None,
    )
    return Study(1, {name: [stack] if name == kind else [] for name in DESCRIPTIONS})


def answer_of(one: Slice, localisation: Localisation) -> Answer:
    """The localiser's answer on one slice."""
    canal = tuple(point for point in localisation.sagittal_points if point.side is None)
    numbering = localisation.numbering
    return Answer(
        one.name,
        one.patient,
        one.half,
        steps_off({point.level: (point.x_px, point.y_px) for point in canal}, one.discs_px),
        float(np.mean([point.confidence for point in canal])) if canal else 0.0,
        None if numbering is None else numbering.confidence,
        any(SCALE_LINE not in line and "all levels moved" not in line for line in localisation.problems),
        canal,
    )


def cc0_answers(networks: Networks) -> list[Answer]:
    """The CC0 study: one answer for each sagittal series, against canal points marked by hand."""
    marks = json.loads(MARKS.read_text())
    root = REAL / "lumbar_cc0"
    study = read_study(root, "test", marks["study_id"], read_descriptions(root, "test"))
    localisation = localise(study, networks)
    answers = []
    for name in (SAGITTAL_T2, SAGITTAL_T1):
        for stack in study.series[name]:  # all sagittal series share one geometry
            discs = np.array([[marks["canal"][level][key] for key in ("x_px", "y_px")] for level in FROM_BELOW], float)
            one = Slice(f"cc0 {name} {stack.series_id}", 0, "cc0", name, stack.spacing_mm[0], stack.volume[0], discs)
            points = [point for point in localisation.sagittal_points if point.series_id == stack.series_id]
            answers.append(answer_of(one, replace(localisation, sagittal_points=points)))
    return answers


# ---- figures ------------------------------------------------------------------------------------------------------


def interval(answers: Sequence[Answer], figure: Callable[[Sequence[Answer]], float], rng: np.random.Generator) -> tuple:
    """A figure with its 95 % bootstrap interval over patients."""
    patients = sorted({answer.patient for answer in answers})
    groups = {patient: [answer for answer in answers if answer.patient == patient] for patient in patients}
    draws = []
    for _ in range(BOOTSTRAP):
        drawn = rng.choice(patients, len(patients))
        draws.append(figure([answer for patient in drawn for answer in groups[int(patient)]]))
    kept = [value for value in draws if np.isfinite(value)]
    low, high = np.percentile(kept, (2.5, 97.5)) if kept else (float("nan"), float("nan"))
    return figure(answers), float(low), float(high)


def share(answers: Sequence[Answer], is_so: Callable[[Answer], bool]) -> float:
    """The share of answers for which something is so."""
    return float(np.mean([is_so(answer) for answer in answers])) if answers else float("nan")


def surety(answer: Answer) -> float:
    """The confidence that is judged: that of the numbering, or the points' mean where the weights do not tell it."""
    return answer.confidence if answer.numbering is None else answer.numbering


def auc(answers: Sequence[Answer]) -> float:
    """How often a right image is surer than a wrong one."""
    right = np.array([surety(answer) for answer in answers if answer.is_right])
    wrong = np.array([surety(answer) for answer in answers if not answer.is_right])
    if not len(right) or not len(wrong):
        return float("nan")
    above, equal = right[:, None] > wrong[None], right[:, None] == wrong[None]
    return float((above + 0.5 * equal).mean())


def reliability(answers: Sequence[Answer], rng: np.random.Generator) -> list[dict[str, object]]:
    """For each third of the images by confidence: its mean, and the share that is right, with its interval."""
    ordered = sorted(answers, key=surety)
    bounds = [round(len(ordered) * k / 3) for k in range(4)]
    thirds = []
    for start, end in pairwise(bounds):
        part = ordered[start:end]
        right, low, high = interval(part, lambda some: share(some, lambda one: one.is_right), rng)
        mean = float(np.mean([surety(answer) for answer in part]))
        thirds.append({"confidence": mean, "right": right, "interval": [low, high], "is_covered": low <= mean <= high})
    return thirds


def figures_of(answers: Sequence[Answer]) -> dict[str, object]:
    """All figures of some answers; those with an interval as [value, low, high]."""
    rng = np.random.default_rng(22)
    levels = [abs(answer.steps.get(level, 9.0)) < HALF_STEP for answer in answers for level in LEVELS]
    right = [answer for answer in answers if answer.is_right]
    wrong = [answer for answer in answers if not answer.is_right]
    return {
        "images": len(answers),
        "images right": interval(answers, lambda some: share(some, lambda one: one.is_right), rng),
        "levels right": float(np.mean(levels)),
        "shifted up": sum(answer.shift > 0 for answer in wrong),
        "shifted down": sum(answer.shift < 0 for answer in wrong),
        "otherwise wrong": sum(answer.shift == 0 for answer in wrong),
        "axial error of right ones": float(np.median([abs(step) for one in right for step in one.steps.values()]))
        if right
        else None,
        "wrong and flagged": [sum(answer.is_flagged for answer in wrong), len(wrong)],
        "right and flagged": [sum(answer.is_flagged for answer in right), len(right)],
        "right or flagged": interval(
            answers, lambda some: share(some, lambda one: one.is_right or one.is_flagged), rng
        ),
        "AUC of confidence": interval(answers, auc, rng),
        "mean confidence": float(np.mean([surety(answer) for answer in answers])),
        "reliability by thirds": reliability(answers, rng),
    }  # fmt: skip


# ---- montage ------------------------------------------------------------------------------------------------------


def panel(one: Slice, answer: Answer) -> np.ndarray:
    """A slice with its discs (circles, 1 = L5/S1) and the answer (crosses with levels and confidences)."""
    low, high = np.percentile(one.image, (1, 99))
    grey = np.clip((one.image.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255
    zoom = PANEL_PX / max(one.image.shape)
    canvas = np.zeros((PANEL_PX, PANEL_PX, 3), np.uint8)
    small = cv2.resize(cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2BGR), None, fx=zoom, fy=zoom)
    canvas[: small.shape[0], : small.shape[1]] = small[:PANEL_PX, :PANEL_PX]

    def write(text: str, x: float, y: float, colour: tuple[int, int, int] = (255, 255, 255)) -> None:
        cv2.putText(canvas, text, (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)

    for number, (x, y) in enumerate(one.discs_px * zoom, start=1):
        cv2.circle(canvas, (int(x), int(y)), 5, (255, 255, 255), 1)
        write(str(number), x - 25, y + 4)
    for point in answer.points:
        x, y, colour = point.x_px * zoom, point.y_px * zoom, COLOURS[point.level]
        cv2.drawMarker(canvas, (int(x), int(y)), colour, cv2.MARKER_TILTED_CROSS, 10, 2)
        write(f"{level_title(point.level)} {point.confidence:.2f}", x + 12, y + 4, colour)
    write(f"{one.name}  sure {surety(answer):.2f}{'  flagged' if answer.is_flagged else ''}", 6, 14)
    return canvas


def montage(panels: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Panels of one size in rows."""
    blank = [np.zeros_like(panels[0])] * (-len(panels) % columns)
    rows = [*panels, *blank]
    return np.vstack([np.hstack(rows[k : k + columns]) for k in range(0, len(rows), columns)])


# ---- the command --------------------------------------------------------------------------------------------------


def measure_slices(slices: Sequence[Slice], networks: Networks, has_spacing: bool) -> list[Answer]:
    """The answer on every slice."""
    return [
        answer_of(
            one, localise(one_slice_study(one.image, one.kind, one.spacing_mm if has_spacing else None), networks)
        )
        for one in slices
    ]


def told(answer: Answer) -> dict[str, object]:
    """One answer as plain JSON types."""
    steps = {level: round(step, 3) for level, step in answer.steps.items()}
    sure = {"confidence": round(answer.confidence, 3), "numbering": answer.numbering, "is_flagged": answer.is_flagged}
    return {"name": answer.name, "half": answer.half, "is_right": answer.is_right, "steps too high": steps, **sure}


def show(title: str, figures: dict[str, object]) -> None:
    """Print one set of figures."""
    print(f"\n{title}")
    for name, value in figures.items():
        if name == "reliability by thirds":
            for third in value:  # type: ignore[attr-defined]
                low, high = third["interval"]
                print(f"  sure {third['confidence']:.2f}: right {third['right']:.2f} ({low:.2f} to {high:.2f})")
        elif isinstance(value, tuple):
            print(f"  {name}: {value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})")
        elif isinstance(value, list):
            print(f"  {name}: {value[0]} of {value[1]}")
        else:
            print(f"  {name}: {value:.3f}" if isinstance(value, float) else f"  {name}: {value}")


def measure_all(networks: Networks, spacing: str, out: Path) -> dict[str, object]:
    """All figures of what lies there; writes the montages."""
    figures: dict[str, object] = {}
    if (REAL / "spider_slices").is_dir():
        slices = read_slices(REAL / "spider_slices")
        for known in ("known", "unknown") if spacing == "both" else (spacing,):
            answers = measure_slices(slices, networks, known == "known")
            for half in ("odd", "even"):
                title = f"spacing {known}, {half} half"
                figures[title] = figures_of([answer for answer in answers if answer.half == half])
                show(title, figures[title])  # type: ignore[arg-type]
            figures[f"spacing {known}, each image"] = [told(answer) for answer in answers]
            pairs = zip(slices, answers, strict=True)
            wrong = [panel(one, answer) for one, answer in pairs if one.half == "odd" and not answer.is_right]
            if wrong:
                cv2.imwrite(str(out / f"wrong_{known}.png"), montage(wrong))
    else:
        print(f"{REAL / 'spider_slices'}: not here, so single slices are not measured")
    if (REAL / "lumbar_cc0").is_dir():
        figures["CC0 study"] = figures_of(cc0_answers(networks))
        show("CC0 study, each sagittal series", figures["CC0 study"])  # type: ignore[arg-type]
    else:
        print(f"{REAL / 'lumbar_cc0'}: not here, so the whole study is not measured")
    return figures


def main(words: Sequence[str] | None = None) -> int:
    """Measure what lies there, and write figures and montage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help=f"a sealed bundle; default: {SEALED}")
    parser.add_argument("--out", type=Path, default=Path("dist/real_spines"), help="folder for figures and montage")
    parser.add_argument("--spacing", choices=("known", "unknown", "both"), default="both", help="of the single slices")
    args = parser.parse_args(words)
    if not any((REAL / name).is_dir() for name in ("spider_slices", "lumbar_cc0")):
        print(f"real_spines: no images in {REAL}, so nothing is measured")
        return 0
    if args.weights is None and not (SEALED / FILE_NAME).is_file():
        print(f"real_spines: no bundle in {SEALED} (make seal) and no --weights given, so nothing is measured")
        return 0
    manifest = verify(args.weights or SEALED)
    args.out.mkdir(parents=True, exist_ok=True)
    networks = load_networks(manifest.folder, manifest)
    figures = {"manifest": manifest.hash} | measure_all(networks, args.spacing, args.out)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{args.out / 'figures.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
