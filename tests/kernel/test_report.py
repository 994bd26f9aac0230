import re

import numpy as np
import pytest

from kernel_bundles import write_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.chains.contract import Mark, Outcome, Picture, SliceView
from lumbar.labels import COLUMNS, LEVELS
from lumbar.output.notes import Distance, far_from_truth
from lumbar.output.record import build_record, versions
from lumbar.output.report import render
from lumbar.output.submission import Submission
from lumbar.output.truth import TruePoint, Truth, read_truth
from lumbar.stages.points import NOT_SEEN

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100_000)


def outcome(study_id, **changes):
    probs = np.random.default_rng(study_id).dirichlet((2.0, 1.0, 1.0), 25)
    values = {"probs": probs, "seconds": {"study": 2.5, "read": 1.0, "localise": 0.5}}
    return Outcome(study_id, **{**values, **changes})


def picture(kind, level=None, marks=(), is_main=True, number=8, distance=None):
    view = SliceView(kind, "5", number, None, (300, 400), (0.0, 0.0), (1.0, 1.0), 0.5, ("A", "P"), tuple(marks), level,
                     is_main, distance)  # fmt: skip
    return Picture(f"{kind} {level or ''} slice {number}", b"\xff\xd8" + bytes(20), view)


def pictured(study_id=7, **changes):
    canal = [Mark(level, None, 100.0, 40.0 + 70 * k, None, 0.83) for k, level in enumerate(LEVELS)]
    left = [Mark("l5_s1", "left", 100.0, 320.0, 11, 0.5)]
    axial = [Mark("l5_s1", side, x, 200.0) for side, x in (("left", 180.0), ("right", 120.0))]
    pictures = [
        picture("canal", marks=canal),
        picture("left foramen", marks=left, number=9),
        picture("left foramen", marks=[Mark("l5_s1", "left", 100.0, 320.0)], is_main=False, number=11),
        picture("axial", "l5_s1", axial, number=20, distance=1.3),
    ]
    return outcome(study_id, pictures=pictures, **changes)


def page(tmp_path, outcomes, truth=None, **changes):
    manifest = read_manifest(write_bundle(tmp_path / "bundle", **changes))
    submission = Submission([o.study_id for o in outcomes], manifest.prior)
    for one in outcomes:
        if one.probs is not None:
            submission.replace(one.study_id, one.probs)
    return render(build_record(manifest, ["cpu"], 1.5, outcomes), outcomes, submission, manifest, 30600.0, truth)


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


def test_a_level_that_was_not_seen_is_not_counted_and_said_above_the_pictures_alone(tmp_path):
    points = [{"level": level, "side": None} for level in LEVELS]
    line = f"{NOT_SEEN}: L1/L2"
    changes = {"problems": [f"study 41: {line}", "study 41: series 5 is cut"], "not_seen": ["l1_l2"]}
    html = page(tmp_path, [pictured(41, sagittal_points=points, **changes)])
    assert "4 of 5 levels on sagittal (1 more placed by the others), 0 of 5 on axial images" in html
    assert html.count(line) == 1
    assert html.index(line) < html.index("<image id=") < html.index("series 5 is cut")


def test_a_calibrated_bundle_says_so(tmp_path):
    assert "<dt>grades</dt>" not in page(tmp_path, [outcome(1)])
    numbers = {"spinal": [1.4, 0.06], "foraminal": [1.0, 0.0], "subarticular": [2.0, 0.15]}
    html = page(tmp_path, [outcome(1)], grade_calibration=numbers)
    assert (
        "<dt>grades</dt><dd>calibrated: spinal at temperature 1.40 with 6 % of the prior, foraminal as predicted, "
        in html
    )


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


def one_line(html):
    return re.sub(r"\s+", " ", html)


# ---- pictures with points -----------------------------------------------------------------------------------------


def cells(html, study_id):
    """Level → the cells of its row in the table of grades."""
    table = re.search(rf'id="study-{study_id}".*?<table class="levels">(.*?)</table>', html, re.S)[1]
    rows = re.findall(r"<tr><th>(L\d/[LS]\d)</th>(.*?)</tr>", table, re.S)
    return {level: re.findall(r"<td>(.*?)</td>", row, re.S) for level, row in rows}


def test_each_grade_stands_beside_the_slice_that_its_point_lies_on(tmp_path):
    rows = cells(page(tmp_path, [pictured()]), 7)
    assert list(rows) == ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    canal, left, right, axial = rows["L5/S1"]
    assert 'href="#p7-0"' in canal
    assert 'href="#p7-2"' in left  # slice 11, where the point lies, and not the main slice
    assert "no point found" in right
    assert 'href="#p7-3"' in axial
    assert [len(re.findall(r"\d · \d+ · <b>", cell)) for cell in (canal, left, right, axial)] == [1, 1, 1, 2]


def test_a_grade_without_a_point_says_whether_other_images_or_nothing_graded_it(tmp_path):
    one = pictured()
    for side in ("left", "right"):
        one.probs[COLUMNS.index(f"{side}_subarticular_stenosis_l1_l2")] = [0.6, 0.3, 0.1]  # as the prior
    one.probs[COLUMNS.index("spinal_canal_stenosis_l5_s1")] = [0.6, 0.3, 0.1]  # has a point, and no network graded it
    html = page(tmp_path, [one, outcome(8)])
    rows = cells(html, 7)
    assert "no point found; not graded from images: the prior" in rows["L1/L2"][3]
    assert rows["L1/L2"][3].count(">the prior</span>") == 2
    assert "no point found: the grade comes from other images" in rows["L2/L3"][3]
    assert "the prior" not in rows["L2/L3"][3]
    assert ">the prior</span>" in rows["L5/S1"][0]
    assert "3 of 25 grades are the prior: not graded from images" in html
    assert "3 of 25 at the prior" in one_line(html)
    assert '<b>3</b><span class="soft">of 50 grades are the prior</span>' in html
    assert "with problems noted" in html.partition('<a class="card"')[2]


def test_axial_slices_that_do_not_reach_a_level_are_told(tmp_path):
    points = [{"level": level, "side": None} for level in LEVELS]
    html = page(tmp_path, [pictured(sagittal_points=points, axial_levels=[{"level": k} for k in LEVELS[2:]])])
    assert "axial slices do not reach L1/L2, L2/L3" in html
    assert "do not reach" not in page(tmp_path / "b", [pictured(sagittal_points=points)])  # no axial series at all


def test_points_one_level_off_the_truth_and_doubtful_numbering_stand_above_the_pictures(tmp_path):
    points = [TruePoint("5", 8, "canal", level, None, 99.5, 39.5 + 70 * (k - 1)) for k, level in enumerate(LEVELS)]
    points += [
        TruePoint("5", number, "axial", level, side, x, 199.5)
        for number, level in ((20, "l4_l5"), (12, "l5_s1"))
        for side, x in (("left", 179.5), ("right", 119.5))
    ]
    doubt = "the numbering may be one level off: 40% as given, 60% one higher, 0% one lower, 0% elsewhere"
    html = page(tmp_path, [pictured(problems=["series 5: left out", f"study 7: {doubt}"])], Truth({}, {7: points}))
    above = html.partition('id="study-7"')[2].partition("<svg")[0]
    assert re.findall(r'<p class="alarm">(.*?)</p>', above) == [
        doubt, "7 of 7 points lie more than 10 mm from the truth, or on another level&#39;s slice (one level off?)",
    ]  # fmt: skip
    assert html.count(doubt) == 1
    rows = cells(html, 7)
    assert "35 mm from the truth" in rows["L3/L4"][0]
    assert "slice of L4/L5 by the truth" in rows["L5/S1"][3]
    names = re.findall(r'<b class="true-level[^>]*>(L\d/[LS]\d)</b>', html)
    assert names == ["L2/L3", "L3/L4", "L4/L5", "L5/S1"]  # the first lies beyond the picture's edge
    near = [TruePoint("5", 8, "canal", level, None, 101.5, 39.5 + 70 * k) for k, level in enumerate(LEVELS)]
    assert "from the truth" not in page(tmp_path / "b", [pictured()], Truth({}, {7: near}))


def test_points_on_another_levels_slice_are_not_said_to_lie_far_from_the_truth_alone():
    near = {("canal", level, None): Distance(1.0, level) for level in LEVELS}
    assert far_from_truth(near) == []
    axial = {("axial", "l5_s1", side): Distance(1.0, "l4_l5", is_on_slice=False) for side in ("left", "right")}
    assert far_from_truth(near | axial) == [
        "2 of 7 points lie more than 10 mm from the truth, or on another level's slice (one level off?)"
    ]


def test_words_do_not_run_together(tmp_path):
    outcomes = [outcome(1, problems=["levels not found: L2/L3", "x"]), outcome(2, probs=None, problems=["y", "z"])]
    for k, html in enumerate((page(tmp_path, outcomes), page(tmp_path / "b", outcomes * 6))):
        assert "L2/L3 <span" in html, k
        assert re.findall(r'[^\s>]<span class="(?:soft|pill)|</a><span|</span><span class="soft', html) == []


def test_a_label_near_the_right_edge_stands_to_the_left_of_its_cross(tmp_path):
    marks = [Mark("l4_l5", None, 190.0, 300.0, 18), Mark("l5_s1", None, 210.0, 350.0, 21)]  # of 300 pixels
    html = page(tmp_path, [outcome(7, pictures=[picture("canal", marks=marks)])])
    assert re.findall(r'<b class="at-(l\d_[ls]\d)( to-left)?"', html) == [("l4_l5", ""), ("l5_s1", " to-left")]


def test_a_picture_is_stored_once_and_enlarges_without_a_script(tmp_path):
    html = page(tmp_path, [pictured()])
    assert html.count("data:image/jpeg;base64,") == 4
    assert "<script" not in html
    for name in ("p7-0", "p7-1", "p7-2", "p7-3"):
        assert html.count(f'type="checkbox" id="zoom-{name}"') == 1
        assert f'for="zoom-{name}"' in html
    targets = set(re.findall(r'href="#([^"]+)"', html))
    assert targets <= set(re.findall(r'id="([^"]+)"', html))


def test_levels_are_named_as_radiologists_do_and_points_of_other_slices_say_which(tmp_path):
    html = page(tmp_path, [pictured()])
    assert "l5_s1</" not in html
    assert re.search(r">L5/S1\s*<small>slice 11</small>", html)


def test_a_confidence_is_not_printed_as_per_cent(tmp_path):
    html = page(tmp_path, [pictured()])
    assert "83 %" not in html
    assert "83%" not in html
    assert "0.83 (0 to 1, no probability)" in html


def test_known_truth_is_drawn_and_written_beside_the_answers(tmp_path):
    grades = np.full(25, -1)
    grades[COLUMNS.index("spinal_canal_stenosis_l4_l5")] = 2
    points = [
        TruePoint("5", 8, "canal", "l4_l5", None, 99.5, 249.5),
        TruePoint("5", 9, "canal", "l5_s1", None, 99.5, 320.0),  # on another slice: dashed
        TruePoint("6", 8, "canal", "l1_l2", None, 10.0, 10.0),  # of another series: not shown
    ]
    html = page(tmp_path, [pictured()], Truth({7: grades}, {7: points}))
    rows = cells(html, 7)
    assert "truth: severe" in rows["L4/L5"][0]
    assert html.count("truth: ") == 1
    assert 'cx="100.0" cy="250.0"' in rows["L4/L5"][0]
    assert "other-slice" in rows["L5/S1"][0]
    assert "<circle" not in rows["L1/L2"][0]
    assert "<circle" not in re.sub(r'<div class="key">.*?</div>', "", page(tmp_path / "b", [pictured()]), flags=re.S)


def test_problems_are_one_click_away(tmp_path):
    one = page(tmp_path / "a", [pictured(7, problems=["series 3: left out"]), outcome(8)])
    assert '<a class="card" href="#study-7"><b>1</b>' in one
    two = page(tmp_path / "b", [outcome(k, problems=[f"line {k}"]) for k in range(1, 4)])
    assert '<a class="card" href="#problems"><b>3</b>' in two
    assert all(f'<a href="#study-{k}">{k}</a>' in two for k in range(1, 4))
    many = page(tmp_path / "c", [outcome(k, problems=["x"] if k == 30 else []) for k in range(1, 40)])
    assert many.count('id="study-30"') == 1


def test_truth_is_read_for_the_studies_asked_for_and_bad_rows_cost_only_themselves(tmp_path):
    (tmp_path / "solution.csv").write_text(
        f"study_id,{','.join(COLUMNS)}\n7,Severe{',' * 24}\n8{',Moderate' * 25}\n", encoding="utf-8"
    )
    (tmp_path / "test_label_coordinates.csv").write_text(
        "study_id,series_id,instance_number,condition,level,x,y\n"
        "7,5,8,Left Subarticular Stenosis,L5/S1,10.5,20.25\n"
        "7,5,8,Some other thing,L5/S1,1,1\n7,5,C:\\data\\8.dcm,Spinal Canal Stenosis,L1/L2,1,1\n"
        "8,5,8,Spinal Canal Stenosis,L1/L2,1,1\n",
        encoding="utf-8",
    )
    truth = read_truth(tmp_path, "test", [7])
    assert {study: row.tolist() for study, row in truth.grades.items()} == {7: [2] + [-1] * 24}
    assert truth.points == {7: [TruePoint("5", 8, "axial", "l5_s1", "left", 10.5, 20.25)]}
    assert read_truth(tmp_path, "train", [7]) == Truth()
    (tmp_path / "solution.csv").write_text("a\n1\n")
    assert read_truth(tmp_path, "test", [7]).grades == {}
