"""Compares phantoms with the real study: montages, histograms, power spectra, contrasts.

    python benchmarks/phantom_gallery.py --out dist/gallery
    python benchmarks/phantom_gallery.py --out dist/hard_gallery --hard     # patients of lumbar_phantom --hard

Writes phantom_gallery.png (phantoms alone, for the README), beside_real.png, histograms.png, spectra.png and
figures.json. The real study is read from ../shared/real where present and never copied into the repository.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pydicom

from lumbar_phantom import anatomy as an
from lumbar_phantom import axial_images, painting, volume
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.marks import project
from lumbar_phantom.patients import make_case
from lumbar_phantom.protocol import SeriesPlan, StackPlan, axial_series, sagittal_stack
from lumbar_phantom.sequences import tissue_parameters
from lumbar_phantom.streams import stream
from lumbar_phantom.study import Painter, grain_tile

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REAL = Path(__file__).resolve().parents[2] / "shared/real/lumbar_cc0/test_images/20180105"
VIEWS = (
    "sagittal T1, midline",
    "sagittal T1, foramina",
    "sagittal T2, midline",
    "STIR, midline",
    "axial T2, L3/4",
    "axial T2, L5/S1",
)
REAL_SERIES = {"t1": "2018010501", "t2": "2018010502", "stir": "2018010503", "axial": "2018010504"}
CROP_MM = {"sagittal": 230.0, "axial": 170.0}
# Pixels (x, y) of tissues in the real study with their slice (6.dcm is the midline), read off the images by hand
REAL_PLACES = {
    "csf": (6, 262, 259),
    "disc": (6, 229, 234),
    "body": (6, 232, 258),
    "fat": (6, 330, 250),
    "muscle": (1, 313, 261),
}


@dataclass(frozen=True)
class View:
    """One image, (rows, columns) in 0..1, with its pixel spacing in mm."""

    image: np.ndarray
    spacing: float


def _normalise(image: np.ndarray) -> np.ndarray:
    """Map the robust range of the intensities to 0..1."""
    low, high = np.percentile(image, (1, 99.6))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def _crop(view: View, centre_px: tuple[float, float], size_mm: float, out: int = 320) -> np.ndarray:
    """A square of size_mm around a point, resampled to `out` pixels by bilinear interpolation."""
    at = (np.arange(out) - out / 2) * size_mm / out / view.spacing
    x, y = centre_px[0] + at[None, :], centre_px[1] + at[:, None]
    rows, columns = view.image.shape
    inside = (x >= 0) & (x < columns - 1) & (y >= 0) & (y < rows - 1)
    ix, iy = np.clip(x.astype(int), 0, columns - 2), np.clip(y.astype(int), 0, rows - 2)
    tx, ty = x - ix, y - iy
    top = view.image[iy, ix] * (1 - tx) + view.image[iy, ix + 1] * tx
    bottom = view.image[iy + 1, ix] * (1 - tx) + view.image[iy + 1, ix + 1] * tx
    return np.where(inside, top * (1 - ty) + bottom * ty, 0)


def phantom_views(
    seed: int, index: int, hard: bool = False
) -> tuple[list[np.ndarray], dict[str, dict[str, float]], list[View]]:
    """The six views of a phantom, its tissue means per contrast, and the uncropped midline slices."""
    case = make_case(seed, index, hard=hard)
    body = volume.build(case.patient, stream(seed, index, "volume"))
    rng = stream(seed, index, "gallery")
    stack = sagittal_stack(rng, case.patient, non_square=False, short=False)
    axial = axial_series(rng, case.patient, frozenset({"mixed_blocks"}))[0]
    parameters, grain = tissue_parameters(rng, case.patient), grain_tile(rng)
    middle, foramen = case.points[0, 2], case.points[1, 3]
    views, means, whole = [], {}, []
    for kind, points in (("t1", (middle, foramen)), ("t2", (middle,)), ("stir", (middle,))):
        plan, look = SeriesPlan("Sagittal", kind, [stack]), stream(seed, index, "look", kind) if hard else None
        painter = Painter(rng, case.patient, body, parameters, grain, plan, 1.5, 0.0, look)
        for number, point in enumerate(points):
            k = int(np.argmin(np.abs((stack.origins - point) @ stack.normal)))
            image = painter.slice(stack, stack.origins[k]).astype(float)
            view = View(_normalise(image), float(np.linalg.norm(stack.row_mm)))
            views.append(_crop(view, project(stack, k, middle), CROP_MM["sagittal"]))
            if number == 0:
                whole.append(view)
                means[kind] = _tissue_means(body, stack, stack.origins[k], image)
    plan = SeriesPlan("Axial T2", "t2", axial, [np.arange(1, 1 + len(stack.origins)) for stack in axial])
    if hard:
        (plan,) = axial_images.replan(stream(seed, index, "axial"), [plan])
    look = stream(seed, index, "look", "axial") if hard else None
    painter = Painter(rng, case.patient, body, parameters, grain, plan, 1.5, 0.0, look)
    for level in (2, 4):
        point = case.points[0, level]
        block = min(plan.stacks, key=lambda s: np.abs((s.origins - point) @ s.normal).min())
        k = int(np.argmin(np.abs((block.origins - point) @ block.normal)))
        image = painter.slice(block, block.origins[k]).astype(float)
        view = View(_normalise(image), float(np.linalg.norm(block.row_mm)))
        views.append(_crop(view, project(block, k, point), CROP_MM["axial"]))
        whole.append(view)
    return views, means, whole


def _tissue_means(body: volume.Volume, stack: StackPlan, origin: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Mean intensity of each tissue on a slice."""
    tissue = painting.sample_labels(body, stack.shape, origin, stack.row_mm, stack.column_mm)
    groups = {
        "csf": [ts.CSF],
        "disc": [ts.NUCLEUS + j for j in an.LEVEL_DISCS],
        "fat": [ts.FAT],
        "body": [ts.MARROW + i for i in range(5, 10)],
        "muscle": [ts.MUSCLE],
    }
    return {name: float(image[np.isin(tissue, of)].mean()) for name, of in groups.items() if np.isin(tissue, of).any()}


def real_views() -> tuple[list[np.ndarray], dict[str, dict[str, float]], list[View]] | None:
    """The same as `phantom_views` for the real study, or None if it is absent."""
    if not REAL.exists():
        return None

    def read(kind: str, number: int) -> tuple[np.ndarray, float]:
        d = pydicom.dcmread(REAL / REAL_SERIES[kind] / f"{number}.dcm")
        return np.maximum(d.pixel_array.astype(float), 0), float(d.PixelSpacing[0])

    views, means, whole = [], {}, []
    for kind, number in (("t1", 6), ("t1", 2), ("t2", 6), ("stir", 6)):
        image, spacing = read(kind, number)
        view = View(_normalise(image), spacing)
        views.append(_crop(view, (255, 256), CROP_MM["sagittal"]))
        if number == 6:
            whole.append(view)
            means[kind] = {}
            for name, (slice_number, x, y) in REAL_PLACES.items():
                place = read(kind, slice_number)[0][y - 2 : y + 3, x - 2 : x + 3]
                means[kind][name] = float(place.mean())
    for number in (8, 14):
        image, spacing = read("axial", number)
        view = View(_normalise(image), spacing)
        views.append(_crop(view, (255, 240), CROP_MM["axial"]))
        whole.append(view)
    return views, means, whole


def spectrum(view: View, bins: np.ndarray) -> np.ndarray:
    """Radial power spectrum of the central 160 mm in cycles/mm, normalised to its first bin."""
    patch = _crop(view, (view.image.shape[1] / 2, view.image.shape[0] / 2), 160.0, 256)
    window = np.hanning(256)[:, None] * np.hanning(256)
    power = np.abs(np.fft.fftshift(np.fft.fft2((patch - patch.mean()) * window))) ** 2
    f = np.fft.fftshift(np.fft.fftfreq(256, 160.0 / 256))
    radius = np.hypot(f[:, None], f[None, :])
    place = np.digitize(radius.ravel(), bins)
    mean = np.array([power.ravel()[place == k].mean() for k in range(1, len(bins))])
    return mean / mean[0]


def _montage(rows: list[tuple[str, list[np.ndarray]]], path: Path) -> None:
    """Save a grid of views, one row per patient."""
    figure, axes = plt.subplots(len(rows), len(VIEWS), figsize=(2.1 * len(VIEWS), 2.15 * len(rows)), squeeze=False)
    for r, (name, views) in enumerate(rows):
        for c, view in enumerate(views):
            axes[r, c].imshow(view, cmap="gray", vmin=0, vmax=1)
            axes[r, c].set_xticks([])
            axes[r, c].set_yticks([])
            if r == 0:
                axes[r, c].set_title(VIEWS[c], fontsize=8)
        axes[r, 0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(path: Path, x: np.ndarray, rows: dict[str, list[np.ndarray]], titles: tuple[str, ...], log: bool) -> None:
    """Save one plot per title, with a curve for each patient."""
    figure, axes = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 2.8))
    for name, curves in rows.items():
        for axis, curve, title in zip(axes, curves, titles, strict=True):
            axis.plot(x, curve, label=name, lw=2.2 if name == "real" else 0.9)
            axis.set_title(title, fontsize=9)
            if log:
                axis.set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist/gallery"))
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--hard", action="store_true", help="patients that are hard to number")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = {f"phantom {i + 1}": phantom_views(options.seed, i, options.hard) for i in range(options.studies)}
    _montage([(name, views) for name, (views, _, _) in drawn.items()], options.out / "phantom_gallery.png")
    real = real_views()
    everything = dict(drawn)
    if real is None:
        print(f"{REAL}: absent, so phantoms alone")
    else:
        everything = {"real": real, **drawn}
        _montage([(name, views) for name, (views, _, _) in everything.items()], options.out / "beside_real.png")
    titles = ("sagittal T1", "sagittal T2", "STIR", "axial L3/4", "axial L5/S1")
    bins, edges = np.linspace(0.005, 0.7, 36), np.linspace(0.02, 1, 50)
    spectra = {n: [spectrum(v, bins) for v in whole] for n, (_, _, whole) in everything.items()}
    counts = {
        n: [np.histogram(v.image[v.image > 0.02], edges, density=True)[0] for v in whole]
        for n, (_, _, whole) in everything.items()
    }
    _curves(options.out / "spectra.png", bins[:-1], spectra, titles, True)
    _curves(options.out / "histograms.png", edges[:-1], counts, titles, False)
    figures = {}
    for name, (_, means, _) in everything.items():
        figures[name] = {
            kind: {t: round(v / max(m["body"], 1e-6), 2) for t, v in m.items()} for kind, m in means.items()
        }
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, kinds in figures.items():
        print(name, "; ".join(f"{kind}: " + ", ".join(f"{t} {v}" for t, v in m.items()) for kind, m in kinds.items()))
    print(f"signal relative to vertebral bodies; pictures in {options.out}")


if __name__ == "__main__":
    main()
