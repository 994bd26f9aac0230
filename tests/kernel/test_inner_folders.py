"""Which folder inside an indexed one is named, and that no patient's name is shown with it."""

from hospital_tree import T2, write_series
from lumbar.intake.index import index_folder
from lumbar.intake.inner_folders import competition_hint
from lumbar.intake.inspect import inspect
from lumbar.io.text import masked_name


def test_inspect_names_the_folder_inside_that_holds_all_images(tmp_path):
    write_series(tmp_path / "export" / "1" / "a", "1.1", "5", names="{number}.dcm", **T2)
    write_series(tmp_path / "export" / "2" / "a", "1.2", "6", names="{number}.dcm", **T2)
    assert inspect(tmp_path).splitlines()[-1] == (
        f"all images lie in its folder {masked_name('export')} (unusual names are masked, see docs/any-folder.md)"
    )
    assert "all images lie" not in inspect(tmp_path / "export")


def test_inspect_names_a_competitions_folder_inside_which_predict_would_be_given(tmp_path):
    write_series(tmp_path / "cohort" / "test_images" / "1" / "5", "1.1", "5", names="{number}.dcm", **T2)
    (tmp_path / "cohort" / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    line = inspect(tmp_path).splitlines()[-1]
    assert line == "its folder cohort is a competition's folder: name that one to predict"
    assert "its folder" not in inspect(tmp_path / "cohort")


def test_competition_folders_further_inside_are_all_named(tmp_path):
    for number, folder in enumerate((tmp_path / "1" / "data", tmp_path / "series" / "2" / "mine"), 1):
        write_series(folder / "test_images" / "1" / "5", f"1.{number}", f"{number}", names="{number}.dcm", **T2)
        (folder / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    index = index_folder(tmp_path)
    said = "its folders 1/data, series/2/mine are competition folders: name one of them to predict"
    assert competition_hint(index, tmp_path) == said
    assert competition_hint(index_folder(tmp_path / "series"), tmp_path / "series") == (
        "its folder 2/mine is a competition's folder: name that one to predict"
    )


def test_of_a_competitions_folder_inside_only_its_own_name_is_shown(tmp_path):
    folder = tmp_path / "MAIER^ANNA" / "1" / "mine"
    write_series(folder / "test_images" / "1" / "5", "1.1", "5", names="{number}.dcm", **T2)
    (folder / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    assert competition_hint(index_folder(tmp_path), tmp_path) == (
        f"its folder {masked_name('MAIER^ANNA')}/1/mine is a competition's folder: name that one to predict "
        "(unusual names are masked, see docs/any-folder.md)"
    )
