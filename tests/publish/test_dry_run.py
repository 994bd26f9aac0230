from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lumbar_phantom.patients import make_case
from lumbar_publish.names import COMPETITION, Layout
from lumbar_publish.rehearsal import dry_run, processes, sandbox
from lumbar_publish.rehearsal.estimate import Estimate, estimate
from lumbar_publish.sealing.seal import seal
from publish.kaggle_server import wait_until


@pytest.fixture
def kernel_does(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """Let the tiny kernel do more, inside the notebook's process."""

    def does(source: str) -> None:
        main = layout.kernel / "__main__.py"
        main.write_text(main.read_text().replace("    return 0\n", f"    {source}\n    return 0\n"))

    return does


def run(layout: Layout, competition: Path, *more: str) -> tuple[int, Path]:
    out = layout.root / "dist" / "dry-run"
    return dry_run.main(["--root", str(layout.root), "--data", str(competition), "--out", str(out), *more]), out


def test_rehearsal_leaves_a_scored_submission_says_where_and_leaves_nothing_else(
    layout: Layout,
    competition: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    status, out = run(layout, competition)
    assert [path.name for path in scratch.iterdir() if path.name.startswith(("numba-", "code-", "lumbar-"))] == []
    text = capsys.readouterr().out
    assert status == 0
    assert len((out / "kaggle" / "working" / "submission.csv").read_text().splitlines()) == 51
    assert "50 of 50, valid; 0 of 2 studies left at the prior" in text
    assert "score        " in text
    assert "of 9 hours for 720 studies" in text
    assert "rehearsal: no network (" in text
    page = json.loads((out / "executed.ipynb").read_text())
    assert "<p>report</p>" in json.dumps(page["cells"][-1]["outputs"])


@pytest.mark.parametrize("mounts", dry_run.MOUNTS)
def test_both_forms_of_mounts_are_found(layout: Layout, competition: Path, mounts: str) -> None:
    assert run(layout, competition, "--mounts", mounts)[0] == 0


def test_notebook_process_has_no_network_but_loopback(layout: Layout, competition: Path, kernel_does) -> None:
    kernel_does(
        "import socket; s = socket.socket(); s.settimeout(5); "
        "out.with_name('outside').write_text(str(s.connect_ex(('192.0.2.1', 80)))); "
        "l = socket.create_server(('127.0.0.1', 0)); socket.create_connection(l.getsockname()).close()"
    )
    status, out = run(layout, competition)
    assert status == 0
    assert int((out / "kaggle" / "working" / "outside").read_text()) != 0


def test_network_is_blocked_also_where_no_namespace_is_allowed(
    layout: Layout, competition: Path, kernel_does, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandbox, "best_isolation", lambda: sandbox.Isolation((), False, False))
    kernel_does("socket.create_connection(('192.0.2.1', 80), timeout=5)")
    status, out = run(layout, competition)
    assert status == 1
    captured = capsys.readouterr()
    assert "connections blocked in the notebook's process" in captured.out
    assert "no network in a rehearsal" in (out / "executed.ipynb").read_text()


def test_input_cannot_be_written(layout: Layout, competition: Path, kernel_does) -> None:
    if not sandbox.best_isolation().has_mounts:
        pytest.skip("this system allows no mount namespace, and root may write anything")
    kernel_does(
        "out.with_name('writable').write_text(str([p for p in (str(data), str(data / 'test_images'), sys.path[0]) "
        "if os.access(p, os.W_OK)]))"
    )
    status, out = run(layout, competition)
    assert status == 0
    assert (out / "kaggle" / "working" / "writable").read_text() == "[]"


def test_nothing_of_ours_but_the_sealed_code_is_on_the_path(layout: Layout, competition: Path) -> None:
    _, out = run(layout, competition)
    record = json.loads((out / "kaggle" / "working" / "record.json").read_text())
    assert record["ours"] == ["lumbar", "lumbar.__main__"]
    assert "/kaggle/input/" in record["path"][0]
    assert [p for p in record["path"] if (Path(p) / "lumbar_publish").is_dir()] == []


def test_dataset_of_another_version_is_refused_in_one_line(
    layout: Layout, competition: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sealed = seal(layout)
    text = layout.notebook.read_text().replace(sealed.manifest_hash, "0" * 64)
    layout.notebook.write_text(text)
    out = layout.root / "dist" / "dry-run"
    with pytest.raises(dry_run.CohortError, match="the notebook failed"):
        dry_run.rehearse(layout.notebook, sealed, competition, out)
    lines = [line for line in capfd.readouterr().err.splitlines() if "the notebook stopped" in line]
    assert len(lines) == 1
    assert "Attach the latest version of dataset someone/lumbar-kit" in lines[0]
    assert not (out / "kaggle" / "working" / "submission.csv").exists()


def test_archives_unpacked_without_their_own_folder_are_found(layout: Layout, competition: Path) -> None:
    sealed = seal(layout)
    shutil.move(sealed.folder / "code" / "lumbar", sealed.folder / "lumbar")
    (sealed.folder / "code").rmdir()
    out = layout.root / "dist" / "dry-run"
    assert dry_run.rehearse(layout.notebook, sealed, competition, out).wall_s > 0
    assert (out / "kaggle" / "working" / "submission.csv").is_file()


def test_missing_competition_says_what_to_attach(layout: Layout, competition: Path) -> None:
    sealed = seal(layout)
    out = layout.root / "dist" / "dry-run"
    kaggle, place = dry_run.lay_out(out, sealed, competition, link_data=True)
    place.unlink()
    source = "".join(json.loads(layout.notebook.read_text())["cells"][1]["source"])
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env={"LUMBAR_KAGGLE_ROOT": str(kaggle)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Attach the competition {COMPETITION}")


def test_submission_without_a_row_fails_the_rehearsal(
    layout: Layout, competition: Path, kernel_does, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_does("out.write_text(''.join(out.read_text().splitlines(True)[:-1]))")
    assert run(layout, competition)[0] == 1
    assert "found 49 rows, expected 50" in capsys.readouterr().err


def test_run_that_would_not_fit_fails_loudly(
    layout: Layout, competition: Path, kernel_does, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_does("p = out.with_name('record.json'); p.write_text(p.read_text().replace('0.01', '46.0'))")
    assert run(layout, competition, "--kaggle-like")[0] == 1
    assert "error: the hidden test would take 9.2 hours" in capsys.readouterr().err


def test_a_busy_laptop_is_warned_and_not_failed(
    layout: Layout, competition: Path, kernel_does, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_does("p = out.with_name('record.json'); p.write_text(p.read_text().replace('0.01', '46.0')); time.sleep(3)")
    assert run(layout, competition)[0] == 0
    captured = capsys.readouterr()
    assert "warning: the hidden test would take 9.2 hours" in captured.err
    assert "of the time was waiting" in captured.out
    text = Estimate(0.0, 60.0, 1, "cpu", waiting_share=0.75).misfit()
    assert "75% of the time was waiting, without it about 3.0 hours" in text


def test_the_first_line_says_how_long_it_will_take_and_the_next_run_knows_better(
    layout: Layout, competition: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(layout, competition)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("dry run of 2 studies: about ")
    assert "on an idle machine" in first
    run(layout, competition)
    assert "going by the last one here" in capsys.readouterr().out.splitlines()[0]


def test_the_score_stands_beside_what_looking_at_no_image_would_get(
    layout: Layout, competition: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(layout, competition)
    text = capsys.readouterr().out
    score = float(re.search(r"^score +([\d.]+)", text, re.M)[1])
    prior, uniform = map(float, re.search(r"the prior ([\d.]+), 0.33 everywhere ([\d.]+)", text).groups())
    assert score == pytest.approx(prior)  # the tiny kernel answers with the prior of the tiny manifest
    assert uniform != pytest.approx(prior)
    assert "the same 2 studies with 0 moderate and 25 severe grades" in text


def test_the_dry_run_of_make_rehearses_studies_with_disease() -> None:
    text = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    seed, studies = (int(re.search(rf"^{name} +\?= (\d+)$", text, re.M)[1]) for name in ("SEED", "STUDIES"))
    for index in range(studies):
        assert (make_case(seed, index).grades == 2).any()


def test_processes_are_timed_and_ended_with_all_that_came_from_them(tmp_path: Path) -> None:
    status, usage = processes.run_timed([sys.executable, "-c", "sum(range(10**7))"], os.environ)
    assert status == 0
    assert usage.cpu_s > 0
    assert 0 <= usage.waiting_share <= 1
    note = tmp_path / "pid"
    grandchild = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], start_new_session=True); "
    grandchild += f"open({str(note)!r}, 'w').write(str(p.pid)); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", grandchild])
    assert wait_until(lambda: note.exists() and note.read_text() != "", 60)
    processes.end_tree(process)
    assert wait_until(lambda: not is_alive(int(note.read_text())), 30)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_rehearsal_with_one_line_and_nothing_left_running(
    layout: Layout, competition: Path, kernel_does, tmp_path: Path, number: signal.Signals
) -> None:
    note = tmp_path / "kernel-pid"
    kernel_does(f"(pathlib.Path({str(note)!r}).write_text(str(os.getpid())), time.sleep(60))")
    command = [sys.executable, "-m", "lumbar_publish", "dry-run"]
    command += ["--root", str(layout.root), "--data", str(competition), "--out", str(layout.root / "dist" / "dry-run")]
    process = subprocess.Popen(
        command,
        env=sandbox.our_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert wait_until(lambda: note.exists() and note.read_text() != "", 300)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == errors.splitlines()[-1:]
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert wait_until(lambda: not is_alive(int(note.read_text())), 30)


def test_a_space_and_an_umlaut_in_every_path_make_no_difference(
    layout: Layout, competition: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Jürgens Daten (neu)"
    shutil.copytree(layout.root, folder / "mein Kästchen")
    shutil.copytree(competition, folder / "Prüfung 1")
    out = folder / "aus gabe" / "ü"
    arguments = ["--root", str(folder / "mein Kästchen"), "--data", str(folder / "Prüfung 1"), "--out", str(out)]
    assert dry_run.main(arguments) == 0, capsys.readouterr().err
    assert (out / "kaggle" / "working" / "submission.csv").is_file()


def test_submissions_that_disagree_fail(
    layout: Layout, competition: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = run(layout, competition)
    other = tmp_path / "other.csv"
    other.write_text((out / "kaggle" / "working" / "submission.csv").read_text().replace("0.5,0.3,0.2", "0.6,0.2,0.2"))
    assert run(layout, competition, "--agree-with", str(other), "--keep-seal")[0] == 1
    assert "differs by 0.1" in capsys.readouterr().err


def test_kaggle_like_limits_reach_the_notebook(layout: Layout, competition: Path, kernel_does) -> None:
    kernel_does(
        "import resource; out.with_name('limits').write_text("
        "f'{len(os.sched_getaffinity(0))} {resource.getrlimit(resource.RLIMIT_DATA)[0]}')"
    )
    status, out = run(layout, competition, "--kaggle-like")
    cores, memory = map(int, (out / "kaggle" / "working" / "limits").read_text().split())
    assert status == 0
    assert cores <= 4
    assert memory <= 29 << 30


def test_estimate_leaves_out_the_study_that_warmed_up_and_counts_the_rest_once() -> None:
    record = {"studies": [{"seconds": 9.0}, {"seconds": 2.0}, {"seconds": 4.0}], "devices": ["cpu"]}
    projection = estimate(record, 30.0)
    assert (projection.study_s, projection.once_s) == (3.0, 21.0)
    assert projection.hours == pytest.approx((21 + 720 * 3) / 3600)
    with pytest.raises(dry_run.CohortError, match=r"expected at most 9"):
        Estimate(0.0, 46.0, 1, "cpu").require_fit()


def test_estimate_divides_what_workers_do_side_by_side() -> None:
    record = {"studies": [{"seconds": 4.0}] * 4, "devices": ["cpu", "cpu"]}
    projection = estimate(record, 30.0)
    assert (projection.study_s, projection.once_s, projection.devices) == (2.0, 22.0, "2 x cpu")


def test_missing_data_folder_is_named(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(layout, layout.root / "nowhere")[0] == 1
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_rehearsal_in_which_nothing_was_predicted_fails(
    layout: Layout, competition: Path, kernel_does, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_does("p = out.with_name('record.json'); p.write_text(p.read_text().replace('predicted', 'prior'))")
    assert run(layout, competition)[0] == 1
    assert "no study was predicted" in capsys.readouterr().err


def test_rehearsal_killed_in_its_middle_and_run_again(layout: Layout, competition: Path, kernel_does) -> None:
    again = layout.root / "again"
    kernel_does(f"None if pathlib.Path({str(again)!r}).exists() else (out.with_name('begun').touch(), time.sleep(30))")
    out = layout.root / "dist" / "dry-run"
    command = [sys.executable, "-m", "lumbar_publish.rehearsal.dry_run"]
    command += ["--root", str(layout.root), "--data", str(competition)]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        env=sandbox.our_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert wait_until((out / "kaggle" / "working" / "begun").exists, 300)  # a busy machine takes its time
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again.touch()
    assert run(layout, competition)[0] == 0
    assert len((out / "kaggle" / "working" / "submission.csv").read_text().splitlines()) == 51
    assert not (out / "kaggle" / "working" / "begun").exists()


def test_the_probe_of_an_isolation_runs_where_it_is_allowed() -> None:
    """The probe is text that another process runs: a wrong import in it would pass for "not allowed"."""
    sandbox.best_isolation.cache_clear()
    isolation = sandbox.best_isolation()
    allowed = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    assert isolation.has_namespace == allowed
