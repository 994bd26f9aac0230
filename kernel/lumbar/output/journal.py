"""The journal of a run, ``submission.csv.journal``: one record a study, as soon as it is known what became of it.

A run that was killed goes on from it (``--resume``), and ``merge`` joins the journals of several parts. It begins with
a header that says which predictions these are; later headers stand above earlier ones. A record is one line with its
checksum (``lumbar.io.checked_lines``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lumbar.chains.contract import Outcome, Probs
from lumbar.errors import CohortError
from lumbar.io.checked_lines import CheckedLines, Place
from lumbar.io.fingerprint import is_same
from lumbar.io.text import counted, printable
from lumbar.output.left_out import add_left_out
from lumbar.output.outcome_json import STUDY, outcome_body, outcome_head, outcome_of, probs_of
from lumbar.output.record import add_seconds

log = logging.getLogger("lumbar")

FORMAT = 1
SUFFIX = ".journal"  # behind the submission's whole name
HEADER, SESSION, RUN = "journal", "pid", "devices"  # the key that tells each kind of record from a study's
_READERS = 16  # threads that look at the files of studies which were done before


@dataclass(frozen=True)
class Header:
    """Which predictions a journal holds.

    Attributes:
        manifest_hash: sha256 of the bundle's manifest.
        code_sha256: of the package that predicted.
        versions: ours, Python's, and the libraries'.
        split: ``test`` or ``train``.
        chain: its name.
        shard: number and count of parts; None for a run of all studies.
        cohort: hash of the ids of all studies of all parts, in the order of the file.
        n_cohort: how many these are.
        manifest: the manifest's data, from which ``merge`` takes the competition and the prior.
        studies: this part's ids.
        places: of this part's studies among all, from 0.
    """

    manifest_hash: str
    code_sha256: str
    versions: Mapping[str, str]
    split: str
    chain: str
    shard: tuple[int, int] | None
    cohort: str
    n_cohort: int
    manifest: Mapping[str, Any] = field(repr=False)
    studies: Sequence[int | str] = field(repr=False)
    places: Sequence[int] = field(repr=False)

    def head(self) -> dict[str, Any]:
        """The record's head: what a run that goes on compares."""
        return {HEADER: FORMAT} | {name: getattr(self, name) for name in _IDENTITY}

    def body(self) -> dict[str, Any]:
        """The record's body: what ``merge`` needs beyond it."""
        return {name: value for name, value in asdict(self).items() if name not in _IDENTITY}


_IDENTITY = ("manifest_hash", "code_sha256", "versions", "split", "chain", "shard", "cohort", "n_cohort")
_SAME_BUNDLE = ("manifest_hash", "code_sha256")


def cohort_hash(study_ids: Iterable[int | str]) -> str:
    """The hash of studies in their order."""
    text = "\n".join(map(str, study_ids))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def journal_path(out: str | os.PathLike[str]) -> Path:
    """The journal beside a submission."""
    path = Path(out)
    return path.with_name(path.name + SUFFIX)


def check_format(path: Path, head: Mapping[str, Any] | None) -> None:
    """See that a journal's first record is a header of this version.

    Raises:
        CohortError: it is none, or of another version.
    """
    if head is None or HEADER not in head:
        raise CohortError(f"{path}: found no header of a journal, expected the journal of a submission")
    if head[HEADER] != FORMAT:
        version = printable(head[HEADER], 20)
        raise CohortError(f"{path}: found a journal of version {version}, expected version {FORMAT}")


@dataclass(frozen=True)
class Rows:
    """What the tables say of each study.

    Attributes:
        lines: problems of its rows, for the record.
        digests: hash of its rows; a study whose rows changed is predicted again.
        inputs: study → what the record says of its series.
    """

    lines: Mapping[int | str | None, Sequence[str]] = field(default_factory=dict)
    digests: Mapping[int | str, str] = field(default_factory=dict)
    inputs: Callable[[int | str], list[dict[str, Any]] | None] = lambda study_id: None


class Journal(MutableMapping[int | str, Outcome]):
    """The outcomes of a run by study: on disk where there is a path, else in memory.

    Args:
        path: the journal; None keeps all outcomes in memory.
        rows: what the tables say of each study.
        pictured: studies whose pictures it keeps; None for all. Those of others are files of their own already.

    Raises:
        CohortError: the file cannot be opened, or another process writes it.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        rows: Rows | None = None,
        pictured: Container[int | str] | None = None,
    ) -> None:
        self._pictured = pictured
        self._lines = None if path is None else CheckedLines(path)
        self._is_new = self._lines is None or self._lines.is_empty
        self._rows = rows or Rows()
        self._places: dict[int | str, Place] = {}
        self._kept: dict[int | str, Outcome] = {}  # without a file, or while the disk is full
        self.answers: dict[int | str, Probs] = {}  # of studies that were done before, until the submission has them
        self.seconds: dict[str, float] = {}  # sums by part of the work
        self.left_out: dict[str, int] = {}  # studies that went without a member of the ensemble, by its name
        self.n_predicted = 0

    # ---- a mapping ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._places) + len(self._kept)

    def __contains__(self, study_id: object) -> bool:
        return study_id in self._places or study_id in self._kept

    def __iter__(self) -> Iterator[int | str]:
        yield from (*self._places, *self._kept)

    def __getitem__(self, study_id: int | str) -> Outcome:
        if study_id in self._kept:
            return self._kept[study_id]
        assert self._lines is not None
        return outcome_of(*self._lines.body(self._places[study_id]))

    def __setitem__(self, study_id: int | str, outcome: Outcome) -> None:
        lines = self._rows.lines.get(study_id, ())
        outcome.problems[:0] = [line for line in lines if line not in outcome.problems]
        outcome.inputs = self._rows.inputs(study_id)
        add_seconds(self.seconds, outcome)
        add_left_out(self.left_out, outcome.left_out)
        self.n_predicted += outcome.probs is not None
        self._kept[study_id] = outcome
        if self._lines is not None:
            self._flush(f"study {study_id}")

    def __delitem__(self, study_id: int | str) -> None:
        raise TypeError("a journal only grows")

    def in_order(self, study_ids: Sequence[int | str]) -> Sequence[Outcome]:
        """The outcomes in the order of the file, each read when it is asked for."""
        return Ordered(self, study_ids)

    # ---- beginning, going on, ending ------------------------------------------------------------------------------

    def begin(self, header: Header, resume: bool, fingerprints: Callable[[int | str], str]) -> None:
        """Write the header, and with ``resume`` take over what stands.

        Args:
            header: of this run.
            resume: go on from what is there; False sets it aside under ``NAME.old``.
            fingerprints: study → the fingerprint of its files now.

        Raises:
            CohortError: what is there belongs to another part, split, chain or version; it stays as it is.
        """
        lines = self._lines
        if lines is None:
            return
        former, heads = _read(lines)
        if not self._is_new:
            if resume and former is not None:
                check_format(lines.path, former)
            reason = _set_aside_reason(lines.path, former, header, resume)
            if reason:
                self._set_aside(reason, len(heads))
                former, heads = None, {}
        self._take_over(heads, header.studies, fingerprints)
        if former != _plain(header.head()):
            lines.append(header.head(), header.body())
        session = {SESSION: os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
        lines.append(session)
        lines.sync()

    def note_run(
        self,
        devices: Sequence[str],
        load_s: float,
        limit_s: float,
        problems: Sequence[str],
        own_code: str = "",
        index: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what the record of merged parts says of this run; without room on the disk it is left out."""
        if self._lines is not None:
            run = {RUN: list(devices), "load_s": load_s, "limit_s": limit_s, "problems": list(problems)}
            run |= {"own_code": own_code, "index": dict(index or {})}
            with suppress(CohortError):
                self._lines.append(run)

    def close(self, has_failed: bool = False) -> None:
        """Flush and close the file. One that a run has begun in vain, without any study, is removed."""
        if self._lines is None:
            return
        if self._kept:
            self._flush("the journal")
        self._lines.close(remove=has_failed and self._is_new and not self._places)

    def _set_aside(self, reason: str, n_studies: int) -> None:
        assert self._lines is not None
        aside = self._lines.set_aside()
        self._is_new = True
        log.warning("%s: %s; its %s stay in %s", self._lines.path.name, reason, counted(n_studies, "study"), aside.name)

    def _take_over(
        self,
        heads: Mapping[int | str, tuple[Place, dict[str, Any]]],
        study_ids: Sequence[int | str],
        fingerprints: Callable[[int | str], str],
    ) -> None:
        """Keep the studies that are final and whose files and rows are those that were read."""
        own = [study_id for study_id in study_ids if study_id in heads]
        asked = [study_id for study_id in own if self._is_standing(study_id, heads[study_id][1])]
        with ThreadPoolExecutor(_READERS) as pool:
            current = dict(zip(asked, pool.map(fingerprints, asked), strict=True))
        for study_id, files in current.items():
            place, head = heads[study_id]
            if not is_same(files, head["files"]):
                continue
            self._places[study_id] = place
            add_seconds(self.seconds, Outcome(study_id, seconds=head["seconds"]))
            add_left_out(self.left_out, head.get("left_out", ()))
            if (probs := probs_of(head)) is not None:
                self.answers[study_id] = probs
                self.n_predicted += 1
        if own:
            n_again = len(own) - len(self._places)
            again = f"; {n_again} again: files or rows changed, or time or a worker failed" if n_again else ""
            log.info("%d of %s done before%s", len(self._places), counted(len(study_ids), "study"), again)

    def _is_standing(self, study_id: int | str, head: Mapping[str, Any]) -> bool:
        return bool(head["final"]) and head["rows"] == self._rows.digests.get(study_id, "")

    def _flush(self, what: str) -> None:
        """Write the outcomes that are in memory; while the disk is full they stay there."""
        assert self._lines is not None
        try:
            for study_id, outcome in list(self._kept.items()):
                head = outcome_head(outcome) | {"rows": self._rows.digests.get(study_id, "")}
                has_pictures = self._pictured is None or study_id in self._pictured
                self._places[study_id] = self._lines.append(head, outcome_body(outcome, has_pictures))
                del self._kept[study_id]
        except CohortError as error:
            log.error("%s: %s", what, error)


class Ordered(Sequence[Outcome]):
    """Outcomes in an order, each read when it is asked for."""

    def __init__(self, outcomes: Mapping[int | str, Outcome], study_ids: Sequence[int | str]) -> None:
        self._outcomes, self._study_ids = outcomes, study_ids

    def __len__(self) -> int:
        return len(self._study_ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Ordered(self._outcomes, self._study_ids[index])
        return self._outcomes[self._study_ids[index]]


def _read(lines: CheckedLines) -> tuple[dict[str, Any] | None, dict[int | str, tuple[Place, dict[str, Any]]]]:
    """The last header, and of each study the last record."""
    header: dict[str, Any] | None = None
    heads: dict[int | str, tuple[Place, dict[str, Any]]] = {}
    for place, head in lines.records():
        if HEADER in head:
            header = head
        elif STUDY in head:
            heads[head[STUDY]] = (place, head)
    return header, heads


def _set_aside_reason(path: Path, former: dict[str, Any] | None, header: Header, resume: bool) -> str:
    """Why the run begins anew; empty where it goes on.

    Raises:
        CohortError: the journal belongs to something else, so that going on would mix answers.
    """
    if former is None:
        return "found no header" if resume else "found another file"
    if not resume:
        return "begun anew (--resume would go on)"
    now = _plain(header.head())
    for name in ("split", "chain", "shard"):
        if former[name] != now[name]:
            raise CohortError(f"{path}: found {name} {_shown(former[name])}, expected {_shown(now[name])}")
    for name in _SAME_BUNDLE:
        if former[name] != now[name]:
            return f"found {name} {former[name][:12]}, expected {now[name][:12]}: all are predicted again"
    if former["versions"] != now["versions"]:
        theirs, ours = versions_apart(former["versions"], now["versions"])
        raise CohortError(
            f"{path}: found predictions of {theirs}, expected {ours}; go on with those versions, or begin anew without "
            "--resume"
        )
    return ""


def versions_apart(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str]:
    """The versions that two environments do not share, in words, of each."""
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    first, second = (", ".join(f"{name} {side.get(name, 'missing')}" for name in names) for side in (one, other))
    return printable(first, 200), printable(second, 200)


def _plain(head: Mapping[str, Any]) -> dict[str, Any]:
    """A head as it is read again: JSON has lists alone."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in head.items()}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]}/{value[1]}"
    return "none" if value is None else printable(value, 60)
