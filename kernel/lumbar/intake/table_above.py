"""Kinds from a competition's table of series, where the folder that was named lies inside a competition's folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.intake.kinds import Decision
from lumbar.io.tables import read_descriptions

_REASON = "table of series of the competition's folder"


def kinds_above(decisions: Sequence[Decision], root: Path) -> None:
    """Give a study's series the kinds of the table above them; a study that the table does not name stays as it is."""
    rows = {id(decision): _row_of(decision, root) for decision in decisions}
    if not any(rows.values()):
        return
    for decision in decisions:
        description = rows[id(decision)]
        if description:
            decision.kind, decision.reason, decision.doubt, decision.cause = description, _REASON, "", ""
        else:
            decision.leave_out("not in the table", f"not in the {_REASON}")


def _row_of(decision: Decision, root: Path) -> str:
    folder = Path(decision.part.files[0]).absolute().parent
    images = folder.parent.parent
    split, is_images, _ = images.name.partition("_images")
    if not is_images or split not in ("test", "train"):
        return ""
    return _table(images.parent, split).get((folder.parent.name, folder.name), "")


@lru_cache(maxsize=8)
def _table(competition: Path, split: str) -> dict[tuple[str, str], str]:
    """(study, series) → description; empty where there is no table that can be read."""
    try:
        rows = read_descriptions(competition, split)
    except CohortError:
        return {}
    columns = (rows[name] for name in ("study_id", "series_id", "series_description"))
    return {(str(study), str(series)): str(name) for study, series, name in zip(*columns, strict=True)}
