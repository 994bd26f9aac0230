"""Joins the out-of-fold logits of every classifier of every run, under guard."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.errors import CohortError
from lumbar.io.text import printable
from lumbar_train.data.folds import read_own_folds
from lumbar_train.data.tables import Cohort
from lumbar_train.ensemble.external import COLUMNS, FILE, ExternalFolder, read_table
from lumbar_train.ensemble.guards import check_logits, check_same_cohort, check_same_folds, check_seen, check_up_to_date
from lumbar_train.ensemble.out_of_fold import labelled, prior_by_fold
from lumbar_train.evaluation.pool import Members
from lumbar_train.outputs.run_classifiers import classifiers_of_run
from lumbar_train.outputs.store import logits_of, read_frame, read_logits

_NAME_LENGTH, _NAME_HEAD = 64, 20  # the manifest takes no longer name; how much of the run's name stays in a cut one


@dataclass(frozen=True)
class Source:
    """Where a member comes from: a classifier of a run, or an external model's table of logits.

    Attributes:
        name: of the member.
        run: the name of its run.
        path: the run's folder.
        classifier: the stage; empty for an external model, whose folder holds ``oof.parquet`` itself.
    """

    name: str
    run: str
    path: Path
    classifier: str

    @property
    def table(self) -> Path:
        """Its out-of-fold logits."""
        return self.path / self.classifier / "oof.parquet"


@dataclass(frozen=True)
class Candidates:
    """All that may be chosen from.

    Attributes:
        members: the logits; a study that a run left out is masked in its members.
        sources: of the members, in the same order.
        cohort: ids and labels of the studies.
        fold_of: fold by study.
        left_out: how many of the studies each run has not, where it lacks some.
    """

    members: Members
    sources: tuple[Source, ...]
    cohort: Cohort
    fold_of: dict[int, int]
    left_out: dict[str, int]


def gather(
    runs: Mapping[str, Path], cohort: Cohort | None = None, externals: Mapping[str, ExternalFolder] | None = None
) -> Candidates:
    """Join the logits of every classifier of every run, and of every external member.

    Args:
        runs: folders by name.
        cohort: labels; None takes those that the runs have noted.
        externals: team mates' folders by name, which no run has.

    Raises:
        LeakError: a table, a network or a fold that does not hold a study out as it says, or as the first run does.
        CohortError: a run without out-of-fold logits, without labels, or of another cohort; two members of one name.
    """
    externals = externals or {}
    sources = [source for name, path in runs.items() for source in sources_of(name, path)]
    sources += [Source(name, name, one.path, "") for name, one in externals.items()]
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CohortError(f"--runs: found two members named {twice[0]}, expected different names; give NAME=RUN")
    tables = {name: read_table(one) for name, one in externals.items()}
    runs = {**runs, **{name: one.path for name, one in externals.items()}}
    folds = {name: _folds(path, tables.get(name)) for name, path in runs.items()}
    by_run = {name: dict(zip(t["study_id"].tolist(), t["fold"].tolist(), strict=True)) for name, t in folds.items()}
    check_same_folds(runs, by_run, runs)
    check_same_cohort(runs, cohort)
    for one in externals.values():
        _check_external_cohort(one, by_run[one.listed.name], cohort)
    for name, path in runs.items():
        check_seen(path, by_run[name])
        check_up_to_date(path)
    for source in sources:
        check_logits(source.table, folds[source.run], tables.get(source.run))
    fold_of = {study: fold for own in by_run.values() for study, fold in own.items()}
    ids = sorted(fold_of)
    known = labelled(runs, ids, cohort)
    pairs = [
        logits_of(tables[source.run], ids) if source.run in tables else read_logits(source.table, ids)
        for source in sources
    ]
    for source, (logits, _) in zip(sources, pairs, strict=True):
        _check_finite(source, logits, ids)
    members = Members(
        tuple(names), np.stack([p[0] for p in pairs], axis=1), np.stack([p[1] for p in pairs], axis=1), known.labels,
        np.array([fold_of[study] for study in ids]), prior_by_fold(known, fold_of), np.ones(len(names)),
    )  # fmt: skip
    left_out = {name: len(ids) - len(own) for name, own in by_run.items() if len(own) < len(ids)}
    return Candidates(members, tuple(sources), known, fold_of, left_out)


def sources_of(run: str, path: Path) -> list[Source]:
    """The members that a run has to give.

    Raises:
        CohortError: none, or a classifier without out-of-fold logits.
    """
    if _is_external(path):
        return [Source(member_name(run), run, path, "")]
    stages = [name for name in classifiers_of_run(path) if (path / name).is_dir()]
    if not stages:
        raise CohortError(
            f"{printable(path)}: found no classifier and no oof.parquet with {', '.join(COLUMNS)}, expected a run of "
            "the chain, or an external model's out-of-fold logits"
        )
    for name in stages:
        if not (path / name / "oof.parquet").is_file():
            raise CohortError(
                f"{printable(path / name)}: found no oof.parquet, expected out-of-fold logits; train its folds with "
                "--resume"
            )
    return [Source(member_name(run, name), run, path, name) for name in stages]


def member_name(run: str, classifier: str = "") -> str:
    """What a member is called in tables and in a bundle: small letters, digits and _, at most 64.

    Of a longer name both ends stay, with a hash between them that keeps names apart which differ in the middle.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", run.lower()).strip("_") or "run"
    plain = plain if plain[0].isalpha() else f"run_{plain}"
    name = f"{plain}_{classifier}" if classifier else plain
    if len(name) <= _NAME_LENGTH:
        return name
    middle = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}_"
    return name[:_NAME_HEAD] + middle + name[_NAME_HEAD + len(middle) - _NAME_LENGTH :]


def _is_external(path: Path) -> bool:
    table = path / "oof.parquet"
    return table.is_file() and set(COLUMNS) <= set(pd.read_parquet(table).columns)


def _check_external_cohort(one: ExternalFolder, fold_of: Mapping[int, int], cohort: Cohort | None) -> None:
    """Refuse a member that was trained on another cohort, by its own word or by a study that the cohort lacks."""
    if cohort is None:
        return
    if one.cohort and one.cohort != cohort.fingerprint:
        raise CohortError(
            f"{printable(one.path / FILE)}: found cohort {printable(one.cohort[:12])}, expected "
            f"{cohort.fingerprint[:12]}, the cohort of {printable(cohort.root)}"
        )
    if strange := sorted(fold_of.keys() - set(cohort.study_ids.tolist())):
        raise CohortError(
            f"{printable(one.path / 'oof.parquet')}: found study {strange[0]} ({len(strange)} such), expected studies "
            f"of {printable(cohort.root)} alone"
        )


def _folds(path: Path, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The folds of a run; those of an external model without ``folds.csv`` stand in its table."""
    if table is not None and not (path / "folds.csv").is_file():
        return table[["study_id", "fold"]].drop_duplicates(ignore_index=True)
    if (path / "folds.csv").is_file():
        return read_own_folds(path / "folds.csv")
    if not _is_external(path):
        raise CohortError(f"{printable(path)}: found no folds.csv, expected a run folder")
    return read_frame(path / "oof.parquet")[["study_id", "fold"]].drop_duplicates(ignore_index=True)


def _check_finite(source: Source, logits: np.ndarray, ids: list[int]) -> None:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=(1, 2, 3)))
    if bad.size:
        raise CohortError(
            f"{printable(source.table)}: found logits of study {ids[bad[0]]} that are no numbers ({bad.size} such "
            "studies), expected numbers"
        )
