"""How the axial series of hard patients (``--hard``) are acquired, coloured and stored: as clinical axial T2 series.

Slices of 4 to 5 mm, acquired more coarsely than the pixels that are stored, so that bone, ligament and fat share voxels
in a recess: the CC0 study has 4 mm every 4.5 mm, and 1.1 by 1.5 mm interpolated to 0.55 mm. Windows are set for the
canal: there CSF, fat and bone have greys of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lumbar import labels
from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.artefacts import Scanner, coil_gain
from lumbar_phantom.hard_images import PLAIN, Window
from lumbar_phantom.protocol import SeriesPlan, StackPlan
from lumbar_phantom.sequences import FAT_SHARE

THICKNESS_MM, GAP_MM, PIXEL_MM = (4.0, 5.0), (0.2, 1.2), (0.4, 0.8)
SIDES = (256, 512)  # pixels
ACQUIRED_MM, PHASE_FACTOR = (0.6, 1.1), (1.0, 1.35)  # along the frequency direction, and how much coarser across it
TILT_DEG = 4.0  # standard deviation of a stack's angle to where an ordinary one lies
NOISE = (0.02, 0.10)  # of the brightest tissue of the canal
FAT_TO_CSF = (0.5, 1.15)  # signal of epidural fat; other fats differ from it
# Share of series
FALL_OFF, FAT_SATURATION, RESAMPLED, EIGHT_BITS = 0.5, 0.05, 0.15, 0.6

_FATS = (ts.FAT, ts.VISCERAL_FAT, ts.EPIDURAL_FAT, ts.FATTY_MUSCLE, ts.INTERSPINOUS)
_DARK = {ts.FLAVUM: 0.4, ts.CORTEX: 0.25, ts.LIGAMENT: 0.3}  # signal at most, of epidural fat's


def replan(rng: np.random.Generator, plans: list[SeriesPlan]) -> list[SeriesPlan]:
    """The plans of a study with axial stacks of clinical slices; thickness, gap and pixels are drawn once for all."""
    thickness, gap = float(rng.uniform(*THICKNESS_MM)), float(rng.uniform(*GAP_MM))
    pixel = float(rng.uniform(*PIXEL_MM))
    out = []
    for plan in plans:
        if plan.description != labels.AXIAL_T2:
            out.append(plan)
            continue
        stacks, instances = [], plan.instances
        for stack in plan.stacks:
            count = len(stack.origins)
            if len(plan.stacks) == 1:  # as many slices as cover what was covered; a block of one disc keeps its number
                count = int(np.ceil(count * stack.spacing / (thickness + gap)))
                instances = [_renumbered(instances[0], count)]
            tilt = np.deg2rad(rng.normal(0, TILT_DEG))
            stacks.append(_restack(stack, count, float(tilt), pixel, thickness, thickness + gap))
        out.append(SeriesPlan(plan.description, plan.kind, stacks, instances))
    return out


def _restack(stack: StackPlan, count: int, tilt: float, pixel: float, thickness: float, spacing: float) -> StackPlan:
    """A stack about the same middle, turned by ``tilt`` (radians) about the axis from right to left."""
    rows, columns = stack.shape
    middle = stack.origins.mean(axis=0) + 0.5 * (rows - 1) * stack.row_mm + 0.5 * (columns - 1) * stack.column_mm
    old = float(np.linalg.norm(stack.column_mm))
    pixel = float(np.clip(pixel, columns * old / SIDES[1], columns * old / SIDES[0]))
    shape = (int(rows * old / pixel) // 2 * 2, int(columns * old / pixel) // 2 * 2)
    down, across = stack.row_mm / np.linalg.norm(stack.row_mm), stack.column_mm / old
    normal = np.cos(tilt) * stack.normal + np.sin(tilt) * down
    down = np.cos(tilt) * down - np.sin(tilt) * stack.normal
    row_mm, column_mm = down * pixel, across * pixel
    corner = middle - 0.5 * (shape[0] - 1) * row_mm - 0.5 * (shape[1] - 1) * column_mm
    places = (np.arange(count) - (count - 1) / 2) * spacing
    return StackPlan(corner + places[:, None] * normal, row_mm, column_mm, normal, shape, thickness, spacing)


def _renumbered(numbers: np.ndarray, count: int) -> np.ndarray:
    """Instance numbers of ``count`` slices in the order of ``numbers``, rising or falling, going on where they end."""
    rising = np.sort(numbers)
    more = rising[-1] + 1 + np.arange(max(count - len(rising), 0))
    rising = np.concatenate([rising, more])[:count]
    return rising[::-1].copy() if numbers[0] > numbers[-1] else rising


def recolour(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """Signal of each label, (256,) float32: fats of many intensities, joints with and without fluid, dark ligaments.

    Args:
        rng: random stream.
        table: (256,) as of the T2 sequence.
    """
    out = table.copy()
    out[list(_FATS)] *= rng.uniform(*FAT_TO_CSF) * out[ts.CSF] / max(out[ts.EPIDURAL_FAT], 1e-6)
    out[list(_FATS)] *= np.exp(rng.normal(0, 0.12, len(_FATS)))
    if rng.random() < FAT_SATURATION:
        out *= 1 - rng.uniform(0.7, 0.95) * FAT_SHARE
    fat, fluid = out[ts.EPIDURAL_FAT], out[ts.CSF]
    out[ts.JOINT] = rng.uniform(0.1, 0.9) * fluid
    out[ts.POSTERIOR_MARROW] *= rng.uniform(0.8, 1.5)
    for label, share in _DARK.items():
        out[label] = min(out[label], share * max(fat, 0.3 * fluid))
    nucleus = slice(ts.NUCLEUS, ts.NUCLEUS + an.N_VERTEBRAE)
    out[nucleus] *= rng.uniform(0.5, 1.0)
    out[ts.INNER_ANNULUS] += rng.uniform(0.2, 0.7) * (out[nucleus].mean() - out[ts.INNER_ANNULUS])  # no sharp border
    out[ts.ROOT] *= rng.uniform(0.4, 0.9)
    out[ts.BASIVERTEBRAL] = 0.5 * (out[ts.BASIVERTEBRAL] + out[ts.MARROW])
    return out


def degrade(rng: np.random.Generator, scanner: Scanner, canal: float, depth: float) -> tuple[Scanner, float]:
    """The scanner at a clinical resolution, and the signal of the brightest tissue of the canal as the coil sees it.

    Args:
        rng: random stream.
        scanner: as of an ordinary series.
        canal: signal of that tissue before the coil.
        depth: of the canal under the skin of the back, mm.
    """
    along = float(rng.uniform(*ACQUIRED_MM))
    across = along * float(rng.uniform(*PHASE_FACTOR))
    acquired = (across, along) if scanner.swap_phase else (along, across)
    scanner = replace(scanner, acquired_mm=acquired, apodise=max(scanner.apodise, 0.3))
    if rng.random() < FALL_OFF:
        floor = float(np.exp(rng.uniform(np.log(0.06), np.log(0.3))))
        scanner = replace(scanner, coil_mm=float(rng.uniform(50, 120)), coil_floor=floor)
    level = canal * float(coil_gain(scanner, depth))
    noise = np.clip(scanner.noise * rng.uniform(1.0, 1.8), NOISE[0] * level, NOISE[1] * level)
    return replace(scanner, noise=float(noise)), level


def draw_window(rng: np.random.Generator, level: float) -> Window:
    """A series' window around ``level``, the signal of the brightest tissue of the canal."""
    factor = float(rng.uniform(1.2, 1.7)) if rng.random() < RESAMPLED else 1.0
    low, high = level * float(rng.uniform(0.0, 0.08)), level * float(np.exp(rng.uniform(np.log(0.85), np.log(1.8))))
    gamma = float(np.exp(rng.normal(0, 0.15)))
    return Window(factor, low, high, gamma) if rng.random() < EIGHT_BITS else replace(PLAIN, factor=factor)
