"""The whole way to Kaggle and its failures, with the real client against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lumbar_publish.cli import main
from lumbar_publish.kaggle import client, step_dataset
from lumbar_publish.names import COMPETITION, Layout
from lumbar_publish.sealing.seal import seal
from publish.conftest import Publish, error_line
from publish.kaggle_server import KEY, TOKEN, USER, KaggleServer, Kernel, Refusal, run_output, wait_until

DATASET, KERNEL = f"{USER}/lumbar-kit", f"{USER}/lumbar-kit-submission"


@pytest.mark.slow
def test_whole_publication_and_its_repetition(kaggle: KaggleServer, publish: Publish, layout: Layout) -> None:
    code, out, err = publish()
    assert code == 0, out + err
    assert "public score 0.355, private score 0.401" in out
    stored = kaggle.datasets[DATASET].versions
    assert len(stored) == 1
    sealed = {p.relative_to(layout.sealed).as_posix(): p.read_bytes() for p in layout.sealed.rglob("*") if p.is_file()}
    del sealed["dataset-metadata.json"]
    assert stored[0] == sealed
    pushed = kaggle.kernels[KERNEL].versions
    assert len(pushed) == 1
    assert pushed[0]["datasetDataSources"] == [DATASET]
    assert pushed[0]["competitionDataSources"] == [COMPETITION]
    assert pushed[0]["machineShape"] == "NvidiaTeslaT4"
    assert not pushed[0].get("enableInternet", False)
    assert [row["description"].startswith("first try (manifest ") for row in kaggle.submissions] == [True]
    assert "100%" in err  # the client's own progress bar
    assert KEY not in out + err
    for path in (layout.root / "dist").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()

    code, out, _ = publish()
    assert code == 0
    assert "nothing to upload" in out
    assert "public score 0.355" in out
    counts = (len(kaggle.datasets[DATASET].versions), len(kaggle.kernels[KERNEL].versions), len(kaggle.submissions))
    assert counts == (1, 1, 1)


@pytest.mark.slow
def test_steps_one_by_one_and_a_new_version_of_changed_code(
    kaggle: KaggleServer, publish: Publish, layout: Layout
) -> None:
    for step in ("dataset", "kernel", "submit"):
        code, out, err = publish(step)
        assert code == 0, out + err
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    code, out, err = publish()
    assert code == 0, out + err
    assert len(kaggle.datasets[DATASET].versions) == 2
    assert len(kaggle.kernels[KERNEL].versions) == 2
    assert len(kaggle.submissions) == 2
    assert kaggle.calls["CreateDatasetVersion"] == 1


def test_steps_out_of_order_say_what_comes_first(kaggle: KaggleServer, publish: Publish) -> None:
    code, _, err = publish("kernel")
    assert code == 1
    assert "--publish dataset" in error_line(err)
    code, _, err = publish("submit")
    assert code == 1
    assert "--publish kernel" in error_line(err)


def test_archives_that_lose_their_folder_are_still_whole(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.unpacks_into_folder = False
    assert publish("dataset")[0] == 0
    assert "aggregator.full.safetensors" in kaggle.datasets[DATASET].versions[0]
    assert "nothing to upload" in publish("dataset")[1]


@pytest.mark.slow
def test_publication_killed_in_its_middle_continues(
    kaggle: KaggleServer, published: str, layout: Layout, publish: Publish
) -> None:
    kaggle.run_statuses = ["RUNNING"] * 1000 + ["COMPLETE"]
    script = (
        "import sys; from pathlib import Path; from lumbar_publish.cli import main; from lumbar_publish.names import "
        f"Layout; main(Layout(Path({str(layout.root)!r})), None, "
        "['--publish', 'kernel', '-m', 'first try'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.DEVNULL) as process:
        begun = wait_until(lambda: kaggle.calls["GetKernelSessionStatus"] > 0, 600)
        process.kill()
    assert begun
    kaggle.kernels[KERNEL].statuses = ["COMPLETE"]
    code, out, err = publish()
    assert code == 0, out + err
    assert len(kaggle.datasets[DATASET].versions) == 1
    assert len(kaggle.kernels[KERNEL].versions) == 1
    assert len(kaggle.submissions) == 1


def test_push_that_was_accepted_but_never_noted_is_found(
    kaggle: KaggleServer, published: str, layout: Layout, publish: Publish
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    push = [sys.executable, "-m", "kaggle", "kernels", "push", "-p", str(layout.kernel_metadata.parent)]
    kaggle.run_statuses = ["COMPLETE"]
    for _ in range(3):  # three times by hand, as a user may; the last one is the newest
        subprocess.run(push, env=environment, check=True, capture_output=True, timeout=600)
    code, out, err = publish("kernel")
    assert code == 0, out + err
    assert "version 3 is this very one: not pushed again" in out
    assert "version 3: complete" in out
    assert len(kaggle.kernels[KERNEL].versions) == 3


@pytest.mark.parametrize("change", ["cell", "dataset", "internet", "public", "any number"])
def test_another_notebook_on_kaggle_is_pushed_over(
    kaggle: KaggleServer, published: str, layout: Layout, publish: Publish, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pushed = {
        "text": layout.notebook.read_text(), "language": "python", "kernelType": "notebook", "enableGpu": True,
        "datasetDataSources": [DATASET], "competitionDataSources": [COMPETITION], "isPrivate": True,
    }  # fmt: skip
    other = {
        "cell": {"text": pushed["text"].replace("import", "import  ", 1)},
        "dataset": {"datasetDataSources": [f"{USER}/another"]},
        "internet": {"enableInternet": True},
        "public": {"isPrivate": False},
        "any number": {},
    }[change]
    if change == "any number":  # a server that shows its newest version whatever number is asked for
        monkeypatch.setattr(kaggle, "shows_any_number", True)
    kaggle.kernels[KERNEL] = Kernel([pushed | other], ["COMPLETE"])
    code, out, err = publish("kernel")
    assert code == 0, out + err
    assert "version 2: complete" in out
    kaggle.shows_any_number = False
    kaggle.kernels[KERNEL] = Kernel([pushed], ["COMPLETE"])
    (layout.root / "dist" / "publish" / published[:12] / "notes.json").unlink()
    assert "version 1: complete" in publish("kernel")[1]


def test_plain_client_works_on_what_is_left(kaggle: KaggleServer, layout: Layout) -> None:
    seal(layout)

    def kaggle_says(*arguments: str) -> str:
        command = [sys.executable, "-m", "kaggle", *arguments]
        return subprocess.run(command, cwd=layout.root, capture_output=True, text=True, check=True).stdout

    kaggle.processing_looks = 0
    folder = ("-p", "dist/dataset", "--dir-mode", "zip")
    assert "is being created" in kaggle_says("datasets", "create", *folder)
    assert "is being created" in kaggle_says("datasets", "version", *folder, "-m", "notes")
    assert "Kernel version 1 successfully pushed" in kaggle_says("kernels", "push", "-p", "kernel")
    assert "does not resolve" not in kaggle_says("kernels", "push", "-p", "kernel")
    assert len(kaggle.datasets[DATASET].versions) == 2


# ---- failures: exit 1, one line that says what to do next ---------------------------------------------------------


def test_placeholder_owner_is_refused(layout: Layout, competition: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sample", str(competition), "--owner", "your-kaggle-name", "--publish", "-m", "x"]
    assert main(layout, lambda folder: None, arguments) == 1
    assert "--owner NAME or KAGGLE_USERNAME" in error_line(capsys.readouterr().err)


def test_notes_are_asked_for(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(layout, lambda folder: None, ["--publish"]) == 1
    assert "add -m NOTES" in error_line(capsys.readouterr().err)


def test_no_credentials(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    code, _, err = publish()
    assert code == 1
    assert "no Kaggle credentials: set KAGGLE_API_TOKEN" in error_line(err)


@pytest.mark.parametrize("place", ["variable", "file"])
def test_stale_token_that_shadows_a_good_key(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "variable":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    else:
        (Path.home() / ".kaggle" / "access_token").write_text(TOKEN)
    code, out, err = publish()
    line = error_line(err)
    assert code == 1
    assert "takes before the key in KAGGLE_KEY: remove or renew that token" in line
    assert ("KAGGLE_API_TOKEN" if place == "variable" else "~/.kaggle/access_token") in line
    assert TOKEN not in out + err
    assert KEY not in out + err


def test_good_token_alone_works(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.delenv("KAGGLE_KEY")
    kaggle.token_is_valid = True
    assert publish("dataset")[0] == 0


def test_wrong_key(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "f" * 32)
    code, _, err = publish()
    assert code == 1
    assert "Kaggle refused the credentials in KAGGLE_KEY (401): make new ones" in error_line(err)


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_the_status_decides_whatever_the_words_are(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout, status: int
) -> None:
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    kaggle.refuse("DownloadDataset", status, "nope", times=3)
    code, out, err = publish("dataset")
    if status == 404:  # there is none yet: the first version has another manifest, or none
        assert code == 0, out + err
        return
    line = error_line(err)
    assert code == 1
    advice = {401: "refused the credentials", 429: "wait some minutes", 500: "run this again later"}
    assert advice[status] in line
    assert len(kaggle.datasets[DATASET].versions) == 1


def test_status_that_cannot_be_had_is_not_taken_for_no_dataset(
    kaggle: KaggleServer, published: str, publish: Publish
) -> None:
    kaggle.refuse("GetDatasetStatus", 500, "nope", times=3)
    code, _, err = publish("dataset")
    assert code == 1
    assert "nope: Kaggle's own error" in error_line(err)
    assert kaggle.calls["StartBlobUpload"] == 0


def test_upload_that_nobody_waited_for_is_not_sent_again(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step_dataset, "_wait_served", interrupted)
        code, _, err = publish("dataset")
    assert code == 1
    assert "run this again to go on from here" in error_line(err)
    # Kaggle says "ready" of the version before for a while.
    versions = kaggle.datasets[DATASET].versions
    newest = versions.pop()
    kaggle.datasets[DATASET].looks_left = 0
    kaggle.fail["GetDatasetStatus"] = [lambda _: None] * 3 + [lambda _: versions.append(newest)]
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "was uploaded before: waiting for it" in out
    assert kaggle.calls["CreateDatasetVersion"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_upload_ends_with_the_process_that_started_it(kaggle: KaggleServer, layout: Layout) -> None:
    kaggle.fail["StartBlobUpload"] = [lambda _: time.sleep(1)] * 9
    sealed = str(seal(layout).folder)
    command = f"from lumbar_publish.kaggle.client import Client; Client().act('datasets', 'create', '-p', {sealed!r})"
    with subprocess.Popen([sys.executable, "-c", command]) as process:
        begun = wait_until(lambda: kaggle.calls["StartBlobUpload"] > 0, 600)
        process.kill()
    assert begun
    time.sleep(5)
    assert kaggle.calls["CreateDataset"] == 0


@pytest.mark.parametrize("form", ["flat", "folders", "archives", "nested"])
def test_forms_of_the_list_of_files(kaggle: KaggleServer, published: str, publish: Publish, form: str) -> None:
    names = sorted(kaggle.datasets[DATASET].versions[0])
    shown = {
        "flat": [name.rpartition("/")[2] for name in names],
        "folders": ["code", "weights/", "weights_manifest.json"],
        "archives": ["code.zip", "weights.zip", "weights_manifest.json"],
        "nested": [f"upload/{name}" for name in names],
    }[form]
    kaggle.answer("ListDatasetFiles", {"datasetFiles": [{"name": name} for name in shown]})
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "nothing to upload" in out
    kaggle.answer("ListDatasetFiles", {"datasetFiles": [{"name": name} for name in shown if "weights" not in name]})
    if form != "flat":
        assert "lacks weights" in publish("dataset")[1]


def test_version_refused_while_processing(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout
) -> None:
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    kaggle.refuse("CreateDatasetVersion", 403, "Forbidden: the dataset is still being processed")
    code, _, err = publish("dataset")
    assert code == 1
    assert "still being processed: not allowed" in error_line(err)
    assert publish("dataset")[0] == 0
    assert len(kaggle.datasets[DATASET].versions) == 2


def test_dataset_of_another_owner(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    kaggle.refuse("CreateDataset", 403, "Permission 'datasets.create' was denied")
    code, _, err = publish("dataset")
    assert code == 1
    assert "check that the owner is your account" in error_line(err)


def test_lost_kernel(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.refuse("GetKernelSessionStatus", 404, "404 Kernel not found")
    code, _, err = publish("kernel")
    assert code == 1
    assert "check owner and name" in error_line(err)


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [(429, "Too Many Requests", "wait some minutes"), (500, "Internal Server Error", "run this again later")],
    ids=["429", "500"],
)
def test_trouble_that_lasts_is_said_and_one_that_passes_is_not(
    kaggle: KaggleServer, publish: Publish, status: int, message: str, advice: str
) -> None:
    kaggle.refuse("GetDatasetStatus", status, message, times=3)
    code, _, err = publish("dataset")
    assert code == 1
    assert advice in error_line(err)
    kaggle.refuse("GetDatasetStatus", status, message, times=2)
    assert publish("dataset")[0] == 0


def test_server_error_while_waiting_is_borne(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.run_statuses = ["RUNNING"] * 3 + ["COMPLETE"]
    kaggle.fail["GetKernelSessionStatus"] = [lambda _: None, *[_boom] * 4]
    code, out, err = publish("kernel")
    assert code == 0, err
    assert "still waiting" in out


def _boom(_: dict) -> dict:
    raise Refusal(500, "Internal Server Error")


def test_upload_that_fails_half_way_is_not_taken_for_a_version(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.cut_uploads["weights.zip"] = 1
    code, _, err = publish("dataset")
    line = error_line(err)
    assert code == 1
    assert "weights.zip" in line
    assert "then run this again" in line
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert any("aggregator.full.safetensors" in name for name in kaggle.datasets[DATASET].versions[-1])


def test_creation_error_with_exit_0(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.answer("CreateDataset", {"status": "error", "error": "The title is taken", "invalidTags": []})
    code, _, err = publish("dataset")
    assert code == 1
    assert "Dataset creation error: The title is taken: the dataset was not created: mend that" in error_line(err)


@pytest.mark.parametrize("kind", ["Dataset", "Competition"])
def test_invalid_sources(kaggle: KaggleServer, published: str, publish: Publish, kind: str) -> None:
    reply = {"url": "u", "versionNumber": 1, "error": "", f"invalid{kind}Sources": ["some/thing"]}
    kaggle.answer("SaveKernel", reply)
    code, _, err = publish("kernel")
    assert code == 1
    assert f"{kind.lower()} sources ['some/thing'] are not valid" in error_line(err)


def test_push_error_with_exit_0(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.answer("SaveKernel", {"error": "Maximum weekly GPU quota reached"})
    code, _, err = publish("kernel")
    assert code == 1
    assert "Maximum weekly GPU quota reached: the notebook was not pushed" in error_line(err)


def test_title_and_id_that_disagree(kaggle: KaggleServer, published: str, publish: Publish, layout: Layout) -> None:
    data = json.loads(layout.kernel_metadata.read_text())
    layout.kernel_metadata.write_text(json.dumps(data | {"title": "Another name"}))
    code, _, err = publish("kernel")
    assert code == 1
    assert "leads to the name 'another-name', the id says 'lumbar-kit-submission'" in error_line(err)
    assert kaggle.calls["SaveKernel"] == 0


def test_notebook_over_a_megabyte(kaggle: KaggleServer, published: str, publish: Publish, layout: Layout) -> None:
    page = json.loads(layout.notebook.read_text())
    page["cells"][0]["source"] = "x" * 1_000_001
    layout.notebook.write_text(json.dumps(page))
    code, _, err = publish("kernel")
    assert code == 1
    assert "expected less than 1 MB" in error_line(err)
    assert kaggle.calls["SaveKernel"] == 0


def test_run_that_ends_with_error_shows_its_last_line_and_is_pushed_anew(
    kaggle: KaggleServer, published: str, publish: Publish
) -> None:
    kaggle.run_statuses = ["RUNNING", "ERROR"]
    kaggle.log = '[{"stream_name":"stderr","time":1.0,"data":"Attach the latest version\\n"}]'
    code, _, err = publish("kernel")
    line = error_line(err)
    assert code == 1
    assert "version 1 ended with ERROR: Attach the latest version" in line
    kaggle.run_statuses = ["COMPLETE"]
    code, out, err = publish("kernel")
    assert code == 0, err
    assert "version 2: complete" in out


def test_run_that_failed_and_left_nothing_to_fetch(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.run_statuses = ["ERROR"]
    kaggle.failure_message = "Your notebook was stopped"
    kaggle.refuse("ListKernelSessionOutput", 404, "nothing")
    code, _, err = publish("kernel")
    assert code == 1
    assert "version 1 ended with ERROR: Your notebook was stopped; no log" in error_line(err)
    kaggle.run_statuses = ["COMPLETE"]
    assert publish("kernel")[0] == 0
    assert len(kaggle.kernels[KERNEL].versions) == 2


def test_output_is_asked_for_again(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.refuse("ListKernelSessionOutput", 500, "nope", times=2)
    assert publish("kernel")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("submission.csv"), r"left no submission\.csv: all is well"),
        (lambda files: files.update({"submission.csv": b"row_id\n"}), "left an invalid submission"),
        (lambda files: files.update({"record.json": b'{"manifest_hash": "feed"}'}), "ran manifest feed, expected"),
    ],
    ids=["none", "invalid", "stale"],
)
def test_output_that_cannot_be_submitted(
    kaggle: KaggleServer, published: str, publish: Publish, change: Callable[[dict], object], message: str
) -> None:
    def output(request: dict) -> dict[str, bytes]:
        files = run_output(request)
        change(files)
        return files

    kaggle.output = output
    code, _, err = publish()
    assert code == 1
    assert re.search(message, error_line(err))
    assert kaggle.submissions == []


def test_submission_that_kaggle_refuses(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.refuse("CreateCodeSubmission", 400, "Submission not allowed: daily limit reached")
    code, _, err = publish("submit")
    assert code == 1
    assert "daily limit reached" in error_line(err)
    assert publish("submit")[0] == 0
    assert len(kaggle.submissions) == 1


@pytest.mark.parametrize("shown", ["", "first t"])
def test_submission_whose_description_is_not_listed(
    kaggle: KaggleServer, checked: None, publish: Publish, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    listed = kaggle.on_ListSubmissions
    monkeypatch.setattr(
        kaggle,
        "on_ListSubmissions",
        lambda request: {"submissions": [row | {"description": shown} for row in listed(request)["submissions"]]},
    )
    for _ in range(2):
        code, out, err = publish("submit")
        assert code == 0, out + err
        assert "public score 0.355" in out
    assert len(kaggle.submissions) == 1


def test_competition_whose_rules_are_not_accepted(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.refuse("CreateCodeSubmission", 403, "nope")
    code, _, err = publish("submit")
    assert code == 1
    assert f"accept the rules on kaggle.com/competitions/{COMPETITION}/rules" in error_line(err)


def test_submission_that_fails_in_scoring(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.submission_status = "ERROR"
    code, _, err = publish("submit")
    assert code == 1
    assert "ended with" in error_line(err)
    assert f"kaggle.com/competitions/{COMPETITION}/submissions" in err


def test_server_that_cannot_be_reached(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.close()
    code, _, err = publish("dataset")
    assert code == 1
    assert "Kaggle cannot be reached" in error_line(err)
    assert "check the network" in err


def test_client_that_hangs_is_ended(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    kaggle.fail["GetDatasetStatus"] = [lambda _: time.sleep(3) or {}] * 3
    monkeypatch.setattr(client, "SHORT_S", 2.0)
    code, _, err = publish("dataset")
    assert code == 1
    assert "Kaggle cannot be reached" in error_line(err)


def test_sealed_folder_changed_after_sealing_is_not_pushed(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout
) -> None:
    shutil.copy(layout.sealed / "weights" / "axial_xy.full.safetensors", layout.sealed / "weights" / "x")
    (layout.sealed / "weights" / "aggregator.full.safetensors").write_bytes(b"other")
    code, _, err = publish("kernel")
    assert code == 1
    assert "aggregator.full.safetensors: found 5 bytes" in error_line(err)
