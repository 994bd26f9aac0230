"""A run folder has one training at a time, and no fit in it is replaced unless that was asked for."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import train_tiny
from lumbar.errors import CohortError
from lumbar_train.errors import TrainingError
from lumbar_train.outputs.run_lock import FILE, Owner, RunLock, is_stale


def write_owner(out: Path, owner: Owner) -> None:
    out.mkdir(exist_ok=True)
    (out / FILE).write_text(json.dumps(asdict(owner)))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_in_use_is_refused_with_process_and_host(tmp_path):
    out = tmp_path / "run"
    with RunLock(out):
        with pytest.raises(CohortError, match=rf"in use by process {os.getpid()} on {socket.gethostname()} since"):
            RunLock(out, resume=True).acquire()
        assert (out / FILE).is_file(), "the refused one leaves the owner's lock"
    assert not out.exists(), "nothing was written into the folder, so it is removed again"
    with RunLock(out):
        (out / "folds.csv").touch()
    assert [path.name for path in out.iterdir()] == ["folds.csv"]


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunLock(tmp_path / "run"):
        raise KeyboardInterrupt
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_process_that_has_ended_is_taken_over_and_said_so(tmp_path, capsys):
    owner = replace(Owner.this_process(), pid=ended_process())
    assert is_stale(owner)
    write_owner(tmp_path, owner)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert f"process {owner.pid}, which had locked the folder since" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process began")
def test_another_process_of_the_same_number_does_not_keep_a_lock_alive():
    owner = Owner.this_process()
    assert not is_stale(owner)
    assert is_stale(replace(owner, began=owner.began - 5))
    assert is_stale(replace(owner, boot="an-earlier-start pid:[1]"))


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": None}])
def test_the_lock_of_another_host_or_container_is_refused_with_how_to_remove_it(tmp_path, change):
    owner = Owner.this_process()
    if change.get("boot", "") is None:
        change = {"boot": owner.boot.partition(" ")[0] + " pid:[1]"}
    write_owner(tmp_path, replace(owner, pid=ended_process(), **change))
    with pytest.raises(CohortError, match=rf"cannot be seen from .*: if it has ended, remove {tmp_path / FILE}"):
        RunLock(tmp_path).acquire()


def test_a_damaged_lock_is_replaced_and_said_so(tmp_path, capsys):
    (tmp_path / FILE).write_text('{"pid": 1')
    with RunLock(tmp_path):
        pass
    assert "not readable, so no running process" in capsys.readouterr().out


def test_only_one_of_many_at_once_takes_over_an_abandoned_lock(tmp_path):
    write_owner(tmp_path, replace(Owner.this_process(), pid=ended_process()))
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lumbar.errors import CohortError\n"
        "from lumbar_train.outputs.run_lock import RunLock\n"
        "try:\n    RunLock(Path(sys.argv[1])).acquire()\nexcept CohortError:\n    sys.exit(3)\n"
        "sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    contenders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) for _ in range(4)
    ]
    refused = 0
    while refused < 3:
        refused = sum(contender.poll() == 3 for contender in contenders)
    for contender in contenders:
        contender.stdin.close()
        contender.wait(60)
    assert sorted(contender.returncode for contender in contenders) == [0, 3, 3, 3]


def test_machines_may_share_the_folds_of_a_stage_but_no_fold(tmp_path):
    with RunLock(tmp_path, folds="0, 1"), RunLock(tmp_path, folds="2,full"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0-1.lock", "run-2-full.lock"]
        for folds in ("1,2", "full", None):
            with pytest.raises(CohortError, match="in use by process"):
                RunLock(tmp_path, folds=folds).acquire()
    with RunLock(tmp_path), pytest.raises(CohortError, match="in use by process"):
        RunLock(tmp_path, folds="0").acquire()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "file", ["recipe.json", "axial_xy/fold0.safetensors", "axial_xy/fold0/checkpoint.pt", "axial_xy/full/fit.json"]
)
def test_a_folder_that_holds_a_run_is_refused_unless_one_says_what_to_do_with_it(tmp_path, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(CohortError, match="add --resume to go on with it, --overwrite to fit again"):
        RunLock(tmp_path).acquire()
    assert not (tmp_path / FILE).exists()
    for allowed in ({"resume": True}, {"overwrite": True}):
        with RunLock(tmp_path, **allowed):
            pass


def test_decoded_studies_alone_are_no_run(tmp_path):
    (tmp_path / "cache/objects").mkdir(parents=True)
    with RunLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be made"):
        RunLock(tmp_path / "file" / "run").acquire()


def test_a_second_training_on_one_folder_keeps_the_fits_of_the_first(tiny_cohort, tmp_path, capsys):
    out = tmp_path / "run"
    some = ("--stages", "axial_xy", "--folds", "0", "--set", "axial_xy.epochs=1")
    assert train_tiny.train(tiny_cohort, out, *some) == 0
    weights = out / "axial_xy/fold0.safetensors"
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert not (out / FILE).exists()
    assert train_tiny.train(tiny_cohort, out, *some) == 1
    assert "found a run of tiny with 1 finished fit, expected a folder without one" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    changed = weights.stat().st_mtime_ns
    assert train_tiny.train(tiny_cohort, out, *some, "--resume") == 0
    capsys.readouterr()
    assert train_tiny.train(tiny_cohort, out, *some, "--overwrite", "--seed", "1") == 0
    assert "--overwrite: 1 finished fit of axial_xy will be replaced" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns > changed
    assert weights.read_bytes() != files[weights]
