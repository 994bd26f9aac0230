"""Worker processes before they get their work: started ahead, with their threads, and ended with the run."""

import multiprocessing
import os
import threading
import types
from dataclasses import replace

import numpy as np
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from kernel_untrained import write_untrained_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.errors import LumbarError
from lumbar.io.tables import read_descriptions
from lumbar.labels import row_ids
from lumbar.run import predict
from lumbar.workers import processes, worker
from lumbar.workers.processes import WorkerProcesses


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return write_untrained_bundle(tmp_path_factory.mktemp("untrained") / "bundle")


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def test_a_process_is_started_with_the_threads_that_its_libraries_make(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with processes._with_threads(1):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
    with processes._with_threads(None):
        assert os.environ["OMP_NUM_THREADS"] == "7"


def test_processes_that_were_started_ahead_and_not_taken_are_ended():
    workers = WorkerProcesses(1, ["no_such_module_at_all"])
    workers.prepare(2)
    connection, process = workers.take()
    assert connection.recv() == ("booted",)  # what cannot be imported is told when the networks are loaded
    workers.stop()
    assert multiprocessing.active_children() == [process]
    connection.close()
    process.join(60)
    assert process.exitcode == 0


class Stuck:
    """A process that does not end though it is killed, as one that waits for a dead disk."""

    def __init__(self):
        self.is_killed, self.waited_s = False, []

    def kill(self):
        self.is_killed = True

    def join(self, timeout=None):
        self.waited_s.append(timeout)


def test_processes_that_do_not_end_though_killed_hold_the_run_no_longer_than_one(monkeypatch):
    times = iter([0.0, 0.0, processes.END_S, processes.END_S])
    monkeypatch.setattr(processes, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    stuck = [Stuck(), Stuck(), Stuck()]
    workers = WorkerProcesses(1)
    pipes = [multiprocessing.Pipe() for _ in stuck]
    workers._waiting = [(ours, one) for (ours, _), one in zip(pipes, stuck, strict=True)]
    workers.stop()
    assert all(one.is_killed for one in stuck)
    assert [one.waited_s for one in stuck] == [[processes.END_S], [0.0], [0.0]]
    for ours, theirs in pipes:
        assert ours.closed
        theirs.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_chain_reads_nothing_until_the_worker_has_imported_its_libraries(bundle, tmp_path, monkeypatch, fails):
    """A chain's module imports timm, which must not meet the stand-ins that are in place while the worker does."""
    root = write_cohort(tmp_path / "data", {1: ()})
    order, is_read = [], threading.Event()

    def import_libraries(modules):
        order.append(modules)
        order.append(is_read.wait(0.3))
        order.append("imported")
        if fails:
            raise ImportError("timm")

    def read(*arguments):
        order.append("read")
        is_read.set()
        return FAKE.read(*arguments)

    monkeypatch.setattr(worker, "import_libraries", import_libraries)
    manifest = read_manifest(bundle)
    setup = worker.Setup(
        root, "test", read_descriptions(root, "test"), manifest, np.full((25, 3), 1 / 3), replace(FAKE, read=read),
        "cpu", None, 1,
    )  # fmt: skip
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=worker._serve, args=(worker.Channel(theirs), setup, ["timm"]))
    thread.start()
    ours.send(("stop",))
    thread.join(60)
    assert is_read.wait(60)
    assert order == [["timm"], False, "imported", "read"]
    ours.close()


def test_a_run_that_is_refused_leaves_no_process_behind(untrained, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(LumbarError):
        predict(tmp_path / "data", untrained, tmp_path / "s.csv")
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "s.csv").exists()


def test_workers_on_a_cpu_answer_with_the_same_bits_as_one(untrained, phantom_cohort, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lumbar.run.cuda_devices", list)
    monkeypatch.setattr("lumbar.workers.machine.cores", lambda: 2)
    monkeypatch.setattr("lumbar.workers.devices.cores", lambda: 1)
    caplog.set_level("INFO", "lumbar")
    several, record = predict(phantom_cohort, untrained, tmp_path / "several.csv")
    assert "2 workers on cpu, 1 thread each (2 cores)" in caplog.text
    assert 1 <= len(record["devices"]) <= 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, _ = predict(phantom_cohort, untrained, tmp_path / "one.csv", workers=1)
    np.testing.assert_array_equal(several.iloc[:, 1:].to_numpy(), one.iloc[:, 1:].to_numpy())
    assert list(several["row_id"]) == [row for study in record["studies"] for row in row_ids(study["study_id"])]
