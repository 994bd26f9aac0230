"""A report of many studies: an index with filters, a page for each study, and no memory that grows with them."""

import gc
import resource
import sys
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from kernel_bundles import write_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.chains.contract import Drawn, Picture
from lumbar.io.file_names import file_stem
from lumbar.labels import COLUMNS, LEVELS
from lumbar.output.extras import PAGES, Extras, with_pages
from lumbar.output.findings import rows_at_prior
from lumbar.output.findings_table import normalised_prior
from lumbar.output.record import build_record
from lumbar.output.report import _troubled
from lumbar.output.report_index import ROWS_A_PAGE
from lumbar.output.truth import TruePoint, Truth
from report_studies import JPEG, all_points, outcome, probabilities, standing, view

MAX_BYTES = 5_000_000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return read_manifest(write_bundle(tmp_path_factory.mktemp("pages") / "bundle"))


class Run:
    """The writing part of a run, without its prediction."""

    def __init__(self, folder, manifest, study_ids, layout="pages", truth=None):
        names = {"report": "report.html", "pictures": "png", "table": "findings.csv", "markups": "mrk"}
        outputs = with_pages({k: folder / v for k, v in names.items()}, layout, len(study_ids))
        for name in ("pictures", "markups", PAGES):
            outputs[name].mkdir(parents=True)
        self.folder, self.manifest = folder, manifest
        self.extras = Extras(outputs, study_ids, manifest, truth)
        self.submission = standing(normalised_prior(manifest))

    def add(self, one):
        self.submission.answers[one.study_id] = one.probs
        self.extras.add(one, self.submission)

    def finish(self, outcomes):
        record = build_record(self.manifest, ["cpu"], 1.0, [])
        self.extras.finish(record, outcomes, self.submission, 30600.0)

    def write(self, outcomes):
        for one in outcomes:
            if one.probs is not None:
                self.add(one)
        self.finish(outcomes)
        return (self.folder / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    """The links and ids of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a":
            self.links.append(values["href"])
        if "id" in values:
            self.ids.add(values["id"])


def rows_of(html):
    """Study → classes of its row, from the index."""
    parts = html.split('<tr id="study-')[1:]
    return {part.partition('"')[0]: part.split('class="')[1].partition('"')[0].split() for part in parts}


def cohort(n=30, first=1):
    """Studies some of which failed, some with warnings, one with a severe finding."""
    mild = np.tile([0.8, 0.15, 0.05], (25, 1))
    severe = mild.copy()
    severe[COLUMNS.index("right_subarticular_stenosis_l4_l5")] = [0.1, 0.1, 0.8]
    outcomes = [outcome(k, probs=mild, **all_points()) for k in range(first, first + n)]
    outcomes[1].probs = severe
    outcomes[2].problems = ["study 3: no Axial T2 series", "series 5: 3.dcm left out"]
    outcomes[3] = outcome(
        first + 3, probs=None, pictures=[], problems=[f"study {first + 3}: <b>no</b> readable series"]
    )
    return outcomes


def test_the_index_filters_severe_findings_warnings_and_failures(tmp_path, manifest):
    html = Run(tmp_path, manifest, list(range(1, 31))).write(cohort())
    rows = rows_of(html)
    assert len(rows) == 30
    assert {name: kinds for name, kinds in rows.items() if kinds} == {
        "2": ["severe"], "3": ["warned"], "4": ["warned", "failed"],
    }  # fmt: skip
    for name, n in (("all", 30), ("severe", 1), ("warned", 2), ("failed", 1)):
        label = html.partition(f'<label for="show-{name}">')[2].partition("</label>")[0]
        assert label.endswith(f"<b>{n}</b>")
        assert name == "all" or f"#show-{name}:checked ~ .panel tbody tr:not(.{name}) {{ display: none; }}" in html
    assert "Right subarticular stenosis L4/L5" in html
    assert "&lt;b&gt;no&lt;/b&gt; readable series" in html
    assert "<b>no</b>" not in html


def test_the_index_tells_of_a_study_what_the_list_of_a_single_page_tells(tmp_path, manifest):
    """Also what no problem says: grades at the prior, levels without an axial slice, points far from the truth."""
    outcomes = cohort(12)
    outcomes[5].probs = np.vstack([normalised_prior(manifest)[:6], outcomes[5].probs[6:]])
    outcomes[6].axial_levels = outcomes[6].axial_levels[2:]
    outcomes[6].problems = ["study 7: series 5: 3.dcm left out"]
    points = [TruePoint("5", 8, "canal", level, None, 0.0, 0.0) for level in LEVELS]
    truth = Truth({}, {8: points, 9: points})
    outcomes[8].problems = ["study 9: the numbering may be one level off: 60% as given"]
    expected = {}
    for one in outcomes:
        is_prior = (
            rows_at_prior(one, one.probs, normalised_prior(manifest)) if one.probs is not None else np.ones(25, bool)
        )
        if line := _troubled(one, is_prior, truth, "grades"):
            expected[str(one.study_id)] = (line["first"], line["n"])
    assert set(expected) == {"3", "4", "6", "7", "8", "9"}
    html = Run(tmp_path, manifest, list(range(1, 13)), truth=lambda: truth).write(outcomes)
    assert {name for name, kinds in rows_of(html).items() if "warned" in kinds} == set(expected)
    for name, (first, n) in expected.items():
        cell = html.partition(f'<tr id="study-{name}"')[2].partition('<td class="warn">')[2].partition("</td>")[0]
        assert unescape(cell).startswith(first)
        assert (f"and {n - 1} more" in cell) == (n > 1)
    label = html.partition('<label for="show-warned">')[2].partition("</label>")[0]
    assert label.endswith(f"<b>{len(expected)}</b>")


def test_the_index_counts_the_grades_that_are_the_prior(tmp_path, manifest):
    outcomes = cohort(12)
    outcomes[0].probs = np.vstack([normalised_prior(manifest)[:6], outcomes[0].probs[6:]])
    html = Run(tmp_path, manifest, list(range(1, 13))).write(outcomes)
    # a failed study has 25
    assert '<b>31</b><span class="soft">of 300 grades are the prior</span>' in " ".join(html.split())
    assert '<td class="right">6</td>' in html.partition('<tr id="study-1"')[2].partition("</tr>")[0]


def test_every_link_leads_to_a_file_beside_the_report(tmp_path, manifest):
    outcomes = cohort()
    Run(tmp_path, manifest, [one.study_id for one in outcomes]).write(outcomes)
    pages = [tmp_path / "report.html", *sorted((tmp_path / "report").iterdir())]
    assert len(pages) == 31
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "fetch(" not in text
        assert "http" not in text
        for link in Links(text).links:
            name, _, place = link.partition("#")
            target = page if not name else (page.parent / unquote(name)).resolve()
            assert target.is_file(), f"{page.name} links to {link}"
            assert not place or place in Links(target.read_text(encoding="utf-8")).ids
    study = (tmp_path / "report" / "study-2.html").read_text(encoding="utf-8")
    assert study.count("data:image/jpeg;base64,") == 1
    assert Links(study).links[:3] == ["../report.html#study-2", "study-1.html", "study-3.html"]
    failed = (tmp_path / "report" / "study-4.html").read_text(encoding="utf-8")
    assert "60 · 30 · <b>10</b>" in failed  # the prior
    assert "readable series" in failed


def test_studies_of_any_id_get_names_of_their_own(tmp_path, manifest):
    plain = ["1.2.840.113619.2", "a_b", "index-2", 12]
    odd = ["a b", "../../etc/passwd", "a/b", "<i>&\"'", "Ä", "CON", "nul.txt", ".hidden", "-x", "x" * 300]
    ids = [*plain, *odd, "", " ", "a\nb", "\udce9"]
    html = Run(tmp_path, manifest, ids).write([outcome(study_id) for study_id in ids])
    stems = [file_stem(study_id) for study_id in ids]
    assert len({stem.lower() for stem in stems}) == len(ids)
    assert stems[: len(plain)] == [str(study_id) for study_id in plain]
    for name, pattern in (("report", "study-{}.html"), ("png", "{}_sagittal_t2.png"), ("mrk", "{}.mrk.json")):
        names = {path.name for path in (tmp_path / name).iterdir()}
        assert names == {pattern.format(stem) for stem in stems}
        assert all(len(one) < 200 and one.isascii() for one in names)
    assert list(rows_of(html)) == stems
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report", "png", "mrk", "findings.csv"}
    for page in (tmp_path / "report").iterdir():
        for link in Links(page.read_text(encoding="utf-8")).links:
            assert (page.parent / unquote(link.partition("#")[0])).is_file(), link


def test_a_page_that_would_grow_too_large_leaves_pictures_out_and_says_so(tmp_path, manifest):
    large = [Picture(f"slice {k}", JPEG + b"\x5a" * 900_000, view()) for k in range(8)]
    many = [f"{k}.dcm: {'x' * 1500}" for k in range(3000)]
    Run(tmp_path, manifest, [1]).write([outcome(1, pictures=large, problems=many)])
    page = tmp_path / "report" / "study-1.html"
    assert page.stat().st_size < MAX_BYTES
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 3
    one = Run(tmp_path / "b", manifest, [2]).write([outcome(2, pictures=large)])
    assert "5 pictures left out" in (tmp_path / "b" / "report" / "study-2.html").read_text(encoding="utf-8")
    assert len(one) < MAX_BYTES


def test_truth_is_read_once_and_only_when_an_answer_stands(tmp_path, manifest):
    calls = []

    def read():
        calls.append(len(calls))
        return Truth({1: np.full(25, 2)}, {})

    run = Run(tmp_path, manifest, [1, 2], truth=read)
    assert calls == []
    run.write([outcome(1), outcome(2)])
    assert calls == [0]
    assert "truth: severe" in (tmp_path / "report" / "study-1.html").read_text(encoding="utf-8")
    assert "truth: " not in (tmp_path / "report" / "study-2.html").read_text(encoding="utf-8")


def test_what_an_earlier_run_wrote_of_a_study_stays(tmp_path, manifest):
    run = Run(tmp_path, manifest, [1, 2])
    run.write([outcome(1), outcome(2)])
    run.extras = Extras(run.extras.outputs, [1, 2], manifest, None)
    again = [outcome(1, pictures=[]), outcome(2, pictures=[])]  # as a journal has them
    run.extras.finish(build_record(manifest, ["cpu"], 1.0, []), again, run.submission, 60.0, earlier={1})
    texts = [(tmp_path / "report" / f"study-{k}.html").read_text(encoding="utf-8") for k in (1, 2)]
    assert ["data:image/jpeg" in text for text in texts] == [True, False]
    assert len(rows_of((tmp_path / "report.html").read_text(encoding="utf-8"))) == 2


def test_a_record_that_is_not_understood_costs_its_outputs_and_no_run(tmp_path, manifest, caplog):
    odd = outcome(1, sagittal_points=[{"level": "l1_l2", "side": None}], axial_levels=[{"level": "l1_l2"}])
    html = Run(tmp_path, manifest, [1, 2]).write([odd, outcome(2)])
    assert len(rows_of(html)) == 2
    lines = [entry.getMessage() for entry in caplog.records]
    assert [line.partition(": ")[0] for line in lines] == ["markups", "table"]
    assert [path.name for path in (tmp_path / "mrk").iterdir()] == ["2.mrk.json"]


def test_pictures_are_drawn_for_what_is_written_alone(tmp_path, manifest):
    def drawn(n, layout="auto", **outputs):
        return Extras(with_pages(outputs, layout, n), list(range(n)), manifest, None).drawn

    assert drawn(12) == drawn(12, table=tmp_path / "t.csv", markups=tmp_path / "m") == {}
    assert drawn(12, report=tmp_path / "r.html", layout="single") == {k: Drawn.PAGE for k in range(10)}
    assert drawn(12, report=tmp_path / "r.html") == {k: Drawn.PAGE for k in range(12)}
    assert drawn(3, pictures=tmp_path / "p") == {k: Drawn.FILES for k in range(3)}
    both = drawn(11, report=tmp_path / "r.html", layout="single", pictures=tmp_path / "p")
    assert [both[9], both[10]] == [Drawn.PAGE | Drawn.FILES, Drawn.FILES]


@pytest.mark.slow
def test_two_thousand_studies_take_no_more_memory_than_a_hundred(tmp_path, manifest):
    n_studies, n_bytes, probs = 2001, 20_000, probabilities(1)
    run = Run(tmp_path, manifest, list(range(n_studies)))
    blocks, peaks = {}, {}
    for study_id in range(n_studies):
        one = outcome(study_id, n_bytes, probs=probs)
        run.extras.add(one, run.submission)
        assert one.pictures == one.picture_files == []
        if study_id in (100, 2000):
            gc.collect()
            blocks[study_id] = sys.getallocatedblocks()
            peaks[study_id] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    assert blocks[2000] - blocks[100] < 5 * 1900  # objects of Python: the ids that are done
    assert peaks[2000] - peaks[100] < 20_000  # the pictures alone are 80 MB
    outcomes = [outcome(k, probs=probs, pictures=[], picture_files=[]) for k in range(n_studies)]
    run.finish(outcomes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peaks[100] < 60_000
    pages = [tmp_path / "report.html", *(tmp_path / "report").iterdir()]
    assert len(pages) == 1 + n_studies + 1  # the index has a second page for what is beyond its two thousand rows
    assert max(page.stat().st_size for page in pages) < MAX_BYTES
    first, second = (page.read_text(encoding="utf-8") for page in (pages[0], tmp_path / "report" / "index-2.html"))
    assert [len(rows_of(html)) for html in (first, second)] == [ROWS_A_PAGE, 1]
    assert 'href="report/index-2.html"' in first
    assert 'href="../report.html"' in second
    assert 'href="study-2000.html"' in second
    assert "../report/index-2.html" not in (tmp_path / "report" / "study-2000.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "png").iterdir())) == n_studies
