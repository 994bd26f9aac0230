"""A cohort made in parts: the rows of each finished study in a journal, from which the tables are written at the end.

``ROOT/parts/train.0-of-4.journal`` holds the rows of part 0 of 4: one record a study, written once all files of the
study stand. A part that was killed goes on from it, and ``merge_parts`` writes the tables of all parts together. A
study's files depend on seed and index alone, so a cohort made in parts has the same bytes as one made in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lumbar import __version__
from lumbar.errors import CohortError
from lumbar.io.checked_lines import CheckedLines, Place, read_heads, read_record
from lumbar.io.text import counted, printable
from lumbar.workers.shards import Shard
from lumbar_phantom.study import TEST_OFFSET, Request, study_number
from lumbar_phantom.tables import StudyTables

FOLDER, SUFFIX = "parts", ".journal"
HEADER, INDEX = "phantoms", "index"  # the key that tells each kind of record
_FORMAT = 1
_NAMED = 3  # indices that a message names
# Settings that came later, with the value of all cohorts before: at that value they are not noted, so that a
# cohort of it has the same bytes as before, and an unfinished one can be gone on with
LATER: dict[str, Any] = {"hard": 0.0, "family": ""}
REMADE = ("version", "masks")  # settings with which the same studies are made again: nothing else takes their place


@dataclass(frozen=True)
class Plan:
    """Which studies of which cohort a run makes.

    Attributes:
        requests: of all studies of all shards, in their order.
        first: index of the first; None for a whole cohort, whose tables are written at its end.
        shard: the part that this run makes; None for all.
    """

    requests: Sequence[Request]
    first: int | None = None
    shard: Shard | None = None

    @property
    def is_part(self) -> bool:
        """Whether the tables wait for other runs."""
        return self.first is not None or self.shard is not None

    def own(self) -> list[Request]:
        """The studies of this run."""
        if self.shard is None:
            return list(self.requests)
        return [request for request in self.requests if self.shard.has(study_id_of(request))]

    def path(self) -> Path:
        """The journal of this run."""
        request = self.requests[0]
        words = [request.split]
        if self.first is not None:
            words.append(f"{self.first}-to-{self.requests[-1].index}")
        if self.shard is not None:
            words.append(self.shard.name)
        return Path(request.root) / FOLDER / f"{'.'.join(words)}{SUFFIX}"

    def head(self) -> dict[str, Any]:
        """What the journal says it holds; ``settings`` must agree among the parts of a cohort."""
        request = self.requests[0]
        later = {"hard": request.hard_share, "family": request.family}
        return {
            HEADER: _FORMAT,
            "settings": {
                "version": __version__,
                "split": request.split,
                "seed": request.seed,
                "pitfalls": list(request.pitfalls),
                "masks": request.masks,
                "wild": request.randomised_share,
                "syntax": request.syntax,
                **{name: value for name, value in later.items() if value != LATER[name]},
            },
            "range": [request.index, self.requests[-1].index],
            "shard": None if self.shard is None else [self.shard.index, self.shard.count],
        }


def study_id_of(request: Request) -> int:
    """The id that a request's study will have."""
    return study_number(request.seed, request.index + (TEST_OFFSET if request.split == "test" else 0))


class PartJournal:
    """The rows of a run's finished studies, on disk.

    Args:
        plan: what the run makes.
        resume: keep the studies that an earlier run has finished; False begins anew.
        prepare: called once the journal is held, and before a former one is gone: until it has returned, the former one
            says which studies lie there.

    Raises:
        CohortError: another process makes this part, or with ``resume`` the journal is of another cohort; or as
            ``prepare`` raises.
    """

    def __init__(self, plan: Plan, resume: bool, prepare: Callable[[], None] = lambda: None) -> None:
        path = plan.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = CheckedLines(path)
        self._places: dict[int, Place] = {}
        try:
            prepare()
        except BaseException:
            self._lines.close(remove=self._lines.is_empty)
            with suppress(OSError):
                path.parent.rmdir()
            raise
        if not resume and not self._lines.is_empty:
            self._lines.close(remove=True)
            self._lines = CheckedLines(path)
        header: dict[str, Any] | None = None
        for place, head in self._lines.records():
            if HEADER in head:
                header = head
            elif INDEX in head:
                self._places[head[INDEX]] = place
        try:
            if header is None:
                self._places.clear()
                self._lines.append(plan.head())
            elif header != plan.head():
                raise CohortError(_apart(path, header, plan))
        except CohortError:
            self._lines.close()
            raise

    def __contains__(self, index: object) -> bool:
        return index in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, index: int, tables: StudyTables) -> None:
        """Note a study whose files stand.

        Raises:
            CohortError: there is no room on the disk.
        """
        self._places[index] = self._lines.append({INDEX: index}, _to_json(tables))

    def tables(self) -> list[StudyTables]:
        """The rows of all studies, in the order of their index."""
        return [_from_json(self._lines.body(self._places[index])[1]) for index in sorted(self._places)]

    def close(self, remove: bool = False) -> None:
        """Close the file; with ``remove`` it goes, and the folder with the last one."""
        self._lines.close(remove)
        if remove:
            with suppress(OSError):
                self._lines.path.parent.rmdir()


def _apart(path: Path, header: dict[str, Any], plan: Plan) -> str:
    """Why a journal is not gone on with, and what can be done."""
    name, theirs, ours = _other_value(header, plan.head())
    advice = "use another --out"
    if name in REMADE:
        advice = "begin anew without --resume"
    elif not plan.is_part:
        advice += ", or --overwrite to begin anew"
    return f"{path}: found {name} {theirs}, expected {ours}; go on with the same options, or {advice}"


def _other_value(header: dict[str, Any], expected: dict[str, Any]) -> tuple[str, str, str]:
    """The first value of a head that differs: its name, as it is, as it is expected."""
    theirs, ours = ({**head, **LATER, **head.get("settings", {})} for head in (header, expected))
    name = next((name for name in ours if name != "settings" and theirs.get(name) != ours[name]), HEADER)
    return name, printable(theirs.get(name), 60), printable(ours.get(name), 60)


@dataclass
class _Part:
    path: Path
    head: dict[str, Any]
    places: dict[int, Place]


def merge_parts(root: Path, split: str) -> tuple[dict[str, Any], list[StudyTables]]:
    """What all parts of a cohort make together.

    Returns:
        settings and range, as the head of a plan has them; and the rows of all studies, in the order of their index.

    Raises:
        CohortError: there is no part, one or some of their studies are missing or there twice, or they belong to
            different cohorts.
    """
    folder = root / FOLDER
    parts = [_read(path) for path in part_files(root, split)]
    if not parts:
        raise CohortError(f"{folder}: found no part of the split {split}, expected one journal a part")
    for part in parts[1:]:
        if part.head["settings"] != parts[0].head["settings"]:
            name, theirs, ours = _other_value(part.head, parts[0].head | {"range": part.head["range"]})
            raise CohortError(
                f"{part.path}: found {name} {theirs}, expected {ours} as {parts[0].path.name} has; make one of them "
                f"again with the other's options{'' if name in REMADE else ', in another --out'}"
            )
    owners: dict[int, _Part] = {}
    for part in parts:
        for index in part.places:
            if index in owners:
                other = owners[index].path.name
                raise CohortError(f"{part.path}: found study {index}, which {other} has too, expected each study once")
            owners[index] = part
    _refuse_gaps(folder, parts, owners)
    ranges = [part.head["range"] for part in parts]
    whole = [min(low for low, _ in ranges), max(top for _, top in ranges)]
    rows = [_from_json(read_record(owners[index].path, owners[index].places[index])[1]) for index in sorted(owners)]
    return {"settings": parts[0].head["settings"], "range": whole}, rows


def part_files(root: Path, split: str) -> list[Path]:
    """The journals of a split's parts."""
    return sorted((root / FOLDER).glob(f"{split}.*{SUFFIX}"))


def remove_parts(root: Path, split: str) -> None:
    """Remove the journals of a split, once its tables stand."""
    for path in part_files(root, split):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (root / FOLDER).rmdir()


def _refuse_gaps(folder: Path, parts: Sequence[_Part], owners: dict[int, _Part]) -> None:
    """Every study between the first and the last is there.

    Raises:
        CohortError: naming the first that are missing, and the parts that should have them.
    """
    ranges = [part.head["range"] for part in parts]
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    missing = [index for index in range(lowest, highest + 1) if index not in owners]
    if missing:
        names = ", ".join(map(str, missing[:_NAMED])) + (" …" if len(missing) > _NAMED else "")
        shards = sorted(set(_absent(parts)))
        note = f"; part {', '.join(shards)} was not begun" if shards else "; run the parts again with --resume"
        raise CohortError(
            f"{folder}: found {counted(len(owners), 'study')} of {highest + 1 - lowest}, expected all: missing index "
            f"{names}{note}"
        )


def _absent(parts: Sequence[_Part]) -> Iterator[str]:
    """Shards that have no journal."""
    known = {tuple(part.head["shard"]) for part in parts if part.head["shard"]}
    for _, count in known:
        yield from (f"{index}-of-{count}" for index in range(count) if (index, count) not in known)


def _read(path: Path) -> _Part:
    part: _Part | None = None
    for place, head in read_heads(path):
        if part is None:
            if head is None or head.get(HEADER) != _FORMAT:
                raise CohortError(f"{path}: found no header, expected the journal of a part, of version {_FORMAT}")
            part = _Part(path, head, {})
        elif head is not None and INDEX in head:
            part.places[head[INDEX]] = place
    if part is None:
        raise CohortError(f"{path}: found an empty file, expected the journal of a part")
    return part


def _to_json(tables: StudyTables) -> dict[str, Any]:
    arrays = ("case_labels", "narrowing", "grades")
    rows = ("descriptions", "coordinates", "truth", "contrasts")
    return {
        "study_id": tables.study_id,
        **{name: [str(getattr(tables, name).dtype), getattr(tables, name).tolist()] for name in arrays},
        **{name: [[_plain(cell) for cell in row] for row in getattr(tables, name)] for name in rows},
    }


def _from_json(data: dict[str, Any]) -> StudyTables:
    case_labels, narrowing, grades = (
        np.array(data[name][1], dtype=data[name][0]) for name in ("case_labels", "narrowing", "grades")
    )
    rows = ("descriptions", "coordinates", "truth", "contrasts")
    lists = ([tuple(row) for row in data.get(name, [])] for name in rows)
    return StudyTables(data["study_id"], case_labels, narrowing, grades, *lists)


def _plain(cell: Any) -> Any:
    """A number of numpy as one of Python."""
    return cell.item() if isinstance(cell, np.generic) else cell
