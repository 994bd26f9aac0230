"""What a run reads and which studies are its own, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.bundle.code_hash import own_code_sha256
from lumbar.bundle.external_code import code_that_may_run
from lumbar.bundle.manifest import Manifest, verify
from lumbar.chains.contract import Chain
from lumbar.chains.registry import chain_of
from lumbar.competitions.contract import SPLITS, Competition
from lumbar.competitions.registry import DEFAULT
from lumbar.competitions.tables import read_studies
from lumbar.errors import CohortError
from lumbar.io.competition import folder_to_index
from lumbar.io.fingerprint import fingerprints, row_digests
from lumbar.io.numba_cache import compiling_decoders, use_numba_cache
from lumbar.io.tables import FILES, PROBLEMS, SeriesTable, list_studies
from lumbar.io.text import printable_log
from lumbar.output.destinations import check_destinations, refuse_inputs
from lumbar.output.extras import check_outputs
from lumbar.output.journal import Header, Rows, cohort_hash, journal_path
from lumbar.output.record import inputs_of
from lumbar.output.submission import expected_studies
from lumbar.output.versions import versions
from lumbar.workers.shards import Shard, find_shard
from lumbar.workers.worker import Setup

log = printable_log()

Outputs = Mapping[str, str | Path | None]
_FILES_OF_A_PART = ("out", "report", "record", "table")  # folders take the files of all parts


@dataclass(frozen=True)
class Request:
    """What is asked of a run, as ``lumbar.predict`` describes it."""

    root: Path
    weights: str | Path
    split: str = "test"
    chain: str | Chain = "main"
    studies: int | Sequence[int | str] | None = None
    shard: str | Shard | None = None
    manifest_hash: str | None = None
    layout: str = "auto"
    progress: bool = False
    trust_members: bool = False

    @property
    def part(self) -> Shard | None:
        """The part that this process does; None for all studies."""
        return find_shard(self.shard) if isinstance(self.shard, str) else self.shard


@dataclass(frozen=True)
class RunInputs:
    """What a run reads.

    Attributes:
        study_ids: of this part, in the order of the file.
        cohort: the studies of all parts.
        chain_name: as it was asked for, ``another`` for one that has no name.
    """

    root: Path
    split: str
    manifest: Manifest
    chain: Chain
    study_ids: list[int | str]
    table: SeriesTable
    cohort: list[int | str]
    part: Shard | None
    chain_name: str

    @property
    def descriptions(self) -> pd.DataFrame:
        """The rows about series or studies."""
        return self.table.frame

    @property
    def fingerprints(self) -> Callable[[int | str], str]:
        """Study → the fingerprint of its files now."""
        competition = self.manifest.competition
        return fingerprints(self.root, competition.path(competition.images, self.split), self.descriptions)

    @property
    def rows(self) -> Rows:
        """What the tables say of each study, for the journal."""
        digests = row_digests(self.descriptions, self.table.study_column)
        return Rows(self.descriptions.attrs.get(PROBLEMS, {}), digests, inputs_of(self.table))

    @property
    def header(self) -> Header:
        """What the journal says it holds."""
        own, part = set(self.study_ids), self.part
        return Header(
            manifest_hash=self.manifest.hash,
            code_sha256=own_code_sha256(),
            versions=versions(),
            split=self.split,
            chain=self.chain_name,
            shard=None if part is None else (part.index, part.count),
            cohort=cohort_hash(self.cohort),
            n_cohort=len(self.cohort),
            manifest=self.manifest.data,
            studies=self.study_ids,
            places=[place for place, study_id in enumerate(self.cohort) if study_id in own],
        )

    def table_problems(self, study_id: int | str | None) -> list[str]:
        """Lines about a study's rows in the table of series; None: about rows that belong to no study."""
        lines: dict[int | str | None, list[str]] = self.descriptions.attrs.get(PROBLEMS, {})
        return lines.get(study_id, [])

    def setup(self, n_threads: int | None) -> Setup:
        """What every worker gets; the schedule adds its device and its first study."""
        manifest = self.manifest
        return Setup(
            root=self.root,
            split=self.split,
            descriptions=self.descriptions,
            manifest=manifest,
            prior=np.array([manifest.prior[key] for key in manifest.competition.keys]),
            chain=self.chain,
            device="",
            n_threads=n_threads,
            first_study=None,
        )


def part_outputs(outputs: Outputs, part: Shard | None) -> dict[str, str | Path | None]:
    """The outputs of this part, by option: files have its name; the journal lies beside the submission."""
    own = {
        name: part.path(path) if part and path is not None and name in _FILES_OF_A_PART else path
        for name, path in outputs.items()
    }
    written = own["out"]
    return own | {"journal": None if written is None else journal_path(written)}


def check_inputs(request: Request, outputs: Outputs) -> RunInputs:
    """Verify the bundle, then the places of the outputs, then the tables: in this order, and before any work.

    Args:
        request: what is asked for.
        outputs: as ``part_outputs`` returns them.

    Raises:
        LumbarError: as ``lumbar.predict`` before any work.
    """
    root, split, chain = request.root, request.split, request.chain
    if split not in SPLITS:
        raise CohortError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    use_numba_cache()
    manifest = replace(verify(request.weights, request.manifest_hash), trusts_members=request.trust_members)
    functions = chain_of(chain, manifest)
    for one in manifest.classifiers:  # workers would refuse it too, once they have imported their libraries
        if one.external is not None:
            code_that_may_run(manifest.folder, one.name, one.external, is_trusted=manifest.trusts_members)
    check_outputs(outputs, request.layout, manifest)
    check_destinations(outputs, root, manifest)
    if line := compiling_decoders():
        log.info("%s", line)
    table, folder = read_table(root, split, manifest, request.progress)
    refuse_inputs(outputs, (path for paths in table.frame.get(FILES, ()) for path in paths))
    cohort = _studies(root, split, request.studies, manifest.competition, table, folder)
    part = request.part
    study_ids = cohort if part is None else part.own(cohort)
    name = chain if isinstance(chain, str) else "another"
    inputs = RunInputs(root, split, manifest, functions, study_ids, table, cohort, part, name)
    source = "index" if folder else manifest.competition.path(manifest.competition.table, split)
    for study_id in (None, *study_ids):
        for line in inputs.table_problems(study_id):
            log.warning("%s: %s%s", source, f"study {study_id}: " if folder and study_id is not None else "", line)
    return inputs


def read_table(root: Path, split: str, manifest: Manifest, progress: bool = False) -> tuple[SeriesTable, Path | None]:
    """The table of series or studies, and the folder whose files made it; None for a competition's own.

    Raises:
        CohortError: no such table, or a folder that holds no study of a lumbar spine by MR.
    """
    folder = folder_to_index(root, split) if manifest.competition_name == DEFAULT else None
    if folder is None:
        return read_studies(root, split, manifest.competition), None
    from lumbar.intake.run_table import series_table  # late: it loads numba, which a competition's folder does not need

    return series_table(folder, manifest, progress), folder


def _studies(
    root: Path,
    split: str,
    wanted: int | Sequence[int | str] | None,
    competition: Competition,
    table: SeriesTable,
    indexed: Path | None,
) -> list[int | str]:
    """The ids to predict, in the order of the submission.

    Args:
        root: the folder that was named.
        split: of a competition's folder.
        wanted: the first N only, or these ids; None for all.
        competition: whose answer is asked for.
        table: of its series or studies.
        indexed: the folder whose files made the table; None for a competition's own.
    """
    study_ids: list[int | str] = list(table.inputs)
    if indexed is None:
        tabled = table.studies()
        present = list_studies(root, split, tabled, competition.path(competition.images, split))
        study_ids = expected_studies(root, split, present, tabled, competition)
    elif indexed != root:  # a competition's images without its table: the sample still leads the order
        study_ids = expected_studies(root, split, study_ids, study_ids, competition)
    if isinstance(wanted, int):
        study_ids = study_ids[:wanted]
    elif wanted is not None:
        chosen = set(map(str, wanted))
        study_ids = [study_id for study_id in study_ids if str(study_id) in chosen]
    if not study_ids:
        raise CohortError(f"{root}: found none of the studies {wanted}, expected at least one")
    return study_ids
