"""An upload that was interrupted: what arrived is not sent again, and what changed never stays behind."""

from __future__ import annotations

import os

import pytest

from lumbar_publish.kaggle import step_dataset
from lumbar_publish.names import Layout
from publish.conftest import Publish, error_line
from publish.kaggle_server import USER, Dataset, KaggleServer

DATASET = f"{USER}/lumbar-kit"
ARCHIVES = {"code.zip", "weights.zip", "weights_manifest.json"}


def sizes(kaggle: KaggleServer) -> dict[str, int]:
    """Bytes of each file as it was announced last."""
    return {blob.name: blob.size for blob in kaggle.blobs.values()}


def content(layout: Layout) -> dict[str, bytes]:
    sealed = {p.relative_to(layout.sealed).as_posix(): p.read_bytes() for p in layout.sealed.rglob("*") if p.is_file()}
    del sealed["dataset-metadata.json"]
    return sealed


@pytest.fixture
def interrupted(kaggle: KaggleServer, publish: Publish, layout: Layout) -> None:
    """A first publication whose last call failed, after all files had arrived."""
    kaggle.refuse("CreateDataset", 500, "nope")
    code, _, err = publish("dataset")
    assert code == 1
    assert "nope: Kaggle's own error" in error_line(err)
    assert set(kaggle.sent) == ARCHIVES


def test_what_arrived_is_not_sent_again(
    kaggle: KaggleServer, interrupted: None, publish: Publish, layout: Layout
) -> None:
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "going on with an interrupted upload, what arrived is not sent again: 3 files" in out
    assert kaggle.calls["StartBlobUpload"] == 3
    assert kaggle.sent == sizes(kaggle)
    assert kaggle.datasets[DATASET].versions == [content(layout)]
    left = {path.name for path in (layout.root / "dist" / "publish").rglob("*") if path.is_file()}
    assert left == {"notes.json"}


def test_a_file_that_failed_is_sent_and_the_others_are_not(
    kaggle: KaggleServer, publish: Publish, layout: Layout
) -> None:
    kaggle.cut_uploads["weights.zip"] = 1
    code, _, err = publish("dataset")
    assert code == 1
    assert "upload of weights.zip to tester/lumbar-kit failed half-way" in error_line(err)
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert kaggle.sent == sizes(kaggle)
    assert kaggle.datasets[DATASET].versions == [content(layout)]


def test_a_file_that_broke_off_goes_on_where_it_did(kaggle: KaggleServer, publish: Publish, layout: Layout) -> None:
    kaggle.break_uploads["weights.zip"] = 500
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "Already uploaded 499 bytes" in err  # shown as it happens
    assert kaggle.sent == sizes(kaggle)
    assert kaggle.datasets[DATASET].versions == [content(layout)]


def test_an_upload_that_expired_starts_again(
    kaggle: KaggleServer, interrupted: None, publish: Publish, layout: Layout
) -> None:
    for blob in kaggle.blobs.values():
        blob.is_expired = True
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert kaggle.calls["StartBlobUpload"] == 6
    assert kaggle.datasets[DATASET].versions == [content(layout)]


def test_other_content_of_the_same_size_is_sent_whole(
    kaggle: KaggleServer, interrupted: None, publish: Publish, layout: Layout
) -> None:
    module = layout.kernel / "__init__.py"
    module.write_text(module.read_text().replace("Tiny", "Tinx"))
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "going on" not in out
    assert kaggle.calls["StartBlobUpload"] == 6
    assert not list((layout.root / "dist" / "publish").glob("*/upload*"))  # the older one's neither
    assert kaggle.datasets[DATASET].versions == [content(layout)]


def test_a_file_that_changed_on_the_disk_is_made_and_sent_anew(
    kaggle: KaggleServer, interrupted: None, publish: Publish, layout: Layout
) -> None:
    (archive,) = (layout.root / "dist" / "publish").glob("*/upload/code.zip")
    stat, data = archive.stat(), bytearray(archive.read_bytes())
    data[40] ^= 1
    archive.write_bytes(data)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "going on" not in out
    assert kaggle.datasets[DATASET].versions == [content(layout)]


def test_files_that_kaggle_makes_no_version_of_are_sent_anew(
    kaggle: KaggleServer, interrupted: None, publish: Publish, layout: Layout
) -> None:
    kaggle.refuse("CreateDataset", 400, "Failed to resolve the necessary information from the request")
    assert publish("dataset")[0] == 1
    assert publish("dataset")[0] == 0
    assert kaggle.calls["StartBlobUpload"] == 6


# ---- 404 after a creation is not "no such dataset" ----------------------------------------------------------------


def test_a_dataset_not_shown_yet_is_waited_for(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.hidden_looks = 3
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert out.count("created, not shown yet (404): waiting for Kaggle") == 1
    assert "is published" in out


def test_a_dataset_that_was_created_is_not_created_again(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    kaggle.hidden_looks = 3
    with monkeypatch.context() as patch:
        patch.setattr(step_dataset, "_wait_served", stopped)
        assert publish("dataset")[0] == 1
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert "was uploaded before: waiting for it" in out
    assert kaggle.calls["CreateDataset"] == 1


def test_a_creation_long_ago_is_not_waited_for(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_dataset, "_SHOWING_LIMIT_S", 0.0)
    kaggle.hidden_looks = 100
    code, _, err = publish("dataset")
    assert code == 1
    assert "uploaded, but Kaggle shows none: check that the owner is you" in error_line(err)
    del kaggle.datasets[DATASET]  # by its owner, in the browser
    kaggle.hidden_looks = 0
    assert publish("dataset")[0] == 0
    assert kaggle.calls["CreateDataset"] == 2


def test_a_name_in_use_that_is_not_shown_is_said(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.datasets[DATASET] = Dataset([{}], hidden_looks=100)
    code, _, err = publish("dataset")
    assert code == 1
    line = error_line(err)
    assert (
        "already in use by a dataset: created a moment ago and not shown yet, or not yours: wait some minutes" in line
    )
