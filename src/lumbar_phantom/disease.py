"""Degeneration: correlated latent severity per level, condition and side, turned into disc, facet and flavum changes.

The size of each change is searched until the *measured* narrowing reaches its target. What a change does elsewhere
(a bulge narrows the recess, too) is measured afterwards, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import space
from lumbar_phantom.rates import MODERATE_CUT, SEVERE_CUT, TARGET_RATES

ROOT_AREA = 26.0  # mm2 of the foramen that the nerve root itself fills
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Free space of one patient at the five levels; the first axis of the paired ones is left, right.

    Attributes:
        canal: (5,) least cross-section of the sac, mm2.
        recess: (2, 5) least depth of the subarticular recess, mm.
        foramen: (2, 5) area of the foramen, mm2.
    """

    canal: np.ndarray
    recess: np.ndarray
    foramen: np.ndarray


def _arrays(patient: an.Patient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return patient.stations, patient.vertebrae, patient.discs


def measure_sizes(patient: an.Patient) -> Sizes:
    """The patient's sizes as they are now."""
    arrays = _arrays(patient)
    canal = np.array([space.least_sac_area(*arrays, j) for j in an.LEVEL_DISCS])
    recess = np.array([[space.recess_depth(*arrays, j, s) for j in an.LEVEL_DISCS] for s in (1.0, -1.0)])
    foramen = np.array([[space.foramen_area(*arrays, j, s) for j in an.LEVEL_DISCS] for s in (1.0, -1.0)])
    return Sizes(canal, recess, foramen)


def narrowing(patient: an.Patient, healthy: Sizes) -> np.ndarray:
    """Measured narrowing, (5 conditions, 5 levels) in the order of `labels.CONDITIONS`: 0 healthy, 1 closed."""
    now = measure_sizes(patient)
    canal = 1 - now.canal / healthy.canal
    foramen = (healthy.foramen - now.foramen) / (healthy.foramen - ROOT_AREA)
    recess = 1 - now.recess / healthy.recess
    return np.asarray(np.clip(np.concatenate([canal[None], foramen, recess]), 0.0, 1.0))


def draw_latents(rng: np.random.Generator, age: float) -> tuple[np.ndarray, np.ndarray]:
    """Latent severities of standard normal distribution, (5 conditions, 5 levels), and the wear of the five discs."""
    person = 0.8 * rng.standard_normal() + 0.6 * (age - 56) / 18
    shared = rng.standard_normal(6)  # each level shares one of these with the next level
    level = (shared[:-1] + 0.7 * shared[1:]) / np.sqrt(1.49)
    disc = 0.55 * person + 0.6 * level + 0.55 * rng.standard_normal(5)
    latents = np.zeros((5, 5))
    latents[0] = 0.42 * person + 0.50 * level + 0.25 * disc + 0.60 * rng.standard_normal(5)
    for first, own in ((1, 0.55), (3, 0.5)):
        pair = rng.standard_normal(5)
        for side in range(2):
            latents[first + side] = (
                0.42 * person + 0.42 * level + 0.25 * disc + 0.38 * pair + own * rng.standard_normal(5)
            )
    # Standard deviations of the sums above, so that quantiles of the normal distribution apply
    scale = np.array([1.055, 1.082, 1.082, 1.057, 1.057])
    return latents / scale[:, None], disc


def targets(latents: np.ndarray) -> np.ndarray:
    """Target narrowing of each latent severity, (5, 5): linear through both grading thresholds, flattened towards 0."""
    out = np.zeros((5, 5))
    for c in range(5):
        for k in range(5):
            moderate, severe = TARGET_RATES[c][k]
            z_moderate = _NORMAL.inv_cdf(1 - moderate - severe)
            z_severe = _NORMAL.inv_cdf(1 - severe)
            slope = (SEVERE_CUT - MODERATE_CUT) / (z_severe - z_moderate)
            t = MODERATE_CUT + slope * (latents[c, k] - z_moderate)
            out[c, k] = 0.08 * np.logaddexp(0.0, t / 0.08) if t < 1 else t
    return np.clip(out, 0.0, 0.93)


def degenerate(rng: np.random.Generator, patient: an.Patient) -> Sizes:
    """Give a patient disease, in place; returns the healthy sizes that narrowing is measured against."""
    healthy = measure_sizes(patient)
    latents, disc = draw_latents(rng, patient.traits["age"])
    wanted = targets(latents)
    _wear(rng, patient, disc)
    for k, j in enumerate(an.LEVEL_DISCS):
        _narrow_canal(rng, patient, healthy, k, j, wanted[0, k])
        for side in range(2):
            _narrow_recess(rng, patient, healthy, k, j, side, wanted[3 + side, k])
            _narrow_foramen(rng, patient, healthy, k, j, side, wanted[1 + side, k])
    _slip(rng, patient, disc)
    return healthy


def _wear(rng: np.random.Generator, patient: an.Patient, disc: np.ndarray) -> None:
    """Desiccation, height loss, osteophytes, end-plate changes; other discs than the five wear as those on average."""
    discs = patient.discs
    for j in range(an.N_VERTEBRAE - 1):
        level = disc[j - 5] if 5 <= j <= 9 else rng.normal(0.5 * disc.mean() - 0.3, 0.7)
        wear = 1 / (1 + np.exp(-1.6 * (level + 0.15)))
        discs[j, an.DESICCATION] = np.clip(wear + rng.normal(0, 0.1), 0.0, 1.0)
        if j > an.L5:
            continue
        loss = np.clip(0.52 * max(wear - 0.35, 0) + rng.normal(0, 0.04), 0, 0.72)
        if wear > 0.75 and rng.random() < 0.2:
            loss = min(loss + 0.3, 0.75)
        discs[j, an.DISC_H] *= 1 - loss
        discs[j, an.OSTEO] = max(0.0, 3.6 * (wear - 0.45) + rng.normal(0, 0.6)) * patient.scale
        discs[j, an.BULGE] = max(0.0, 0.5 * wear + rng.normal(-0.05, 0.2))
        if j >= 3 and rng.random() < 0.07:
            discs[j, an.SCHMORL], discs[j, an.SCHMORL_U] = rng.uniform(1.5, 4.5), rng.normal(0, 7)
        if wear > 0.4 and rng.random() < 0.18:
            discs[j, an.FISSURE_R] = rng.uniform(0.9, 2.2)
        if wear > 0.65 and rng.random() < 0.35:
            size = rng.uniform(2, 8) * (1 if rng.random() < 0.35 else -1)
            patient.vertebrae[j, an.MODIC_LOW] = size
            patient.vertebrae[j + 1, an.MODIC_UP] = size * rng.uniform(0.5, 1.2)
        discs[j, an.SPREAD] = rng.uniform(3.0, 8.0)


def _grow(apply: Callable[[float], None], measure: Callable[[], float], wanted: float, high: float) -> None:
    """Apply the smallest size whose measured narrowing reaches `wanted`, found by bisection; 0 if that is enough."""
    apply(0.0)
    if measure() >= wanted:
        return
    low = 0.0
    for _ in range(11):
        middle = 0.5 * (low + high)
        apply(middle)
        if measure() < wanted:
            low = middle
        else:
            high = middle
    apply(high)


def _narrow_canal(rng: np.random.Generator, patient: an.Patient, healthy: Sizes, k: int, j: int, wanted: float) -> None:
    discs, base = patient.discs, patient.discs[j].copy()
    soft, ligament = rng.uniform(0.15, 1.0), rng.uniform(0.2, 0.9)
    bulging = rng.uniform(0.1, 0.6)
    discs[j, an.CENTRAL_U] = base[an.CENTRAL_U] = rng.normal(0, 2.2)

    def apply(size: float) -> None:
        discs[j, an.BULGE] = base[an.BULGE] + bulging * soft * size
        discs[j, an.CENTRAL] = (1 - bulging) * soft * size * 1.2
        discs[j, [an.FLAV_L, an.FLAV_R]] = base[an.FLAV_L] + 0.62 * ligament * size

    def measure() -> float:
        return float(1 - space.least_sac_area(*_arrays(patient), j) / healthy.canal[k])

    _grow(apply, measure, wanted, 16.0)


def _narrow_recess(
    rng: np.random.Generator, patient: an.Patient, healthy: Sizes, k: int, j: int, side: int, wanted: float
) -> None:
    discs = patient.discs
    share = rng.uniform(0.15, 0.95)

    def apply(size: float) -> None:
        discs[j, an.SUB_L + side] = share * size
        discs[j, an.FACET_L + side] = (1 - share) * size

    def measure() -> float:
        return float(1 - space.recess_depth(*_arrays(patient), j, 1.0 - 2.0 * side) / healthy.recess[side, k])

    _grow(apply, measure, wanted, 9.0)


def _narrow_foramen(
    rng: np.random.Generator, patient: an.Patient, healthy: Sizes, k: int, j: int, side: int, wanted: float
) -> None:
    discs = patient.discs
    share = rng.uniform(0.2, 0.85)

    def apply(size: float) -> None:
        discs[j, an.FOR_L + side] = share * size
        discs[j, an.SAP_L + side] = (1 - share) * size

    def measure() -> float:
        area = space.foramen_area(*_arrays(patient), j, 1.0 - 2.0 * side)
        return float((healthy.foramen[side, k] - area) / (healthy.foramen[side, k] - ROOT_AREA))

    _grow(apply, measure, wanted, 16.0)


def _slip(rng: np.random.Generator, patient: an.Patient, disc: np.ndarray) -> None:
    """Degenerative spondylolisthesis, mostly at L4/5."""
    if disc[3] > 0.6 and rng.random() < 0.18:
        patient.traits["slip"] = float(rng.uniform(2.0, 6.5))
        patient.traits["slip_disc"] = float(rng.choice([7, 8, 8, 8, 9]))
