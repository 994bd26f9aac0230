"""A report of many studies: an index (``report.html``), and beside it a folder with a page for each study.

A study's page is written when the study is done, so that no picture waits in memory for the end of the run. All links
are relative and lead to files: the report works from a disk, a mail's unpacked archive, or a web server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome
from lumbar.io.file_names import file_stem
from lumbar.io.files import write_atomically
from lumbar.output.notes import Distances, distances_of, far_from_truth
from lumbar.output.report import run_lines, study_of, template, words_of
from lumbar.output.report_index import INDEX, ROWS_A_PAGE, index_row, index_words, summarise
from lumbar.output.report_layout import pages_folder
from lumbar.output.report_page import STUDY_PAGE
from lumbar.output.report_study import what_of
from lumbar.output.submission import Submission
from lumbar.output.truth import Truth

_PROBLEMS_LISTED = 200  # of a study on its own page


class ReportPages:
    """Writes the pages of a run's studies as they are done, and the index at the end.

    Args:
        report: the index; the pages go into ``pages_folder``.
        study_ids: all studies of the run, in the order of the index.
        manifest: of the bundle that was used.
        truth: reads labels and marked points of the studies; called once, when the first answer stands. None: no truth.
    """

    def __init__(
        self,
        report: str | Path,
        study_ids: Sequence[int | str],
        manifest: Manifest,
        truth: Callable[[], Truth] | None = None,
    ) -> None:
        self.report, self.folder = Path(report), pages_folder(report)
        self.study_ids, self.manifest = study_ids, manifest
        self._place = {study_id: number for number, study_id in enumerate(study_ids)}
        self._read_truth, self._truth = truth, None if truth else Truth()
        self._words = words_of(manifest)
        # Of studies with points far from the truth, for the index: their pictures are gone by then
        self._far: dict[int | str, Distances] = {}

    @property
    def truth(self) -> Truth:
        """Labels and marked points, read at the first use."""
        if self._truth is None:
            assert self._read_truth is not None
            self._truth = self._read_truth()
        return self._truth

    def write_study(self, outcome: Outcome, submission: Submission) -> None:
        """Write the page of one study whose answer stands.

        Raises:
            CohortError: it cannot be written.
        """
        number, truth = self._place[outcome.study_id], self.truth
        before = self.study_ids[number - 1] if number else None
        after = self.study_ids[number + 1] if number + 1 < len(self.study_ids) else None
        page = template(STUDY_PAGE).render(
            study=study_of(outcome, submission, self.manifest, truth, n_problems=_PROBLEMS_LISTED),
            has_truth=outcome.study_id in truth.grades or outcome.study_id in truth.points,
            index=self._index_href(number // ROWS_A_PAGE, is_inside=True),
            before="" if before is None else _page_name(before),
            after="" if after is None else _page_name(after),
            number=number + 1,
            n_studies=len(self.study_ids),
            **self._words,
        )
        write_atomically(self.page(outcome.study_id), page, sync="none")
        distances = distances_of(outcome.pictures, truth.points.get(outcome.study_id, []))
        if far_from_truth(distances):
            self._far[outcome.study_id] = distances

    def page(self, study_id: int | str) -> Path:
        """Where a study's page lies."""
        return self.folder / _page_name(study_id)

    def write_index(
        self, record: Mapping[str, Any], outcomes: Iterable[Outcome], submission: Submission, limit_s: float
    ) -> None:
        """Write the pages of the index, whose first is the report itself.

        Args:
            record: the run record; its studies may be missing.
            outcomes: what became of each study, in order; gone through twice, so no iterator.
            submission: the rows that stand.
            limit_s: the time limit in seconds.

        Raises:
            CohortError: one cannot be written.
        """
        summary = summarise(outcomes, submission, self.manifest, self._far)
        common = {
            **run_lines(record, self.manifest, limit_s, summary.total.n),
            **self._words,
            **index_words(self.manifest.competition),
            "what": what_of(self.manifest),
            "total": summary.total,
            "seconds_a_study": summary.seconds_a_study,
            "folder": self.folder.name,
        }
        rows: list[dict[str, Any]] = []
        n_pages = 0
        for outcome in outcomes:
            far = self._far.get(outcome.study_id, {})
            rows.append(index_row(outcome, submission.probs(outcome.study_id), self.manifest, far))
            if len(rows) == summary.pages[n_pages].n:
                self._write_index_page(n_pages, rows, [vars(page) for page in summary.pages], common)
                rows, n_pages = [], n_pages + 1

    def _write_index_page(
        self, number: int, rows: list[dict[str, Any]], counts: list[dict[str, int]], common: Mapping[str, Any]
    ) -> None:
        is_inside = number > 0
        blocks = [
            {
                **count,
                "first": place * ROWS_A_PAGE + 1,
                "last": place * ROWS_A_PAGE + count["n"],
                "href": self._index_href(place, is_inside),
                "is_here": place == number,
            }
            for place, count in enumerate(counts)
        ]
        base = "" if is_inside else f"{quote(self.folder.name)}/"
        page = template(INDEX).render(rows=rows, here=counts[number], blocks=blocks, base=base, **common)
        write_atomically(self.folder / f"index-{number + 1}.html" if is_inside else self.report, page)

    def _index_href(self, number: int, is_inside: bool) -> str:
        """The link to a page of the index, from inside the folder or from beside it."""
        if number == 0:
            return f"../{quote(self.report.name)}" if is_inside else quote(self.report.name)
        return f"index-{number + 1}.html" if is_inside else f"{quote(self.folder.name)}/index-{number + 1}.html"


def _page_name(study_id: int | str) -> str:
    return f"study-{file_stem(study_id)}.html"
