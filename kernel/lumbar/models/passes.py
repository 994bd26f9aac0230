"""All forward passes of a GPU in one thread, whatever threads ask for them.

Passes are made one after another anyway, so that the memory they need does not grow with the number of studies in
flight. That it is always the same thread matters since PyTorch keeps its plans for convolutions by thread
(``aten/src/ATen/native/cudnn/Conv_v8.cpp``): with a thread for each study they would be made anew for each, and recent
versions never free those of a thread that has ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class OneThread:
    """A thread that calls functions for others, in the order in which they ask."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        # A daemon: a pass that never ends must not keep the process
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def __call__(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, called in the thread.

        Raises:
            BaseException: whatever it raises.
        """
        answer: Future[T] = Future()
        self._calls.put((function, answer))
        return answer.result()

    def _serve(self) -> None:
        while True:
            function, answer = self._calls.get()
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)
            del function, answer  # they hold tensors


_threads: dict[str, OneThread] = {}
_making = threading.Lock()


def passes_of(device: str) -> OneThread:
    """The thread that makes the passes of a GPU, such as ``cuda:1``; started when first asked for."""
    with _making:
        if device not in _threads:
            _threads[device] = OneThread(f"passes on {device}")
        return _threads[device]
