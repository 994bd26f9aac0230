import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar import __main__ as command
from lumbar.io.numba_cache import use_numba_cache
from lumbar.io.streams import FaultTolerantStream
from lumbar.labels import COLUMNS, SEVERITIES
from lumbar.metric import constant_submission, score, uniform_table
from lumbar.workers.budget import process_start


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def tables(tmp_path):
    rng = np.random.default_rng(0)
    solution = pd.DataFrame(rng.choice([*SEVERITIES, ""], (9, 25)), columns=list(COLUMNS))
    solution.insert(0, "study_id", range(1, 10))
    solution.to_csv(tmp_path / "train.csv", index=False)
    constant_submission(list(range(1, 10)), uniform_table()).to_csv(tmp_path / "submission.csv", index=False)
    return tmp_path / "train.csv", tmp_path / "submission.csv"


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_score_prints_the_metric_and_its_four_terms(tables, capsys):
    assert run("score", "--solution", tables[0], "--submission", tables[1]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    expected = score(pd.read_csv(tables[0]), pd.read_csv(tables[1]))
    assert list(printed) == ["total", "spinal", "foraminal", "subarticular", "any_severe"]
    for name, value in printed.items():
        assert abs(float(value) - getattr(expected, name)) < 1e-6


def test_bad_input_ends_with_one_line_and_1(tables, tmp_path, bundle, capsys):
    root = write_cohort(tmp_path / "data", {1: ()})
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    (tmp_path / "text.dcm").write_text("this is no image\n")
    (tmp_path / "nothing").mkdir()
    cases = [
        (("score", "--solution", tmp_path / "no.csv", "--submission", tables[1]), "no.csv: cannot be read"),
        (("score", "--solution", tmp_path / "broken.csv", "--submission", tables[1]), "solution: study_id and 25 more"),
        (("score", "--solution", tables[0], "--submission", tmp_path / "broken.csv"), "submission: row_id and 3 more"),
        (
            ("predict", "--data", tmp_path / "nothing", "--weights", bundle, "--out", "s.csv"),
            "nothing: found no DICOM file",
        ),
        (("predict", "--data", root, "--weights", tmp_path, "--out", "s.csv"), "weights_manifest.json: cannot be read"),
        (("predict", "--data", root, "--weights", bundle, "--out", bundle / "x" / "s.csv"), "s.csv: cannot be written"),
        (
            ("predict", "--data", root, "--weights", bundle, "--out", "s.csv", "--time-limit", "long"),
            "time limit 'long'",
        ),
        (("predict", "--data", root, "--weights", bundle, "--out", "s.csv", "--chain", "baseline"), "chain 'baseline'"),
        (("predict", "--data", root, "--weights", bundle, "--out", "s.csv", "--shard", "3/2"), "part 3 of 2, expected"),
        (("merge", "--out", tmp_path / "m.csv", tmp_path / "s.0-of-2.csv"), "s.0-of-2.csv: not found, expected the"),
        (("inspect", tmp_path / "text.dcm"), "text.dcm: "),
        (("inspect", tmp_path / "nowhere"), "nowhere"),
        (("inspect", tmp_path / "nothing"), "nothing: "),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 1, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("error: "), arguments
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("guess",),
        ("predict",),
        ("predict", "--data", "x", "--weights", "y", "--out", "z", "--studies", "0"),
        ("predict", "--data", "x", "--weights", "y", "--out", "z", "--split", "valid"),
        ("score", "--solution", "x"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: python -m lumbar" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    expected = {
        "predict": ("--data", "--weights", "--out", "--split", "--chain", "--time-limit", "--report", "--record",
                    "--studies", "--workers", "--manifest-hash", "--shard", "--resume", "none for no limit",
                    "Research use only"),
        "merge": ("--out", "--record", "--report", "PART"),
        "score": ("--solution", "--submission"),
        "inspect": ("PATH",),
    }  # fmt: skip
    for name, options in expected.items():
        with pytest.raises(SystemExit) as caught:
            run(name, "--help")
        assert caught.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        for option in options:
            assert option in text


def test_predict_passes_everything_on(tmp_path, bundle, monkeypatch, capsys):
    root = write_cohort(tmp_path / "data", {1: (), 2: ("raise-read",), 3: ()})
    monkeypatch.setattr("lumbar.chains.registry.MAIN", FAKE)
    monkeypatch.setattr("lumbar.run.cuda_devices", list)
    out, report, record = (tmp_path / name for name in ("s.csv", "r.html", "r.json"))
    code = run("predict", "--data", root, "--weights", bundle, "--out", out, "--report", report, "--record", record,
               "--studies", 2, "--time-limit", "60s")  # fmt: skip
    assert code == 0
    assert len(pd.read_csv(out)) == 50
    assert "50 rows; 1 of 2 studies predicted\n1 kept their prior" in capsys.readouterr().out
    assert report.stat().st_size > 1000
    assert record.stat().st_size > 100


def test_the_time_limit_counts_from_the_start_that_the_command_was_given(tmp_path, bundle, monkeypatch, capsys):
    root = write_cohort(tmp_path / "data", {1: (), 2: ()})
    monkeypatch.setattr("lumbar.chains.registry.MAIN", FAKE)
    monkeypatch.setattr("lumbar.run.cuda_devices", list)
    arguments = ["predict", "--data", root, "--weights", bundle, "--out", tmp_path / "s.csv", "--time-limit", "1h"]
    for started, n_predicted in ((time.monotonic() - 4000.0, 0), (time.monotonic(), 2), (None, 2)):
        assert command.main([str(argument) for argument in arguments], started) == 0
        assert f"50 rows; {n_predicted} of 2 studies predicted" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says when a process was started")
def test_as_a_command_the_time_limit_counts_from_the_start_of_the_process(monkeypatch):
    seen = []
    monkeypatch.setattr(command, "main", lambda started: seen.append(started) or 0)
    monkeypatch.setattr(command, "guard_streams", lambda: FaultTolerantStream(sys.stdout))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.command() == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [pytest.approx(process_start(), abs=0.1)]


def test_the_module_runs_as_a_command(tables):
    done = subprocess.run(
        [sys.executable, "-m", "lumbar", "score", "--solution", tables[0], "--submission", tables[1]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("total ")


# A shell's redirections of a command whose lines nobody can read.
UNREADABLE = [
    ">/dev/full 2>&1",
    "2>&1 | true",
    *(pytest.param(text, marks=pytest.mark.slow) for text in (">/dev/full", ">&- 2>&-", ">&- 2>&- <&-", "| true")),
]
PREDICT = """\
import sys
import lumbar.chains.registry
from kernel_fakes import FAKE
from lumbar import __main__ as command
lumbar.chains.registry.MAIN = FAKE
command.script()
"""


def run_redirected(redirection, tmp_path, *arguments):
    """The exit status and standard error of a command as a shell runs it."""
    line = f'"$@" {redirection}; echo "${{PIPESTATUS[0]}}" >{tmp_path}/status'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["bash", "-c", line, "bash", sys.executable, *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    return int((tmp_path / "status").read_text()), done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("redirection", UNREADABLE)
def test_lines_that_nobody_can_read_cost_no_prediction(tmp_path, bundle, redirection):
    root = write_cohort(tmp_path / "data", {1: (), 2: ("raise-read",), 3: ()})
    (tmp_path / "predict.py").write_text(PREDICT)
    record = tmp_path / "r.json"
    arguments = ["--data", root, "--weights", bundle, "--out", tmp_path / "s.csv", "--record", record]
    status, error = run_redirected(redirection, tmp_path, tmp_path / "predict.py", "predict", *arguments)
    assert (status, "Traceback" in error) == (0, False)
    studies = json.loads(record.read_text())["studies"]
    assert [study["status"] for study in studies] == ["predicted", "prior", "predicted"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_score_that_cannot_be_shown_is_an_error_of_one_line(tables, tmp_path):
    arguments = ["-m", "lumbar", "score", "--solution", tables[0], "--submission", tables[1]]
    status, error = run_redirected(">/dev/full", tmp_path, *arguments)
    assert status == 1
    assert error == "error: standard output: cannot be written (No space left on device), expected a reader\n"


def test_numba_gets_a_cache_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    use_numba_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == "mine"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_numba_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "lumbar-numba")


def test_numba_cache_falls_back_to_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    use_numba_cache()
    assert os.path.dirname(os.environ["NUMBA_CACHE_DIR"]) == str(tmp_path)
