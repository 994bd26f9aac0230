"""An outcome as the head and body of a journal's record, and back, without the loss of a bit."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from lumbar.chains.contract import Mark, Outcome, Picture, Probs, SliceView

STUDY = "study"  # key of a head that is a study's
_PAIRS = ("size_px", "origin_px", "scale", "edges")  # of a view: tuples, which JSON has as lists


def outcome_head(outcome: Outcome) -> dict[str, Any]:
    """What is read of every study when a run goes on: id, files, seconds, and the answer (float64, base64)."""
    return {
        STUDY: outcome.study_id,
        "files": outcome.files,
        "seconds": outcome.seconds,
        "final": outcome.is_final,
        "left_out": outcome.left_out,
        "probs": None if outcome.probs is None else _packed(outcome.probs),
    }


def outcome_body(outcome: Outcome, has_pictures: bool = True) -> dict[str, Any]:
    """What only record and report show; pictures that are files of their own are left out."""
    pictures = outcome.pictures if has_pictures else ()
    return {
        "inputs": outcome.inputs,
        "failure": outcome.failure,
        "problems": outcome.problems,
        "sagittal_points": outcome.sagittal_points,
        "axial_levels": outcome.axial_levels,
        "numbering": outcome.numbering,
        "not_seen": outcome.not_seen,
        "pictures": [_picture(picture) for picture in pictures],
    }


def outcome_of(head: dict[str, Any], body: dict[str, Any]) -> Outcome:
    """The outcome that was written."""
    return Outcome(
        head[STUDY],
        probs=probs_of(head),
        problems=list(body["problems"]),
        seconds=dict(head["seconds"]),
        sagittal_points=body["sagittal_points"],
        axial_levels=body["axial_levels"],
        numbering=body.get("numbering"),  # journals of older versions have none
        not_seen=list(body.get("not_seen", ())),  # nor this
        pictures=[_unpicture(data) for data in body["pictures"]],
        failure=body["failure"],
        inputs=body["inputs"],
        files=head["files"],
        is_final=head["final"],
        left_out=list(head.get("left_out", ())),  # journals of older versions have none
    )


def outcome_text(outcome: Outcome) -> str:
    """An outcome as one text, for transport between machines."""
    return json.dumps([outcome_head(outcome), outcome_body(outcome)])


def outcome_from(text: str) -> Outcome:
    """The outcome of a text."""
    head, body = json.loads(text)
    return outcome_of(head, body)


def probs_of(head: dict[str, Any]) -> Probs | None:
    """The answer (rows, values) in a head; None where the prior stays."""
    packed = head["probs"]
    if packed is None:
        return None
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype="<f8")
    return values.reshape(packed["shape"]).astype(np.float64)


def _packed(probs: Probs) -> dict[str, Any]:
    data = np.ascontiguousarray(probs, dtype="<f8").tobytes()
    return {"shape": list(probs.shape), "data": base64.b64encode(data).decode("ascii")}


def _picture(picture: Picture) -> dict[str, Any]:
    view = None if picture.view is None else asdict(picture.view)
    png = base64.b64encode(picture.png).decode("ascii")
    return {"title": picture.title, "png": png, "view": view, "name": picture.name}


def _unpicture(data: dict[str, Any]) -> Picture:
    view = None
    if (fields := data["view"]) is not None:
        pairs = {name: tuple(fields[name]) for name in _PAIRS}
        view = SliceView(**{**fields, **pairs, "marks": tuple(Mark(**mark) for mark in fields["marks"])})
    return Picture(data["title"], base64.b64decode(data["png"]), view, data["name"])
