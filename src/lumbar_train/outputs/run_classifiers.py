"""Which classifiers a run folder holds: the usual three, or those that an ensemble has noted in its recipe."""

from __future__ import annotations

from pathlib import Path

from lumbar.config import CLASSIFIERS
from lumbar.errors import CohortError
from lumbar.stages.classifiers import AXIAL, SAGITTAL
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE


def classifiers_of_run(run: Path) -> dict[str, str]:
    """The view that each classifier of a run reads, by name, in the order of the aggregator's input.

    Raises:
        CohortError: ``recipe.json`` lists classifiers in a form that no run writes.
    """
    noted = read_object(run / FILE).get("classifiers")
    if noted is None:
        return {name: SAGITTAL if name.startswith(SAGITTAL) else AXIAL for name in CLASSIFIERS}
    try:
        views = {str(entry["name"]): str(entry["view"]) for entry in noted}
    except (TypeError, KeyError):
        views = {}
    if not views or not set(views.values()) <= {SAGITTAL, AXIAL}:
        raise CohortError(f"{run / FILE}: found no classifiers with name and view, expected those of the ensemble")
    return views
