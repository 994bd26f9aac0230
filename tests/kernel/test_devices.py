import os
import subprocess
import sys
import types

import pytest

from lumbar.workers import devices
from lumbar.workers.devices import cuda_devices


@pytest.fixture
def no_torch(monkeypatch, tmp_path):
    """A torch that was not imported yet, of a build that the test chooses; importing it fails the test."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def build(version_file):
        package = tmp_path / "torch"
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('torch was imported')\n")
        (package / "version.py").write_text(version_file)
        monkeypatch.syspath_prepend(tmp_path)

    return build


CUDA = "__version__ = '2.10.0+cu128'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n"
CPU = CUDA.replace("'12.8'", "None")


def test_a_torch_without_cuda_has_no_devices(no_torch, monkeypatch):
    no_torch(CPU)
    monkeypatch.setattr(devices, "_is_there", lambda library: True)
    assert cuda_devices() == []


def test_a_system_without_a_driver_has_no_devices(no_torch, monkeypatch):
    no_torch(CUDA)
    monkeypatch.setattr(devices, "_is_there", lambda library: False)
    assert cuda_devices() == []


def test_the_driver_counts_the_devices(no_torch, monkeypatch):
    no_torch(CUDA)
    monkeypatch.setattr(devices, "_is_there", lambda library: True)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "2\n"))
    assert cuda_devices() == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("case", ["rocm", "no answer", "loaded"])
def test_torch_itself_is_asked_where_nothing_else_knows(no_torch, monkeypatch, case):
    no_torch(CUDA.replace("hip: Optional[str] = None", "hip: Optional[str] = '6.2'") if case == "rocm" else CUDA)
    monkeypatch.setattr(devices, "_is_there", lambda library: True)
    monkeypatch.setattr(devices, "_count", lambda library: None)
    monkeypatch.setattr(devices, "_torch_devices", lambda: ["cuda:0"])
    if case == "loaded":
        monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert cuda_devices() == ["cuda:0"]


def test_counting_devices_here_imports_no_torch_where_there_is_no_driver():
    code = (
        "import sys\nfrom lumbar.workers import devices\nfound = devices.cuda_devices()\n"
        "print(devices._is_there('libcuda.so.1') or (found == [] and 'torch' not in sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_driver_that_cannot_be_loaded_gives_no_count():
    assert devices._count("libnothing-of-this-name.so.1") is None
