"""Many studies on many processes, some of which are killed: nothing is lost, nothing is done twice, nothing grows."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sharded_runs
from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar.chains.contract import Outcome
from lumbar.output.journal import Journal
from lumbar.output.merge import merge
from lumbar.output.submission import Submission
from lumbar.run import predict

N_KILLS = 20


@pytest.mark.slow
def test_four_parts_killed_twenty_times_are_joined_to_what_one_run_writes(tmp_path):
    root = write_cohort(tmp_path / "data", {k: ("raise-read",) if k % 9 == 0 else () for k in range(1, 121)})
    bundle, random_s = write_bundle(tmp_path / "bundle"), random.Random(5)
    predict(root, bundle, tmp_path / "one.csv", chain=FAKE, processes=False)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, sharded_runs.__file__]
    n_killed, open_parts = 0, [0, 1, 2, 3]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        while open_parts:
            part = random_s.choice(open_parts)
            wait_s = random_s.uniform(0.02, 0.25) if n_killed < N_KILLS else None
            argv = [str(path) for path in (root, bundle, tmp_path / "s.csv", f"{part}/4")]
            server.stdin.write(json.dumps({"argv": argv, "kill_s": wait_s}) + "\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            n_killed += status != 0
            if status == 0 and n_killed >= N_KILLS:
                open_parts.remove(part)
            elif status == 0:  # done too early: its journal is cut somewhere instead
                journal = tmp_path / f"s.{part}-of-4.csv.journal"
                os.truncate(journal, random_s.randrange(journal.stat().st_size))
        server.stdin.close()
    assert n_killed >= N_KILLS
    totals = merge([tmp_path / f"s.{part}-of-4.csv" for part in range(4)], tmp_path / "m.csv", tmp_path / "m.json")
    assert totals == {"rows": 3000, "studies": 120, "predicted": 107}
    assert (tmp_path / "m.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len(json.loads((tmp_path / "m.json").read_text())["studies"]) == 120


# ---- bookkeeping that does not grow ---------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("n_studies", "write_s", "study_s", "most_writes", "oldest_s"),
    [(20_000, 4.7, 2.8, 370, 170.0), (1000, 0.03, 0.7, 1001, 1.5), (500, 0.01, 3.0, 501, 3.1)],
)
def test_the_file_is_written_seldom_where_it_is_large_and_always_seconds_old_where_not(
    monkeypatch, tmp_path, n_studies, write_s, study_s, most_writes, oldest_s
):
    clock, written = Clock(), []

    def write(path, data):
        written.append(clock.now)
        clock.now += write_s

    monkeypatch.setattr("lumbar.output.submission.write_atomically", write)
    monkeypatch.setattr(Submission, "_rows", lambda *_: b"")
    monkeypatch.setattr(Submission, "_values", lambda *_: [])
    prior = {key: (0.6, 0.3, 0.1) for key in FAKE_COMPETITION.keys}
    submission = Submission(range(n_studies), prior, tmp_path / "s.csv", FAKE_COMPETITION, clock=clock)
    probs = np.array([[0.6, 0.3, 0.1]])
    for study_id in range(n_studies):
        clock.now += study_s
        submission.replace(study_id, probs, is_normalised=True)
    assert submission.n_writes == len(written) <= most_writes
    assert np.diff(written).max() < oldest_s
    assert len(written) * write_s < 1 + 2 * write_s + 0.031 * clock.now  # three per cent, and one second


FAKE_COMPETITION = type(
    "Competition", (), {"keys": ("a",), "header": ["id"], "values": ("x", "y", "z"), "rows": ("a",),
                        "shape": (1, 3), "sums_to_one": True, "row_ids": staticmethod(lambda study_id: [])}
)  # fmt: skip


def test_a_study_costs_one_record_and_leaves_nothing_in_memory(tmp_path):
    journal = Journal(tmp_path / "journal")
    probs = np.full((25, 3), 1 / 3)
    sizes = []
    for study_id in range(50):
        journal[study_id] = Outcome(study_id, probs=probs, sagittal_points=[{"x_px": 1.0}] * 15)
        sizes.append((tmp_path / "journal").stat().st_size)
    assert not journal._kept
    assert len(set(np.diff(sizes[10:]))) == 1  # every record as long as the others: none repeats an earlier one
    assert journal[7].sagittal_points == [{"x_px": 1.0}] * 15
    journal.close()


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_studies(tmp_path):
    """The first and the last hundred of two thousand studies, by the pages that the process holds."""
    root = write_cohort(tmp_path / "data", {k: () for k in range(2000)})
    page, used = os.sysconf("SC_PAGE_SIZE"), []

    def watched(study, networks, prior, effort):
        used.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
        result = FAKE.predict(study, networks, prior, effort)
        result.localisation.sagittal_points *= 25
        return result

    predict(root, write_bundle(tmp_path / "bundle"), tmp_path / "s.csv", chain=replace(FAKE, predict=watched),
            processes=False, in_memory=False)  # fmt: skip
    assert len(used) == 2000
    assert np.mean(used[-100:]) < 1.05 * np.mean(used[:100])
