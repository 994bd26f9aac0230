"""Stacks a patient's vertebrae into a curved spine: the place and the axes of every end plate.

Vialle et al. 2005 (JBJS Am 87:260) for lordosis and sacral slope.
"""

from __future__ import annotations

import numpy as np

from lumbar_phantom import anatomy as an

# Tilt lost over each body and disc from S1's upper end plate upwards, degrees of lordosis
_WEDGE_DISC = (-1.0, -1, -1, 0, 2, 4.5, 6.5, 8, 10, 13, 0, 0, 0, 0, 0)
_WEDGE_BODY = (-3.5, -3.5, -3.5, -3.5, -3, -2, -0.5, 0.5, 1.5, 7, 0, 0, 0, 0, 0)
# Standard deviation, in degrees, of one person's wedges around what the whole curve implies; largest at the sacrum
_WEDGE_DISC_SD = (1.0, 1, 1, 1, 1.5, 2, 2, 2.2, 2.5, 3.5, 0, 0, 0, 0, 0)
_WEDGE_BODY_SD = (1.0, 1, 1, 1, 1, 1.2, 1.2, 1.2, 1.5, 2.5, 0, 0, 0, 0, 0)
_SACRAL_TURN = (0.0, 4, 10, 16, 18)  # forward turn of S1 to S5, degrees, going down


def place_stations(rng: np.random.Generator, patient: an.Patient) -> None:
    """Stack the vertebrae into a curved spine, in place; to be called when disease has set the heights of the discs.

    Backs range from flat to deeply lordotic. They must: a localiser that knows only the average back marks the canal of
    a flat one several mm too high at L5/S1. The angles that `junction` has drawn for a hard patient, among the
    patient's traits, take the place of those drawn here.
    """
    geometry, sizes, traits = patient.stations_geometry, patient.vertebrae, patient.traits
    tilt = _tilts(rng, patient)
    amplitude = rng.normal(0, 7.0 if patient.variant == "scoliosis" else 1.6)
    amplitude = traits.get("scoliosis", amplitude)
    phase, wave = rng.uniform(0, 2 * np.pi), rng.uniform(0.18, 0.34)
    at = np.arange(an.N_STATIONS)
    coronal = amplitude * np.sin(wave * at + phase) + rng.normal(0, 1.0)
    axial = -0.6 * amplitude * np.sin(wave * at + phase + 0.4) + rng.normal(0, 2.0)
    frames = np.stack([_frame(*angles) for angles in np.deg2rad(np.stack([tilt, coronal, axial], 1))])
    centres = np.zeros((an.N_STATIONS, 3))
    step_back = rng.normal(0, 0.8, an.N_STATIONS)
    for k in range(an.N_STATIONS - 1):
        length = sizes[k // 2, an.HEIGHT] if k % 2 == 0 else patient.discs[k // 2, an.DISC_H]
        centres[k + 1] = centres[k] - length * _unit(frames[k, :, 2] + frames[k + 1, :, 2])
        if k % 2 and k < 2 * an.S1:  # neighbouring vertebrae are never exactly in line
            centres[k + 1] += step_back[k] * frames[k + 1, :, 1]
    slip = traits.get("slip", 0.0)
    if slip:
        level = int(traits["slip_disc"])
        centres[: 2 * level + 2] -= slip * frames[2 * level + 1, :, 1]
    middle = 0.5 * (centres[15] + centres[16])  # L3/4: the middle of the field of view
    centres += np.array([rng.normal(0, 5), rng.normal(0, 5), rng.normal(0, 8)]) - middle
    geometry[:, :3] = centres
    geometry[:, 3:6], geometry[:, 6:9], geometry[:, 9:12] = frames[:, :, 0], frames[:, :, 1], frames[:, :, 2]


def _tilts(rng: np.random.Generator, patient: an.Patient) -> np.ndarray:
    """Forward tilt of every end plate, (30,) degrees."""
    traits = patient.traits
    slope = float(np.clip(rng.normal(35, 9.5), 10, 60))
    slope = traits.get("slope", slope)
    wedges: np.ndarray = np.array(
        [
            _WEDGE_DISC[k // 2] * _disc_wedge_left(patient, k // 2) if k % 2 else _WEDGE_BODY[k // 2]
            for k in range(2 * an.S1)
        ]
    )
    available = 0.5 * wedges[2 * an.L1 :].sum() + 24  # worn discs flatten the back by half of what they lose
    lordosis = slope + rng.normal(9, 6)  # L1 leans back by about 9 degrees
    spread = np.array([(_WEDGE_DISC_SD if k % 2 else _WEDGE_BODY_SD)[k // 2] for k in range(2 * an.S1)])
    own = rng.normal(0, spread)
    if "disc_wedge" in traits:
        wedges, own = _with_junction(wedges, own, lordosis, traits)
    else:
        wedges = wedges * float(np.clip(lordosis / available, 0.4, 1.7))
        own[2 * an.L1 :] -= spread[2 * an.L1 :] / spread[2 * an.L1 :].sum() * own[2 * an.L1 :].sum()  # keeps L1 to S1
    tilt = np.zeros(an.N_STATIONS)
    tilt[2 * an.S1] = slope
    for k in range(2 * an.S1 - 1, -1, -1):
        tilt[k] = tilt[k + 1] - wedges[k] - own[k]
    turn = float(np.exp(rng.normal(0, 0.3)))
    end_plate = float(rng.normal(4, 4))  # the angle between the end plate of S1 and its back differs by about 5 degrees
    turn, end_plate = traits.get("sacral_turn", turn), traits.get("sacral_table", end_plate)
    for k in range(2 * an.S1 + 1, an.N_STATIONS):
        step = _SACRAL_TURN[k // 2 - an.S1] * turn * (0.8 if k % 2 else 0.5)
        tilt[k] = tilt[k - 1] - step + (end_plate if k == 2 * an.S1 + 1 else 0.0)
    return tilt


def _with_junction(
    wedges: np.ndarray, own: np.ndarray, lordosis: float, traits: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Wedges of all segments where those of L5 and L5/S1 are given: the levels above make up for the rest of lordosis.

    Args:
        wedges: (20,) of the average back, degrees.
        own: (20,) what is the person's own, degrees.
        lordosis: from L1 to S1, degrees.
        traits: of the patient.
    """
    body, disc = 2 * an.L5, 2 * an.L5 + 1
    above = slice(2 * an.L1, body)
    rest = lordosis - traits["disc_wedge"] - traits["body_wedge"]
    wedges = wedges * float(np.clip(rest / wedges[above].sum(), 0.1, 1.9))
    own[above] -= own[above].mean()
    wedges[body], wedges[disc], own[body], own[disc] = traits["body_wedge"], traits["disc_wedge"], 0.0, 0.0
    return wedges, own


def _disc_wedge_left(patient: an.Patient, disc: int) -> float:
    """Share of its wedge that a disc keeps: a collapsed one loses most of it."""
    return float(np.clip(patient.discs[disc, an.DISC_H] / (an.DISC_HEIGHTS[disc] * patient.scale), 0.3, 1.1))


def _frame(tilt: float, coronal: float, axial: float) -> np.ndarray:
    """Axes left, posterior, up as columns (3, 3): turned forwards about x, then about y, then about z (radians)."""
    ct, st = np.cos(tilt), np.sin(tilt)
    cc, sc = np.cos(coronal), np.sin(coronal)
    ca, sa = np.cos(axial), np.sin(axial)
    rx = np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])
    ry = np.array([[cc, 0, sc], [0, 1, 0], [-sc, 0, cc]])
    rz = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    return np.asarray(ry @ rx @ rz)


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))
