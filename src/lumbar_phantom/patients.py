"""One whole patient from (seed, index): anatomy, disease, grades, and the points that a reader would mark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import axial_anatomy, disease, junction, severity, space
from lumbar_phantom.curve import place_stations
from lumbar_phantom.streams import stream

CANAL_HABITS = (0.0, 0.7)  # range of readers' habits in marking the canal; see `canal_point`
MEAN_CANAL_HABIT = 0.5 * (CANAL_HABITS[0] + CANAL_HABITS[1])  # the truth is what the mean reader marks


@dataclass(slots=True)
class Case:
    """A patient with truth; arrays are (5 conditions, 5 levels).

    Attributes:
        patient: the anatomy, with its disease.
        narrowing: true narrowing, 0..1.
        grades: 0, 1, 2 as one reader gives them.
        labels: the same, -1 where train.csv is empty.
        points: (5, 5, 3) where each condition is seen best, mm in patient space (LPS).
    """

    patient: an.Patient
    narrowing: np.ndarray
    grades: np.ndarray
    labels: np.ndarray
    points: np.ndarray


def make_case(
    seed: int,
    index: int,
    *,
    transitional: bool = False,
    missing: bool = False,
    variant: str | None = None,
    hard: bool = False,
) -> Case:
    """Draw the patient of one study; needs no image, so that frequencies are cheap to check.

    Args:
        seed: of the cohort.
        index: of the study.
        transitional: the lumbosacral vertebra is transitional: sacralised or lumbarised.
        missing: some labels are missing.
        variant: one of `anatomy.VARIANTS`; takes precedence over `transitional`.
        hard: with the anatomy of `junction`, from streams of its own.
    """
    if transitional and variant is None:
        variant = str(stream(seed, index, "variant").choice(["sacralised", "lumbarised"]))
    patient = an.sample_patient(stream(seed, index, "patient"), variant)
    if hard:
        junction.before_disease(stream(seed, index, "junction"), patient)
        axial_anatomy.before_disease(stream(seed, index, "recess"), patient)
    healthy = disease.degenerate(stream(seed, index, "disease"), patient)
    if hard:
        junction.after_disease(stream(seed, index, "hard disease"), patient)
    place_stations(stream(seed, index, "curve"), patient)
    narrowing = disease.narrowing(patient, healthy)
    grades = severity.simulate_reader(stream(seed, index, "reader"), narrowing)
    labels = severity.omit_labels(stream(seed, index, "omitted"), grades) if missing else grades
    return Case(patient, narrowing, grades, labels, reader_points(patient))


def to_patient(patient: an.Patient, seg: int, f: float, u: float, v: float) -> np.ndarray:
    """Patient coordinates of a place given in the spine's own coordinates; the exact inverse of ``volume.locate``.

    Seen from both stations, the place lies at shares (1 - f, f) of the way between their planes, and its u and v are
    averages with the same shares: three linear equations.
    """
    ends = patient.stations_geometry[seg : seg + 2].reshape(2, 4, 3)
    shares = np.array([1 - f, f])
    axes = np.einsum("s,sij->ij", shares, ends[:, 1:])  # rows left, posterior, up
    origin = np.einsum("s,sij,sj->i", shares, ends[:, 1:], ends[:, 0])
    return np.asarray(np.linalg.solve(axes, origin + np.array([u, v, 0.0])))


def reader_points(patient: an.Patient) -> np.ndarray:
    """Where each condition is marked, (5 conditions, 5 levels, 3) in mm of patient space.

    The middle of the sac behind the disc, the middle of the foramen between the pedicles, the recess beside the sac.
    """
    arrays = (patient.stations, patient.vertebrae, patient.discs)
    points = np.zeros((5, 5, 3))
    for k, j in enumerate(an.LEVEL_DISCS):
        points[0, k] = canal_point(patient, j, MEAN_CANAL_HABIT)
        for side, sign in enumerate((1.0, -1.0)):
            points[1 + side, k] = _foramen_point(patient, j, sign)
            seg, f, u = 2 * j + 1, 0.6, sign * 8.5
            mean = 0.5 * (space.front(*arrays, seg, f, u) + space.roof(*arrays, seg, f, u))
            points[3 + side, k] = to_patient(patient, seg, f, u, mean)
    return points


def canal_point(patient: an.Patient, j: int, habit: float) -> np.ndarray:
    """The middle of the sac behind the back edge of disc j, as a reader with this habit marks it.

    No standard says what "behind" means: at a right angle to the canal (habit 0), or straight back in the image
    (habit 1). At L5/S1, where the canal leans back, the two lie about 4 mm apart. Readers do something in between.
    """
    arrays = (patient.stations, patient.vertebrae, patient.discs)
    edge = to_patient(patient, 2 * j + 1, 0.5, 0.0, space.wall(patient.stations, 2 * j + 1, 0.5, 0.0))
    middles = np.array(
        [
            to_patient(patient, seg, f, 0.0, _mid_sac(arrays, seg, f))
            for seg in (2 * j, 2 * j + 1, 2 * j + 2)
            for f in np.linspace(0.0, 1.0, 41)[: 41 if seg == 2 * j + 2 else 40]
        ]
    )  # (121, 3), from the upper end plate of the vertebra above to the lower one of the vertebra below
    canal = middles[100] - middles[20]  # from mid-body to mid-body
    axis = (1 - habit) * canal / np.linalg.norm(canal) + habit * np.array([0.0, 0.0, -1.0])
    along = (middles - edge) @ axis
    below = int(np.clip(np.argmax(along > 0), 1, len(along) - 1))
    share = along[below] / (along[below] - along[below - 1])
    return np.asarray(middles[below - 1] * share + middles[below] * (1 - share))


def _mid_sac(arrays: tuple[np.ndarray, np.ndarray, np.ndarray], seg: int, f: float) -> float:
    low, high = space.sac(*arrays, seg, f, 0.0)
    if (low, high) == (0.0, -1.0):  # the sac ends higher up: take the middle of the bony canal
        low, high = space.front(*arrays, seg, f, 0.0), space.roof(*arrays, seg, f, 0.0)
    return float(0.5 * (low + high))


def _foramen_point(patient: an.Patient, j: int, sign: float) -> np.ndarray:
    vertebrae, discs = patient.vertebrae, patient.discs
    height, thickness = vertebrae[j, an.HEIGHT], discs[j, an.DISC_H]
    top = vertebrae[j, an.PED_Z] + 0.5 * vertebrae[j, an.PED_H]
    below = vertebrae[j + 1]
    bottom = height + thickness + below[an.PED_Z] - 0.5 * below[an.PED_H]
    z = top + 0.48 * (bottom - top)
    seg, f = (2 * j, z / height) if z < height else (2 * j + 1, min((z - height) / thickness, 1.0))
    u = sign * space.foramen_place(discs, j)
    arrays = (patient.stations, vertebrae, discs)
    ahead, behind = space.front(*arrays, seg, f, u), space.roof(*arrays, seg, f, u)
    return to_patient(patient, seg, f, u, 0.5 * (ahead + max(behind, ahead)))
