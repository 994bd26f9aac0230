"""One whole patient from (seed, index): anatomy, disease, grades and the places a reader would mark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar_phantom import anatomy as an
from lumbar_phantom import disease, severity, space
from lumbar_phantom.streams import stream


@dataclass(slots=True)
class Case:
    """A patient with truth: narrowing and grades (5 conditions, 5 levels), points (5, 5, 3) in mm LPS."""

    patient: an.Patient
    narrowing: np.ndarray
    grades: np.ndarray  # 0, 1, 2 as read
    labels: np.ndarray  # the same with -1 where train.csv is empty
    points: np.ndarray


def make_case(seed: int, index: int, *, transitional: bool = False, missing: bool = False,
              variant: str | None = None) -> Case:
    """Draw the patient of one study; needs no image, so that frequencies are cheap to check."""
    if transitional and variant is None:
        variant = str(stream(seed, index, "variant").choice(["sacralised", "lumbarised"]))
    patient = an.sample_patient(stream(seed, index, "patient"), variant)
    reference = disease.degenerate(stream(seed, index, "disease"), patient)
    an.place_stations(stream(seed, index, "curve"), patient)
    narrowing = disease.narrowing(patient, reference)
    grades = severity.read(stream(seed, index, "reader"), narrowing)
    labels = severity.omit(stream(seed, index, "omitted"), grades) if missing else grades
    return Case(patient, narrowing, grades, labels, reader_points(patient))


def to_patient(patient: an.Patient, seg: int, f: float, u: float, v: float) -> np.ndarray:
    """Patient coordinates of a place given in the spine's own coordinates."""
    ends = patient.stations_geometry[seg : seg + 2].reshape(2, 4, 3)
    places = ends[:, 0] + u * ends[:, 1] + v * ends[:, 2]
    return np.asarray(places[0] * (1 - f) + places[1] * f)


def reader_points(patient: an.Patient) -> np.ndarray:
    """Mid-sac at disc level; the foramen's middle between the pedicles; the recess beside the sac."""
    arrays = (patient.stations, patient.vertebrae, patient.discs)
    points = np.zeros((5, 5, 3))
    for k, j in enumerate(an.LEVEL_DISCS):
        low, high = space.sac(*arrays, 2 * j + 1, 0.5, 0.0)
        if high < low:
            low = high = 0.5 * (low + high)
        points[0, k] = to_patient(patient, 2 * j + 1, 0.5, 0.0, 0.5 * (low + high))
        for side, sign in enumerate((1.0, -1.0)):
            points[1 + side, k] = _foramen_point(patient, j, sign)
            seg, f, u = 2 * j + 1, 0.6, sign * 8.5
            mean = 0.5 * (space.front(*arrays, seg, f, u) + space.roof(*arrays, seg, f, u))
            points[3 + side, k] = to_patient(patient, seg, f, u, mean)
    return points


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
