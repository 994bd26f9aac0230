"""A folder of DICOM as a run needs it: its studies with the kind of each series, and why others are left out.

Only headers are read. A competition's table of series, where one describes a folder, stands above the headers.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.intake.files import list_tree
from lumbar.intake.headers import ImageHeader, read_headers
from lumbar.intake.ids import StudyId, id_order, is_plain_name, safe_id
from lumbar.intake.kinds import BODY, Decision, decide
from lumbar.intake.parts import StudyParts, group_studies
from lumbar.intake.table_above import kinds_above
from lumbar.io.progress import Progress
from lumbar.io.text import PublicText, counted, masked_name

log = logging.getLogger("lumbar")

_MANY = 5000  # files from which on the reading of headers shows how far it has come
_MOST_LINES = 20  # about files that cannot be read


@dataclass
class IndexedStudy:
    """A study of the index.

    Attributes:
        study_id: whole number or text that is safe anywhere (``ids.safe_id``).
        decisions: one for each part of each series, in the order of their ids.
        series_ids: of the decisions.
        problems: lines about it.
        refusal: one line that says why it is no study of a lumbar spine by MR; empty where it is.
    """

    study_id: StudyId
    decisions: list[Decision]
    series_ids: list[StudyId]
    problems: list[str] = field(default_factory=list)
    refusal: str = ""


@dataclass
class Index:
    """What a folder holds.

    Attributes:
        root: the folder.
        studies: in the order of their ids, refused ones too.
        problems: lines about files that belong to no study.
        n_files, n_dicom: files seen, and those of them that are DICOM.
        seconds: that reading the headers took.
    """

    root: Path
    studies: list[IndexedStudy]
    problems: list[str]
    n_files: int
    n_dicom: int
    seconds: float

    @property
    def summary(self) -> str:
        """One line for the log."""
        n_series = sum(len({one.part.series for one in study.decisions}) for study in self.studies)
        return (
            f"index of headers: {counted(self.n_files, 'file')}, {self.n_dicom} of them DICOM, "
            f"{counted(len(self.studies), 'study')}, {counted(n_series, 'series')}; {self.seconds:.1f} s"
        )

    def usable(self) -> list[IndexedStudy]:
        """The studies that are not refused."""
        return [study for study in self.studies if not study.refusal]

    def require_usable(self) -> None:
        """Refuse a folder without any study of a lumbar spine by MR.

        Raises:
            CohortError: naming what is there instead.
        """
        if self.usable():
            return
        (first, *others) = self.studies
        more = f" (and {len(others)} more studies like it)" if others else ""
        raise CohortError(f"{self.root}: study {first.study_id}: {first.refusal}{more}")


def index_folder(root: Path, *, progress: bool = False, n_threads: int | None = None) -> Index:
    """Index every DICOM file below a folder by its header.

    Args:
        root: the folder.
        progress: say how far it has come.
        n_threads: that read headers; None for the machine's own number.

    Raises:
        CohortError: the folder cannot be listed, or holds no DICOM file.
    """
    started = time.monotonic()
    paths = list_tree(root)
    headers: list[ImageHeader] = []
    unreadable: list[str] = []
    with Progress(len(paths), "file", is_shown=progress and len(paths) >= _MANY, write=log.info) as shown:
        for entry in read_headers(paths, n_threads, shown.update):
            if isinstance(entry, str):
                unreadable.append(entry)
            elif entry is not None:
                headers.append(entry)
    if not headers:
        raise CohortError(
            f"{root}: found no DICOM file in {counted(len(paths), 'file')}, {_expected(unreadable, root)}"
        )
    parts = group_studies(headers, root)
    names = _study_names(parts, root)
    studies = [_indexed(study, names[study.key], root) for study in parts]
    _number_same_ids(studies)
    studies.sort(key=lambda study: id_order(study.study_id))
    n_others = len(paths) - len(headers) - len(unreadable)
    problems = [f"{counted(n_others, 'file')} passed over, no DICOM"] if n_others else []
    public = _public(root)
    problems += [public(line) for line in unreadable[:_MOST_LINES]]
    if len(unreadable) > _MOST_LINES:
        problems.append(f"and {len(unreadable) - _MOST_LINES} more files that cannot be read")
    n_dicom = len(headers) + len(unreadable)
    return Index(root, studies, problems, len(paths), n_dicom, time.monotonic() - started)


def _expected(unreadable: Sequence[str], root: Path) -> str:
    expected = "expected a folder of lumbar spine MR studies"
    return f"{expected} ({_public(root)(unreadable[0])})" if unreadable else expected


def _public(root: Path) -> Callable[[str], str]:
    """Lines about files below a folder: with relative paths, unusual names masked."""
    return PublicText((root,))


# ---- ids ----------------------------------------------------------------------------------------------------------


def _study_names(studies: Sequence[StudyParts], root: Path) -> dict[str, StudyId]:
    """The id of each study: the name of a folder that is its own alone, unique and plain; else its UID."""
    own = _own_folders(studies, root)
    holders = Counter(name for folders in own.values() for name in {Path(folder).name for folder in folders})
    chosen: dict[str, StudyId] = {}
    for number, study in enumerate(studies, 1):
        names = [Path(folder).name for folder in own[study.key]]
        plain = next((name for name in names if holders[name] == 1 and is_plain_name(name)), "")
        if plain:
            chosen[study.key] = safe_id(plain)
        elif study.key.startswith("folder "):  # no StudyInstanceUID
            chosen[study.key] = safe_id(masked_name(names[0]) if names else f"study-{number}")
        else:
            chosen[study.key] = safe_id(study.key)
    return chosen


def _own_folders(studies: Sequence[StudyParts], root: Path) -> dict[str, list[str]]:
    """The folders below the root that hold all of a study and nothing of another, the highest first."""
    holders: Counter[str] = Counter()
    shared: dict[str, set[str]] = {}
    for study in studies:
        above = [set(_folders_above(header.path, root)) for header in study.headers()]
        shared[study.key] = set.intersection(*above)
        holders.update(set.union(*above))
    return {key: sorted((one for one in folders if holders[one] == 1), key=len) for key, folders in shared.items()}


def _folders_above(path: str, root: Path) -> list[str]:
    """The folders of a file, below the root."""
    folders, top = [], os.fspath(root)
    folder = os.path.dirname(path)
    while len(folder) > len(top):
        folders.append(folder)
        folder = os.path.dirname(folder)
    return folders


def _series_ids(decisions: Sequence[Decision], root: Path) -> list[StudyId]:
    """The id of each part: its series' folder where that is plain and holds that series alone, else its UID."""
    folders: dict[str, set[str]] = {}
    series_in: dict[str, set[str]] = {}
    for decision in decisions:
        for path in decision.part.files:
            folder = os.path.dirname(path)
            folders.setdefault(decision.part.series, set()).add(folder)
            series_in.setdefault(folder, set()).add(decision.part.series)
    names = Counter(Path(folder).name for folder in series_in)
    ids: list[StudyId] = []
    taken: Counter[StudyId] = Counter()
    for decision in decisions:
        series = decision.part.series
        (folder, *more) = sorted(folders[series])
        name = Path(folder).name
        is_own = not more and len(series_in[folder]) == 1 and names[name] == 1 and is_plain_name(name)
        is_own = is_own and os.path.abspath(folder) != os.path.abspath(root)
        text = name if is_own else masked_name(name) if series.startswith("folder ") else series
        series_id = safe_id(text)
        taken[series_id] += 1
        ids.append(series_id if taken[series_id] == 1 else f"{series_id}.part{taken[series_id]}")
    return ids


def _number_same_ids(studies: Sequence[IndexedStudy]) -> None:
    """Make ids differ that two studies without a UID share."""
    seen: Counter[str] = Counter()
    for study in studies:
        seen[str(study.study_id)] += 1
        if seen[str(study.study_id)] > 1:
            study.study_id = f"{study.study_id}.{seen[str(study.study_id)]}"


# ---- one study ----------------------------------------------------------------------------------------------------


def _indexed(study: StudyParts, study_id: StudyId, root: Path) -> IndexedStudy:
    decisions = sorted(decide(study), key=lambda decision: (not decision.kind, decision.part.files[0]))
    kinds_above(decisions, root)
    indexed = IndexedStudy(study_id, decisions, _series_ids(decisions, root), list(study.problems))
    indexed.refusal = _refusal(study, decisions)
    modalities = _modalities(decisions)
    if not indexed.refusal and len(modalities) > 1:
        others = ", ".join(sorted(modalities - {"MR"}))
        indexed.problems.append(f"found modalities {others} beside MR, expected MR alone; their series are left out")
    return indexed


def _modalities(decisions: Sequence[Decision]) -> set[str]:
    """Of the images of a study; where a file names none it counts as MR."""
    headers = [header for decision in decisions if decision.cause != "no image" for header in decision.part.headers]
    names = {header.modality or "MR" for header in headers}
    return {name if name.isalpha() and len(name) <= 16 else "unknown" for name in names}


def _differing_patients(study: StudyParts) -> str:
    """The attribute by which a study's files are of several patients; empty where they are of one."""
    headers = study.headers()
    if len({header.patient_id for header in headers if header.patient_id}) > 1:
        return "PatientID"
    names = sorted({header.patient_name for header in headers if header.patient_name}, key=len)
    longest = names[-1] if names else frozenset()
    return "PatientName" if any(not name <= longest for name in names) else ""  # one may lack a second name


def _refusal(study: StudyParts, decisions: Sequence[Decision]) -> str:
    """Why a study is none of a lumbar spine by MR, of one patient; empty where it is."""
    if differing := _differing_patients(study):
        return f"found two patients or more ({differing} differs), expected one"
    images = [decision for decision in decisions if decision.cause != "no image"]
    if not images:
        return "found no image, expected MR"
    modalities = _modalities(decisions)
    if "MR" not in modalities:
        return f"found modality {', '.join(sorted(modalities))}, expected MR"
    mr = [one for one in images if one.cause not in ("modality", "secondary capture", "localiser", "derived")]
    if mr and all(one.cause == BODY for one in mr):
        return (
            f"found {mr[0].reason}"
            if "expected" in mr[0].reason
            else f"found a {mr[0].reason}, expected a lumbar spine"
        )
    return ""
