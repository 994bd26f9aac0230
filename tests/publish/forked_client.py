"""The real client without its slow start: ``kaggle_process.py`` in a fork of a process that holds its libraries.

Importing what ``kaggle`` needs takes most of the time of a short call. A server imports that once and forks for each
call; the package ``kaggle`` itself is imported in the fork, in the environment of the call. ``client`` starts this file
in place of ``kaggle_process.py``: it hands its arguments, environment, folder and output streams to the server, and
ends with the exit code of the fork. If it is killed, the fork is killed too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys

SOCKET = "LUMBAR_FORKED_CLIENT"  # variable: path of the server's socket


def call() -> int:
    """Let the server run the client with this process's arguments; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
        data = json.dumps(request).encode()
        socket.send_fds(connection, [len(data).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(data)
        return int(connection.makefile().readline() or 1)


def serve(path: str, program: str) -> None:
    """Run ``program`` in a fork for each call, until standard input ends."""
    import select
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of the processes that watch the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        _import_libraries()
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _watch(connection, program)
                return
            connection.close()


def _import_libraries() -> None:
    """Everything that the package ``kaggle`` imports, but not that package: it reads the account as it is imported."""
    import importlib
    import pkgutil

    for name in ("argparse", "bleach", "dateutil.relativedelta", "dotenv", "requests", "slugify", "tqdm", "jupytext"):
        importlib.import_module(name)
    import kagglesdk

    for module in pkgutil.walk_packages(kagglesdk.__path__, "kagglesdk."):
        importlib.import_module(module.name)


def _watch(connection: socket.socket, program: str) -> None:
    """Fork the client and send its exit code, or kill it when the caller is gone. Returns only in the fork."""
    import select
    import signal

    size, streams, *_ = socket.recv_fds(connection, 4, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += connection.recv(1 << 20)
    child = os.fork()
    if child == 0:
        connection.close()
        _become_client(json.loads(data), streams, program)
        return
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if connection in select.select([connection, ended], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1
    with contextlib.suppress(OSError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _become_client(request: dict, streams: list[int], program: str) -> None:
    """Take over the caller's streams, folder and environment, then run the program as Python would."""
    import runpy
    import tempfile

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.argv[:] = [program, str(os.getppid()), *request["arguments"][1:]]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3])
    else:
        sys.exit(call())
