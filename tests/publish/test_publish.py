"""The whole way to Kaggle, with the real client against a server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lumbar_publish.cli import main
from lumbar_publish.names import COMPETITION, Layout
from lumbar_publish.sealing.seal import seal
from publish.conftest import Publish, error_line
from publish.kaggle_server import KEY, USER, KaggleServer, wait_until

DATASET = f"{USER}/lumbar-kit"
KERNEL = f"{USER}/lumbar-kit-submission"


@pytest.mark.slow
@pytest.mark.own_process
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
    assert "Upload successful: weights.zip" in err
    assert "%|" not in err  # no bar of the client's where there is no terminal
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


def test_notes_are_asked_for(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(layout, lambda folder: None, ["--publish"]) == 1
    assert "add -m NOTES" in error_line(capsys.readouterr().err)
