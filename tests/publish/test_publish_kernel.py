"""The notebook's step: which version is ours, how its run ends, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from lumbar_publish.names import COMPETITION, Layout
from publish.conftest import Publish, error_line
from publish.kaggle_server import USER, KaggleServer, Kernel, Refusal, run_output

DATASET = f"{USER}/lumbar-kit"
KERNEL = f"{USER}/lumbar-kit-submission"


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


def test_lost_kernel(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.refuse("GetKernelSessionStatus", 404, "404 Kernel not found")
    code, _, err = publish("kernel")
    assert code == 1
    assert "check owner and name" in error_line(err)


def test_server_error_while_waiting_is_borne(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.run_statuses = ["RUNNING"] * 3 + ["COMPLETE"]
    kaggle.fail["GetKernelSessionStatus"] = [lambda _: None, *[_boom] * 4]
    code, out, err = publish("kernel")
    assert code == 0, err
    assert "still waiting" in out


def _boom(_: dict) -> dict:
    raise Refusal(500, "Internal Server Error")


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


def test_sealed_folder_changed_after_sealing_is_not_pushed(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout
) -> None:
    shutil.copy(layout.sealed / "weights" / "axial_xy.full.safetensors", layout.sealed / "weights" / "x")
    (layout.sealed / "weights" / "aggregator.full.safetensors").write_bytes(b"other")
    code, _, err = publish("kernel")
    assert code == 1
    assert "aggregator.full.safetensors: found 5 bytes" in error_line(err)
