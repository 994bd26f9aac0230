"""The examples run as they stand, on phantoms and the demo weights."""

import importlib.util
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_fits_on_a_page():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path.name


def test_a_series_is_read_and_described(phantom_cohort, capsys):
    series = sorted((phantom_cohort / "test_images").glob("*/*"))[0]
    example("read_a_series").main(str(series))
    out = capsys.readouterr().out
    assert "stack, (" in out
    assert "read in" in out


def test_a_submission_is_scored_with_its_interval(phantom_cohort, capsys):
    example("score_a_submission").main(
        str(phantom_cohort / "solution.csv"), str(phantom_cohort / "sample_submission.csv")
    )
    out = capsys.readouterr().out
    assert "total" in out
    assert "95 % interval" in out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_without_its_arguments_says_how_it_is_called(path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert f"python examples/{path.name} " in str(ended.value)


def test_a_table_of_series_of_a_wrong_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="found no test_images/<study>/<series>/"):
        example("table_of_series").main(str(tmp_path / "nowhere"))
    (tmp_path / "test_images").mkdir()
    with pytest.raises(SystemExit, match="found no test_images/<study>/<series>/"):
        example("table_of_series").main(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["test_images"]


@pytest.mark.slow
def test_a_study_is_localised_and_drawn(phantom_cohort, demo_bundle, tmp_path, capsys):
    study_id = pd.read_csv(phantom_cohort / "test_series_descriptions.csv")["study_id"].iloc[0]
    example("localise_a_study").main(str(phantom_cohort), str(demo_bundle), str(study_id), str(tmp_path))
    assert "l5_s1 canal" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.png"))) >= 2


def test_a_table_of_series_is_written_for_studies_of_ones_own(phantom_cohort, tmp_path, capsys):
    shutil.copytree(phantom_cohort / "test_images", tmp_path / "test_images")
    (tmp_path / "test_images" / "1" / "2").mkdir(parents=True)
    (tmp_path / "test_images" / "1" / "2" / "1.dcm").write_bytes(b"no image")
    example("table_of_series").main(str(tmp_path))
    assert "left out: " in capsys.readouterr().out
    tables = [pd.read_csv(root / "test_series_descriptions.csv") for root in (phantom_cohort, tmp_path)]
    ours, theirs = (set(map(tuple, table.to_numpy().tolist())) for table in tables)
    assert ours == theirs
