"""Parts of a prediction joined into one submission, record and report, from their journals.

The journals hold the answers bit for bit, so the result is what one run of all studies would have written.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import FILE_NAME, Manifest, manifest_of
from lumbar.chains.contract import Outcome, Probs
from lumbar.errors import CohortError
from lumbar.io.checked_lines import Place, read_heads, read_record
from lumbar.io.files import check_writable, make_folder, without_empty_folders
from lumbar.io.text import counted, printable
from lumbar.output.extras import Extras, check_outputs
from lumbar.output.journal import HEADER, RUN, SUFFIX, Ordered, check_format, journal_path, versions_apart
from lumbar.output.left_out import add_left_out
from lumbar.output.outcome_json import STUDY, outcome_of, probs_of
from lumbar.output.record import record_head, write_extras
from lumbar.output.report_layout import MOST_ON_ONE_PAGE
from lumbar.output.submission import Submission

log = logging.getLogger("lumbar")

_MUST_AGREE = {"manifest_hash": "bundle", "code_sha256": "code", "split": "split", "chain": "chain"}
_NAMED = 3  # studies that a message names; of the others it gives the number


@dataclass
class Part:
    """One journal as read: where each study's record lies, and what its runs noted.

    Attributes:
        path: the journal.
        head, body: its last header.
        places: of each study's last record.
        seconds: sums by part of the work.
        left_out: studies that went without a member of the ensemble, by its name.
        devices: of the workers of all its runs.
        load_s: the longest loading of weights.
        limit_s: the longest time limit.
        problems: lines that belong to no study.
        own_code: a sentence that other code ran than was sealed with the bundle.
        index: of a folder without tables, what its last run says of the index.
    """

    path: Path
    head: dict[str, Any]
    body: dict[str, Any]
    places: dict[int | str, Place] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    load_s: float = 0.0
    limit_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    own_code: str = ""
    index: dict[str, Any] = field(default_factory=dict)

    @property
    def shard(self) -> tuple[int, int]:
        """Number and count of parts; a run of all studies is part 0 of 1."""
        index, count = self.head["shard"] or (0, 1)
        return index, count


def merge(
    parts: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    record: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    table: str | os.PathLike[str] | None = None,
) -> dict[str, int]:
    """Join parts into one submission, in the order of the whole cohort.

    Parts of several cohorts that share no study are joined one cohort after another.

    Args:
        parts: submissions of the parts, each with its journal beside it.
        out: the submission to write; the folder is made.
        record: the run record of all parts.
        report: the report of all parts, on one page with pictures of the first ten studies; pages of single studies
            are those of the parts' own reports.
        table: the findings of all parts.

    Returns:
        ``rows``, ``studies`` and ``predicted``, counted.

    Raises:
        CohortError: a part is missing, is there twice, is not finished, or belongs to another bundle or version;
            nothing was written.
    """
    files = [_journal_of(Path(part)) for part in parts]
    _refuse_repeated(files)
    targets = [Path(path) for path in (out, record, report, table) if path is not None]
    _check_targets(targets, files)
    read = [_read(path) for path in files]
    _check_agreement(read)
    study_ids, owners = _in_order(read)
    for part in read:
        _check_finished(part)
    first = read[0]
    manifest = manifest_of(first.path.parent / FILE_NAME, first.head["manifest_hash"], first.body["manifest"])
    outputs = {"table": None if table is None else Path(table)}
    check_outputs(outputs, "single", manifest)
    with without_empty_folders(path.parent for path in targets):
        for path in targets:
            make_folder(path.parent)
            check_writable(path)
    answers = _Answers(owners)
    submission = Submission(study_ids, manifest.prior, Path(out), manifest.competition, answers)
    submission.check()
    outcomes = Ordered(_Outcomes(owners, frozenset(study_ids[:MOST_ON_ONE_PAGE])), study_ids)
    if record is not None or report is not None:
        _write_extras(read, outcomes, manifest, submission, record, report)
    limit_s = max(part.limit_s for part in read)
    Extras(outputs, study_ids, manifest, None).finish({}, outcomes, submission, limit_s, earlier=owners)
    n_rows = len(study_ids) * len(manifest.competition.rows)
    return {"rows": n_rows, "studies": len(study_ids), "predicted": answers.n_read}


class _Answers(Mapping[int | str, Probs]):
    """The answers of all studies that were predicted, read one after another."""

    def __init__(self, owners: Mapping[int | str, Part]) -> None:
        self._owners, self.n_read = owners, 0

    def __len__(self) -> int:
        return len(self._owners)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._owners)

    def __getitem__(self, study_id: int | str) -> Any:
        part = self._owners[study_id]
        return probs_of(read_record(part.path, part.places[study_id])[0])

    def items(self) -> Any:
        """Study and answer; studies whose prior stays are left out."""
        for study_id in self._owners:
            probs = self[study_id]
            if probs is not None:
                self.n_read += 1
                yield study_id, probs


class _Outcomes(Mapping[int | str, Outcome]):
    """The outcomes of all parts, each read when it is asked for; pictures of the first studies alone."""

    def __init__(self, owners: Mapping[int | str, Part], pictured: frozenset[int | str]) -> None:
        self._owners, self._pictured = owners, pictured

    def __len__(self) -> int:
        return len(self._owners)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._owners)

    def __getitem__(self, study_id: int | str) -> Outcome:
        part = self._owners[study_id]
        outcome = outcome_of(*read_record(part.path, part.places[study_id]))
        if study_id not in self._pictured:
            outcome.pictures = []
        return outcome


def _journal_of(part: Path) -> Path:
    """The journal beside a part's submission; the journal itself may be named too."""
    if part.name.endswith(SUFFIX):
        path, submission = part, part.with_name(part.name.removesuffix(SUFFIX))
    else:
        path, submission = journal_path(part), part
    for file, what in ((submission, "the submission of a part"), (path, "the journal beside its submission")):
        if not file.is_file():
            raise CohortError(f"{file}: not found, expected {what}")
    return path


def _refuse_repeated(files: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in files:
        place = os.path.realpath(path)
        if place in seen:
            raise CohortError(f"{path}: found twice among the parts, expected each part once")
        seen[place] = path


def _check_targets(targets: Sequence[Path], files: Sequence[Path]) -> None:
    """An output must not be a part, nor another output."""
    taken = {os.path.realpath(name): "a part" for path in files for name in (path, str(path).removesuffix(SUFFIX))}
    for path in targets:
        place = os.path.realpath(path)
        if place in taken:
            raise CohortError(f"{path}: found {taken[place]}, expected a file of its own for each output")
        taken[place] = "another output"


def _read(path: Path) -> Part:
    """Read a journal's header and places.

    Raises:
        CohortError: it is none, or of another version.
    """
    part: Part | None = None
    for place, head in read_heads(path):
        if part is None:
            check_format(path, head)
            part = Part(path, {}, {})
        if head is None:
            continue  # a damaged line: its study is missed below
        if HEADER in head:
            check_format(path, head)
            part.head, part.body = head, read_record(path, place)[1]
        elif STUDY in head:
            part.places[head[STUDY]] = place
            add_left_out(part.left_out, head.get("left_out", ()))
            for stage, value in head["seconds"].items():
                if stage != "study":
                    part.seconds[stage] = part.seconds.get(stage, 0.0) + value
        elif RUN in head:
            _note(part, head)
    if part is None:
        raise CohortError(f"{path}: found an empty file, expected the journal of a submission")
    return part


def _note(part: Part, run: Mapping[str, Any]) -> None:
    """What a run of a part noted."""
    part.devices += [device for device in run["devices"] if device not in part.devices]
    part.load_s = max(part.load_s, run["load_s"])
    part.limit_s = max(part.limit_s, run["limit_s"])
    part.problems += [line for line in run["problems"] if line not in part.problems]
    part.own_code = part.own_code or run["own_code"]
    part.index = run["index"]


def _check_agreement(parts: Sequence[Part]) -> None:
    """All parts come from one bundle, one code and the same versions."""
    first = parts[0]
    for part in parts[1:]:
        for name, what in _MUST_AGREE.items():
            if part.head[name] != first.head[name]:
                theirs, ours = (printable(head[name], 16) for head in (part.head, first.head))
                raise CohortError(f"{part.path}: found {what} {theirs}, expected {ours} as {first.path.name} has")
        if part.head["versions"] != first.head["versions"]:
            theirs, ours = versions_apart(part.head["versions"], first.head["versions"])
            raise CohortError(f"{part.path}: found {theirs}, expected {ours} as {first.path.name} has")


def _in_order(parts: Sequence[Part]) -> tuple[list[int | str], dict[int | str, Part]]:
    """The studies in the order of the whole cohort, and each one's part.

    Raises:
        CohortError: a study is in two parts, or a part is missing.
    """
    cohorts: dict[str, list[Part]] = {}
    for part in parts:
        cohorts.setdefault(part.head["cohort"], []).append(part)
    owners: dict[int | str, Part] = {}
    for cohort in cohorts.values():
        for _, study_id, part in _ranked(cohort):
            if study_id in owners:
                raise CohortError(
                    f"{part.path}: found study {printable(study_id, 64)}, which {owners[study_id].path.name} has too, "
                    "expected each study once"
                )
            owners[study_id] = part
        _check_complete(cohort)
    return list(owners), owners


def _ranked(cohort: Sequence[Part]) -> list[tuple[int, int | str, Part]]:
    """Place among all, study and part, in the order of the cohort."""
    rows = [
        (place, study_id, part)
        for part in cohort
        for place, study_id in zip(part.body["places"], part.body["studies"], strict=True)
    ]
    return sorted(rows, key=lambda row: row[0])


def _check_complete(cohort: Sequence[Part]) -> None:
    """Every part of a cohort is there.

    Raises:
        CohortError: naming those that are missing.
    """
    counts = sorted({part.shard[1] for part in cohort})
    if len(counts) > 1:
        odd = next(part for part in cohort if part.shard[1] != counts[0])
        raise CohortError(f"{odd.path}: found a part of {odd.shard[1]}, expected one of {counts[0]} as the others are")
    (count,) = counts
    there = {part.shard[0] for part in cohort}
    missing = [index for index in range(count) if index not in there]
    n_studies = cohort[0].head["n_cohort"] - sum(len(part.body["studies"]) for part in cohort)
    if missing:
        names = _some([f"{index}-of-{count}" for index in missing])
        raise CohortError(
            f"{cohort[0].path.parent}: found {len(cohort)} of {counted(count, 'part')}, expected all: missing {names} "
            f"with {counted(n_studies, 'study')}"
        )


def _check_finished(part: Part) -> None:
    """Every study of a part has its outcome.

    Raises:
        CohortError: naming the first that has none.
    """
    left = [study_id for study_id in part.body["studies"] if study_id not in part.places]
    if left:
        names = _some([printable(study_id, 64) for study_id in left])
        raise CohortError(
            f"{part.path}: found no outcome of {counted(len(left), 'study')} ({names}), expected one for each; run "
            "this part again with --resume"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _index(parts: Sequence[Part]) -> dict[str, Any]:
    """What the record says of an indexed folder: each part went over all of its files."""
    told = [part.index for part in parts if part.index]
    return {**told[0], "seconds": round(sum(index["seconds"] for index in told), 3)} if told else {}


def _write_extras(
    parts: Sequence[Part],
    outcomes: Sequence[Outcome],
    manifest: Manifest,
    submission: Submission,
    record: str | os.PathLike[str] | None,
    report: str | os.PathLike[str] | None,
) -> None:
    """Write record and report; the submission stands already."""
    seconds: dict[str, float] = {"load": max(part.load_s for part in parts)}
    left_out: Counter[str] = Counter()
    for part in parts:
        left_out.update(part.left_out)
        for stage, value in part.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    devices = [device for part in parts for device in part.devices]
    problems = list(dict.fromkeys(line for part in parts for line in part.problems))
    own_code = next((part.own_code for part in parts if part.own_code), "")
    libraries = parts[0].head["versions"] | ({"code": own_code} if own_code else {})
    head = record_head(manifest.hash, libraries, devices, seconds, problems, _index(parts), left_out)
    limit_s = max((part.limit_s for part in parts), default=math.inf)
    paths = [None if path is None else Path(path) for path in (record, report)]
    write_extras(head, outcomes, submission, manifest, limit_s, paths[0], paths[1])
