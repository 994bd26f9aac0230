"""Any folder of DICOM: studies and series by their UIDs, the kind of each series, ids, doubles, and refusals."""

import re

import numpy as np
import pytest
from pydicom import dcmread

from hospital_tree import PD_FS, SCOUT, STIR, T1, T2, data_set, write, write_series, write_study
from lumbar import __main__ as command
from lumbar.errors import CohortError
from lumbar.intake import words
from lumbar.intake.headers import read_image_header
from lumbar.intake.ids import id_order, is_plain_name, safe_id
from lumbar.intake.index import index_folder
from lumbar.intake.inspect import inspect
from lumbar.intake.run_table import as_text, table_of
from lumbar.intake.weighting import weighting_of
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from series_writer import AXIAL, CORONAL, SAGITTAL


def kinds(index):
    """(study, series) → kind, empty where left out; of a series with a used part, that part's."""
    out = {}
    for study in index.studies:
        for decision in study.decisions:
            key = study.study_id, decision.part.series
            out[key] = out.get(key) or decision.kind
    return out


def of_one_study(tmp_path, **series):
    """Kinds by name of a study's series, each given by the options of ``write_series``."""
    for name, options in series.items():
        write_series(tmp_path / name, "1.2.3", name, **options)
    (study,) = index_folder(tmp_path).studies
    return {decision.part.series: decision for decision in study.decisions}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Twenty studies with text ids, and what each of their series is."""
    root = tmp_path_factory.mktemp("hospital")
    expected = {}
    for number in range(20):
        study = f"case-{number:02d}.x"
        folder = root / f"DICOM/{number % 4}/PAT{number}/visit"
        own = write_study(folder, study, with_words=number % 2 == 1)
        expected |= {(study, series): kind for series, kind in own.items()}
        double = data_set(study, f"{study}.t1", 2, at=10.0, **T1)
        write(root / "again" / f"{number}.bin.dcm", double)
    (root / "DICOMDIR").write_bytes(b"no directory")
    (root / "DICOM" / "readme.txt").write_text("viewer")
    (root / "DICOM" / "report.pdf").write_bytes(b"%PDF-1.4")
    return root, expected


def test_every_series_of_a_hospitals_tree_is_told_by_its_header(hospital):
    root, expected = hospital
    index = index_folder(root)
    assert kinds(index) == expected
    assert all(decision.reason for study in index.studies for decision in study.decisions)
    assert all("1 file left out, there twice" in " ".join(study.problems) for study in index.studies)
    assert index.problems == ["2 files passed over, no DICOM"]
    assert re.search(r"20 studies, 320 series; \d+\.\d s$", index.summary)


def test_the_table_of_a_tree_has_its_files_in_the_order_of_their_numbers(hospital):
    root, expected = hospital
    table = table_of(index_folder(root))
    used = [key for key, kind in expected.items() if kind]
    assert len(table.frame) == len(used) == 80
    assert list(table.inputs) == [f"case-{number:02d}.x" for number in range(20)]
    for entry in table.inputs["case-00.x"]:
        assert set(entry) == {"series_id", "slices", "kind", "reason", "doubt"}
    for paths in table.frame["files"]:
        numbers = [read_image_header(path).instance_number for path in paths[:2]]
        assert numbers == sorted(numbers)


def test_inspect_shows_the_same_table(hospital, capsys):
    root, _ = hospital
    assert command.main(["inspect", str(root / "DICOM" / "1")]) == 0
    text = capsys.readouterr().out
    assert "study" in text.splitlines()[0]
    assert "why" in text.splitlines()[0]
    assert text.count(SAGITTAL_T1) == 5
    assert "after a contrast agent" in text
    assert "Doe" not in text


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (T1, "T1"),
        (T2, "T2"),
        (STIR, "STIR"),
        (PD_FS, "PD"),
        (SCOUT, "gradient echo"),
        ({"RepetitionTime": 2100, "EchoTime": 9, "InversionTime": 860, "ScanningSequence": ["SE", "IR"]}, "T1"),
        ({"RepetitionTime": 462, "EchoTime": 25, "InversionTime": 0, "ScanningSequence": "SE"}, "T1"),
        ({"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500, "ScanningSequence": "IR"}, "FLAIR"),
        ({"RepetitionTime": 4500, "EchoTime": 900, "ScanningSequence": "SE"}, "myelography"),
        ({"RepetitionTime": 4500, "EchoTime": 45, "SeriesDescription": "STIR"}, "STIR"),
        ({"RepetitionTime": 1300, "EchoTime": 12, "SeriesDescription": "Sag T1"}, "T1"),
        ({"RepetitionTime": 700, "EchoTime": 17, "SeriesDescription": "me2d T2* tra"}, "T2*"),
        ({"RepetitionTime": 3500, "EchoTime": 100, "SeriesDescription": "Sag T1"}, "T2"),  # times beat one word
        ({"SeriesDescription": "Sagittal T2/STIR"}, "T2/STIR"),
        ({"SeriesDescription": "Sagittal T2/STIR", "RepetitionTime": 4000, "EchoTime": 110}, "T2"),
        ({"SeriesDescription": "Т1-ВИ сагиттальная"}, "T1"),
        ({"SeriesDescription": "腰椎 T2 矢状"}, "T2"),
        ({}, ""),
    ],
)
def test_the_contrast_follows_from_times_sequence_and_words(tmp_path, options, name):
    header = read_image_header(str(write(tmp_path / "a", data_set("1", "2", 3, **options))))
    weighting = weighting_of(header)
    assert weighting.name == name
    assert weighting.reason


def test_words_of_several_languages_are_known():
    assert words.names_lumbar("LWS sag")
    assert words.names_lumbar("columna lumbar")
    assert words.names_lumbar("поясничный")
    assert (
        words.other_parts("Kniegelenk links") == words.other_parts("rodilla") == words.other_parts("膝関節") == ["knee"]
    )
    assert words.planes("t2 сагиттальная") == words.planes("SAGITTALE") == words.planes("矢状位") == ["sagittal"]
    assert words.names_localiser("Localizador")
    assert words.names_localiser("3-plane")
    assert words.names_localiser("定位")
    assert words.names_contrast("T1 sag +C")
    assert words.names_contrast("T1 nach KM")
    assert words.names_contrast("c+ t1")
    for text in ("T1 ohne KM", "T1 sans contraste", "pre contrast", "T1 nativ", "T1 L1-S1"):
        assert not words.names_contrast(text)
    assert words.weightings("AX T2 L1-S1") == ["T2"]
    assert words.weightings("T1-T12 post1") == []


def test_a_dixon_part_is_used_where_nothing_better_shows_its_slices(tmp_path):
    water, fat = {"ImageType": ["DERIVED", "PRIMARY", "W"]}, {"ImageType": ["DERIVED", "PRIMARY", "F"]}
    decided = of_one_study(tmp_path, w=T2 | water, f=T2 | fat, plain1=T1, w1=T1 | water)
    assert decided["w"].kind == SAGITTAL_T2
    assert "water part" in decided["w"].reason
    assert decided["f"].kind == decided["w1"].kind == ""
    assert "an ordinary series shows the same slices" in decided["w1"].reason


def test_a_dixon_part_at_other_places_is_left_out_beside_an_ordinary_series(tmp_path):
    water = {"ImageType": ["DERIVED", "PRIMARY", "W"]}
    decided = of_one_study(tmp_path, plain=T2, w=T2 | water | {"at": 30.0})
    assert (decided["plain"].kind, decided["w"].kind) == (SAGITTAL_T2, "")
    assert "an ordinary series shows the same contrast" in decided["w"].reason


@pytest.mark.parametrize(("degrees", "is_one_plane"), [(48, True), (85, False)])
def test_a_steep_block_stays_with_its_axial_series_and_planes_across_each_other_are_a_localiser(
    tmp_path, degrees, is_one_plane
):
    for number, tilt in enumerate((0, 0, 15, 15, 25, 25, degrees, degrees)):
        lean = np.radians(tilt)
        plane = (1.0, 0.0, 0.0, 0.0, float(np.cos(lean)), float(-np.sin(lean)))
        write(tmp_path / f"{number}", data_set("1.2", "9", number + 1, at=4.0 * number, plane=plane, **T2))
    (study,) = index_folder(tmp_path).studies
    assert [decision.kind for decision in study.decisions] == ([AXIAL_T2] if is_one_plane else ["", ""])


def test_the_tables_own_words_leave_open_which_of_both_a_dixon_part_repeats(tmp_path):
    water = {"ImageType": ["DERIVED", "PRIMARY", "W"], "SeriesDescription": "t2_dixon_W"}
    decided = of_one_study(tmp_path, plain={"SeriesDescription": "Sagittal T2/STIR"}, w=T2 | water)
    assert (decided["plain"].kind, decided["w"].kind) == (SAGITTAL_T2, "")


def test_parts_inside_one_series_are_told_apart(tmp_path):
    for part in ("IN_PHASE", "OPP_PHASE", "WATER", "FAT"):
        for number in range(1, 5):
            image = data_set("1.2", "9", number, at=5.0 * number, ImageType=["DERIVED", "PRIMARY", "DIXON", part], **T2)
            image.SOPInstanceUID = f"1.{number}.{len(part)}"
            write(tmp_path / f"{part}{number}", image)
    (study,) = index_folder(tmp_path).studies
    used = [decision for decision in study.decisions if decision.kind]
    assert [(one.part.dixon, one.part.n_slices) for one in used] == [("in phase", 4)]
    assert study.series_ids[0] == 9
    assert len(set(study.series_ids)) == 4


def test_what_is_worse_is_left_out_only_beside_something_better(tmp_path):
    derived, contrast = {"ImageType": ["DERIVED", "SECONDARY", "OTHER"]}, {"ContrastBolusAgent": "Dotarem"}
    alone = of_one_study(tmp_path / "a", t2=T2 | derived, axial=T2 | contrast | {"plane": AXIAL})
    assert (alone["t2"].kind, alone["axial"].kind) == (SAGITTAL_T2, AXIAL_T2)
    assert "DERIVED" in alone["t2"].doubt
    assert "contrast agent" in alone["axial"].doubt
    beside = of_one_study(
        tmp_path / "b", t2=T2, other=T2 | derived, late=T2 | contrast, off=T2 | {"ContrastBolusAgent": "off"}
    )
    assert [name for name, one in beside.items() if one.kind] == ["off", "t2"]


def test_an_axial_series_far_from_the_spine_is_left_out(tmp_path):
    far = {"plane": AXIAL, "ImagePositionPatient": ["0", "0", "900"]}
    decided = of_one_study(tmp_path, t2=T2, axial=T2 | {"plane": AXIAL}, thigh=T2 | far)
    assert [name for name, one in decided.items() if one.kind] == ["axial", "t2"]


def test_a_multi_echo_series_gives_its_late_echo(tmp_path):
    for number in range(1, 5):
        for te in (14, 98):
            image = data_set(
                "1.2", "9", number + te, at=5.0 * number, RepetitionTime=3000, EchoTime=te, ScanningSequence="SE"
            )
            write(tmp_path / f"{number}_{te}", image)
    (study,) = index_folder(tmp_path).studies
    assert [(one.kind, one.part.first.te_ms) for one in study.decisions] == [(SAGITTAL_T2, 98.0), ("", 14.0)]


def test_a_series_that_headers_do_not_tell_is_left_open(tmp_path):
    decided = of_one_study(tmp_path, a={"SeriesDescription": None})
    assert decided["a"].kind == "undecided"
    assert "RepetitionTime, EchoTime absent" in decided["a"].reason
    table = table_of(index_folder(tmp_path))
    assert len(table.frame) == 0
    assert table.inputs["1.2.3"][0]["kind"] == "left out (undecided)"


# ---- ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["=cmd|'/c calc'!A1", "@x", "-1", "a,b", 'a"b', "a\nb", "../../x", "<script>", ".", "fäll", "con", ""]
)
def test_any_text_becomes_an_id_that_is_safe_everywhere(text):
    own = safe_id(text)
    assert re.fullmatch(r"[A-Za-z0-9_~][A-Za-z0-9._~-]*", own)
    assert safe_id(text + "x") != own


def test_uids_numbers_and_plain_texts_are_ids_as_they_are():
    assert safe_id("20180105") == 20180105
    assert safe_id("1.2.840.113619") == "1.2.840.113619"
    assert safe_id("007") == "007"
    assert len(safe_id("x" * 500)) < 110
    assert sorted(["b10", "b9", 12, 3, "1.10", "1.9"], key=id_order) == [3, 12, "1.9", "1.10", "b9", "b10"]
    assert is_plain_name("20180105")
    assert is_plain_name("series-3")
    assert not is_plain_name("Jane_Doe7")
    assert not is_plain_name("DICOM")


def test_a_study_is_called_by_its_folder_where_that_is_its_own_and_plain(tmp_path):
    for name, study in (("1001", "1.1"), ("1002", "1.2"), ("Doe^Jane", "1.3")):
        write_series(tmp_path / name / "5", study, f"{study}.7", **T2)
    write_series(tmp_path / "1004" / "5", "1.4", "1.4.7", **T2)
    write_series(tmp_path / "1004" / "6", "1.5", "1.5.7", **T2)
    assert [study.study_id for study in index_folder(tmp_path).studies] == [6, 1001, 1002, "1.3", "1.4"]


# ---- refusals -----------------------------------------------------------------------------------------------------


def refusal(folder):
    with pytest.raises(CohortError) as caught:
        index_folder(folder).require_usable()
    line = str(caught.value)
    assert "\n" not in line
    assert "found" in line
    assert "expected" in line
    assert "Doe" not in line
    assert "Jane" not in line
    return line


def test_folders_without_a_lumbar_spine_are_refused_in_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("x")
    assert "found no DICOM file in 1 file" in refusal(tmp_path / "none")
    write_series(tmp_path / "ct" / "1", "1.2", "5", Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    assert "found modality CT, expected MR" in refusal(tmp_path / "ct")
    write_series(tmp_path / "knee" / "1", "1.2", "5", BodyPartExamined="KNEE", **PD_FS)
    write_series(tmp_path / "knee" / "2", "1.2", "6", BodyPartExamined="KNEE", plane=CORONAL, **T1)
    assert "knee" in refusal(tmp_path / "knee")
    write_series(tmp_path / "joint" / "1", "1.2", "5", spacing=3.2, **T2)
    assert "field of view of 154 mm" in refusal(tmp_path / "joint")
    write_series(tmp_path / "two" / "1", "1.2", "5", PatientID="a Doe", **T2)
    write_series(tmp_path / "two" / "2", "1.2", "6", PatientID="b Jane", **T1)
    assert "found two patients or more (PatientID differs)" in refusal(tmp_path / "two")
    write_series(tmp_path / "names" / "1", "1.2", "5", PatientID=None, PatientName="Doe^Jane", **T2)
    write_series(tmp_path / "names" / "2", "1.2", "6", PatientName="DOE^JANE^Ann", **T1)
    assert len(index_folder(tmp_path / "names").usable()) == 1
    write_series(tmp_path / "names" / "3", "1.2", "7", PatientID=None, PatientName="Roe^Jane", **T1)
    assert "(PatientName differs)" in refusal(tmp_path / "names")


def test_one_bad_study_among_good_ones_is_left_out_with_a_line(tmp_path):
    write_series(tmp_path / "101", "1.1", "5", **T2)
    write_series(tmp_path / "102", "1.2", "6", BodyPartExamined="KNEE", **T2)
    write_series(tmp_path / "101" / "ct", "1.1", "7", Modality="CT")
    table = table_of(index_folder(tmp_path))
    assert list(table.inputs) == [101]
    assert any("study 102: found" in line and "knee" in line for line in table.frame.attrs["problems"][None])
    assert any("modalities CT beside MR" in line for line in table.frame.attrs["problems"][101])


def test_broken_files_are_a_line_and_nothing_else_is_lost(tmp_path):
    write_series(tmp_path / "1", "1.1", "5", **T2)
    (tmp_path / "1" / "Doe^Jane.dcm").write_bytes(bytes(128) + b"DICM" + b"\x08\x00\x16\x00UI\xff\xff")
    (tmp_path / "1" / "empty").write_bytes(b"")
    index = index_folder(tmp_path)
    assert index.studies[0].decisions[0].part.n_slices == 4
    assert "Doe" not in as_text(index)
    assert any("expected" in line for line in index.problems)


def test_files_without_uids_are_studies_and_series_by_their_folders(tmp_path):
    for study in ("11", "12"):
        for series, times in (("1", T1), ("2", T2)):
            write_series(tmp_path / study / series, None, None, **times, PatientID=None)
    index = index_folder(tmp_path)
    assert [(study.study_id, [one.kind for one in study.decisions]) for study in index.studies] == [
        (11, [SAGITTAL_T1, SAGITTAL_T2]),
        (12, [SAGITTAL_T1, SAGITTAL_T2]),
    ]


def test_a_circle_of_links_ends(tmp_path):
    write_series(tmp_path / "1", "1.1", "5", **T2)
    (tmp_path / "1" / "up").symlink_to(tmp_path)
    assert len(index_folder(tmp_path).studies[0].decisions[0].part.headers) == 4


def test_oblique_planes_are_told_by_the_nearest_axis(tmp_path):
    turn = np.radians(40)
    tilted = (1.0, 0.0, 0.0, 0.0, float(np.cos(turn)), float(np.sin(turn)))
    decided = of_one_study(tmp_path, axial=T2 | {"plane": tilted}, sagittal=T2 | {"plane": SAGITTAL})
    assert (decided["axial"].kind, decided["sagittal"].kind) == (AXIAL_T2, SAGITTAL_T2)


def test_inspect_describes_a_study_in_detail_below_the_table(tmp_path):
    write_series(tmp_path / "1", "1.1", "5", names="{number}.dcm", **T2)
    text = inspect(tmp_path)
    assert text.index("why") < text.index("  stack  ")


def test_inspect_says_once_what_a_masked_name_is(tmp_path):
    write_series(tmp_path / "Müller", "1.1", "5", StudyInstanceUID=None, SeriesInstanceUID=None, **T2)
    write_series(tmp_path / "Maier", "1.2", "6", StudyInstanceUID=None, SeriesInstanceUID=None, **T2)
    text = inspect(tmp_path)
    assert "name~" in text
    assert text.count("unusual names are masked, see docs/any-folder.md") == 1


def test_a_series_that_was_sent_again_as_another_counts_once(tmp_path):
    write_series(tmp_path / "1", "1.1", "5", **T2)
    for file in sorted((tmp_path / "1").iterdir()):
        data = dcmread(file)
        data.SeriesInstanceUID = "6"
        write(tmp_path / "2" / file.name, data)
        data.SeriesInstanceUID, data.SeriesDescription = "7", "localizer"  # of a program that keeps instance UIDs
        write(tmp_path / "3" / file.name, data)
    (study,) = index_folder(tmp_path).studies
    assert [(one.part.series, one.part.n_slices, one.cause) for one in study.decisions] == [
        ("5", 4, ""),
        ("7", 4, "localiser"),
    ]
    assert study.problems == ["4 files left out, there twice (the same SOPInstanceUID)"]
