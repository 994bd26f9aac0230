"""A repository of its own for every test: a tiny kernel that keeps the contract, tiny weights, a competition folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lumbar.bundle.manifest import write_manifest
from lumbar.config import STAGES
from lumbar.labels import COLUMNS
from lumbar_publish import cli
from lumbar_publish.kaggle import client
from lumbar_publish.names import Layout
from lumbar_publish.sealing.seal import seal
from publish import forked_client
from publish.kaggle_server import KEY, USER, Dataset, KaggleServer, Kernel, run_output, wait_until

Publish = Callable[..., tuple[int, str, str]]

# Answers as `python -m lumbar predict` does (files, exit status), in no time; sealing and rehearsal need no more.
KERNEL_MAIN = """
import csv, json, os, pathlib, socket, sys, time


def main(argv):
    options = dict(zip(argv[1::2], argv[2::2]))
    data, out = pathlib.Path(options["--data"]), pathlib.Path(options["--out"])
    studies = sorted(int(p.name) for p in (data / "test_images").iterdir())
    columns = json.loads((pathlib.Path(__file__).parent / "columns.json").read_text())
    with out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["row_id", "normal_mild", "moderate", "severe"])
        for study in studies:
            table.writerows([f"{study}_{column}", 0.5, 0.3, 0.2] for column in columns)
    if "--report" in options:
        pathlib.Path(options["--report"]).write_text("<p>report</p>")
    if "--record" in options:
        rows = [{"study_id": s, "status": "predicted", "problems": [], "seconds": 0.01} for s in studies]
        notes = {"ours": sorted(n for n in sys.modules if n.startswith("lumbar")), "path": sys.path}
        pathlib.Path(options["--record"]).write_text(json.dumps({"studies": rows, "devices": ["cpu"], **notes}))
    exec(os.environ.get("TEST_KERNEL_DOES", ""))
    return 0
"""


def tiny_weights(folder: Path, stages: tuple[str, ...] = STAGES) -> list[dict]:
    """One safetensors file a stage, and the manifest's entries for them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, stage in enumerate(stages):
        path = folder / f"{stage}.full.safetensors"
        save_file({"weight": np.full((2, 2), index, np.float32)}, path)
        data = path.read_bytes()
        entries.append(
            {
                "file": f"weights/{path.name}",
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "stage": stage,
                "model": "tiny",
                "config": {"size": 2},
                "fold": -1,
                "metrics": {},
                "probe": {},
            }
        )
    return entries


def manifest_data(entries: list[dict], **changes: object) -> dict:
    """A manifest as training writes it."""
    data: dict = {
        "schema": 1,
        "dataset": {"id": "someone/lumbar-kit", "version": None},
        "code_sha256": "",
        "recipe": "demo",
        "created_by": "test",
        "cohort": {"fingerprint": "f", "studies": 2, "description": "none"},
        "prior": {column: [0.5, 0.3, 0.2] for column in COLUMNS},
        "oof": {},
        "versions": {},
        "training": {},
        "forced": [],
        "weights": entries,
    }
    return data | changes


@pytest.fixture(autouse=True)
def _no_kaggle_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A repository with a tiny kernel, weights and lock file."""
    root = tmp_path / "repo"
    package = root / "kernel" / "lumbar"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Tiny."""\n')
    (package / "__main__.py").write_text(KERNEL_MAIN)
    (package / "columns.json").write_text(str(list(COLUMNS)).replace("'", '"'))
    (package / "stages").mkdir()
    (package / "stages" / "__init__.py").write_text("")
    entries = tiny_weights(root / "weights" / "demo")
    write_manifest(root / "weights_manifest.json", manifest_data(entries))
    return Layout(root)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A finished training run's folder."""
    run = tmp_path / "run"
    entries = tiny_weights(run / "export" / "weights")
    write_manifest(run / "export" / "weights_manifest.json", manifest_data(entries))
    (run / "recipe.json").write_text('{"name": "demo"}')
    return run


@pytest.fixture
def competition(tmp_path: Path) -> Path:
    """A competition folder with two (empty) test studies."""
    root = tmp_path / "competition"
    rows = ["row_id,normal_mild,moderate,severe"]
    for study in (11, 22):
        (root / "test_images" / str(study)).mkdir(parents=True)
        rows += [f"{study}_{column},0.333,0.333,0.334" for column in COLUMNS]
    (root / "sample_submission.csv").write_text("\n".join(rows) + "\n")
    (root / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    labels = ["study_id," + ",".join(COLUMNS), "11" + ",Normal/Mild" * 25, "22" + ",Severe" * 25]
    (root / "solution.csv").write_text("\n".join(labels) + "\n")
    return root


# By these a process measures its coverage; hundreds of short calls would spend more time on that than on their work.
_MEASURING = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")


@pytest.fixture(scope="session")
def client_forks() -> Iterator[str | None]:
    """Socket of a process that forks the real client for each call (``forked_client``); None where that cannot be."""
    if sys.platform != "linux":
        yield None
        return
    folder = tempfile.mkdtemp(prefix="kaggle-")  # the path of a socket must be short
    path = os.path.join(folder, "s")
    command = [sys.executable, "-P", forked_client.__file__, "--serve", path, str(client._PROCESS)]
    environment = {name: value for name, value in os.environ.items() if name not in _MEASURING}
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        assert wait_until(lambda: os.path.exists(path), 600)
        yield path
        assert process.stdin
        process.stdin.close()
    shutil.rmtree(folder)


@pytest.fixture
def kaggle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, client_forks: str | None
) -> Iterator[KaggleServer]:
    """A server, and an environment in which the client finds it and a good key, and nothing of this machine's.

    The client is forked, except in tests marked ``own_process``.
    """
    server = KaggleServer()
    if client_forks and not request.node.get_closest_marker("own_process"):
        for name in _MEASURING:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(forked_client.SOCKET, client_forks)
        monkeypatch.setattr(client, "_PROCESS", Path(forked_client.__file__))
    server.output = run_output
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    for name, value in {
        "HOME": str(home),
        "KAGGLE_CONFIG_DIR": str(home / ".kaggle"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HTTP_PROXY": server.url,
        "http_proxy": server.url,
        "NO_PROXY": "",
        "no_proxy": "",
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": KEY,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(client, "_LONGEST_PAUSE_S", 0.2)
    yield server
    server.close()


@pytest.fixture
def publish(layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Run ``build_dataset.py --publish`` on the tiny repository: exit code, output, errors.

    The sealed chain is not tried again each time: the client is what is tested here.
    """
    monkeypatch.setattr(cli, "run_chain", lambda *_: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(layout, lambda folder: None, ["--publish", *arguments, "-m", "first try"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def published(kaggle: KaggleServer, layout: Layout) -> str:
    """The tiny repository sealed, and its dataset there already; the manifest's hash."""
    sealed = seal(layout)
    files = {p.relative_to(sealed.folder).as_posix(): p.read_bytes() for p in sealed.folder.rglob("*") if p.is_file()}
    del files["dataset-metadata.json"]
    kaggle.datasets[f"{USER}/lumbar-kit"] = Dataset([files])
    return sealed.manifest_hash


@pytest.fixture
def checked(kaggle: KaggleServer, layout: Layout, published: str) -> None:
    """The notebook's run complete and checked, too."""
    kaggle.kernels[f"{USER}/lumbar-kit-submission"] = Kernel([{"text": layout.notebook.read_text()}], ["COMPLETE"])
    notes = layout.root / "dist" / "publish" / published[:12] / "notes.json"
    notes.parent.mkdir(parents=True)
    notes.write_text('{"kernel_version": 1, "is_checked": true}')


def error_line(err: str) -> str:
    """The one error line, apart from the client's progress bars."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert err.rstrip().endswith(lines[0])
    return lines[0]
