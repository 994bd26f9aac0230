"""Starts predictions at once and kills them: a process that has imported everything forks one for each command.

Lines of standard input are JSON: {"argv": [root, bundle, out, shard], "kill_s": seconds or null}. Each is answered by a
line with the exit status of the fork, which is negative where it was killed.
"""

import json
import os
import signal
import sys
import time

from kernel_fakes import FAKE
from lumbar.run import predict


def slow_predict(study, networks, prior, effort):
    time.sleep(0.004)
    return FAKE.predict(study, networks, prior, effort)


def run(root, bundle, out, shard):
    from dataclasses import replace

    predict(root, bundle, out, chain=replace(FAKE, predict=slow_predict), shard=shard, resume=True, processes=False,
            time_limit="none", report=f"{out}.html")  # fmt: skip


def fork(argv, kill_s):
    """The exit status of a run that is killed after a while."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(*argv)
            status = 0
        finally:
            os._exit(status)
    if kill_s is not None:
        end = time.monotonic() + kill_s
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for text in sys.stdin:
        print(fork(**json.loads(text)), flush=True)
