"""A competition of two findings without networks or DICOM, importable by worker processes.

A study folder may hold as files: ``raise``, ``wide`` (another shape), ``above`` (a probability of 2), ``exit`` (its
process ends), ``noted``.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lumbar.chains.contract import Picture, StudyResult
from lumbar.competitions.contract import Competition

FINDINGS = ["Fracture", "Effusion"]
ANSWER = [0.9, 0.2]
PRIOR = {"study": [0.3, 0.4]}


def score(solution, submission):
    """Mean absolute error, which is no metric of the lumbar spine."""
    answers = submission.set_index(submission["study_id"].astype(int)).loc[solution["study_id"]]
    return float(
        np.abs(answers[["Fracture", "Effusion"]].to_numpy() - solution[["Fracture", "Effusion"]]).mean().mean()
    )


COMPETITION = Competition(
    slug="two-findings",
    title="Two findings",
    values=tuple(FINDINGS),
    score=score,
    id_column="study_id",
    sums_to_one=False,
    hours=3,
    time_limit="2h",
    images="{split}/dicom",
    split_names=("hidden", "known"),
)


@dataclass
class TinyStudy:
    study_id: int
    traits: set
    problems: list = field(default_factory=list)


def read(root, split, study_id, table, workers):
    folder = Path(root) / COMPETITION.path(COMPETITION.images, split) / str(study_id)
    traits = {path.name for path in folder.iterdir()}
    return TinyStudy(study_id, traits, [f"study {study_id}: one slice left out"] if "noted" in traits else [])


def load(manifest, device):
    return {"device": device}


def predict(study, networks, prior, effort):
    assert prior.tolist() == [PRIOR["study"]]
    if "raise" in study.traits:
        raise RuntimeError("no such index")
    if "exit" in study.traits:
        os._exit(7)
    if "wide" in study.traits:
        return StudyResult(np.full((25, 3), 0.5))
    return StudyResult(np.array([[2.0, 0.5] if "above" in study.traits else ANSWER]))


def draw(study, result):
    return [Picture("a knee", b"\x89PNG\r\n\x1a\n")]
