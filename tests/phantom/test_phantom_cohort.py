"""Files, headers and tables of a cohort: the competition's layout, deterministic, every pitfall by name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from lumbar import labels
from lumbar.errors import CohortError
from lumbar_phantom import __main__ as command
from lumbar_phantom import dicom_files, masks, pitfalls, study
from lumbar_phantom.cohort import CONTRAST_COLUMNS, CONTRASTS, TRUTH_COLUMNS, make_cohort
from lumbar_phantom.study import Request, study_number
from phantom_helpers import BlankPainter, digest


def _headers(root: Path, split: str = "train") -> dict[int, list[pydicom.Dataset]]:
    out = {}
    for folder in (root / f"{split}_images").glob("*/*"):
        out[int(folder.name)] = [pydicom.dcmread(p) for p in sorted(folder.glob("*.dcm"), key=lambda p: int(p.stem))]
    return out


@pytest.mark.slow
def test_a_real_study_is_the_same_on_any_number_of_workers(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    make_cohort(one, 2, 21, pitfalls=("none",), masks=True, progress=False)
    make_cohort(two, 2, 21, pitfalls=("none",), masks=True, workers=2, progress=False)
    assert digest(one) == digest(two)
    truth = pd.read_parquet(one / "truth.parquet")
    assert list(truth.columns) == TRUTH_COLUMNS
    assert (truth.groupby("study_id").size() == 25).all()
    images = _headers(one)
    for path in (one / "truth_masks").glob("*/*.npz"):
        stored = np.load(path)
        slices = images[int(path.stem)]
        assert stored["masks"].shape == (len(slices), slices[0].Rows, slices[0].Columns)
        classes = set(np.unique(stored["masks"]).tolist())
        assert {0, masks.BODY, masks.DISC, masks.SAC, masks.S1} <= classes <= set(range(len(masks.CLASSES)))
        sac = truth[(truth.series_id == int(path.stem)) & (truth.condition == labels.SPINAL)]
        place = {int(n): k for k, n in enumerate(stored["instance_numbers"])}
        hits = [
            (
                stored["masks"][
                    place[r.instance_number],
                    round(r.y_px) - 3 : round(r.y_px) + 4,
                    round(r.x_px) - 3 : round(r.x_px) + 4,
                ]
                == 3
            ).any()
            for r in sac.itertuples()
        ]
        assert np.mean(hits or [1]) > 0.7
    pixels = np.concatenate([d.pixel_array.ravel()[::50] for ds in images.values() for d in ds])
    assert pixels.max() <= 4095
    assert len(np.unique(pixels)) > 200


def test_one_study_does_not_depend_on_how_many_are_made(tmp_path, unpainted):
    make_cohort(tmp_path / "a", 3, 5, progress=False)
    make_cohort(tmp_path / "b", 5, 5, progress=False)
    few, many = digest(tmp_path / "a"), digest(tmp_path / "b")
    images = [name for name in few if name.endswith(".dcm")]
    assert images
    assert all(few[name] == many[name] for name in images)


def test_tables_and_files_belong_together(tmp_path, unpainted):
    make_cohort(tmp_path, 4, 8, progress=False)
    train = pd.read_csv(tmp_path / "train.csv")
    assert list(train.columns) == ["study_id", *labels.COLUMNS]
    assert set(train[list(labels.COLUMNS)].stack().unique()) <= set(labels.SEVERITIES)
    described = pd.read_csv(tmp_path / "train_series_descriptions.csv")
    assert set(described.series_description) <= set(labels.DESCRIPTIONS)
    points = pd.read_csv(tmp_path / "train_label_coordinates.csv")
    assert list(points.columns) == ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    assert set(points.condition) <= set(labels.CONDITION_TITLES)
    assert set(points.level) <= {labels.level_title(level) for level in labels.LEVELS}
    for row in points.itertuples():
        path = tmp_path / "train_images" / str(row.study_id) / str(row.series_id) / f"{row.instance_number}.dcm"
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert -2 <= row.x < header.Columns + 2
        assert -2 <= row.y < header.Rows + 2
    sample = pd.read_csv(tmp_path / "sample_submission.csv")
    assert list(sample.columns) == ["row_id", *labels.SEVERITY_COLUMNS]
    assert len(sample) == 100
    for row in described.itertuples():
        assert any((tmp_path / "train_images" / str(row.study_id) / str(row.series_id)).glob("*.dcm"))


def test_truth_pixels_and_millimetres_agree(tmp_path, unpainted):
    make_cohort(tmp_path, 2, 8, pitfalls=("mixed_blocks",), progress=False)
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    for row in truth.itertuples():
        path = tmp_path / "train_images" / str(row.study_id) / str(row.series_id) / f"{row.instance_number}.dcm"
        d = pydicom.dcmread(path, stop_before_pixels=True)
        iop = np.array(d.ImageOrientationPatient, float)
        between_rows, between_columns = map(float, d.PixelSpacing)
        point = (
            np.array(d.ImagePositionPatient, float)
            + iop[:3] * between_columns * row.x_px
            + iop[3:] * between_rows * row.y_px
        )
        off = np.array([row.x_mm, row.y_mm, row.z_mm]) - point
        normal = np.cross(iop[:3], iop[3:])
        assert np.linalg.norm(off - normal * (off @ normal)) < 0.01  # only the distance from the slice is left
        assert abs(off @ normal) < 8.0
        assert 0 <= row.narrowing <= 1
        side = row.condition.split("_")[0]
        assert row.side == side if side in labels.SIDES else pd.isna(row.side)


def test_files_are_as_the_real_ones(tmp_path, unpainted):
    make_cohort(tmp_path, 2, 8, pitfalls=("none",), progress=False)
    for series, slices in _headers(tmp_path).items():
        for d in slices:
            assert d.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless
            assert (d.BitsAllocated, d.BitsStored, d.PixelRepresentation) == (16, 12, 0)
            for absent in (
                "Modality",
                "Manufacturer",
                "RescaleSlope",
                "SOPClassUID",
                "PatientName",
                "PatientID",
                "PatientBirthDate",
            ):
                assert absent not in d
            assert d.SeriesInstanceUID == f"{series}.1.1"
        np.testing.assert_array_equal(slices[0].pixel_array, BlankPainter().slice(_Shape(slices[0]), None))


class _Shape:
    def __init__(self, d):
        self.shape = (d.Rows, d.Columns)


def test_test_split_has_a_solution_beside_and_other_patients(tmp_path, unpainted):
    make_cohort(tmp_path, 2, 8, split="test", progress=False)
    solution = pd.read_csv(tmp_path / "solution.csv")
    assert list(solution.columns) == ["study_id", *labels.COLUMNS]
    assert not (tmp_path / "train.csv").exists()
    assert not (tmp_path / "train_label_coordinates.csv").exists()
    assert (tmp_path / "test_series_descriptions.csv").exists()
    make_cohort(tmp_path, 2, 8, split="train", progress=False)
    train = pd.read_csv(tmp_path / "train.csv")
    assert not set(train.study_id) & set(solution.study_id)
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    assert set(truth.study_id) == set(train.study_id) | set(solution.study_id)
    sample = pd.read_csv(tmp_path / "sample_submission.csv")
    assert set(sample.row_id) == {r for s in solution.study_id for r in labels.row_ids(s)}


def test_study_ids_never_repeat():
    assert len({study_number(3, i) for i in range(5000)}) == 5000


def _series(headers: dict, described: pd.DataFrame, name: str) -> list[list[pydicom.Dataset]]:
    return [headers[s] for s in described[described.series_description == name].series_id]


def _orientations(slices) -> int:
    return len({tuple(np.round(np.array(d.ImageOrientationPatient, float), 2)) for d in slices})


def _positions(slices) -> np.ndarray:
    return np.array([d.ImagePositionPatient for d in slices], float)


@pytest.mark.parametrize("name", pitfalls.NAMES)
def test_each_pitfall_is_in_the_files(tmp_path, unpainted, name):
    make_cohort(tmp_path, 3, 31, pitfalls=(name,), progress=False)
    headers = _headers(tmp_path)
    described = pd.read_csv(tmp_path / "train_series_descriptions.csv")
    train = pd.read_csv(tmp_path / "train.csv")
    points = pd.read_csv(tmp_path / "train_label_coordinates.csv")
    every = [d for slices in headers.values() for d in slices]
    t1, t2, axial = (_series(headers, described, d) for d in labels.DESCRIPTIONS)
    is_there = {
        "missing_t1": lambda: not t1,
        "missing_t2": lambda: not t2,
        "two_t1": lambda: len(t1) == 6,
        "several_axial": lambda: len(axial) == 6,
        "missing_labels": lambda: train.isna().sum().sum() > 0,
        "partial_axial": lambda: points.condition.str.contains("Subarticular").sum() < 30,
        "swapped_sides": lambda: _swapped(points),
        "reversed_order": lambda: all(
            np.sign(np.diff(_positions(a)[:, 0]).sum()) != np.sign(np.diff(_positions(b)[:, 0]).sum())
            for a, b in zip(t1, t2, strict=True)
        ),
        "instance_gaps": lambda: any(np.diff([d.InstanceNumber for d in s]).max() > 1 for s in t1 + t2 + axial),
        "large_instances": lambda: max(d.InstanceNumber for d in every) > 900,
        "mixed_blocks": lambda: all(_orientations(s) >= 2 for s in axial),
        "mixed_sizes": lambda: any(len({d.Rows for d in s}) > 1 for s in headers.values()),
        "non_square": lambda: all(s[0].Rows != s[0].Columns for s in t2),
        "rescale": lambda: all("RescaleIntercept" in d for d in every),
        "monochrome1": lambda: all(d.PhotometricInterpretation == "MONOCHROME1" for d in every),
        "missing_window": lambda: not any("WindowCenter" in d for d in every),
        "multi_window": lambda: all(d["WindowCenter"].VM == 2 for d in every),
        "missing_optional_tags": lambda: not any("SliceThickness" in d or "SpacingBetweenSlices" in d for d in every),
        "incomplete_points": lambda: points.condition.str.contains("Spinal").sum() < 15,
        "one_sided_points": lambda: _one_sided(points),
        "transitional": lambda: True,  # the anatomy: test_phantom_geometry
        "other_syntax": lambda: all(d.file_meta.TransferSyntaxUID != pydicom.uid.RLELossless for d in every),
        "short_series": lambda: all(len(s) <= 10 for s in t2),
    }
    assert is_there[name]()
    for d in every:
        assert d.pixel_array.shape == (d.Rows, d.Columns)


def _swapped(points: pd.DataFrame) -> bool:
    sides = points[points.condition.str.contains("Subarticular") & (points.level == "L4/L5")]
    wide = sides.pivot(index="study_id", columns="condition", values="x").dropna()
    return bool((wide["Left Subarticular Stenosis"] < wide["Right Subarticular Stenosis"]).any())


def _one_sided(points: pd.DataFrame) -> bool:
    foramina = points[points.condition.str.contains("Foraminal")]
    wide = foramina.pivot(index=["study_id", "level"], columns="condition", values="instance_number").dropna()
    return bool((wide.iloc[:, 0] == wide.iloc[:, 1]).mean() > 0.8)


@pytest.mark.parametrize("syntax", list(dicom_files.SYNTAXES))
def test_every_syntax_is_decoded_to_the_same_pixels(tmp_path, unpainted, syntax):
    if syntax in dicom_files.OPTIONAL:
        pytest.importorskip("imagecodecs", reason="encodes the JPEG family")
        pytest.importorskip("gdcm", reason="decodes the JPEG family for pydicom")
    make_cohort(tmp_path, 1, 8, pitfalls=("none",), syntax=syntax, progress=False)
    for slices in _headers(tmp_path).values():
        d = slices[len(slices) // 2]
        assert d.file_meta.TransferSyntaxUID == dicom_files.SYNTAXES[syntax]
        np.testing.assert_array_equal(d.pixel_array, BlankPainter().slice(_Shape(d), None))


def test_all_gives_every_study_some_and_thirty_studies_each():
    drawn = [pitfalls.draw(2, i, ("all",)) for i in range(30)]
    assert all(len(d) >= 3 for d in drawn)
    assert frozenset().union(*drawn) == set(pitfalls.NAMES)
    assert not any({"missing_t1", "missing_t2"} <= d for d in drawn)


@pytest.mark.parametrize("text", ["reversed", "none,typo", ""])
def test_unknown_pitfalls_are_refused(text):
    with pytest.raises(CohortError, match="expected real, none, all or names"):
        pitfalls.parse(text)


def test_command_refuses_in_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert command.main(["--out", str(blocked / "x"), "--studies", "1"]) == 1
    assert "is a file, expected a folder to write into" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--studies", "1", "--pitfalls", "typo"]) == 1
    with pytest.raises(SystemExit) as wrong:
        command.main(["--out", str(tmp_path), "--studies", "0"])
    assert wrong.value.code == 2


def test_command_prints_frequencies_and_floor(tmp_path, unpainted, capsys):
    assert command.main(["--out", str(tmp_path), "--studies", "5", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "spinal: Normal/Mild" in out
    assert "floor: true narrowing scores" in out
    assert "the cohort's own prior" not in out, "that of five studies is all but their answer"
    assert command.main(["--out", str(tmp_path / "more"), "--studies", "12", "--seed", "3"]) == 0
    assert "the cohort's own prior 0." in capsys.readouterr().out


def test_requests_carry_no_cohort_size():
    assert "studies" not in Request.__dataclass_fields__


def test_the_truth_tells_the_contrast_of_every_series(tmp_path, unpainted):
    make_cohort(tmp_path, 12, 8, pitfalls=("none",), progress=False)
    make_cohort(tmp_path, 2, 8, split="test", pitfalls=("none",), randomised_share=0.0, progress=False)
    truth = pd.read_csv(tmp_path / CONTRASTS)
    assert list(truth.columns) == CONTRAST_COLUMNS
    tables = [pd.read_csv(tmp_path / f"{split}_series_descriptions.csv") for split in ("train", "test")]
    both = pd.concat(tables).merge(truth, on=["study_id", "series_id"], validate="one_to_one")
    assert len(both) == len(truth) == 42
    seen = both.groupby("series_description")["contrast"].agg(lambda values: set(values)).to_dict()
    assert seen == {labels.SAGITTAL_T1: {"T1"}, labels.SAGITTAL_T2: {"T2", "STIR"}, labels.AXIAL_T2: {"T2"}}
    of_test = both.study_id.isin(tables[1].study_id)
    assert (both.randomised[of_test] == 0).all()
    assert 0.1 < (both.randomised[~of_test] >= 0.3).mean() < 0.5


def test_the_contrast_that_the_truth_notes_is_the_one_that_is_painted(tmp_path, monkeypatch, unpainted):
    painted = []

    class NotingPainter(BlankPainter):
        def __init__(self, *arguments):
            painted.append(round(arguments[7], 3))

    monkeypatch.setattr(study, "Painter", NotingPainter)
    tables = study.write_study(Request(str(tmp_path), "train", 5, 0, randomised_share=0.6))
    assert [randomised for _, _, _, randomised in tables.contrasts] == painted
    assert 0.0 < max(painted) < 1.0
