"""The dataset's step: what is there already is not sent again, and what is not whole is not believed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from lumbar_publish.kaggle import step_dataset
from lumbar_publish.names import Layout
from lumbar_publish.sealing.seal import seal
from publish.conftest import Publish, error_line
from publish.kaggle_server import USER, KaggleServer, wait_until

DATASET = f"{USER}/lumbar-kit"


def test_archives_that_lose_their_folder_are_still_whole(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.unpacks_into_folder = False
    assert publish("dataset")[0] == 0
    assert "aggregator.full.safetensors" in kaggle.datasets[DATASET].versions[0]
    assert "nothing to upload" in publish("dataset")[1]


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
    assert "run the same command again, it goes on from here" in error_line(err)
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
