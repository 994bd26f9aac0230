"""Compares axial T2 slices of ordinary and hard phantoms with the real study: what an image shows of canal and recess.

    python benchmarks/axial_phantoms.py --out dist/axial --patients 8

Prints one table and writes beside_real.png (all at one scale and window) and recesses.png (hard patients' recesses by
true narrowing). The same measurements are made on every image, from two points marked in the recesses. The real study
is read from ../shared/real where present and never copied into the repository.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
from scipy import ndimage

from lumbar.labels import AXIAL_T2
from lumbar_phantom import axial_images, volume
from lumbar_phantom.marks import project
from lumbar_phantom.patients import make_case
from lumbar_phantom.protocol import SeriesPlan, axial_series
from lumbar_phantom.sequences import tissue_parameters
from lumbar_phantom.streams import stream
from lumbar_phantom.study import Painter, grain_tile

REAL = Path(__file__).resolve().parents[2] / "shared/real/lumbar_cc0/test_images/20180105/2018010504"
# Slice, and x, y of the middle of the sac, read off the images by hand: L3/4, L4/5, L5/S1
REAL_SLICES = ((8, 250.0, 268.0), (11, 248.5, 267.5), (15, 248.7, 265.7))
LEVELS = (2, 3, 4)
MILD = 0.35  # narrowing below which no reader sees much


@dataclass(frozen=True)
class Slice:
    """An axial slice at a disc.

    Attributes:
        image: (rows, columns).
        spacing: mm.
        centre: x, y of the middle of the sac, pixels.
        narrowing: of the patient's left and right recess, 0..1; nan where unknown.
        recesses: x, y of the same, pixels; None where unknown.
    """

    image: np.ndarray
    spacing: float
    centre: tuple[float, float]
    narrowing: tuple[float, float] = (np.nan, np.nan)
    recesses: tuple[tuple[float, float], ...] | None = None

    def at(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signal u mm to the right of the image and v mm to the back from the middle of the sac."""
        places = [self.centre[1] + v / self.spacing, self.centre[0] + u / self.spacing]
        return np.asarray(ndimage.map_coordinates(self.image, places, order=1, mode="nearest"))


def real_slices() -> list[Slice]:
    """Slices of the real study at L3/4, L4/5 and L5/S1; none where it is absent."""
    slices = []
    for number, x, y in REAL_SLICES if REAL.exists() else ():
        header = pydicom.dcmread(REAL / f"{number}.dcm")
        image = np.maximum(header.pixel_array.astype(float), 0)
        slices.append(Slice(image, float(header.PixelSpacing[0]), (x, y)))
    return slices


def phantom_slices(seed: int, index: int, hard: bool) -> list[Slice]:
    """The slices of a phantom nearest to the discs L3/4, L4/5 and L5/S1."""
    case = make_case(seed, index, hard=hard)
    body = volume.build(case.patient, stream(seed, index, "volume"))
    rng = stream(seed, index, "axial look")
    stacks = axial_series(rng, case.patient, frozenset({"mixed_blocks"}))[0]
    plan = SeriesPlan(AXIAL_T2, "t2", stacks, [np.arange(1, 1 + len(stack.origins)) for stack in stacks])
    if hard:
        (plan,) = axial_images.replan(stream(seed, index, "axial"), [plan])
    look = stream(seed, index, "look", "axial") if hard else None
    field = float(rng.choice([0.3, 0.5, 1.0, 1.5, 1.5, 1.5, 1.5, 3.0, 3.0]))
    parameters, grain = tissue_parameters(rng, case.patient), grain_tile(rng)
    painter = Painter(rng, case.patient, body, parameters, grain, plan, field, 0.0, look)
    slices = []
    for level in LEVELS:
        point = case.points[0, level]
        stack = min(plan.stacks, key=lambda s: np.abs((s.origins - point) @ s.normal).min())
        k = int(np.argmin(np.abs((stack.origins - point) @ stack.normal)))
        image = painter.slice(stack, stack.origins[k]).astype(float)
        recesses = tuple(project(stack, k, case.points[3 + side, level]) for side in range(2))
        narrowing = (float(case.narrowing[3, level]), float(case.narrowing[4, level]))
        spacing = float(np.linalg.norm(stack.row_mm))
        slices.append(Slice(image, spacing, project(stack, k, point), narrowing, recesses))
    return slices


def look(view: Slice) -> dict[str, float]:
    """What the image shows; lengths in mm, signals as a share of that of CSF."""
    step = np.arange(0, 14, 0.1)
    u, v = np.meshgrid(np.arange(-3, 3.1, 0.3), np.arange(-3, 3.1, 0.3))
    sac = view.at(u, v)[np.hypot(u, v) < 3]
    csf = float(np.percentile(sac, 90))
    edges, dark = [], []
    for degrees in (30, 40, 50, 130, 140, 150):
        angle = np.deg2rad(degrees)
        ray = view.at(step * np.cos(angle), step * np.sin(angle))
        peak = int(np.argmax(ray[:50]))
        trough = peak + int(np.argmin(ray[peak : peak + 90]))
        low, high = ray[trough], ray[peak]
        fall = (ray[peak : trough + 1] - low) / max(high - low, 1e-6)
        edges.append((np.argmax(fall < 0.2) - np.argmax(fall < 0.8)) * 0.1)
        dark.append(low / csf)
    fat = [view.at(np.full(120, side * x), np.arange(-6, 6, 0.1)).max() for side in (-1, 1) for x in (13.0, 15.0, 17.0)]
    u, v = np.meshgrid(np.arange(8, 30, 0.5), np.arange(25, 42, 0.5))
    muscle = np.concatenate([view.at(u, v).ravel(), view.at(-u, v).ravel()])
    smooth = ndimage.gaussian_filter(view.image, 1.2 / view.spacing)
    u, v = np.meshgrid(np.arange(-10, 10, 0.5), np.arange(-24, -12, 0.5))
    grain = Slice(view.image - smooth, view.spacing, view.centre).at(u, v).std()
    wide = [recess_width(view, side) for side, narrow in zip((1, -1), view.narrowing, strict=True) if not narrow > MILD]
    return {
        "recess, mm": float(np.mean(wide)) if wide else np.nan,
        "rim of the sac, 20 to 80 %, mm": float(np.median(edges)),
        "ligament and bone beside the sac / CSF": float(np.median(dark)),
        "fat of the foramen / CSF": float(np.median(fat)) / csf,
        "muscle / CSF": float(np.median(muscle)) / csf,
        "range inside the sac / CSF": float(np.percentile(sac, 95) - np.percentile(sac, 5)) / csf,
        "grain of the disc / CSF": float(grain) / csf,
    }


def recess_width(view: Slice, side: int) -> float:
    """Width at half height of the bright band between disc and ligament, 8 to 11.3 mm beside the middle, in mm."""
    widths = []
    for x in (8.0, 9.1, 10.2, 11.3):
        line = view.at(np.full(180, side * x), np.arange(-10, 8, 0.1))
        peak = 30 + int(np.argmax(line[30:130]))
        before, after = line[:peak].min(), line[peak : peak + 70].min()
        inside = line > 0.5 * (line[peak] + max(before, after))
        ahead = np.argmin(inside[peak::-1]) if not inside[: peak + 1].all() else peak
        behind = np.argmin(inside[peak:]) if not inside[peak:].all() else len(line) - peak
        widths.append(0.1 * float(ahead + behind))
    return float(np.mean(widths))


def _tile(view: Slice, centre: tuple[float, float], mm: float, size: int, mirrored: bool = False) -> np.ndarray:
    scale = size * view.spacing / mm
    shift = [[scale, 0, size / 2 - centre[0] * scale], [0, scale, size / 2 - centre[1] * scale]]
    crop = cv2.warpAffine(view.image.astype(np.float32), np.array(shift, np.float32), (size, size))
    low, high = np.percentile(crop, (1, 99.6))
    out = np.asarray(np.clip((crop - low) / max(high - low, 1e-6), 0, 1) * 255, np.uint8)
    return out[:, ::-1] if mirrored else out


def _write_grid(tiles: list[np.ndarray], columns: int, path: Path) -> None:
    tiles = tiles + [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles), columns)]
    cv2.imwrite(str(path), np.vstack(rows))


def main() -> None:
    """Print the table and write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist/axial"))
    parser.add_argument("--patients", type=int, default=8, help="of either kind")
    parser.add_argument("--seed", type=int, default=2024)
    options = parser.parse_args()
    if options.patients < 1:
        parser.error(f"--patients: found {options.patients}, expected 1 or more")
    options.out.mkdir(parents=True, exist_ok=True)
    if not REAL.exists():
        print(f"{REAL}: absent, so phantoms alone")
    groups = {"real": real_slices(), "ordinary": [], "hard": []}
    for kind in ("ordinary", "hard"):
        for index in range(options.patients):
            groups[kind] += phantom_slices(options.seed, index, kind == "hard")
    seen = {kind: [look(view) for view in views] for kind, views in groups.items() if views}
    print(
        "| median (10th and 90th percentile) | " + " | ".join(f"{k}, {len(v)} slices" for k, v in seen.items()) + " |"
    )
    print("|---|" + "---|" * len(seen))
    for name in seen["hard"][0]:
        cells = [np.nanpercentile([one[name] for one in of], (50, 10, 90)) for of in seen.values()]
        print(f"| {name} | " + " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*cell) for cell in cells) + " |")
    shown = [view for views in groups.values() for view in views[:12]]
    _write_grid([_tile(view, view.centre, 80.0, 260) for view in shown], 6, options.out / "beside_real.png")
    strip = []
    for view in groups["hard"]:
        for side, (narrowing, place) in enumerate(zip(view.narrowing, view.recesses or (), strict=True)):
            tile = _tile(view, place, 36.0, 150, mirrored=side == 1).copy()
            strip.append((narrowing, cv2.putText(tile, f"{narrowing:.2f}", (3, 14), 0, 0.45, 255, 1)))
    ordered = [tile for _, tile in sorted(strip, key=lambda pair: pair[0])]
    _write_grid(ordered, 12, options.out / "recesses.png")
    print(f"pictures in {options.out}")


if __name__ == "__main__":
    main()
