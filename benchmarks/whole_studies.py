"""Measures how the localiser numbers whole synthetic studies: with and without transitional anatomy, flagged or not.

    python benchmarks/whole_studies.py --data ROOT [ROOT ...] --weights dist/dataset [--split test]

Each ROOT is a synthetic cohort that the weights have not seen. A study is right where each of its five canal points is
nearest to the true point of its own level; it is flagged where the report says so: the probability of the numbering is
a doubt, or a level was not found. The shares have 95 % intervals (Wilson 1927, JASA 22:209). Wrong studies are named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from inputs import add_calibration_options, are_given

from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.weights import load_networks
from lumbar.labels import LEVELS, SPINAL
from lumbar.models.inference import Networks
from lumbar.stages.localise import localise
from lumbar.stages.numbering import DOUBTFUL
from lumbar.study import Study, list_studies, read_descriptions, read_study
from lumbar_phantom.study import TEST_OFFSET, Request, is_hard, study_case, study_number

Z_95 = 1.96


@dataclass(frozen=True)
class Answer:
    """What the localiser says of one study.

    ``off``: by how many levels its points lie too high, in the median; ``missing``: how many levels it did not see.
    """

    study_id: int
    traits: str
    is_right: bool
    off: int
    missing: int
    confidence: float

    @property
    def is_flagged(self) -> bool:
        """The report says that the numbering is in doubt, or that a level is missing."""
        return self.confidence < DOUBTFUL or self.missing > 0


def traits_of(root: Path, split: str) -> dict[int, str]:
    """Of every study of a cohort: ordinary or hard, and whether its anatomy is transitional."""
    settings = json.loads((root / f"{split}_cohort.json").read_text("utf-8"))["settings"]
    seed, offset, traits = int(settings["seed"]), TEST_OFFSET if split == "test" else 0, {}
    for index in range(len(list_studies(root, split))):
        request = Request(
            "", split, seed, index, tuple(settings["pitfalls"]), hard_share=float(settings.get("hard", 0.0))
        )
        _, pitfalls = study_case(request)
        words = ["hard" if is_hard(request) else "ordinary", *(["transitional"] if "transitional" in pitfalls else [])]
        traits[study_number(seed, index + offset)] = ", ".join(words)
    return traits


def read_off(levels_mm: dict[str, tuple[float, float, float]], truth_mm: np.ndarray) -> tuple[bool, int]:
    """Whether all five levels lie nearest to their own true points (5, 3), L1/2 first, and by how many they are off."""
    nearest = {
        level: int(np.argmin(np.linalg.norm(truth_mm - np.asarray(place), axis=1)))
        for level, place in levels_mm.items()
    }
    off = [LEVELS.index(level) - k for level, k in nearest.items()]
    return len(off) == len(LEVELS) and not any(off), round(float(np.median(off))) if off else 0


def lifted(marks: pd.DataFrame, study: Study) -> np.ndarray:
    """The true points (5, 3) in mm, L1/2 first, of marks in pixels, by the geometry that the study was read with.

    Where no file has a spacing, it is estimated: the millimetres that the phantom was made with are others. A level
    whose marked slice could not be read is NaN.
    """
    stacks = [stack for each in study.series.values() for stack in each]
    places: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
    for mark in marks.to_dict("records"):
        for stack in stacks:
            if stack.series_id == str(mark["series_id"]) and mark["instance_number"] in stack.instance_numbers:
                index = stack.instance_numbers.index(mark["instance_number"])
                places[mark["level"]].append(stack.to_patient(index, mark["y_px"], mark["x_px"]))
    return np.array([np.mean(places[level], axis=0) if places[level] else np.full(3, np.nan) for level in LEVELS])


def answers(root: Path, split: str, n_studies: int, networks: Networks) -> list[Answer]:
    """One answer for each study whose five levels have a true point on a slice that can be read."""
    descriptions, traits = read_descriptions(root, split), traits_of(root, split)
    truth = pd.read_parquet(root / "truth.parquet")
    by_study = dict(list(truth[truth["condition"] == SPINAL].groupby("study_id")))
    answered = []
    for study_id in list_studies(root, split)[:n_studies]:
        own = by_study.get(study_id, truth.iloc[:0])
        if own["level"].nunique() < len(LEVELS):
            continue
        study = read_study(root, split, study_id, descriptions, 1)
        localisation = localise(study, networks)
        truth_mm = lifted(own, study)  # after the scale is estimated, where no file has a spacing
        if np.isnan(truth_mm).any():
            continue
        numbering = localisation.numbering
        is_right, off = read_off(localisation.levels_mm, truth_mm)
        confidence = 1.0 if numbering is None else numbering.confidence
        missing = len(LEVELS) - len(localisation.levels_mm) + len(localisation.filled)
        answered.append(Answer(int(study_id), traits[int(study_id)], is_right, off, missing, confidence))
    return answered


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share ``k`` of ``n``."""
    p, z2 = k / n, Z_95**2
    centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def line_of(name: str, some: Sequence[Answer]) -> str:
    """How many of a kind of studies are right, how many right or flagged, and how many right ones are flagged."""
    right = [a for a in some if a.is_right]
    told = sum(a.is_right or a.is_flagged for a in some)
    shares = []
    for words, k in (("right", len(right)), ("right or flagged", told)):
        low, high = wilson(k, len(some))
        shares.append(f"{words} {k / len(some):.3f} ({low:.3f} to {high:.3f})")
    return f"{name}: {len(some)} studies, {', '.join(shares)}, {sum(a.is_flagged for a in right)} right ones flagged"


def main(words: Sequence[str] | None = None) -> int:
    """Localise every study, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="synthetic cohorts that the weights have not seen")
    add_calibration_options(parser, 200, writes=False)
    args = parser.parse_args(words)
    if not are_given(parser, "whole_studies", "nothing is measured", data=args.data, weights=args.weights):
        return 0
    manifest = read_manifest(args.weights)
    networks = load_networks(manifest.folder, manifest)
    every = [each for root in args.data for each in answers(root, args.split, args.studies, networks)]
    for each in every:
        if not each.is_right:
            flag = "flagged" if each.is_flagged else "not flagged"
            print(
                f"study {each.study_id} ({each.traits}): off by {each.off:+d}, {each.missing} missing, "
                f"sure {each.confidence:.2f}, {flag}"
            )
    for name in sorted({each.traits for each in every}):
        print(line_of(name, [each for each in every if each.traits == name]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
