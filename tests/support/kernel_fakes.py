"""A chain without networks or DICOM, importable by worker processes: each study's folder says what it does.

A study folder may hold as files: ``raise-read``, ``raise-predict``, ``nan``, ``empty``, ``noted``, ``undrawable``,
``die-drawing``, ``lost`` (a device), ``exit``; ``die``, ``hang`` and ``killed-once`` in the networks;
``read-segfault``, ``read-abort``, ``read-hang``, ``read-hang-once`` and ``read-hold`` (no other thread runs any more)
while it is read; ``read-log``.
"""

import ctypes
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.chains.contract import Chain, Picture
from lumbar.errors import ManifestError
from lumbar.labels import DESCRIPTIONS, SEVERITY_COLUMNS, row_ids


@dataclass
class FakeStudy:
    study_id: int
    folder: Path
    traits: set
    series: dict
    problems: list = field(default_factory=list)


class Point:
    def __init__(self, **values):
        self.values = values

    def record(self):
        return self.values


@dataclass
class Localisation:
    sagittal_points: list
    axial_levels: list


@dataclass
class Result:
    probs: np.ndarray
    localisation: Localisation
    problems: list
    seconds: dict


def probs_of(study_id):
    return np.random.default_rng(study_id).dirichlet((2.0, 1.0, 1.0), 25)


def read(root, split, study_id, descriptions, workers):
    folder = Path(root) / f"{split}_images" / str(study_id)
    traits = {path.name for path in folder.iterdir()} if folder.is_dir() else {"empty"}
    misread(folder, traits)
    if "raise-read" in traits:
        raise OSError(5, "Input/output error", "7.dcm")
    study = FakeStudy(study_id, folder, traits, {name: [] if "empty" in traits else ["stack"] for name in DESCRIPTIONS})
    if "noted" in traits:
        study.problems.append(f"study {study_id}: 3.dcm left out")
    return study


def misread(folder, traits):
    """What goes wrong, and stays wrong, while a study is read."""
    if "read-segfault" in traits:
        signal.raise_signal(signal.SIGSEGV)  # in this thread, at once; os.kill would let it run on for a moment
    if "read-abort" in traits:
        os.abort()
    if "read-log" in traits:
        logging.getLogger("lumbar").warning("%s: odd", folder.name)
    is_first = "hung" not in traits
    if "read-hang" in traits or ("read-hang-once" in traits and is_first):
        note(folder)
        time.sleep(3600)
    if "read-hold" in traits and is_first:
        note(folder)
        ctypes.PyDLL(None).sleep(3600)  # a PyDLL's functions keep the interpreter's lock


def note(folder):
    """Leave a sign that the study hangs now: a line with the process's id, whole or not at all."""
    with open(folder / "hung", "a") as file:
        file.write(f"{os.getpid()}\n")


def load(manifest, device):
    return {"device": device}


def predict(study, networks, prior, effort):
    if "raise-predict" in study.traits:
        raise RuntimeError("index 5 is out of bounds\nfor dimension 0")
    if "lost" in study.traits:
        raise RuntimeError("CUDA error: device-side assert triggered")
    if "die" in study.traits:
        os._exit(9)
    if "exit" in study.traits:
        raise SystemExit(3)
    if "killed-once" in study.traits and "hung" not in study.traits:
        note(study.folder)
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in study.traits:
        note(study.folder)
        time.sleep(3600)
    probs = probs_of(study.study_id)
    if "nan" in study.traits:
        probs[3, 1] = np.nan
    point = Point(level="l1_l2", side=None, series_id="1", instance_number=3, x_px=1.0, y_px=2.0,
                  xyz_mm=[0.0, 1.0, 2.0], confidence=0.9)  # fmt: skip
    return Result(probs, Localisation([point], []), [], {"localise": 0.25, "classify": 0.5})


def draw(study, result):
    if "undrawable" in study.traits:
        raise ValueError("no picture")
    if "die-drawing" in study.traits:
        signal.raise_signal(signal.SIGSEGV)
    return [Picture("Sagittal T2, series 1, slice 3", b"\x89PNG\r\n\x1a\n")]


FAKE = Chain(read=read, load=load, predict=predict, draw=draw)


def write_cohort(root, studies, split="test", sample=True):
    """A competition folder: ``studies`` is {study_id: traits}."""
    rows = []
    for study_id, traits in studies.items():
        folder = root / f"{split}_images" / str(study_id)
        folder.mkdir(parents=True)
        for trait in traits:
            (folder / trait).write_text("")
        rows += [(study_id, study_id * 10 + k, name) for k, name in enumerate(DESCRIPTIONS)]
    table = pd.DataFrame(rows, columns=["study_id", "series_id", "series_description"])
    table.to_csv(root / f"{split}_series_descriptions.csv", index=False)
    if sample:
        frame = pd.DataFrame({"row_id": [row for study_id in studies for row in row_ids(study_id)]})
        frame[list(SEVERITY_COLUMNS)] = 1 / 3
        frame.to_csv(root / "sample_submission.csv", index=False)
    return root


def refuse(manifest, device):
    raise ManifestError("weights/a.safetensors: probe gave 1.0, expected 2.0: code or library versions differ")


def load_on_cpu_only(manifest, device):
    if device != "cpu":
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    return {"device": device}
