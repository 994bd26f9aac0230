"""Natural mistakes with folders, and what is answered."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar import __main__ as command
from lumbar.bundle.manifest import verify
from lumbar.bundle.presence import check_presence
from lumbar.chains.registry import chain_of
from lumbar.dicom.inspect import describe
from lumbar.errors import CohortError, DicomError, ManifestError
from lumbar.io.competition import check_competition
from lumbar.io.text import counted


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr("lumbar.chains.registry.MAIN", FAKE)
    monkeypatch.setattr("lumbar.run.cuda_devices", list)


def predict(root, bundle, out, *more):
    words = ["predict", "--data", root, "--weights", bundle, "--out", out, *more]
    return command.main([str(word) for word in words])


# ---- folders of weights -------------------------------------------------------------------------------------------


def test_unsealed_weights_say_how_they_are_sealed(tmp_path):
    folder = tmp_path / "weights" / "demo"
    folder.mkdir(parents=True)
    (folder / "axial_xy.full.safetensors").write_bytes(b"")
    for place in (folder, folder.parent / "demo"):
        for check in (check_presence, verify):
            with pytest.raises(ManifestError, match=r"not sealed; seal them with python build_dataset.py"):
                check(place)


def test_a_training_run_says_how_it_is_sealed(tmp_path):
    (tmp_path / "mine" / "export").mkdir(parents=True)
    (tmp_path / "mine" / "export" / "weights_manifest.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"seal it with python build_dataset.py --run \S*mine, then"):
        check_presence(tmp_path / "mine")


def test_a_folder_too_high_or_too_deep_names_the_right_one(tmp_path):
    sealed = write_bundle(tmp_path / "dist" / "dataset")
    for wrong in (tmp_path / "dist", sealed / "weights"):
        with pytest.raises(ManifestError, match=r"dist/dataset has one, name that folder"):
            check_presence(wrong)


def test_the_repository_itself_is_no_bundle(tmp_path):
    bundle = write_bundle(tmp_path)
    shutil.rmtree(bundle / "weights", ignore_errors=True)
    for path in bundle.glob("*.safetensors"):
        path.unlink()
    (bundle / "build_dataset.py").write_text("")
    with pytest.raises(ManifestError, match=r"this is the lock file; seal with python build_dataset.py"):
        verify(bundle)


# ---- folders of studies -------------------------------------------------------------------------------------------


def test_a_folder_with_train_images_alone_suggests_the_split(tmp_path, bundle, capsys):
    root = write_cohort(tmp_path / "data", {1: ()}, split="train", sample=False)
    assert predict(root, bundle, tmp_path / "s.csv") == 1
    assert "the folder has train_images, add --split train" in capsys.readouterr().err
    check_competition(root, "train")


def test_a_folder_too_deep_or_too_high_is_answered_with_the_right_one(tmp_path):
    root = write_cohort(tmp_path / "data", {1: ()})
    for wrong in (root / "test_images", root / "test_images" / "1", tmp_path):
        with pytest.raises(CohortError, match=rf"{re.escape(str(root))}\b.*name that folder"):
            check_competition(wrong, "test")


def test_images_without_a_table_lead_to_the_readme(tmp_path):
    (tmp_path / "test_images" / "1").mkdir(parents=True)
    with pytest.raises(CohortError, match=r"test_series_descriptions.csv: not found.*README says how"):
        check_competition(tmp_path, "test")


def test_a_missing_folder_of_the_output_is_made(tmp_path, bundle, fake):
    root = write_cohort(tmp_path / "data", {1: ()})
    out, report = tmp_path / "new" / "deeper" / "s.csv", tmp_path / "other" / "r.html"
    assert predict(root, bundle, out, "--report", report) == 0
    assert len(pd.read_csv(out)) == 25
    assert report.is_file()


@pytest.mark.parametrize("name", ["/proc/nowhere/s.csv", "{file}/s.csv", "{data}/test_images/new/s.csv"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path, bundle, fake, capsys, name):
    root = write_cohort(tmp_path / "data", {1: ()})
    (tmp_path / "file").write_text("")
    assert predict(root, bundle, name.format(file=tmp_path / "file", data=root)) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert not (root / "test_images" / "new").exists()


def test_inspect_of_a_missing_path_is_answered_in_english(tmp_path):
    with pytest.raises(DicomError, match=r"nowhere: no such file or folder, expected a DICOM file, a series'"):
        describe(tmp_path / "nowhere")


def test_several_paths_are_inspected_in_one_call(tmp_path, capsys):
    names = [tmp_path / "a", tmp_path / "nowhere"]
    names[0].mkdir()
    assert command.main(["inspect", *map(str, names)]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_a_chain_by_a_wrong_name_is_answered_with_the_nearest(bundle):
    with pytest.raises(ManifestError, match=r"chain 'Mian': expected one of main, baseline \(did you mean main\?\)"):
        chain_of("Mian", verify(bundle))


def test_a_space_and_an_umlaut_in_every_path_make_no_difference(tmp_path, fake):
    folder = tmp_path / "Jürgens Daten (neu)"
    root, bundle = write_cohort(folder / "Prüf lauf", {1: (), 2: ()}), write_bundle(folder / "mein Bündel")
    out = folder / "aus gäbe" / "ergebnis nr 1.csv"
    assert predict(root, bundle, out, "--report", folder / "b ü.html", "--record", folder / "r ü.json") == 0
    assert len(pd.read_csv(out)) == 50


def test_a_path_of_windows_in_the_table_of_series_costs_its_row_alone(tmp_path, bundle, fake, capsys):
    root = write_cohort(tmp_path / "data", {1: (), 2: ()})
    table = root / "test_series_descriptions.csv"
    table.write_text(table.read_text() + "2,C:\\Users\\Smith\\2\\23,Axial T2\n")
    assert predict(root, bundle, tmp_path / "s.csv") == 0
    errors = capsys.readouterr().err
    assert "expected a whole number" in errors
    assert "Smith" not in errors


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "stack", "1 stack"), (2, "stack", "2 stacks"), (0, "study", "0 studies"), (1, "study", "1 study"),
     (3, "day", "3 days"), (2, "series", "2 series")],
)  # fmt: skip
def test_numbers_and_nouns_agree(number, noun, text):
    assert counted(number, noun) == text


# ---- ends ----------------------------------------------------------------------------------------------------------

HANGING = """\
import sys
import lumbar.chains.registry
from kernel_fakes import FAKE
from lumbar import __main__ as command
lumbar.chains.registry.MAIN = FAKE
command.script()
"""


def started(tmp_path, bundle, root):
    (tmp_path / "predict.py").write_text(HANGING)
    words = [sys.executable, tmp_path / "predict.py", "predict", "--data", root, "--weights", bundle]
    words += ["--out", tmp_path / "s.csv"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [str(word) for word in words], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_process_group_ends_a_prediction_with_one_line(tmp_path, bundle, number):
    root = write_cohort(tmp_path / "data", {1: (), 2: ("hang",), 3: ()})
    process = started(tmp_path, bundle, root)
    sign = root / "test_images" / "2" / "hung"
    end = time.monotonic() + 300
    while not sign.exists() and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert "s.csv holds the answers so far and the prior for the other studies; run the same command again" in last
    assert len(pd.read_csv(tmp_path / "s.csv")) == 75
    worker = int(sign.read_text().split()[0])
    assert not os.path.exists(f"/proc/{worker}") or Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z"


def test_an_interrupt_before_anything_was_written_says_so(tmp_path, bundle, monkeypatch, capsys):
    root = write_cohort(tmp_path / "data", {1: ()})
    (tmp_path / "s.csv").write_text("of another run")
    os.utime(tmp_path / "s.csv", (1e9, 1e9))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lumbar.run.predict", interrupted)
    assert predict(root, bundle, tmp_path / "s.csv") == 1
    assert capsys.readouterr().err == "error: interrupted: nothing was written; run the same command again\n"


@pytest.mark.parametrize("name", ["out", "report", "record"])
def test_no_room_on_the_disk_is_one_line_and_loses_nothing(tmp_path, bundle, fake, monkeypatch, capsys, name):
    """The first write to an output fails as on a full disk: the others stand."""
    root = write_cohort(tmp_path / "data", {1: (), 2: ()})
    places = {"out": tmp_path / "s.csv", "report": tmp_path / "r.html", "record": tmp_path / "r.json"}
    real = os.replace

    def replace(source, target):
        if str(target) == str(places[name]):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("lumbar.io.files.os.replace", replace)
    status = predict(root, bundle, places["out"], "--report", places["report"], "--record", places["record"])
    errors = capsys.readouterr().err
    assert status == (1 if name == "out" else 0)
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    if name != "out":
        assert len(pd.read_csv(places["out"])) == 50
    assert not places[name].exists()
    assert not list(tmp_path.glob(".tmp-*"))
