"""From an ideal slice to a scanner's: coil shading, acquired resolution with ringing, ghosts, wrap, Rician noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import fft


@dataclass(frozen=True, slots=True)
class Scanner:
    """Settings of one series that its slices share."""

    noise: float  # standard deviation relative to the bright tissues
    acquired_mm: tuple[float, float]  # acquired pixel along rows and columns; finer images are interpolated
    apodise: float  # 0 rings, 1 blurs
    coil_mm: float  # depth at which a back coil has lost half its signal; 0 for none
    coil_floor: float
    shade: np.ndarray  # (3, 3) wave vectors of slow shading, per mm
    shade_gain: float
    ghost: float
    ghost_shift: float
    swap_phase: bool
    band: float  # y in mm (LPS) in front of which a saturation band darkens; nan for none
    chemical: tuple[int, int]  # displacement of fat in fine voxels, along z and y
    wrap: float  # share of the columns' far side that folds in; 0 for none
    centre_z: float
    reach_mm: float  # half length of the coil along z


def draw_scanner(
    rng: np.random.Generator, field: float, contrast_randomisation: float, axial: bool, belly_y: float
) -> Scanner:
    """Draw a series' scanner settings; low field is noisier."""
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
    """Up to two voxels along one axis, more at high field."""
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
    """Multiplicative brightness (rows, columns) float32 from the place of each pixel in the scanner."""
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
        gain = scanner.coil_floor + (1.5 - scanner.coil_floor) / (1 + (depth / np.float32(scanner.coil_mm)) ** 2)
        out *= gain.astype(np.float32)
    z = np.float32(origin[2] - scanner.centre_z) + rows * np.float32(row_mm[2]) + columns * np.float32(column_mm[2])
    far = z / np.float32(scanner.reach_mm)
    far *= far
    out /= 1 + far * far
    if np.isfinite(scanner.band):
        inside = 1 / (1 + np.exp(np.clip((y - np.float32(scanner.band)) / 3, -30, 30)))
        out *= 1 - np.float32(0.85) * inside
    return out


def scan(rng: np.random.Generator, image: np.ndarray, scanner: Scanner, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Magnitude image (rows, columns) float32 of an ideal one (bright tissues about 1)."""
    rows, columns = image.shape
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(scanner.noise)
    spectrum = fft.rfft2(image)
    spectrum *= _window(rows, min(spacing_mm[0] / scanner.acquired_mm[0], 1.0), scanner.apodise, False)[:, None]
    spectrum *= _window(columns, min(spacing_mm[1] / scanner.acquired_mm[1], 1.0), scanner.apodise, True)[None, :]
    if scanner.ghost > 0:  # periodic motion: every line in phase direction modulated
        axis, n = (1, columns // 2 + 1) if scanner.swap_phase else (0, rows)
        wave = 1 + scanner.ghost * np.cos(2 * np.pi * scanner.ghost_shift * np.arange(n) + rng.uniform(0, 6.28))
        spectrum *= (wave[None, :] if axis else wave[:, None]).astype(np.float32)
    real = fft.irfft2(spectrum, s=image.shape)
    # The imaginary channel holds noise alone; a shifted sample of the same filtered noise stands in for it
    imaginary = np.float32(scanner.noise * 0.7) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.sqrt(real * real + imaginary * imaginary))


def _window(n: int, share: float, apodise: float, half: bool) -> np.ndarray:
    """Acquired k-space lines with a soft edge; the rest is filled with zeros, as scanners interpolate."""
    frequency = np.abs(np.fft.rfftfreq(n) if half else np.fft.fftfreq(n)) * 2 / share
    edge = np.clip((frequency - (1 - apodise)) / max(apodise, 1e-3), 0, 1)
    return np.where(frequency <= 1, np.cos(0.5 * np.pi * edge) ** 2 * 0.92 + 0.08, 0).astype(np.float32)
