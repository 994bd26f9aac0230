"""What the client can since 2.2.5: versions by number, submissions by number, quota, saving without a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from lumbar_publish.kaggle import client
from lumbar_publish.names import COMPETITION, Layout
from publish.conftest import Publish, error_line
from publish.kaggle_server import USER, KaggleServer, Kernel, Refusal

DATASET, KERNEL = f"{USER}/lumbar-kit", f"{USER}/lumbar-kit-submission"


def notes(layout: Layout, published: str) -> dict:
    return json.loads((layout.root / "dist" / "publish" / published[:12] / "notes.json").read_text())


# ---- the loopback server refuses what Kaggle refuses --------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "status"),
    [({"kernelSlug": "lumbar-kit-submission/1"}, 403), ({"versionLabel": "1"}, 404), ({"versionLabel": "v3"}, 404),
     ({"versionLabel": "v0"}, 404), ({"kernelSlug": "another-notebook"}, 403)],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GetKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"])
def test_versions_are_asked_for_in_one_form_only(kaggle: KaggleServer, method: str, label: dict, status: int) -> None:
    kaggle.kernels[KERNEL] = Kernel([{"text": "{}"}] * 2, ["COMPLETE"])
    kaggle.output = lambda _: {}
    request = {"userName": USER, "kernelSlug": "lumbar-kit-submission"} | label
    with pytest.raises(Refusal) as refused:
        getattr(kaggle, f"on_{method}")(request)
    assert refused.value.status == status
    getattr(kaggle, f"on_{method}")({"userName": USER, "kernelSlug": "lumbar-kit-submission", "versionLabel": "v1"})


def test_two_gpu_runs_at_a_time_and_no_more(kaggle: KaggleServer) -> None:
    push = {"slug": KERNEL, "text": '{"cells": []}', "language": "python", "kernelType": "notebook", "isPrivate": True}
    assert [kaggle.on_SaveKernel(push | {"enableGpu": True})["error"] for _ in range(3)][:2] == ["", ""]
    assert "session count of 2" in kaggle.on_SaveKernel(push | {"enableGpu": True})["error"]
    assert kaggle.on_SaveKernel(push)["error"] == ""


# ---- the client's version -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.2.4", "1.7.4.5", "2.1", None])
def test_an_old_client_is_refused_before_anything_is_done(
    kaggle: KaggleServer, publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    def installed(_: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(client.importlib.metadata, "version", installed)
    code, _, err = publish()
    assert code == 1
    line = error_line(err)
    assert f"kaggle client: found {version or 'none'}, expected 2.2.5 or newer: run " in line
    assert "pip install -U 'kaggle>=2.2.5'" in line
    assert not kaggle.calls
    assert not layout.sealed.exists()


@pytest.mark.parametrize("version", ["2.2.5", "2.3.0rc1", "3.0"])
def test_newer_clients_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(client.importlib.metadata, "version", lambda _: version)
    client.require_client()


# ---- words and hints ----------------------------------------------------------------------------------------------


def test_the_clients_hint_stands_below_kaggles_words(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    kaggle.refuse("GetKernelSessionStatus", 404, "Kernel session is gone")
    code, out, err = publish("kernel")
    assert code == 1
    assert f"{KERNEL}/1: Kernel session is gone: not there: check owner and name" in error_line(err)
    assert "  To search for one, try 'kaggle search <query>'." in out.splitlines()


# ---- notebook versions by number ----------------------------------------------------------------------------------


def test_status_and_output_are_those_of_our_version_whatever_was_pushed_since(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout
) -> None:
    def pushed_since(request: dict) -> dict | None:
        if not pushed_since.done:  # another version, between our push and the first look; it fails
            kernel = kaggle.kernels[KERNEL]
            kernel.versions.append({"text": "{}"})
            kernel.statuses = ["ERROR"]
            pushed_since.done = True
        return None

    pushed_since.done = False
    kaggle.fail["GetKernelSessionStatus"] = [pushed_since]
    code, out, err = publish("kernel")
    assert code == 0, out + err
    assert "version 1: complete, its submission is valid" in out
    asked = [request for method, request in kaggle.requests if method.endswith(("SessionStatus", "SessionOutput"))]
    assert {request["versionLabel"] for request in asked} == {"v1"}


@pytest.mark.parametrize("how", ["by hand", "by us"])
def test_a_version_that_was_only_saved_is_pushed(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout, how: str
) -> None:
    if how == "by hand":
        push = [sys.executable, "-m", "kaggle", "kernels", "push", "-p", str(layout.kernel_metadata.parent), "--no-run"]
        done = subprocess.run(push, env=dict(os.environ), check=True, capture_output=True, text=True, timeout=600)
        assert "Kernel version 1 successfully saved without running" in done.stdout
    else:
        code, out, err = publish("kernel", "--no-run")
        assert code == 0, out + err
        assert "version 1: saved, not run" in out
        assert kaggle.calls["GetAcceleratorQuotaStatistics"] == 0
        assert "saved, not run" in publish("kernel", "--no-run")[1]
    assert [v.get("kernelExecutionType") for v in kaggle.kernels[KERNEL].versions] == ["QUICK_SAVE"]
    code, out, err = publish("kernel")
    assert code == 0, out + err
    assert "version 2: complete" in out
    assert [v.get("kernelExecutionType") for v in kaggle.kernels[KERNEL].versions] == ["QUICK_SAVE", None]


def test_notebook_on_the_cpu_with_its_time_limit(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout
) -> None:
    code, out, err = publish("kernel", "--accelerator", "none", "--image", "original")
    assert code == 0, out + err
    pushed = kaggle.kernels[KERNEL].versions[0]
    assert not pushed.get("enableGpu")
    assert not pushed.get("machineShape")
    assert pushed["sessionTimeoutSeconds"] == 9 * 3600
    assert pushed["dockerImagePinningType"] == "original"
    # a step that goes on keeps what was asked for, and another machine is another notebook
    assert "version 1: complete" in publish("kernel")[1]
    code, out, err = publish("kernel", "--accelerator", "NvidiaL4X1")
    assert code == 0, out + err
    assert kaggle.kernels[KERNEL].versions[1]["machineShape"] == "NvidiaL4X1"


# ---- quota --------------------------------------------------------------------------------------------------------


LEFT = "h of 30.00h GPU time left until 2026-11-28T00:00:00+00:00; a run takes at most 9 hours"
REFUSED = "Kaggle will refuse the push until then (--accelerator none runs on the CPU)"
UNKNOWN = "quota: GPU hours unknown "


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("left", f"quota: 12.50{LEFT}\n"),
        ("used up", f"quota: 0.00{LEFT}: {REFUSED}\n"),
        ("500", f"{UNKNOWN}(kaggle quota --format json: nope: Kaggle's own error, run this again later)\n"),
        ("silent", f"{UNKNOWN}(Kaggle does not say)\n"),
    ],
)
def test_quota_is_said_first_and_stops_nothing(
    kaggle: KaggleServer, publish: Publish, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "used up":
        kaggle.gpu_hours = (30.0, 30.0)
    elif state == "500":
        kaggle.refuse("GetAcceleratorQuotaStatistics", 500, "nope", times=3)
    elif state == "silent":
        kaggle.answer("GetAcceleratorQuotaStatistics", {})
    out = publish("kernel")[1]
    assert out.startswith(said)


def test_an_account_that_is_refused_is_met_with_the_quota(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.refuse("GetAcceleratorQuotaStatistics", 401, "nope")
    code, _, err = publish("kernel")
    assert code == 1
    assert "refused the credentials in KAGGLE_KEY" in error_line(err)
    assert sum(kaggle.calls.values()) == 1


# ---- submissions by number ----------------------------------------------------------------------------------------


def test_a_submission_is_known_by_its_number(
    kaggle: KaggleServer, published: str, checked: None, publish: Publish, layout: Layout
) -> None:
    hidden = [{"ref": 5, "description": "", "status": "COMPLETE", "publicScore": "9.9", "looks_left": 0}]
    kaggle.submissions = list(hidden)  # another's of the team, with no description either
    code, out, err = publish("submit")
    assert code == 0, out + err
    assert "Submission ref: 1001" not in err
    assert notes(layout, published)["submission"][1] == "1001"
    assert "submission 1001: public score 0.355" in out


@pytest.mark.parametrize("where", ["both", "list only", "nowhere"])
def test_a_submission_that_failed_says_why(kaggle: KaggleServer, checked: None, publish: Publish, where: str) -> None:
    kaggle.submission_status = "ERROR"
    if where != "nowhere":
        kaggle.submission_error = "ERROR: Unexpected Column: 'a' (Line 1)\nERROR: Required column 'b' not found"
    if where == "list only":
        kaggle.answer("GetSubmission", {"ref": 1000, "status": "ERROR"})
    code, _, err = publish("submit")
    assert code == 1
    reason = "Kaggle gives no reason"
    if where != "nowhere":
        reason = "ERROR: Unexpected Column: 'a' (Line 1) ERROR: Required column 'b' not found"
    line = error_line(err)
    assert f"ended with SubmissionStatus.ERROR: {reason}: see kaggle.com/competitions/{COMPETITION}/submissions" in line


def test_submission_to_a_competition_that_was_not_joined(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.has_accepted_rules = False
    code, _, err = publish("submit")
    assert code == 1
    assert f"Bad Request: accept the rules on kaggle.com/competitions/{COMPETITION}/rules" in error_line(err)
