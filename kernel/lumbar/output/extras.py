"""What a run writes beside submission and record: report, pictures, table and markups.

Pictures, markups and the report's pages are written when a study is done, table and index at the end. All of it comes
after the study's answer: a failure here is a line in the log, never a lost prediction.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Drawn, Outcome
from lumbar.competitions.registry import DEFAULT
from lumbar.errors import CohortError
from lumbar.io.text import PublicText, counted, one_line
from lumbar.output.destinations import FOLDERS
from lumbar.output.findings import findings_of
from lumbar.output.findings_table import normalised_prior, write_table
from lumbar.output.markups import write_markups
from lumbar.output.picture_files import write_pictures
from lumbar.output.report_layout import LAYOUTS, MOST_ON_ONE_PAGE, has_pages, pages_folder
from lumbar.output.submission import Submission
from lumbar.output.truth import Truth

log = logging.getLogger("lumbar")

PAGES = "report pages"  # the name under which the folder of the report's pages is checked
Outputs = Mapping[str, str | Path | None]


def check_outputs(outputs: Outputs, layout: str, manifest: Manifest) -> None:
    """Check what is asked for, before any work.

    Raises:
        CohortError: an unknown layout, or an output that the bundle's competition does not have.
    """
    if layout not in LAYOUTS:
        raise CohortError(f"report layout: found {layout!r}, expected one of {', '.join(LAYOUTS)}")
    for name in ("table", "markups"):
        if outputs.get(name) is not None and manifest.competition_name != DEFAULT:
            raise CohortError(f"{name}: found a bundle for {manifest.competition_name}, expected one for {DEFAULT}")


def with_pages(outputs: Outputs, layout: str, n_studies: int) -> dict[str, str | Path | None]:
    """The outputs, with the folder of the report's pages where the report has any."""
    report = outputs.get("report")
    has_folder = report is not None and has_pages(layout, n_studies)
    return {**outputs, PAGES: pages_folder(report) if has_folder and report is not None else None}


class Extras:
    """Writes the outputs of a run that follow from its answers.

    Args:
        outputs: the option's name → the path, None where nothing is written; as ``with_pages`` returns them.
        study_ids: in the order of the submission.
        manifest: of the bundle that was used.
        truth: reads labels and marked points, for the report's pages alone; None: no truth is shown.
    """

    def __init__(
        self, outputs: Outputs, study_ids: Sequence[int | str], manifest: Manifest, truth: Callable[[], Truth] | None
    ) -> None:
        self.outputs, self.study_ids, self.manifest = outputs, study_ids, manifest
        self.truth = truth
        self._done: set[int | str] = set()
        self._failures: Counter[str] = Counter()
        self._prior = normalised_prior(manifest)
        self._made: dict[str, Any] = {}

    @property
    def drawn(self) -> dict[Any, Drawn]:
        """Which pictures of which studies are wanted; studies without any are left out."""
        is_filed, has_report = self._path("pictures") is not None, self._path("report") is not None
        n_shown = len(self.study_ids) if self._path(PAGES) is not None else MOST_ON_ONE_PAGE if has_report else 0
        drawn = {
            study_id: (Drawn.PAGE if number < n_shown else Drawn.NOTHING) | (Drawn.FILES if is_filed else Drawn.NOTHING)
            for number, study_id in enumerate(self.study_ids)
        }
        return {study_id: kinds for study_id, kinds in drawn.items() if kinds}

    def add(self, outcome: Outcome, submission: Submission, is_earlier: bool = False) -> None:
        """Write what belongs to one study, and let go of its pictures, but for those of a report on one page.

        ``is_earlier`` says that an earlier run predicted it: its page and its pictures stay.
        """
        self._done.add(outcome.study_id)
        if (pictures := self._path("pictures")) is not None:
            self._try("pictures", lambda: write_pictures(pictures, outcome.study_id, outcome.picture_files))
            outcome.picture_files = []
        if (markups := self._path("markups")) is not None:
            self._try("markups", lambda: self._write_markups(markups, outcome, submission))
        if self._path(PAGES) is not None:
            if not (is_earlier and self._pages().page(outcome.study_id).exists()):
                self._try(PAGES, lambda: self._pages().write_study(outcome, submission))
            outcome.pictures = []

    def finish(
        self,
        record: Mapping[str, Any],
        outcomes: Iterable[Outcome],
        submission: Submission,
        limit_s: float,
        earlier: Container[int | str] = (),
    ) -> None:
        """Write what is left: of studies that were not predicted, then the table and the index of the report.

        Args:
            record: the run record; its studies may be missing.
            outcomes: what became of each study, in the order of the submission; gone through several times.
            submission: the rows that stand.
            limit_s: the time limit in seconds.
            earlier: studies of an earlier run that this one went on with: what it wrote of them stays.
        """
        if any(self._path(name) is not None for name in FOLDERS):
            self._add_others(outcomes, submission, earlier)
        if (table := self._path("table")) is not None:
            self._try("table", lambda: write_table(table, outcomes, submission, self.manifest))
        if self._path(PAGES) is not None:
            self._try("report", lambda: self._pages().write_index(record, outcomes, submission, limit_s))
        for name, n_failures in self._failures.items():
            if n_failures > 1:
                log.error("%s: not written for %s", name, counted(n_failures, "study"))

    def _add_others(self, outcomes: Iterable[Outcome], submission: Submission, earlier: Container[int | str]) -> None:
        """Write what belongs to each study that this run did not predict."""
        n_earlier = 0
        for outcome in outcomes:
            if outcome.study_id not in self._done:
                self.add(outcome, submission, is_earlier=outcome.study_id in earlier)
                n_earlier += outcome.study_id in earlier
        if n_earlier and any(self._path(name) is not None for name in ("pictures", PAGES)):
            log.info("pictures of %s done before are not drawn again", counted(n_earlier, "study"))

    def _write_markups(self, folder: Path, outcome: Outcome, submission: Submission) -> None:
        findings = findings_of(outcome, submission.probs(outcome.study_id), self._prior)
        write_markups(folder, outcome.study_id, findings)

    def _path(self, name: str) -> Path | None:
        path = self.outputs.get(name)
        return None if path is None else Path(path)

    def _pages(self) -> Any:
        """The writer of the report's pages, which loads jinja2 when it is first needed."""
        if "pages" not in self._made:
            from lumbar.output.report_pages import ReportPages

            report = self._path("report")
            assert report is not None
            self._made["pages"] = ReportPages(report, self.study_ids, self.manifest, self.truth)
        return self._made["pages"]

    def _try(self, name: str, write: Callable[[], None]) -> None:
        """Write something; of several failures of one output only the first is told, and their number at the end."""
        try:
            write()
        except Exception as error:
            self._failures[name] += 1
            if self._failures[name] == 1:
                path = self._path(name)
                roots = [] if path is None else [path.parent, path]
                log.error("%s: not written (%s)", name, one_line(error, PublicText(roots)))
