"""Outcomes as a run leaves them, with points and pictures, and what a run writes of them without predicting."""

from types import SimpleNamespace

import numpy as np

from lumbar.chains.contract import Mark, Outcome, Picture, SliceView
from lumbar.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"


def sagittal_point(level, side=None, description=SAGITTAL_T2, series_id="5", confidence=0.5, **changes):
    return {
        "series_id": series_id,
        "description": description,
        "level": level,
        "side": side,
        "instance_number": 8,
        "x_px": 100.25,
        "y_px": 50.5,
        "xyz_mm": [1.5, -2.25, 30.0],
        "confidence": confidence,
        **changes,
    }


def axial_level(level, distance_mm=0.5, series_id="6", **changes):
    return {
        "series_id": series_id,
        "level": level,
        "instance_number": 20,
        "distance_mm": distance_mm,
        "left_px": [180.0, 200.0],
        "right_px": [120.0, 201.0],
        "left_mm": [10.0, 5.0, 7.0],
        "right_mm": [-9.0, 5.5, 7.0],
        "confidence": 0.7,
        **changes,
    }


def all_points():
    """The points of a study in which all were found, as fields of its outcome."""
    sagittal = [sagittal_point(level) for level in LEVELS]
    sagittal += [sagittal_point(level, side, SAGITTAL_T1, "7") for level in LEVELS for side in SIDES]
    return {"sagittal_points": sagittal, "axial_levels": [axial_level(level) for level in LEVELS]}


def probabilities(seed, severe=1.0):
    return np.random.default_rng(seed).dirichlet((4.0, 1.0, severe), 25)


def view(kind="canal", level=None):
    marks = [Mark(name, None, 100.0, 40.0 + 70 * k) for k, name in enumerate(LEVELS)]
    marks = marks if level is None else [Mark(level, side, 100.0, 200.0) for side in SIDES]
    return SliceView(kind, "5", 8, None, (300, 400), (0.0, 0.0), (1.0, 1.0), 0.5, ("A", "P"), tuple(marks), level)


def outcome(study_id, n_bytes=200, **changes):
    """A study that was predicted, with one picture for its page and one file."""
    values = {
        "probs": probabilities(abs(hash(str(study_id))) % 1000),
        "seconds": {"study": 2.5},
        "pictures": [Picture("Sagittal T2, series 5, slice 8", JPEG + b"\x5a" * n_bytes, view())],
        "picture_files": [Picture("Sagittal T2", PNG + b"\x5a" * n_bytes, None, "sagittal_t2")],
    }
    return Outcome(study_id, **{**values, **changes})


def standing(prior):
    """A submission of studies with any ids: each has its own answer, else the prior (rows, values)."""
    answers = {}

    def probs(study_id):
        return answers.get(study_id, prior)

    return SimpleNamespace(probs=probs, answers=answers)
