"""External points: a point a slice, in pixels of another image, beside or instead of the competition's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import train_tiny
from lumbar.config import BackboneConfig, HeatmapConfig, SagittalRegressionConfig
from lumbar.errors import CohortError
from lumbar.geometry import make_grid
from lumbar.labels import LEVELS, SAGITTAL_T2
from lumbar_train.__main__ import main
from lumbar_train.data.external_points import describe, summary
from lumbar_train.data.tables import read_cohort
from lumbar_train.data.targets import study_targets
from lumbar_train.stages.locate import SagittalRegression, SagittalXY
from lumbar_train.stages.losses import sagittal_regression_loss
from stage_studies import LEVELS_MM, study_of

SHIFT_PX = np.array([1.5, -1.0])  # of the external points from the true ones, x and y


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


def row(series: str, instance: int, condition: str, level: str, xy, source: str) -> dict:
    return {
        "series_id": series, "instance_number": instance, "condition": condition, "level": level,
        "side": None, "x_px": xy[0], "y_px": xy[1], "source": source,
    }  # fmt: skip


def true_px(stack, index: int, level: str) -> np.ndarray:
    """A level's canal point projected on a slice."""
    xyz = np.array(LEVELS_MM[level])
    _, y, x = stack.to_voxel(xyz)
    return np.array([float(x), float(y)])


def table(study, *, competition: tuple[str, ...] = (), external: tuple[str, ...] = LEVELS) -> pd.DataFrame:
    """Competition points on the canal slice of T2; external ones on every slice of T2 and T1, moved by ``SHIFT_PX``."""
    rows = []
    for description in study.series:
        for stack in study.series[description] if description.startswith("Sagittal") else ():
            middle = int(np.abs(stack.positions_mm - 1.0).argmin())
            for index, instance in enumerate(stack.instance_numbers):
                for level in external:
                    xy = true_px(stack, index, level) + SHIFT_PX
                    rows.append(row(stack.series_id, instance, "disc", level, xy, "external"))
                if description == SAGITTAL_T2 and index == middle:
                    for level in competition:
                        xy = true_px(stack, index, level)
                        rows.append(row(stack.series_id, instance, "spinal_canal_stenosis", level, xy, "competition"))
    return pd.DataFrame(rows)


class OneStudy:
    def __init__(self):
        self.item = study_of()

    def study(self, study_id):
        return self.item


@pytest.mark.parametrize("use", ["beside", "instead"])
def test_external_points_alone_make_a_study_usable(use):
    study = study_of()
    assert not study_targets(study, table(study, external=())[:0].reindex(columns=table(study).columns)).is_usable
    target = study_targets(study, table(study), use)
    assert target.is_usable
    gap_mm = np.abs(SHIFT_PX) * 2.2
    for level, xyz in enumerate(LEVELS_MM.values()):
        gap = np.abs(target.canal_mm[level] - xyz)
        assert gap[0] <= 2.6  # the middle one of the slices that show the level
        np.testing.assert_allclose(gap[1:], gap_mm, atol=1e-6)
    assert len(target.marks) == 18  # nine slices of each series


@pytest.mark.parametrize(("use", "own", "other"), [("beside", 0.0, 1.0), ("instead", 1.0, 1.0)])
def test_what_comes_first_is_taken_where_both_mark_a_level(use, own, other):
    """The competition marks two levels: they keep its places or take the external ones; the rest is external."""
    study = study_of()
    target = study_targets(study, table(study, competition=("l2_l3", "l3_l4")), use)
    for level, name in enumerate(LEVELS):
        moved = own if name in ("l2_l3", "l3_l4") else other
        wanted = np.array(LEVELS_MM[name])[1:] + moved * np.array([SHIFT_PX[0], -SHIFT_PX[1]]) * 2.2
        np.testing.assert_allclose(target.canal_mm[level][1:], wanted, atol=1e-6)
    middle = int(np.abs(study.series[SAGITTAL_T2][0].positions_mm - 1.0).argmin())
    on_slice = np.isfinite(target.marks[(SAGITTAL_T2, 0, middle)][:, 0])
    assert on_slice.tolist() == [True, use == "instead", use == "instead", True, True]


def slanting(study) -> pd.DataFrame:
    """External points that move by a pixel from slice to slice, as a curved back's do."""
    frame = table(study)
    frame["x_px"] += frame["instance_number"] - 5
    return frame


def test_the_heatmaps_place_of_a_slice_is_the_point_on_that_slice():
    cache = OneStudy()
    targets = {7: study_targets(cache.item, slanting(cache.item))}
    data = SagittalXY(cache, targets, HeatmapConfig(points=11, size=128, mm_per_px=2.2), None)
    stack = cache.item.series[SAGITTAL_T2][0]
    grid = make_grid(stack, size=128, mm_per_px=2.2)
    columns = []
    for s in (3, 4, 5):
        heat, known = data._heat(stack, s, targets[7], grid, targets[7].marks[(SAGITTAL_T2, 0, s)])
        assert known[:5].all()
        columns.append((heat[2].sum(axis=0) * np.arange(64)).sum() / heat[2].sum())
    assert np.diff(columns) == pytest.approx(0.5, abs=0.05)  # a pixel of the slice is half a pixel of the heat


def test_the_regression_learns_the_point_on_every_slice_that_has_one():
    cache = OneStudy()
    targets = {7: study_targets(cache.item, slanting(cache.item))}
    data = SagittalRegression(cache, targets, SagittalRegressionConfig(BackboneConfig("none"), 96, 1), None)
    shown: dict[float, set[float]] = {}
    for seed in range(40):
        sample = data.sample(0, np.random.default_rng(seed))
        assert sample["marked"].all()
        shown.setdefault(float(sample["presence"]), set()).add(round(float(sample["points"][2, 0]) * 96, 3))
    assert len(shown[0.0]) >= 3  # places beside the canal are learnt as well
    assert len(shown[0.0] | shown[1.0]) >= 5
    sample = {k: v[None] for k, v in sample.items()} | {"presence": torch.zeros(1)}
    loss = [
        float(sagittal_regression_loss(lambda x, moved=moved: moved.expand(1, 11), sample)[1]["position"])
        for moved in (torch.zeros(11), torch.ones(11))
    ]
    assert loss[0] != pytest.approx(loss[1])


def test_the_summary_says_how_many_come_from_where_and_how_far_they_differ():
    study = study_of()
    points = table(study, competition=("l1_l2", "l2_l3"), external=LEVELS[1:]).assign(study_id=7)
    found = summary(lambda study_id: study, points, "beside")
    assert found["counts"] == {
        "competition, Sagittal T2/STIR": 2, "external, Sagittal T1": 36, "external, Sagittal T2/STIR": 36,
    }  # fmt: skip
    assert found["levels"] == {"competition alone": 1, "external alone": 3, "both": 1}
    assert found["apart"]["canal"]["n"] == 1
    assert found["apart"]["canal"]["median_mm"] == pytest.approx(np.hypot(*SHIFT_PX) * 2.2)
    assert any("apart by 4.0 mm in the median" in line for line in describe(found))


# Tables


def write_external(root: Path, path: Path, *, scale: float = 1.0, sizes: bool = False, studies=range(201, 209)) -> Path:
    """A point a slice and level of the tiny cohort's T2 series, in an image ``scale`` times as large."""
    points = pd.read_csv(root / "train_label_coordinates.csv")
    canal = points[(points["condition"] == "Spinal Canal Stenosis") & points["study_id"].isin(studies)]
    rows = []
    for item in canal.to_dict("records"):
        for instance in range(1, 6):
            x, y = ((item[name] + 0.5) * scale - 0.5 for name in ("x", "y"))
            own = {"series_id": item["series_id"], "instance_number": instance, "level": item["level"], "x": x, "y": y}
            size = round(train_tiny.SIZE * scale)
            rows.append(own | ({"img_h": size, "img_w": size, "shift": 3} if sizes else {}))
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return train_tiny.write_cohort(tmp_path_factory.mktemp("tiny") / "cohort")


def test_pixels_of_another_image_become_those_of_the_slice(data, tmp_path):
    plain = read_cohort(data, points_file=write_external(data, tmp_path / "a.csv"), progress=False)
    other = read_cohort(
        data, points_file=write_external(data, tmp_path / "b.csv", scale=2.5, sizes=True), progress=False
    )
    for name in ("x_px", "y_px"):
        np.testing.assert_allclose(plain.points[name], other.points[name], atol=1e-9)
    assert list(other.points.columns) == list(plain.points.columns)
    external = other.points[other.points["source"] == "external"]
    assert len(external) == 8 * 5 * 5  # all slices' points stay: eight studies, five levels, five slices
    assert not plain.dropped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(series_id=f["series_id"] + 900_000), "none of 8 series is described in this cohort"),
        (
            lambda f: f.assign(series_id=f["series_id"] + 900_000, study_id=201),
            "none of 8 series is described in this cohort",
        ),
        (lambda f: f.rename(columns={"x": "px_x"}), "found no column x"),
        (lambda f: f.drop(columns="instance_number"), "found no column instance_number"),
        (lambda f: f.assign(level="T12/L1"), "unknown level 'T12/L1'"),
        (lambda f: f.assign(img_h=0, img_w=40), "img_h is 0, expected pixels of an image, 1 or more"),
    ],
)
def test_a_table_of_another_cohort_or_kind_is_one_line(data, tmp_path, change, message):
    path = write_external(data, tmp_path / "points.csv")
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(CohortError) as caught:
        read_cohort(data, points_file=path, progress=False)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_on_axial_series_are_left_out_and_counted(data, tmp_path):
    path = write_external(data, tmp_path / "points.csv")
    frame = pd.read_csv(path)
    series = pd.read_csv(data / "train_series_descriptions.csv")
    axial = series[series["series_description"] == "Axial T2"]["series_id"].iloc[0]
    pd.concat([frame, frame[:3].assign(series_id=axial)]).to_csv(path, index=False)
    cohort = read_cohort(data, points_file=path, progress=False)
    assert cohort.dropped == {"points: external point on an axial series": 3}


@pytest.mark.parametrize("use", ["beside", "instead"])
def test_a_cohort_without_canal_points_trains_on_the_external_ones(data, tmp_path, capsys, use):
    """The competition's table has no canal point; with external ones the localiser trains on every study."""
    root = shutil.copytree(data, tmp_path / "data", copy_function=lambda a, b: Path(b).hardlink_to(a))
    points = pd.read_csv(root / "train_label_coordinates.csv")
    external = write_external(root, tmp_path / "points.csv", scale=2.0, sizes=True)
    (root / "train_label_coordinates.csv").unlink()
    points[points["condition"] != "Spinal Canal Stenosis"].to_csv(root / "train_label_coordinates.csv", index=False)
    run = tmp_path / "run"
    command = ["train", "--data", str(root), "--recipe", "tiny", "--out", str(run), "--workers", "0", "--device", "cpu"]
    more = ["--stages", "sagittal_xy", "--folds", "0,1", "--points", str(external), "--points-use", use]
    assert main([*command, *more]) == 0
    assert "0 competition alone, 40 external alone, 0 both" in capsys.readouterr().out
    noted = json.loads((run / "points.json").read_text())
    assert noted["use"] == use
    assert noted["counts"]["external, Sagittal T2/STIR"] == 200
    seen = json.loads((run / "sagittal_xy/fold0.seen.json").read_text())
    assert len(seen["studies"]) == 4
    assert len(pd.read_parquet(run / "sagittal_xy/oof.parquet")) >= 20
