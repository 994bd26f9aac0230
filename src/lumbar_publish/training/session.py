"""One session of a training on Kaggle: what the training notebook calls.

This file ships beside the training code and takes nothing else of ``lumbar_publish``. It finds the competition and what
the session before left, lets ``lumbar_train`` train in a process of its own, and leaves in ``/kaggle/working``:

    run/             the run folder, as it stands
    train.log        what the training said
    evidence.json    what this session was, how the run stands, and the size and hash of every file of the run

Whatever the training ends with, the session itself ends well where a run folder is left: the output of a notebook that
failed may be lost, that of one that ended in order is kept. Should Kaggle end the session all the same, the evidence
that was written when it began says whose run folder lies beside it (``"ended": false``), if the output is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EVIDENCE, RUN, LOG = "evidence.json", "run", "train.log"
STATUS = "session.json"  # the training's own note in the run folder
TAKEN = "taken_over.json"  # and its mark where the run was copied from another folder
TABLES = ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv")
_MAX_BYTES = 64 << 20  # of an evidence file
_END_S = 120.0  # for the training to end in order when the session is interrupted
_LEAST_S = 60.0  # of training, however late the session began


class SessionError(RuntimeError):
    """Why a session cannot begin, or left nothing, in one line."""


def run_session(
    manifest: Path,
    code: Path,
    kaggle: Path,
    *,
    session: int,
    hours: float,
    jobs: int,
    started_s: float,
    oldest: int | None = None,
) -> dict[str, Any]:
    """Train until the run is whole or the time is over.

    Args:
        manifest: of the dataset with the code.
        code: its folder ``code``.
        kaggle: ``/kaggle``.
        session: 1, 2, …; from 2 on the output of the one before is an input.
        hours: for the notebook, from ``started_s`` on.
        jobs: folds side by side.
        started_s: when the notebook began, as ``time.time`` says it.
        oldest: the earliest session whose output will do, 0 for none at all, where those after it were cut short;
            default: the one before.

    Returns:
        The evidence, which is in ``evidence.json`` too.

    Raises:
        SessionError: an input is lacking or another run's, or the training left no run folder.
    """
    plan = json.loads(manifest.read_bytes())["plan"]
    data = find_competition(kaggle, plan["competition"])
    cohort = cohort_hash(data)
    note = {"schema": 1, "plan": plan_hash(plan), "code": sha256(manifest), "session": session, "cohort": cohort}
    before = find_output(kaggle, note, oldest) if session > 1 else None
    if session > 1:
        note["from"] = 0 if before is None else read_evidence(before / EVIDENCE)["session"]
    working = kaggle / "working"
    write_json(working / EVIDENCE, note | {"ended": False})
    install_wheels(code)
    seconds = max(_LEAST_S, hours * 3600 - (time.time() - started_s))
    command = train_command(plan, code, data, working / RUN, f"{seconds:.0f}s", jobs, before)
    status = 1
    try:
        status = follow([sys.executable, "-B", str(code / Path(__file__).name), *command], working / LOG)
    finally:
        evidence = write_evidence(working, note, status, time.time() - started_s)
    if not evidence["files"]:
        raise SessionError(f"session {session}: found no run folder, expected one: {evidence['last_line']}")
    return evidence


def train_command(
    plan: dict[str, Any], code: Path, data: Path, out: Path, limit: str, jobs: int, before: Path | None
) -> list[str]:
    """The words of ``lumbar_train`` for a session."""
    arguments = [word.replace("{given}/", f"{code / 'given'}/") for word in plan["arguments"]]
    command = ["train", "--data", str(data), "--recipe", plan["recipe"], "--out", str(out), "--cache", "none"]
    command += ["--jobs", str(jobs), "--time-limit", limit, *arguments]
    return command if before is None else [*command, "--resume", str(before / RUN)]


def find_competition(kaggle: Path, name: str) -> Path:
    """The competition's folder."""
    places = [kaggle / "input" / "competitions" / name, kaggle / "input" / name]
    for place in places:
        if place.is_dir():
            return place
    raise SessionError(f"{places[0]}: found no such folder, expected the competition {name}: attach it, and run again")


def cohort_hash(data: Path) -> str:
    """Hash of the tables that say which studies, series and labels there are."""
    digest = hashlib.sha256()
    for name in TABLES:
        path = data / name
        digest.update(f"{name}\0{sha256(path) if path.is_file() else ''}\n".encode())
    return digest.hexdigest()


def find_output(kaggle: Path, note: dict[str, Any], oldest: int | None = None) -> Path | None:
    """The folder that an earlier session left, wherever Kaggle mounts outputs of notebooks, or a dataset made of it.

    Args:
        kaggle: ``/kaggle``.
        note: of this session.
        oldest: the earliest session that will do, 0 for none at all; default: the one before. The latest is taken.

    Raises:
        SessionError: none, another run's, one of another cohort, or one that is not whole.
    """
    places = [place for depth in ("*", "*/*", "*/*/*") for place in sorted(kaggle.glob(f"input/{depth}/{EVIDENCE}"))]
    wanted = note["session"] - 1
    problem = f"found none, expected that of session {wanted}: attach the notebook of that session, and run again"
    by_session = sorted(((read_evidence(place), place) for place in places), key=_session_of, reverse=True)
    for said, place in by_session:
        try:
            check_output(place, said, note, wanted if oldest is None else oldest)
        except SessionError as error:
            problem = str(error)
            continue
        if said["session"] < wanted:
            print(f"goes on from session {said['session']}: no output of a later one is here ({problem})", flush=True)
        return place.parent
    if oldest == 0:
        print(f"begins from nothing: no output of an earlier session is here ({problem})", flush=True)
        return None
    raise SessionError(f"output of the session before: {problem}")


def _session_of(pair: tuple[dict[str, Any], Path]) -> int:
    session = pair[0].get("session")
    return session if isinstance(session, int) else 0


def check_output(place: Path, said: dict[str, Any], note: dict[str, Any], oldest: int) -> None:
    """See that an output is one that a session can go on from.

    Args:
        place: of its evidence.
        said: the evidence.
        note: of the session that is to go on.
        oldest: the earliest session that will do.

    Raises:
        SessionError: what it is instead.
    """
    wanted = note["session"] - 1
    session = _session_of((said, place))
    expected = session if max(oldest, 1) <= session <= wanted else wanted
    for key, what in (("plan", "run"), ("session", "session"), ("cohort", "cohort")):
        value = expected if key == "session" else note[key]
        if said.get(key) != value:
            raise SessionError(f"{place}: found {what} {_short(said.get(key))}, expected {_short(value)}")
    if said.get("ended", True):
        check_files(place.parent, said)
    elif not (run := place.parent / RUN).is_dir() or not run_as_it_stood(run):
        raise SessionError(f"{place.parent}: found no whole run folder, expected {RUN}/ with the run as it stood")


def run_as_it_stood(run: Path) -> dict[str, Any]:
    """The note of a run folder that a session left which was cut short; empty where it is no run to go on from.

    A training may be killed at any time: going on, it sees by itself which fits are whole. Only what the session had
    not yet copied from the one before cannot be seen.
    """
    taken = read_evidence(run / TAKEN)
    return {} if taken and not taken.get("is_whole") else read_evidence(run / STATUS)


def read_evidence(path: Path) -> dict[str, Any]:
    """An evidence file; empty where it is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def check_files(output: Path, said: dict[str, Any]) -> None:
    """See that an output holds every file of the run that its evidence names.

    Raises:
        SessionError: a file is not there, or cut short; or there are none.
    """
    files = said.get("files")
    if not isinstance(files, dict) or not files:
        raise SessionError(f"{output}: found no run folder, expected {RUN}/ with the run as the session left it")
    for name, (size, _) in files.items():
        path = output / RUN / name
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            shown = "no such file" if there is None else f"{there} bytes"
            raise SessionError(f"{path}: found {shown}, expected {size} bytes as the session left it")


def install_wheels(code: Path) -> None:
    """Unpack the wheels that came along into a folder that every process of the training sees; no network is used.

    Raises:
        SessionError: pip refuses one.
    """
    wheels = sorted((code / "wheels").glob("*.whl"))
    if not wheels:
        return
    target = tempfile.mkdtemp(prefix="wheels-")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target]
    done = subprocess.run([*pip, *map(str, wheels)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SessionError(f"pip: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (target, os.environ.get("PYTHONPATH", ""))))


def follow(command: list[str], log: Path) -> int:
    """Run a command to its end and pass on each line that it says, to the log too; its exit status.

    Progress bars, which overwrite their line again and again, are left out. When the session is interrupted, the
    command gets time to end in order.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=tempfile.mkdtemp(prefix="train-"),  # what it might leave beside the run is no output of the notebook
    )
    assert process.stdout is not None
    try:
        with log.open("ab") as file, process.stdout as stream:
            for line in iter(stream.readline, b""):
                line = line.rstrip(b"\r\n").rpartition(b"\r")[2] + b"\n"
                file.write(line)
                file.flush()
                sys.stdout.write(line.decode(errors="replace"))
                sys.stdout.flush()
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def write_evidence(working: Path, note: dict[str, Any], status: int, seconds: float) -> dict[str, Any]:
    """Write down what the session left."""
    run = working / RUN
    shutil.rmtree(run / "cache", ignore_errors=True)  # decoded studies are made anew, and are large
    paths = sorted(
        path for path in run.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "run.lock"
    )
    said = read_evidence(run / STATUS)
    evidence = note | {
        "ended": True,
        "exit_status": status,
        "run": said,
        "last_line": last_line(working / LOG),
        "seconds": round(seconds),
        "files": {path.relative_to(run).as_posix(): [path.stat().st_size, sha256(path)] for path in paths},
    }
    write_json(working / EVIDENCE, evidence)
    return evidence


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(path)


def last_line(log: Path) -> str:
    """The last line that is not empty; at most 300 characters of it."""
    text = log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"[^\x20-\x7e\u00a0-\uffff]", "?", lines[-1])[:300] if lines else "it said nothing"


def plan_hash(plan: dict[str, Any]) -> str:
    """The hash by which outputs of one run are known, as the publishing side makes it."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


if __name__ == "__main__":
    runpy.run_module("lumbar_train", run_name="__main__", alter_sys=True)
