"""Workers that die, hang or cannot be started, and a run that is ended from outside."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, load_on_cpu_only, probs_of, write_cohort
from kernel_fakes import predict as fake_predict
from kernel_fakes import read as fake_read
from lumbar.labels import row_ids
from lumbar.output.submission import normalise, validate
from lumbar.run import predict

PRIOR = [0.6, 0.3, 0.1]
TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 600  # a busy machine takes minutes to start Python


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def cohort(tmp_path, n_studies, **traits):
    """Studies 1 to N; ``s3="die"`` is the trait of study 3."""
    return write_cohort(
        tmp_path / "data", {k: (traits[f"s{k}"],) if f"s{k}" in traits else () for k in range(1, n_studies + 1)}
    )


def problems(record, study_id):
    return next(study["problems"] for study in record["studies"] if study["study_id"] == study_id)


def rows(frame, study_id):
    return frame[frame["row_id"].isin(row_ids(study_id))].iloc[:, 1:].to_numpy(dtype=float)


def assert_all_predicted_but(frame, *given_up):
    for study_id in sorted({int(row_id.partition("_")[0]) for row_id in frame["row_id"]}):
        expected = [PRIOR] * 25 if study_id in given_up else normalise(probs_of(study_id))
        np.testing.assert_allclose(rows(frame, study_id), expected, atol=1e-8, err_msg=f"study {study_id}")


def hung(root):
    """How often a study said that it hangs now."""
    return sum(len(path.read_text().splitlines()) for path in root.glob("*_images/*/hung"))


# ---- deaths --------------------------------------------------------------------------------------------------------


def test_a_study_that_kills_while_it_is_read_ahead_costs_itself_and_no_other(tmp_path, bundle, caplog):
    root = cohort(tmp_path, 5, s3="read-segfault")
    with caplog.at_level(logging.WARNING, "lumbar"):
        frame, record = predict(root, bundle, tmp_path / "s.csv", chain=FAKE)
    assert_all_predicted_but(frame, 3)
    assert problems(record, 3) == ["study 3: worker lost while reading (its process was killed by SIGSEGV)"]
    assert [problems(record, k) for k in (1, 2, 4, 5)] == [[]] * 4
    assert sum("its process was killed by SIGSEGV with studies" in r.getMessage() for r in caplog.records) == 2
    assert record["devices"] == ["cpu"]


def test_a_picture_that_kills_costs_no_prediction(tmp_path, bundle):
    root = cohort(tmp_path, 3, s2="die-drawing")
    frame, record = predict(root, bundle, chain=FAKE, report=tmp_path / "r.html")
    assert_all_predicted_but(frame)
    assert [study["status"] for study in record["studies"]] == ["predicted"] * 3
    assert (tmp_path / "r.html").is_file()


def test_a_first_study_that_kills_while_the_weights_load_costs_itself_only(tmp_path, bundle):
    frame, record = predict(cohort(tmp_path, 3, s1="read-abort"), bundle, chain=FAKE)
    assert_all_predicted_but(frame, 1)
    assert problems(record, 1) == ["study 1: worker lost while reading (its process was killed by SIGABRT)"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_many_lethal_studies_never_use_the_restarts_up(tmp_path, bundle, workers):
    lethal = {2: "read-segfault", 3: "read-segfault", 5: "die", 6: "read-abort", 8: "read-abort", 10: "die"}
    root = cohort(tmp_path, 11, **{f"s{k}": trait for k, trait in lethal.items()})
    frame, record = predict(root, bundle, tmp_path / "s.csv", chain=FAKE, workers=workers)
    assert_all_predicted_but(frame, *lethal)
    assert problems(record, 5) == ["study 5: worker lost while predicting (its process ended with exit code 9)"]


@pytest.mark.slow
def test_when_every_study_is_lethal_each_is_given_up_and_the_file_is_valid(tmp_path, bundle):
    root = cohort(tmp_path, 3, s1="die", s2="read-segfault", s3="die")
    frame, record = predict(root, bundle, tmp_path / "s.csv", chain=FAKE)
    assert_all_predicted_but(frame, 1, 2, 3)
    validate(tmp_path / "s.csv", [row for k in (1, 2, 3) for row in row_ids(k)])
    assert all(study["problems"][0].count("worker lost while") == 1 for study in record["studies"])


def test_a_worker_killed_once_from_outside_costs_no_study(tmp_path, bundle):
    frame, _ = predict(cohort(tmp_path, 4, s2="killed-once"), bundle, chain=FAKE)
    assert_all_predicted_but(frame)


@pytest.mark.slow
def test_weights_that_kill_end_the_run_with_one_line_and_no_file(tmp_path, bundle, monkeypatch):
    script = tmp_path / "dying.py"
    script.write_text("import os, signal\ndef load(manifest, device):\n    os.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import dying

    root = cohort(tmp_path, 9)
    with pytest.raises(Exception, match=r"^no worker could load the weights: its process was killed by SIGILL$"):
        predict(root, bundle, tmp_path / "s.csv", chain=replace(FAKE, load=dying.load))
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_costs_its_study_only(tmp_path, bundle):
    root = cohort(tmp_path, 4, s2="exit")
    frame, record = predict(root, bundle, chain=FAKE, processes=False)
    assert_all_predicted_but(frame, 2)
    assert problems(record, 2) == ["study 2: worker lost while predicting (its thread ended)"]


# ---- devices -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch):
    """As if the machine had two; the fakes do not care."""

    def use(chain=FAKE, count=2):
        chain = replace(chain, uses_gpu=True)
        monkeypatch.setattr("lumbar.chains.registry.MAIN", chain)
        monkeypatch.setattr("lumbar.run.cuda_devices", lambda: [f"cuda:{index}" for index in range(count)])
        return chain

    return use


def test_every_gpu_gets_a_process_of_its_own(tmp_path, bundle, two_gpus):
    frame, record = predict(cohort(tmp_path, 6), bundle, chain=two_gpus())
    assert sorted(record["devices"]) == ["cuda:0", "cuda:1"]
    assert_all_predicted_but(frame)


def test_a_device_lost_more_often_than_workers_are_restarted_costs_those_studies_only(
    tmp_path, bundle, two_gpus, caplog
):
    root = cohort(tmp_path, 8, s2="lost", s3="lost", s5="lost", s6="lost", s7="lost")
    frame, record = predict(root, bundle, chain=two_gpus(count=1), processes=False)
    assert_all_predicted_but(frame, 2, 3, 5, 6, 7)
    assert problems(record, 2) == ["study 2: RuntimeError: CUDA error: device-side assert triggered"]
    assert record["devices"] == ["cuda:0"]
    assert any("lost, its worker is replaced" in line.getMessage() for line in caplog.records)


def test_a_gpu_that_torch_cannot_use_falls_back_to_the_cpu_and_says_so(tmp_path, bundle, two_gpus, caplog):
    frame, record = predict(cohort(tmp_path, 4), bundle, chain=two_gpus(replace(FAKE, load=load_on_cpu_only)))
    assert set(record["devices"]) == {"cpu"}
    assert_all_predicted_but(frame)
    assert "cannot be used (RuntimeError: CUDA error: no kernel image is available" in caplog.text  # a worker's line


# ---- hanging -------------------------------------------------------------------------------------------------------


def clock_of(root, step_s=700.0):
    """A clock that stands still, and jumps each time a study says that it hangs."""
    return lambda: step_s * hung(root)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_reading_that_hangs_is_set_aside_tried_once_more_and_given_up(tmp_path, bundle, caplog, processes):
    root = cohort(tmp_path, 5, s1="read-hang", s4="read-hang")
    frame, record = predict(
        root, bundle, tmp_path / "s.csv", chain=FAKE, clock=clock_of(root), time_limit="8h", processes=processes
    )
    assert_all_predicted_but(frame, 1, 4)
    assert problems(record, 1) == ["study 1: not read after 700 s"]
    assert hung(root) == 4
    assert sum("set aside" in line.getMessage() for line in caplog.records) >= 4


def test_a_reading_that_hung_once_is_predicted_at_the_end(tmp_path, bundle):
    root = cohort(tmp_path, 4, s2="read-hang-once")
    frame, record = predict(root, bundle, chain=FAKE, clock=clock_of(root), processes=False)
    assert_all_predicted_but(frame)
    assert problems(record, 2) == []


def test_a_reading_that_hangs_does_not_cost_the_study_in_the_networks(tmp_path, bundle):
    """Study 1 stays in its networks until study 2, read ahead, has been given up."""
    root = cohort(tmp_path, 3)
    now, predicted = [0.0], []
    is_hanging, release = threading.Event(), threading.Event()

    def read(root, split, study_id, *rest):
        if study_id == 2 and not release.is_set():
            is_hanging.set()
            release.wait(PATIENCE_S)
        return fake_read(root, split, study_id, *rest)

    def slow(study, *rest):
        predicted.append(study.study_id)
        if study.study_id == 1:
            is_hanging.wait(PATIENCE_S)
            now[0] = 650.0  # past the limit for readings, not for networks
            time.sleep(1.5)  # the run looks at its clock meanwhile
        return fake_predict(study, *rest)

    chain = replace(FAKE, read=read, predict=slow)
    watch = logging.Handler()
    watch.emit = lambda record: release.set() if "set aside" in record.getMessage() else None
    logging.getLogger("lumbar").addHandler(watch)
    try:
        frame, _ = predict(root, bundle, chain=chain, clock=lambda: now[0])
    finally:
        release.set()
        logging.getLogger("lumbar").removeHandler(watch)
    assert_all_predicted_but(frame)
    assert predicted == [1, 3, 2]


def test_a_decoder_that_holds_the_interpreter_is_killed_with_its_process(tmp_path, bundle, caplog):
    """Study 1 may be in the networks, and cannot answer either: it gets a while, and is tried again elsewhere."""
    root = cohort(tmp_path, 4, s2="read-hold")

    def clock():
        return 700.0 * hung(root) + 100.0 * caplog.text.count("set aside")

    frame, _ = predict(root, bundle, chain=FAKE, clock=clock)
    assert_all_predicted_but(frame)


def test_networks_that_never_answer_cost_their_study_only(tmp_path, bundle):
    root = cohort(tmp_path, 4, s2="hang")
    frame, record = predict(root, bundle, chain=FAKE, clock=clock_of(root, step_s=2000.0))
    assert_all_predicted_but(frame, 2)
    assert problems(record, 2) == ["study 2: no prediction after 2000 s"]


@pytest.mark.parametrize("trait", ["hang", "read-hang"])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_hangs_at_the_deadline_is_given_up(tmp_path, bundle, workers, trait):
    root = write_cohort(tmp_path / "data", {1: ()} | {k: (trait,) for k in range(2, 7)})
    given_up = time.monotonic() + PATIENCE_S
    n_hanging = workers if trait == "hang" else 2 * workers  # of readings, one and one ahead in each

    def clock():  # the deadline comes when every worker hangs
        return 1e9 if hung(root) == n_hanging or time.monotonic() > given_up else 0.0

    frame, record = predict(root, bundle, tmp_path / "s.csv", chain=FAKE, workers=workers, clock=clock)
    assert hung(root) == n_hanging
    waited_behind = [1] if problems(record, 1) else []  # what was read first need not be predicted first
    assert_all_predicted_but(frame, *waited_behind, 2, 3, 4, 5, 6)
    (line,) = problems(record, 2)
    assert line.startswith("study 2: time limit reached before it was ")  # the watchdog may be the first to see it


# ---- what a process needs ------------------------------------------------------------------------------------------


def test_log_lines_of_a_worker_reach_the_runs_log(tmp_path, bundle, caplog):
    predict(cohort(tmp_path, 2, s2="read-log"), bundle, chain=FAKE)
    assert "2: odd" in [record.getMessage() for record in caplog.records]


def test_a_chain_of_local_functions_runs_in_a_thread_and_says_so(tmp_path, bundle, caplog):
    used = []

    def local(study, *rest):
        used.append(threading.current_thread().name)
        return fake_predict(study, *rest)

    frame, _ = predict(cohort(tmp_path, 2), bundle, chain=replace(FAKE, predict=local))
    assert_all_predicted_but(frame)
    assert len(used) == 2
    assert "the chain cannot be sent to a process" in caplog.text


def test_a_chain_that_a_process_cannot_import_runs_in_a_thread(tmp_path, bundle, caplog, monkeypatch):
    here = types.ModuleType("only_here")
    exec("from kernel_fakes import FAKE\ndef predict(*a):\n    return FAKE.predict(*a)", here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", here)
    frame, _ = predict(cohort(tmp_path, 2), bundle, chain=replace(FAKE, predict=here.predict))
    assert_all_predicted_but(frame)
    assert "the chain cannot be sent to a process (ModuleNotFoundError: No module named 'only_here')" in caplog.text


def test_where_no_process_can_be_started_a_thread_does_the_work(tmp_path, bundle, monkeypatch, caplog):
    def fail(self):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", fail)
    frame, _ = predict(cohort(tmp_path, 2), bundle, chain=FAKE)
    assert_all_predicted_but(frame)
    assert "no process can be started (BlockingIOError: [Errno 11]" in caplog.text


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def test_a_script_without_a_main_guard_starts_its_workers_once(tmp_path, bundle):
    root = cohort(tmp_path, 2)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom kernel_fakes import FAKE\nfrom lumbar.run import predict\n"
        "_, record = predict(*sys.argv[1:], chain=FAKE)\n"
        "print([study['status'] for study in record['studies']], 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, script, root, bundle], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == "['predicted', 'predicted'] False\n", done.stderr
    assert done.stderr == ""


COMMAND = """
import sys
import lumbar.run
from kernel_fakes import FAKE
from lumbar.__main__ import script
lumbar.chains.registry.MAIN = FAKE
lumbar.run.cuda_devices = list
script()
"""


def start_command(tmp_path, bundle, root):
    out = tmp_path / "s.csv"
    arguments = ["predict", "--data", root, "--weights", bundle, "--out", out]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes through /proc")
@pytest.mark.parametrize(
    ("number", "is_group", "trait"),
    [
        (signal.SIGTERM, False, "hang"),
        (signal.SIGINT, True, "hang"),  # as a terminal does: workers get it too
        (signal.SIGKILL, False, "hang"),
        (signal.SIGKILL, False, "read-hold"),  # no thread of the worker can see that its parent is gone
    ],
)
def test_a_run_that_is_ended_leaves_a_valid_file_and_no_process(tmp_path, bundle, number, is_group, trait):
    root = cohort(tmp_path, 3, s2=trait)
    with start_command(tmp_path, bundle, root) as process:
        wait_until(lambda: hung(root) or process.poll() is not None)
        if trait == "hang":
            wait_until(lambda: (tmp_path / "s.csv").is_file())
        worker = int((root / "test_images" / "2" / "hung").read_text())
        assert is_running(worker)
        (os.killpg if is_group else os.kill)(process.pid, number)
        printed = process.communicate(timeout=PATIENCE_S)[1]
    wait_until(lambda: not is_running(worker))
    assert "Traceback" not in printed
    if (tmp_path / "s.csv").is_file():
        validate(tmp_path / "s.csv", [row for k in (1, 2, 3) for row in row_ids(k)])
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        assert process.returncode == 1
        assert f"{word}: " in printed
        assert "holds the answers so far and the prior for the other studies" in printed
