"""Anatomy of hard patients: lumbosacral junctions and operated or bent backs that get real spines numbered wrongly.

A share of patients (``--hard``) has them. How often each occurs says what leads readers and networks astray, not how
often it is in people; sizes and their relations are those of people:

- sacral slope: 18 to 71 degrees, mean 44.5 (SD 9.9), in 274 people lying (Okpala 2014, Ann Med Health Sci Res 4:757);
- lordosis from L4 to S1, lying: 30 degrees (SD 8) of 37 in all, in 627 volunteers (Asian Spine J 2019,
  PMC6680033); L5 and its disc have most of it, and more where the sacrum is steep;
- the angle between the end plate of S1 and its back 95 to 102 degrees, and a sacrum that curves more below a large
  pelvic incidence (Baker 2022, Asian Spine J 16:66);
- the disc S1/S2: none in 30 of 100 people, a small rest in 42, a disc of the whole depth in 16, with a square S1 in 12
  (O'Driscoll et al. 1996, Skeletal Radiol 25:225; Tokgoz et al. 2014, Korean J Radiol 15:258);
- slips of L5 with a steeper sacrum (Vialle et al. 2007, Eur Spine J 16:1641), grades I and II of Meyerding.

Transitional vertebrae are the pitfall ``transitional``, at its rate among all patients.
"""

from __future__ import annotations

import numpy as np

from lumbar_phantom import anatomy as an

REMNANTS = ("none", "rest", "whole", "square")  # O'Driscoll's types 1 to 4
REMNANT_SHARES = (0.10, 0.30, 0.35, 0.25)
LAST_DISCS = ("as it is", "narrow", "collapsed", "bright")
LAST_DISC_SHARES = (0.35, 0.20, 0.20, 0.25)
SLIP_SHARE, LAMINECTOMY_SHARE, SCOLIOSIS_SHARE, WORN_SHARE, SCREWS_SHARE = 0.14, 0.14, 0.18, 0.25, 0.4
SLOPES = (20.0, 65.0)
ABOVE = 37.0  # degrees of the slope, at most, that the levels above L5 make up for: else the patient could not lie flat
_NARROWEST = 0.4  # mm that a wedge leaves between the end plates at _BEHIND
_BEHIND = 22.0  # mm behind the middle of the disc: the front of the sac


def before_disease(rng: np.random.Generator, patient: an.Patient) -> None:
    """Shape sacrum and soft tissues of a hard patient, in place, before disease is measured against its sizes."""
    kind = str(rng.choice(REMNANTS, p=REMNANT_SHARES))
    square = float(rng.uniform(0.6, 1.0) if kind == "square" else rng.beta(1.5, 2.0))
    share, height = float(rng.uniform(0.35, 0.8)), float(rng.uniform(0.2, 0.5))
    patient.stations[:, an.SAC_A] *= rng.uniform(0.84, 1.0)
    patient.stations[:, an.RECESS] *= rng.uniform(1.0, 1.25)  # a rounder sac
    patient.trunk[an.SMOOTH] = 1.0
    if patient.variant == "lumbarised":
        patient.discs[an.S1, an.REMNANT] = 1.0
        return
    upper, lower, next_upper = (patient.stations[2 * an.S1 + k] for k in range(3))
    for column, slim in ((an.WIDTH, 0.76), (an.DEPTH, 0.68)):
        lower[column] = upper[column] * (slim + (0.95 - slim) * square)
        next_upper[column] = lower[column] * (0.88 + 0.07 * square)
    patient.discs[an.S1, an.REMNANT] = {"none": -1.0, "rest": share}.get(kind, 1.0)
    last = an.DISC_HEIGHTS[an.L5] * patient.scale
    patient.discs[an.S1, an.DISC_H] = {"none": 0.25, "rest": (0.12 + 0.3 * height) * last}.get(kind, height * last)


def after_disease(rng: np.random.Generator, patient: an.Patient) -> None:
    """Give a hard patient its last disc, slip, operation and angles, in place, before the vertebrae are stacked."""
    is_bright = rng.random() < 0.35
    patient.discs[an.S1, an.DESICCATION] = rng.uniform(0.0, 0.25) if is_bright else rng.uniform(0.6, 1.0)
    patient.discs[an.S1 + 1 :, an.DISC_H] *= rng.uniform(1.0, 2.2)
    if rng.random() < WORN_SHARE:  # all discs dark and low: the sacral ones look like them
        patient.discs[3 : an.S1, an.DESICCATION] = rng.uniform(0.75, 1.0, an.S1 - 3)
        patient.discs[3 : an.S1, an.DISC_H] *= rng.uniform(0.55, 0.9)
    _last_disc(rng, patient)
    if rng.random() < SLIP_SHARE:
        depth = float(patient.stations[2 * an.S1, an.DEPTH])
        patient.traits |= {"slip": float(rng.uniform(0.1, 0.4)) * depth, "slip_disc": float(an.L5)}
    if rng.random() < LAMINECTOMY_SHARE:
        _laminectomy(rng, patient)
    if rng.random() < SCOLIOSIS_SHARE:
        patient.traits["scoliosis"] = float(rng.choice([-1, 1]) * rng.uniform(7.0, 15.0))
    _angles(rng, patient)


def _last_disc(rng: np.random.Generator, patient: an.Patient) -> None:
    """The disc L5/S1: narrow, collapsed with changed end plates, or bright beside worn ones."""
    disc = patient.discs[an.L5]
    kind = str(rng.choice(LAST_DISCS, p=LAST_DISC_SHARES))
    if kind == "narrow":
        disc[an.DISC_H] *= rng.uniform(0.5, 0.8)
        disc[an.DESICCATION] = rng.uniform(0.3, 1.0)
    elif kind == "collapsed":
        disc[an.DISC_H], disc[an.DESICCATION] = rng.uniform(1.8, 3.5), rng.uniform(0.85, 1.0)
        if rng.random() < 0.6:
            size = rng.uniform(3, 9) * rng.choice([-1, 1])
            patient.vertebrae[an.L5, an.MODIC_LOW] = size
            patient.vertebrae[an.S1, an.MODIC_UP] = size * rng.uniform(0.6, 1.3)
    elif kind == "bright" and patient.variant != "sacralised":
        disc[an.DISC_H] = max(disc[an.DISC_H], rng.uniform(8.0, 12.0) * patient.scale)
        disc[an.DESICCATION] = rng.uniform(0.0, 0.15)
    disc[an.DISC_H] = max(disc[an.DISC_H], 1.8)


def _laminectomy(rng: np.random.Generator, patient: an.Patient) -> None:
    """Take out laminae and spinous processes of one to four vertebrae down to L4 or L5, with the flavum between."""
    last = int(rng.choice([an.L5 - 1, an.L5]))
    first = last - int(rng.integers(0, 4))
    patient.trunk[[an.BED_FIRST, an.BED_LAST]] = (first, last)
    patient.trunk[an.BED_FLUID] = float(rng.random() < 0.4)
    patient.discs[first : last + 1, an.FLAV_L] = patient.discs[first : last + 1, an.FLAV_R] = 0.25
    if rng.random() < SCREWS_SHARE:
        patient.trunk[an.LAMINECTOMY] = float(min(max(first, last - 1), an.L5))


def _angles(rng: np.random.Generator, patient: an.Patient) -> None:
    """Slope and curve of the sacrum, and the wedges of L5 and L5/S1 that go with them."""
    slope = SLOPES[0] + (SLOPES[1] - SLOPES[0]) * float(rng.beta(2.1, 1.2))
    height = float(patient.discs[an.L5, an.DISC_H])
    widest = float(np.degrees(np.arctan(max(height - _NARROWEST, 0.2) / _BEHIND)))
    disc = float(np.clip(13 + 0.25 * (slope - 40) + rng.normal(0, 3.0), 1.0, widest))
    body = float(np.clip(10 + 0.25 * (slope - 40) + rng.normal(0, 3.0), 1.0, 22.0))
    patient.traits |= {
        "slope": min(slope, disc + body + ABOVE),
        "disc_wedge": disc,
        "body_wedge": body,
        "sacral_turn": float(np.clip(np.exp(0.008 * (slope - 40) + rng.normal(0, 0.4)), 0.35, 1.8)),
        "sacral_table": float(rng.normal(6, 6)),
    }
