"""How a hard patient (``--hard``) is imaged: contrast, coil, window, field of view, slices and scale that mislead.

What real slices show that were numbered wrongly (docs/real-spines.md), and more of the kind; each series draws its own.
Contrast, coil and window here are those of sagittal series; `axial_images` has those of axial ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from lumbar import labels
from lumbar_phantom import anatomy as an
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.artefacts import Scanner
from lumbar_phantom.protocol import SeriesPlan, StackPlan
from lumbar_phantom.sequences import FAT_SHARE

_FATS = (ts.FAT, ts.VISCERAL_FAT, ts.EPIDURAL_FAT, ts.FATTY_MUSCLE, ts.INTERSPINOUS)
_MARROW, _NUCLEUS = (slice(start, start + an.N_VERTEBRAE) for start in (ts.MARROW, ts.NUCLEUS))
# Share of series
GREY_DISCS, DARK_CSF, FAT_SATURATION = 0.30, 0.25, {"t1": 0.15, "t2": 0.10, "stir": 0.0}
FALL_OFF, BAND, COARSE, RESAMPLED, EIGHT_BITS = 0.60, 0.45, 0.30, 0.25, 0.60
# Share of patients
FEW_SLICES, CUT_BELOW, CUT_ABOVE, CUT_BEFORE, OTHER_SCALE, NO_SPACING = 0.25, 0.50, 0.35, 0.15, 0.25, 0.04
SCALES = (0.6, 1.4)  # of the header's millimetres to the patient's
NOISE = 0.3  # at most, of the signal of the vertebral bodies as the coil sees them
FEW = 3  # slices at most, of a series with few
OFF_MIDLINE_MM = 10.0


def recolour(rng: np.random.Generator, table: np.ndarray, kind: str) -> np.ndarray:
    """Signal of each label, (256,) float32, with less contrast than the sequence gives.

    Args:
        rng: random stream.
        table: (256,) as of the sequence.
        kind: t1, t2 or stir.
    """
    out = table.copy()
    out[list(_FATS)] *= rng.uniform(0.5, 1.0) if kind == "t2" else rng.uniform(0.7, 1.1)
    marrow, nucleus = out[_MARROW].mean(), out[_NUCLEUS].mean()
    if rng.random() < GREY_DISCS:  # bodies as bright as discs: on T1 in cellular marrow, on T2 beside worn discs
        if kind == "t1":
            out[_MARROW] *= rng.uniform(0.8, 1.25) * nucleus / max(marrow, 1e-6)
        else:
            out[_NUCLEUS] *= rng.uniform(0.75, 1.15) * marrow / max(nucleus, 1e-6)
            out[[ts.INNER_ANNULUS, ts.ANNULUS]] = rng.uniform(0.5, 0.95) * marrow
        out[ts.POSTERIOR_MARROW] = out[_MARROW].mean()
    out[ts.BASIVERTEBRAL] = 0.5 * (out[ts.BASIVERTEBRAL] + out[_MARROW].mean())
    csf = [ts.CSF, ts.CSF_FLOW]
    if kind != "t1" and rng.random() < DARK_CSF:
        other = out[ts.MUSCLE] if rng.random() < 0.5 else out[ts.EPIDURAL_FAT]
        out[csf] = out[csf] * 0.1 + other * rng.uniform(0.5, 1.1)
        out[[ts.ROOT, ts.CORD]] = out[ts.CSF] * rng.uniform(0.7, 1.1)
    if rng.random() < FAT_SATURATION[kind]:
        out *= 1 - rng.uniform(0.7, 0.95) * FAT_SHARE
    return out


def degrade(rng: np.random.Generator, scanner: Scanner, spine_y: float) -> Scanner:
    """The scanner of a sagittal series with strong fall-off of the coil, a saturation band, more noise.

    Args:
        rng: random stream.
        scanner: as of an ordinary series.
        spine_y: of the middle of the vertebral bodies, mm (LPS).
    """
    noise = min(scanner.noise * float(rng.uniform(1.0, 2.2)), 0.16)
    scanner = replace(scanner, noise=noise)
    if rng.random() < FALL_OFF:  # up to a factor of 20 from the back to the front
        floor = float(np.exp(rng.uniform(np.log(0.03), np.log(0.15))))
        scanner = replace(scanner, coil_mm=float(rng.uniform(30, 80)), coil_floor=floor)
    if rng.random() < BAND:
        band = spine_y - 17.0 - float(rng.uniform(2, 25))
        width = float(rng.uniform(40, 70)) if rng.random() < 0.4 else np.inf
        lean = float(rng.normal(0, 0.08))
        scanner = replace(scanner, band=band, band_mm=width, band_lean=lean, band_depth=float(rng.uniform(0.88, 0.99)))
    elif rng.random() < 0.5:
        scanner = replace(scanner, band=np.nan)
    if rng.random() < COARSE:
        factor = float(rng.uniform(1.2, 2.0))
        scanner = replace(scanner, acquired_mm=(scanner.acquired_mm[0] * factor, scanner.acquired_mm[1] * factor))
    return scanner


@dataclass(frozen=True, slots=True)
class Window:
    """How the images of a series are stored.

    Attributes:
        factor: pixels are joined to this size and interpolated back; 1 leaves them.
        low: signal that becomes black.
        high: signal that becomes white, in 255 steps; 0 keeps the scanner's own range.
        gamma: exponent between both.
    """

    factor: float
    low: float
    high: float
    gamma: float

    def resampled(self, image: np.ndarray) -> np.ndarray:
        """The image, (rows, columns) float32, at a coarser grid and back."""
        if self.factor == 1.0:
            return image
        small = ndimage.zoom(ndimage.gaussian_filter(image, 0.4 * self.factor), 1 / self.factor, order=1)
        back = (image.shape[0] / small.shape[0], image.shape[1] / small.shape[1])
        return np.asarray(ndimage.zoom(small, back, order=1)[: image.shape[0], : image.shape[1]], np.float32)

    def stored(self, image: np.ndarray, peak: float) -> np.ndarray:
        """Pixels (rows, columns) uint16 of at most 12 bits; ``peak`` is the value of signal 1 where nothing clips."""
        if self.high == 0.0:
            return np.clip(image * peak, 0, 4095).astype(np.uint16)
        shown = np.clip((image - self.low) / (self.high - self.low), 0, 1) ** self.gamma
        return np.asarray(np.round(shown * 255), np.uint16)


PLAIN = Window(1.0, 0.0, 0.0, 1.0)


def draw_window(rng: np.random.Generator, level: float) -> Window:
    """A series' window, around the signal of the vertebral bodies as the coil sees them."""
    factor = float(rng.uniform(1.3, 2.4)) if rng.random() < RESAMPLED else 1.0
    low, high = level * float(rng.uniform(0.0, 0.25)), level * float(np.exp(rng.uniform(np.log(1.5), np.log(5.0))))
    gamma = float(np.exp(rng.normal(0, 0.25)))
    return Window(factor, low, high, gamma) if rng.random() < EIGHT_BITS else replace(PLAIN, factor=factor)


def cut_series(rng: np.random.Generator, patient: an.Patient, plans: list[SeriesPlan]) -> list[SeriesPlan]:
    """The plans of a study whose sagittal series end near the levels, or have one to three slices off the midline."""
    few = int(rng.integers(1, FEW + 1)) if rng.random() < FEW_SLICES else 0
    off_mm = float(np.clip(rng.normal(0, 5), -OFF_MIDLINE_MM, OFF_MIDLINE_MM))
    drawn = [(rng.random() < share, rng.uniform(*mm)) for share, mm in _CUTS]
    out = []
    for plan in plans:
        if plan.description == labels.AXIAL_T2:
            out.append(plan)
            continue
        stack = _cut(patient, plan.stacks[0], [float(mm) if is_cut else np.inf for is_cut, mm in drawn])
        chosen = np.arange(len(stack.origins))
        if few:
            middle = patient.stations_geometry[2 * an.L1 : 2 * an.S1, :3].mean(axis=0)
            away = np.abs((stack.origins - middle) @ stack.normal - off_mm)
            chosen = np.sort(np.argsort(away, kind="stable")[:few])
        stack = replace(stack, origins=stack.origins[chosen])
        out.append(SeriesPlan(plan.description, plan.kind, [stack], [plan.instances[0][chosen]]))
    return out


_CUTS = ((CUT_BELOW, (12, 70)), (CUT_ABOVE, (10, 80)), (CUT_BEFORE, (28, 60)))  # below, above, before: share and mm


def _cut(patient: an.Patient, stack: StackPlan, margins_mm: list[float]) -> StackPlan:
    """A stack without the rows and columns beyond some mm below L5/S1, above L1/2 and before the bodies' middle."""
    below, above, before = margins_mm
    centres = patient.stations_geometry[:, :3]
    row, column = (vector / (vector @ vector) for vector in (stack.row_mm, stack.column_mm))
    mm = float(np.linalg.norm(stack.row_mm))
    rows = (centres[[2 * an.L1 + 1, 2 * an.S1]] - stack.origins[0]) @ row
    columns = (centres[2 * an.L1 : 2 * an.S1] - stack.origins[0]) @ column
    first = int(np.clip(rows[0] - above / mm, 0, stack.shape[0])) if np.isfinite(above) else 0
    last = int(np.clip(rows[1] + below / mm, 0, stack.shape[0])) if np.isfinite(below) else stack.shape[0]
    left = int(np.clip(columns.min() - before / mm, 0, stack.shape[1])) if np.isfinite(before) else 0
    origins = stack.origins + first * stack.row_mm + left * stack.column_mm
    return replace(stack, origins=origins, shape=(last - first, stack.shape[1] - left))


def draw_header(rng: np.random.Generator, plans: list[SeriesPlan]) -> dict[str, object]:
    """What the headers of a study say of its scale: options of ``dicom_files.SliceFile``.

    A spacing is missing only where all sagittal series have one geometry: else none could tell where a point of one
    lies in another.
    """
    options: dict[str, object] = {}
    if rng.random() < OTHER_SCALE:
        options["scale"] = float(np.exp(rng.uniform(*np.log(SCALES))))
    if rng.random() < NO_SPACING and _is_one_geometry(plans):
        options["missing_spacing"] = True
    return options


def header_of(plan: SeriesPlan, options: dict[str, object]) -> dict[str, object]:
    """What of a study's ``draw_header`` a series has: axial ones keep their spacing."""
    is_axial = plan.description == labels.AXIAL_T2
    return {name: value for name, value in options.items() if not (is_axial and name == "missing_spacing")}


def _is_one_geometry(plans: list[SeriesPlan]) -> bool:
    stacks = [plan.stacks[0] for plan in plans if plan.description != labels.AXIAL_T2]
    return all(
        stack.shape == stacks[0].shape
        and np.array_equal(stack.origins, stacks[0].origins)
        and np.array_equal(stack.row_mm, stacks[0].row_mm)
        for stack in stacks
    )
