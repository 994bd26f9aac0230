"""Points as 3D Slicer markups, one ``.mrk.json`` a study (docs/findings-table.md).

The format is that of Slicer's "markups-schema-v1.0.3.json" (github.com/Slicer/Slicer, Modules/Loadable/Markups/
Resources/Schema): a list of points (type ``Fiducial``) with names, in millimetres of patient space (LPS).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lumbar.io.file_names import file_stem
from lumbar.io.files import write_atomically
from lumbar.io.text import printable, public_values
from lumbar.labels import level_title
from lumbar.output.findings import Finding
from lumbar.stages.point_probability import NEAR_MM

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
EXTENSION = ".mrk.json"
_PLACES = {
    "spinal_canal_stenosis": "canal",
    "neural_foraminal_narrowing": "foramen",
    "subarticular_stenosis": "subarticular",
}


def write_markups(folder: Path, study_id: int | str, findings: Sequence[Finding]) -> None:
    """Write the points of one study into a folder, as ``<study>.mrk.json``; a study without points has an empty list.

    Raises:
        CohortError: it cannot be written.
    """
    content = json.dumps(public_values(markups(study_id, findings)), indent=1, allow_nan=False) + "\n"
    write_atomically(folder / f"{file_stem(study_id)}{EXTENSION}", content, sync="none")


def markups(study_id: int | str, findings: Sequence[Finding]) -> dict[str, Any]:
    """The points of one study in the form of Slicer's schema; a point without a place in millimetres is left out."""
    places = [finding for finding in findings if _is_placed(finding)]
    points = [_control_point(number, finding) for number, finding in enumerate(places, 1)]
    markup = {
        "type": "Fiducial",
        "name": f"levels {printable(study_id, 100)}",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N-%d",
        "controlPoints": points,
        "display": {"visibility": True, "pointLabelsVisibility": True, "glyphType": "Sphere3D", "glyphScale": 1.5},
    }
    return {"@schema": SCHEMA, "markups": [markup]}


def _is_placed(finding: Finding) -> bool:
    point = finding.point
    return point is not None and point.xyz_mm is not None and all(math.isfinite(value) for value in point.xyz_mm)


def _control_point(number: int, finding: Finding) -> dict[str, Any]:
    point = finding.point
    assert point is not None
    assert point.xyz_mm is not None
    side = f"{finding.side} " if finding.side else ""
    frame = "" if point.frame is None else f" frame {point.frame}"
    confidence = "" if point.confidence is None else f", confidence {point.confidence:.2f}"
    if point.probability is not None:
        confidence = f", within {NEAR_MM:.0f} mm with {point.probability:.0%}"
    return {
        "id": str(number),
        "label": f"{level_title(finding.level)} {side}{_PLACES[finding.condition]}",
        "description": f"series {point.series_id}, slice {point.instance_number}{frame}{confidence}",
        "position": list(point.xyz_mm),
        "orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "selected": True,
        "locked": False,
        "visibility": True,
        "positionStatus": "defined",
    }
