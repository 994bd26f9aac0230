"""Families of appearance (``--family``): all series of a cohort look as those of no ordinary or hard one do.

They are for measuring what weights are worth on images unlike those that they learnt from, and for making their grades
as sure as they are right there (``benchmarks/calibrate_grades.py``). Each family moves one thing beyond the range of
training cohorts and leaves the patients, their grades and all else as they are:

- ``contrast``: a curve of intensities that bends far up or down, CSF and fat nearer to each other than any echo time
  brings them, ligaments and muscles lifted or sunk; in 8 bits whose ends are cut.
- ``noise``: 0.15 to 0.28 of a bright tissue's signal, where ordinary series have at most 0.14.
- ``thickness``: slices of 6 to 9 mm, as many as then cover the same length; ordinary ones are up to 5.5 (sagittal) and
  6 mm (axial) apart.
- ``resolution``: 1.5 to 2.2 mm acquired, interpolated to the stored pixels; ordinary series have at most 1.05.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.artefacts import Scanner
from lumbar_phantom.hard_images import Window
from lumbar_phantom.protocol import SeriesPlan, StackPlan

NAMES = ("contrast", "noise", "thickness", "resolution")
NOISE, ACQUIRED_MM, THICKNESS_MM = (0.15, 0.28), (1.5, 2.2), (6.0, 9.0)
_FATS = (ts.FAT, ts.VISCERAL_FAT, ts.EPIDURAL_FAT, ts.INTERSPINOUS)
_DARK = (ts.LIGAMENT, ts.FLAVUM, ts.MUSCLE, ts.ANNULUS)


def plans_of(rng: np.random.Generator, family: str, plans: list[SeriesPlan]) -> list[SeriesPlan]:
    """The series of a study, with thick slices in that family; one thickness for all sagittal and one for axial ones.

    Args:
        rng: random stream.
        family: one of ``NAMES``.
        plans: as of an ordinary study.
    """
    if family != "thickness":
        return plans
    thickness = {
        description: float(rng.uniform(*THICKNESS_MM)) for description in sorted({p.description for p in plans})
    }
    return [_thick(plan, thickness[plan.description]) for plan in plans]


def _thick(plan: SeriesPlan, thickness: float) -> SeriesPlan:
    stacks = [_fewer(stack, thickness) for stack in plan.stacks]
    instances = []
    for stack, before in zip(stacks, plan.instances, strict=True):
        is_reversed = len(before) > 1 and before[0] > before[-1]
        kept = np.sort(before)[: len(stack.origins)]
        instances.append(kept[::-1].copy() if is_reversed else kept)
    return SeriesPlan(plan.description, plan.kind, stacks, instances)


def _fewer(stack: StackPlan, thickness: float) -> StackPlan:
    """A stack of thicker slices, side by side, around the same middle."""
    count = max(min(3, len(stack.origins)), round(len(stack.origins) * stack.spacing / thickness))
    count = min(count, len(stack.origins))
    places = (np.arange(count) - (count - 1) / 2) * thickness
    origins = stack.origins.mean(axis=0) + places[:, None] * stack.normal
    return replace(stack, origins=origins, thickness=thickness, spacing=thickness)


@dataclass(frozen=True, slots=True)
class Family:
    """What moves the appearance of one series.

    Attributes:
        name: one of ``NAMES``, or empty: then nothing moves, and nothing is drawn.
        rng: random stream of the series.
    """

    name: str
    rng: np.random.Generator

    def applied(self, table: np.ndarray, scanner: Scanner, window: Window) -> tuple[np.ndarray, Scanner, Window]:
        """Signals of each label (256,), scanner and window of the series."""
        if self.name == "contrast":
            # what is low and high of 8 bits, in signal of bright tissues
            ends = {"low": float(self.rng.uniform(0.02, 0.12)), "high": float(self.rng.uniform(0.9, 1.6))}
            return recoloured(self.rng, table), scanner, replace(window, **ends, gamma=1.0)
        if self.name == "noise":
            return table, replace(scanner, noise=float(self.rng.uniform(*NOISE))), window
        if self.name == "resolution":
            rows, columns = (float(mm) for mm in self.rng.uniform(*ACQUIRED_MM, 2))
            return table, replace(scanner, acquired_mm=(rows, columns)), window
        return table, scanner, window


def recoloured(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """Signal of each label, (256,) float32, about 1 for bright tissues, in a contrast that no sequence has."""
    out = table.copy()
    fluid, fats = [ts.CSF, ts.CSF_FLOW], list(_FATS)
    middle, share = 0.5 * (out[ts.CSF] + out[ts.FAT]), float(rng.uniform(0.4, 0.9))
    for labels in (fluid, fats):
        out[labels] = (1 - share) * out[labels] + share * middle
    out[list(_DARK)] *= np.exp(rng.choice([-1, 1]) * rng.uniform(0.3, 0.7))
    bend = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)))
    top = max(float(out.max()), 1e-6)
    return np.asarray(top * (np.clip(out, 0, None) / top) ** bend, np.float32)
