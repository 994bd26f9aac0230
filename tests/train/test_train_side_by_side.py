"""Folds side by side: their processes and the run's own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lumbar_train.side_by_side import workers

SLEEP_S = 1500.0


def wait(folder: str) -> None:
    """A fit that lasts: says who does it, and sleeps."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(SLEEP_S)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_fits_end_with_the_run_that_is_killed(tmp_path):
    """Else they would write beside the run that is started again."""
    script = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_train_side_by_side import wait, workers\n"
        "if __name__ == '__main__':\n"
        "    with workers(2) as pool:\n"
        f"        [future.result() for future in [pool.submit(wait, {str(tmp_path)!r}) for _ in range(2)]]\n"
    )
    (tmp_path / "run.py").write_text(script)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        pids: list[int] = []
        while len(pids) < 2 and time.monotonic() < deadline:
            pids = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
            time.sleep(0.1)
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        run.kill()
        run.wait(60)
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_alive, pids))
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(60)


def test_one_job_needs_no_pool():
    with workers(1) as pool:
        assert pool is None
