"""Degeneration: correlated latent severity per level, condition and side, turned into disc, facet and flavum changes.

The change at each place is solved so that the *measured* narrowing reaches its target; what a change does to its
neighbours (a bulge narrows the recess too) is then measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import space
from lumbar_phantom.rates import MODERATE_CUT, SEVERE_CUT, TARGET_RATES

ROOT_AREA = 26.0  # mm2 of the foramen that the root itself fills
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Reference:
    """Healthy sizes of one patient: canal (5,), recess (2, 5), foramen (2, 5)."""

    canal: np.ndarray
    recess: np.ndarray
    foramen: np.ndarray


def _arrays(patient: an.Patient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return patient.stations, patient.vertebrae, patient.discs


def measure_sizes(patient: an.Patient) -> Reference:
    """Areas and depths as they are now; sides in the order left, right."""
    arrays = _arrays(patient)
    canal = np.array([space.least_sac_area(*arrays, j) for j in an.LEVEL_DISCS])
    recess = np.array([[space.recess_depth(*arrays, j, s) for j in an.LEVEL_DISCS] for s in (1.0, -1.0)])
    foramen = np.array([[space.foramen_area(*arrays, j, s) for j in an.LEVEL_DISCS] for s in (1.0, -1.0)])
    return Reference(canal, recess, foramen)


def narrowing(patient: an.Patient, reference: Reference) -> np.ndarray:
    """Measured narrowing 0..1 of the 25 columns, (5 conditions, 5 levels) in the order of `labels.CONDITIONS`."""
    now = measure_sizes(patient)
    canal = 1 - now.canal / reference.canal
    foramen = (reference.foramen - now.foramen) / (reference.foramen - ROOT_AREA)
    recess = 1 - now.recess / reference.recess
    return np.asarray(np.clip(np.concatenate([canal[None], foramen, recess]), 0.0, 1.0))


def draw_latents(rng: np.random.Generator, age: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal severities: (5 conditions, 5 levels), and degeneration of the five discs."""
    person = 0.8 * rng.standard_normal() + 0.6 * (age - 56) / 18
    chain = rng.standard_normal(6)
    level = (chain[:-1] + 0.7 * chain[1:]) / np.sqrt(1.49)
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
    """Narrowing wanted for each latent: straight between the two cuts in normal quantiles, levelling out below."""
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


def degenerate(rng: np.random.Generator, patient: an.Patient) -> Reference:
    """Give a patient disease; returns the healthy sizes that narrowing is measured against."""
    reference = measure_sizes(patient)
    latents, disc = draw_latents(rng, patient.traits["age"])
    wanted = targets(latents)
    _wear(rng, patient, disc)
    for k, j in enumerate(an.LEVEL_DISCS):
        _narrow_canal(rng, patient, reference, k, j, wanted[0, k])
        for side in range(2):
            _narrow_recess(rng, patient, reference, k, j, side, wanted[3 + side, k])
            _narrow_foramen(rng, patient, reference, k, j, side, wanted[1 + side, k])
    _slip(rng, patient, disc)
    return reference


def _wear(rng: np.random.Generator, patient: an.Patient, disc: np.ndarray) -> None:
    """Desiccation, height loss, spurs, end-plate change; thoracic and sacral discs wear with the person's age."""
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


def _solve(apply: Callable[[float], None], measure: Callable[[], float], wanted: float, high: float) -> None:
    """Smallest size whose measured narrowing reaches `wanted`, by bisection; nothing where it is there already."""
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


def _narrow_canal(rng: np.random.Generator, patient: an.Patient, ref: Reference, k: int, j: int, wanted: float) -> None:
    discs, base = patient.discs, patient.discs[j].copy()
    soft, ligament = rng.uniform(0.15, 1.0), rng.uniform(0.2, 0.9)
    bulging = rng.uniform(0.1, 0.6)
    discs[j, an.CENTRAL_U] = base[an.CENTRAL_U] = rng.normal(0, 2.2)

    def apply(size: float) -> None:
        discs[j, an.BULGE] = base[an.BULGE] + bulging * soft * size
        discs[j, an.CENTRAL] = (1 - bulging) * soft * size * 1.2
        discs[j, [an.FLAV_L, an.FLAV_R]] = base[an.FLAV_L] + 0.62 * ligament * size

    def measure() -> float:
        return float(1 - space.least_sac_area(*_arrays(patient), j) / ref.canal[k])

    _solve(apply, measure, wanted, 16.0)


def _narrow_recess(
    rng: np.random.Generator, patient: an.Patient, ref: Reference, k: int, j: int, side: int, wanted: float
) -> None:
    discs = patient.discs
    share = rng.uniform(0.15, 0.95)

    def apply(size: float) -> None:
        discs[j, an.SUB_L + side] = share * size
        discs[j, an.FACET_L + side] = (1 - share) * size

    def measure() -> float:
        return float(1 - space.recess_depth(*_arrays(patient), j, 1.0 - 2.0 * side) / ref.recess[side, k])

    _solve(apply, measure, wanted, 9.0)


def _narrow_foramen(
    rng: np.random.Generator, patient: an.Patient, ref: Reference, k: int, j: int, side: int, wanted: float
) -> None:
    discs = patient.discs
    share = rng.uniform(0.2, 0.85)

    def apply(size: float) -> None:
        discs[j, an.FOR_L + side] = share * size
        discs[j, an.SAP_L + side] = (1 - share) * size

    def measure() -> float:
        area = space.foramen_area(*_arrays(patient), j, 1.0 - 2.0 * side)
        return float((ref.foramen[side, k] - area) / (ref.foramen[side, k] - ROOT_AREA))

    _solve(apply, measure, wanted, 16.0)


def _slip(rng: np.random.Generator, patient: an.Patient, disc: np.ndarray) -> None:
    """Degenerative spondylolisthesis, mostly at L4/5."""
    if disc[3] > 0.6 and rng.random() < 0.18:
        patient.traits["slip"] = float(rng.uniform(2.0, 6.5))
        patient.traits["slip_disc"] = float(rng.choice([7, 8, 8, 8, 9]))
