"""Machines of the loopback Kaggle: a notebook that is pushed is run, on what Kaggle would mount for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lumbar_publish.names import COMPETITION
from publish.kaggle_server import KaggleServer

Run = Callable[[Path, str], int]  # folder with kaggle/, and a notebook's text → exit status


class Machines:
    """Runs each version once, when it is pushed.

    Attributes:
        data: the competition's folder.
        outputs: what a version left, by ``owner/slug`` and number.
        endings: how the next runs end, in place of what they do; "" lets one run as it is.
        keeps: the output of a run that ends like that is kept: it ran, as far as it came.
        unmounted: notebooks whose output no other one is given.
    """

    def __init__(self, server: KaggleServer, folder: Path, data: Path, run: Run | None = None) -> None:
        self.server, self.folder, self.data = server, folder, data
        self.run = run or run_as_script
        self.outputs: dict[tuple[str, int], dict[str, bytes]] = {}
        self.endings: list[str] = []
        self.keeps = False
        self.unmounted: set[str] = set()
        self.change: Callable[[dict[str, bytes]], object] = lambda files: None
        self._save = server.on_SaveKernel
        server.on_SaveKernel = self.save  # type: ignore[method-assign]
        server.output_of = self.output_of  # type: ignore[method-assign]

    def save(self, request: dict) -> dict:
        reply = self._save(request)
        if reply.get("versionNumber") and request.get("kernelExecutionType") != "QUICK_SAVE":
            name, version = request["slug"], reply["versionNumber"]
            ending = self.endings.pop(0) if self.endings else ""
            files, status = (
                ({}, 1)
                if ending and not self.keeps
                else self.execute(request, self.folder / f"{name.partition('/')[2]}-{version}")
            )
            self.change(files)
            self.outputs[name, version] = files
            self.server.kernels[name].statuses = ["RUNNING", ending or ("ERROR" if status else "COMPLETE")]
        return reply

    def output_of(self, kernel: object, number: int) -> dict[str, bytes]:
        name = next(name for name, one in self.server.kernels.items() if one is kernel)
        return self.outputs.get((name, number), {})

    def execute(self, request: dict, folder: Path) -> tuple[dict[str, bytes], int]:
        """What a run leaves in ``/kaggle/working``, and its exit status."""
        kaggle = folder / "kaggle"
        for name in request.get("datasetDataSources", []):
            _write(kaggle / "input" / "datasets" / name, self.server.datasets[name].versions[-1])
        for name in request.get("kernelDataSources", []):
            if name in self.unmounted:
                continue
            version = len(self.server.kernels[name].versions)
            _write(kaggle / "input" / "notebooks" / name, self.outputs[name, version])
        (kaggle / "input" / "competitions").mkdir(parents=True)
        (kaggle / "input" / "competitions" / COMPETITION).symlink_to(self.data)
        working = kaggle / "working"
        working.mkdir()
        status = self.run(folder, request["text"])
        files = {p.relative_to(working).as_posix(): p.read_bytes() for p in sorted(working.rglob("*")) if p.is_file()}
        shutil.rmtree(folder)
        return files, status


def run_as_script(folder: Path, text: str) -> int:
    """Run the code cells of a notebook one after the other in a process that sees nothing of ours."""
    cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    environment = {"PATH": os.environ["PATH"], "LUMBAR_KAGGLE_ROOT": str(folder / "kaggle"), "HOME": str(folder)}
    command = [sys.executable, "-I", "-B", "-c", "\n".join("".join(cell) for cell in cells)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr)
    return done.returncode


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
