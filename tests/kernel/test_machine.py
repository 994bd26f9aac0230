"""How many workers a machine without a GPU gets, and with how many threads."""

import types

import pytest

from kernel_bundles import write_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.run import _layout
from lumbar.workers import machine
from lumbar.workers.machine import Layout, cores, cpu_layout, free_memory, memory_needs
from lumbar.workers.shards import Shard

GIB = 1 << 30


@pytest.fixture
def manifest(tmp_path):
    return read_manifest(write_bundle(tmp_path / "bundle"))


def stand_on(monkeypatch, n_cores, memory_gib):
    monkeypatch.setattr(machine, "cores", lambda: n_cores)
    monkeypatch.setattr(machine, "free_memory", lambda: memory_gib * GIB)


@pytest.mark.parametrize(
    ("n_cores", "memory_gib", "local_count", "expected"),
    [(1, 30, 1, (1, 1)), (4, 30, 1, (4, 1)), (16, 64, 1, (16, 1)), (16, 5, 1, (6, 1)), (4, 0.1, 1, (1, 1)),
     (8, 60, 2, (4, 1)), (2, 60, 4, (1, 1))],
)  # fmt: skip
def test_there_is_one_worker_a_core_within_memory_each_with_one_thread(
    n_cores, memory_gib, local_count, expected, manifest, monkeypatch
):
    stand_on(monkeypatch, n_cores, memory_gib)
    layout = cpu_layout(manifest, local_count, is_shared=True)
    assert (layout.count, layout.n_threads) == expected


def test_weights_count_once_where_they_are_shared_and_for_each_worker_where_not(manifest):
    together, each = memory_needs(manifest, is_shared=True)
    assert together > 0
    assert memory_needs(manifest, is_shared=False) == (0, each + together)


def options(workers=None, processes=True):
    return types.SimpleNamespace(workers=workers, processes=processes)


def test_threads_follow_from_what_was_asked_for_and_never_from_the_number_of_studies(manifest, monkeypatch):
    stand_on(monkeypatch, 4, 30)
    monkeypatch.setattr("lumbar.workers.devices.cores", lambda: 4)
    monkeypatch.setattr("lumbar.run.cuda_devices", list)
    chain = types.SimpleNamespace(uses_gpu=True)
    layout = _layout(chain, manifest, options(), None)
    assert (layout.of(100), layout.of(1), layout.n_threads) == (["cpu"] * 4, ["cpu"], 1)
    layout = _layout(chain, manifest, options(workers=2), None)
    assert (layout.of(1), layout.n_threads) == (["cpu"], 2)
    assert _layout(chain, manifest, options(workers=1), None).n_threads is None  # the libraries' choice
    assert len(_layout(chain, manifest, options(), Shard(0, 2, 0, 2)).of(100)) == 2
    assert len(_layout(chain, manifest, options(processes=False), None).of(100)) == 1
    assert len(_layout(types.SimpleNamespace(uses_gpu=False), manifest, options(), None).of(100)) == 1


def test_two_gpus_keep_one_worker_each(manifest, monkeypatch):
    monkeypatch.setattr("lumbar.run.cuda_devices", lambda: ["cuda:0", "cuda:1"])
    layout = _layout(types.SimpleNamespace(uses_gpu=True), manifest, options(), None)
    assert layout.of(100) == ["cuda:0", "cuda:1"]
    assert not layout.shares_weights


def test_the_first_line_says_how_many_workers_and_why():
    layout = Layout(["cpu"], 6, 2, "16 cores, memory for 6 workers of 0.7 GiB")
    words = layout.words(layout.of(100))
    assert words == "6 workers on cpu, 2 threads each (16 cores, memory for 6 workers of 0.7 GiB)"
    assert Layout(["cuda:0", "cuda:1"], 2, None).words(["cuda:0", "cuda:1"]) == "1 worker on cuda:0, 1 worker on cuda:1"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_a_containers_quota_of_time_counts_as_cores(files, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path.removeprefix("/sys/fs/cgroup/"), ""))
    assert cores() == expected


def test_a_containers_memory_counts_with_what_its_files_would_give_back(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n",
        "/sys/fs/cgroup/memory.max": "500000", "/sys/fs/cgroup/memory.current": "400000",
        "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 50000\n",
    }  # fmt: skip
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))
    assert free_memory() == 150000
    files["/sys/fs/cgroup/memory.max"] = "max"
    assert free_memory() == 800 << 10


def test_memory_of_a_containers_own_groups_counts_in_version_1(monkeypatch):
    folder = "/sys/fs/cgroup/memory"
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n",
        f"{folder}/memory.limit_in_bytes": "500000", f"{folder}/memory.usage_in_bytes": "400000",
        f"{folder}/memory.stat": "inactive_file 1000\nhierarchical_memory_limit 9\ntotal_inactive_file 50000\n",
    }  # fmt: skip
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))
    assert free_memory() == 150000
