"""Turns an ideal slice into a scanner's: coil shading, acquired resolution with ringing, ghosts, Rician noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import fft


@dataclass(frozen=True, slots=True)
class Scanner:
    """Settings that all slices of a series share.

    Attributes:
        noise: standard deviation, relative to the signal of bright tissues.
        acquired_mm: acquired pixel size from row to row and from column to column; a finer image is interpolated.
        apodise: filter of k-space: 0 leaves Gibbs ringing, 1 blurs most.
        coil_mm: depth under the back at which a surface coil has lost half its gain; 0 for a body coil.
        coil_floor: relative gain that remains far from a surface coil.
        shade: (3, 3) wave vectors of slow shading, per mm.
        shade_gain: strength of that shading.
        ghost: strength of motion ghosts; 0 for none.
        ghost_shift: frequency of the motion, in cycles per phase-encoding line.
        swap_phase: phase is encoded along rows instead of along columns.
        band: y in mm (LPS) in front of which a saturation band darkens; nan for none.
        band_depth: share of the signal that the band takes.
        band_mm: its width.
        band_lean: how much further back its edge lies at greater heights, mm per mm.
        chemical: chemical shift, the displacement of fat in fine voxels along z and y.
        wrap: share of the columns into which aliased tissue folds at either side; 0 for none.
        centre_z: middle of the coil, mm.
        reach_mm: half the length of the coil along z.
    """

    noise: float
    acquired_mm: tuple[float, float]
    apodise: float
    coil_mm: float
    coil_floor: float
    shade: np.ndarray
    shade_gain: float
    ghost: float
    ghost_shift: float
    swap_phase: bool
    band: float
    chemical: tuple[int, int]
    wrap: float
    centre_z: float
    reach_mm: float
    band_depth: float = 0.85
    band_mm: float = math.inf
    band_lean: float = 0.0


def draw_scanner(
    rng: np.random.Generator, field: float, contrast_randomisation: float, axial: bool, belly_y: float
) -> Scanner:
    """Draw a series' settings; images of a low field are noisier.

    Args:
        rng: random stream.
        field: tesla.
        contrast_randomisation: 0 for realistic settings, up to 1 for a wider range.
        axial: no saturation band then, but sometimes aliasing.
        belly_y: y in mm (LPS) behind which no saturation band reaches.
    """
    base = 0.018 + 0.038 * rng.gamma(1.6, 0.55) * (1.5 / field) ** 0.35
    noise = float(np.clip(base * np.exp(rng.normal(0, 0.25 + 0.3 * contrast_randomisation)), 0.006, 0.14))
    coil = rng.random() < (0.6 if axial else 0.75)
    return Scanner(
        noise=noise,
        acquired_mm=(float(rng.uniform(0.45, 1.05)), float(rng.uniform(0.45, 0.9))),
        apodise=float(rng.uniform(0.05, 0.7)),
        coil_mm=float(rng.uniform(55, 160)) if coil else 0.0,
        coil_floor=float(rng.uniform(0.12, 0.5)),
        shade=rng.normal(0, 0.012, (3, 3)),
        shade_gain=float(rng.uniform(0.03, 0.14 + 0.25 * contrast_randomisation)),
        ghost=float(rng.uniform(0.01, 0.06)) if rng.random() < 0.25 else 0.0,
        ghost_shift=float(rng.uniform(0.05, 0.45)),
        swap_phase=bool(rng.random() < 0.5),
        band=float(belly_y - rng.uniform(15, 45)) if not axial and rng.random() < 0.45 else math.nan,
        chemical=_chemical(rng, field),
        wrap=float(rng.uniform(0.06, 0.16)) if axial and rng.random() < 0.06 else 0.0,
        centre_z=float(rng.normal(0, 20)),
        reach_mm=float(rng.uniform(125, 260)),
    )


def _chemical(rng: np.random.Generator, field: float) -> tuple[int, int]:
    """Displacement of fat along one axis: up to two voxels, up to one below 1.5 T."""
    size = int(rng.integers(0, 3 if field >= 1.5 else 2)) * int(rng.choice([-1, 1]))
    return (size, 0) if rng.random() < 0.5 else (0, size)


def shading(
    scanner: Scanner,
    shape: tuple[int, int],
    origin: np.ndarray,
    row_mm: np.ndarray,
    column_mm: np.ndarray,
    back_y: float,
) -> np.ndarray:
    """Factor of the signal of each pixel, (rows, columns) float32, from its place in the scanner.

    Args:
        scanner: settings of the series.
        shape: rows, columns.
        origin: (3,) centre of pixel (0, 0), mm in patient space.
        row_mm: (3,) step from row to row.
        column_mm: (3,) step from column to column.
        back_y: y of the skin of the back, where a surface coil lies.
    """
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.arange(shape[1], dtype=np.float32)[None, :]
    out = np.ones(shape, np.float32)
    for k, wave in enumerate(scanner.shade):
        phase = rows * np.float32(wave @ row_mm) + columns * np.float32(wave @ column_mm)
        phase += np.float32(wave @ origin + k)
        out += np.float32(scanner.shade_gain) * np.sin(phase)
    y = np.float32(origin[1]) + rows * np.float32(row_mm[1]) + columns * np.float32(column_mm[1])
    if scanner.coil_mm > 0:
        depth = np.maximum(np.float32(back_y) - y, 0)
        out *= coil_gain(scanner, depth).astype(np.float32)
    z = np.float32(origin[2] - scanner.centre_z) + rows * np.float32(row_mm[2]) + columns * np.float32(column_mm[2])
    far = z / np.float32(scanner.reach_mm)
    far *= far
    out /= 1 + far * far
    if np.isfinite(scanner.band):
        behind: np.ndarray = y - np.float32(scanner.band)
        if scanner.band_lean:
            behind = behind - np.float32(scanner.band_lean) * z
        inside = 1 / (1 + np.exp(np.clip(behind / 3, -30, 30)))
        if np.isfinite(scanner.band_mm):
            inside *= 1 / (1 + np.exp(np.clip((-behind - np.float32(scanner.band_mm)) / 3, -30, 30)))
        out *= 1 - np.float32(scanner.band_depth) * inside
    return out


def coil_gain(scanner: Scanner, depth: np.ndarray | float) -> np.ndarray:
    """Gain of the coil at some mm under the back."""
    if scanner.coil_mm <= 0:
        return np.ones_like(depth)
    return np.asarray(
        scanner.coil_floor + (1.5 - scanner.coil_floor) / (1 + (depth / np.float32(scanner.coil_mm)) ** 2)
    )


def scan(rng: np.random.Generator, image: np.ndarray, scanner: Scanner, spacing_mm: tuple[float, float]) -> np.ndarray:
    """The magnitude image that a scanner makes of an ideal one.

    Args:
        rng: draws noise and the phase of ghosts.
        image: (rows, columns) float32, bright tissues about 1.
        scanner: settings of the series.
        spacing_mm: of the image, from row to row and from column to column.

    Returns:
        (rows, columns) float32, 0 or more.
    """
    rows, columns = image.shape
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(scanner.noise)
    spectrum = fft.rfft2(image)
    spectrum *= _window(rows, min(spacing_mm[0] / scanner.acquired_mm[0], 1.0), scanner.apodise, False)[:, None]
    spectrum *= _window(columns, min(spacing_mm[1] / scanner.acquired_mm[1], 1.0), scanner.apodise, True)[None, :]
    if scanner.ghost > 0:  # periodic motion modulates the lines of k-space along the phase direction
        axis, n = (1, columns // 2 + 1) if scanner.swap_phase else (0, rows)
        wave = 1 + scanner.ghost * np.cos(2 * np.pi * scanner.ghost_shift * np.arange(n) + rng.uniform(0, 6.28))
        spectrum *= (wave[None, :] if axis else wave[:, None]).astype(np.float32)
    real = fft.irfft2(spectrum, s=image.shape)
    # The imaginary channel holds noise alone; a shifted sample of the same filtered noise stands in for it
    imaginary = np.float32(scanner.noise * 0.7) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.sqrt(real * real + imaginary * imaginary))


def _window(n: int, share: float, apodise: float, half: bool) -> np.ndarray:
    """Weight of each k-space line: the acquired share with a soft edge, and zero-filling beyond, as scanners do."""
    frequency = np.abs(np.fft.rfftfreq(n) if half else np.fft.fftfreq(n)) * 2 / share
    edge = np.clip((frequency - (1 - apodise)) / max(apodise, 1e-3), 0, 1)
    return np.where(frequency <= 1, np.cos(0.5 * np.pi * edge) ** 2 * 0.92 + 0.08, 0).astype(np.float32)
