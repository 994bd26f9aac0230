import re

import numpy as np
import pytest

from kernel_bundles import write_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.chains.contract import Outcome, Picture
from lumbar.labels import COLUMNS
from lumbar.output.record import build_record, versions
from lumbar.output.report import render
from lumbar.output.submission import Submission

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100_000)


def outcome(study_id, **changes):
    probs = np.random.default_rng(study_id).dirichlet((2.0, 1.0, 1.0), 25)
    values = {"probs": probs, "seconds": {"study": 2.5, "read": 1.0, "localise": 0.5}}
    return Outcome(study_id, **{**values, **changes})


def page(tmp_path, outcomes, **changes):
    manifest = read_manifest(write_bundle(tmp_path / "bundle", **changes))
    submission = Submission([o.study_id for o in outcomes], manifest.prior)
    for one in outcomes:
        if one.probs is not None:
            submission.replace(one.study_id, one.probs)
    return render(build_record(manifest, ["cpu"], 1.5, outcomes), outcomes, submission, manifest, 30600.0)


def test_a_small_run_is_shown_whole(tmp_path):
    pictures = [Picture("Sagittal T2, series 5, slice 8", PNG[:99]), Picture("L1/L2: series 6, slice 3", PNG[:99])]
    levels = [{"level": "l1_l2", "side": None}, {"level": "l1_l2", "side": "left"}, {"level": "l4_l5", "side": None}]
    html = page(
        tmp_path,
        [
            outcome(41, pictures=pictures, sagittal_points=levels, axial_levels=[{"level": "l1_l2"}]),
            outcome(42, probs=None, problems=["study 42: found no readable series, expected at least one"]),
        ],
    )
    assert html.count("Research use only") >= 2
    assert html.count("data:image/png;base64,") == 2
    assert "Study 41" in html
    assert "2 of 5 levels on sagittal, 1 of 5 on axial images" in html
    assert "study 42: found no readable series, expected at least one" in html
    assert "60 · 30 · <b>10</b>" in html  # the prior of the study not predicted
    assert "load weights" in html
    assert "owner/slug (recipe demo)" in html
    assert "Limit 8.5 h" in re.sub(r"\s+", " ", html)
    assert "All studies" not in html


def test_a_run_on_other_versions_than_the_bundle_was_rehearsed_on_says_so_in_one_line(tmp_path):
    here = versions()
    assert "<dt>rehearsed</dt>" not in page(tmp_path, [outcome(1)])  # a bundle that notes nothing
    html = page(tmp_path, [outcome(1)], rehearsed=here | {"lumbar": "9.9", "torch": here["torch"] + "+cu999"})
    assert "<dt>rehearsed</dt><dd>on the same versions</dd>" in html
    html = page(tmp_path, [outcome(1)], rehearsed=here | {"python": "3.2.1", "torch": "1.0"})
    python, torch = ".".join(here["python"].split(".")[:2]), here["torch"].partition("+")[0]
    line = f"on other versions: python {python} (rehearsed 3.2), torch {torch} (rehearsed 1.0)"
    assert f"<dt>rehearsed</dt><dd>{line}</dd>" in html


def test_the_page_needs_nothing_else(tmp_path):
    html = page(tmp_path, [outcome(1, pictures=[Picture("Sagittal T2", PNG[:50])])])
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "<script" not in html
    assert "http" not in html


def test_seven_hundred_studies_stay_under_a_few_megabytes(tmp_path):
    problem = "series 1234567890: 17.dcm: pixel data end after 1000 bytes, expected 524288; left out " * 3
    outcomes = [
        outcome(10**9 + k, problems=[problem] * 9, pictures=[Picture("Sagittal T2", PNG)] * 2 if k < 10 else [])
        for k in range(720)
    ]
    html = page(tmp_path, outcomes)
    assert len(html) < 4_000_000
    assert "The first 10 studies" in html
    assert "All studies" in html
    assert html.count("and 6 more") == 720
    assert all(str(one.study_id) in html for one in outcomes)


def test_texts_from_outside_are_escaped(tmp_path):
    html = page(
        tmp_path,
        [outcome(1, problems=["<script>alert(1)</script>"])],
        cohort={"studies": 3, "description": "<b>bold</b>"},
    )
    assert "<script>" not in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html


def test_percentages_of_a_cell_sum_to_a_hundred(tmp_path):
    html = page(tmp_path, [outcome(k) for k in range(1, 4)])
    cells = re.findall(r"(\d+) · (\d+) · <b>(\d+)</b>", html)
    assert len(cells) == 3 * len(COLUMNS)
    assert all(sum(map(int, cell)) == 100 for cell in cells)


@pytest.mark.parametrize("n", [1, 5])
def test_a_run_in_which_nothing_was_predicted_has_a_page(tmp_path, n):
    html = page(tmp_path, [outcome(k, probs=None, seconds={}, failure="x") for k in range(n)])
    assert "left at the prior" in html
