"""Networks that take turns: of several only one has its weights in memory, the one that ran last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Load = Callable[[], Mapping[str, Tensor]]


class Turn:
    """The place of one network in memory, which several take in turn.

    Args:
        device: where the one that runs has its weights.
    """

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._loads: WeakKeyDictionary[nn.Module, Load] = WeakKeyDictionary()
        self._current: nn.Module | None = None
        self.lock = RLock()
        self.n_loads = 0

    def add(self, network: nn.Module, load: Load) -> None:
        """Let a network take turns: its weights leave the memory until it is to run.

        Args:
            network: with its weights.
            load: gives the same weights again, as its ``state_dict``.
        """
        self._loads[network] = load
        _turns[network] = self
        _empty(network)

    def take(self, network: nn.Module) -> None:
        """Put a network's weights in the place, once the one that had it is emptied."""
        if self._current is network:
            return
        if self._current is not None:
            _empty(self._current)
        self._current = None
        network.load_state_dict(self._loads[network](), strict=True, assign=True)
        network.to(self._device)
        self._current = network
        self.n_loads += 1


_turns: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()


@contextmanager
def in_memory(network: nn.Module) -> Iterator[None]:
    """Have a network's weights in memory while the block runs; only one that takes turns may be without before.

    Threads that work on several studies wait for one another's block where their networks share a place.
    """
    turn = _turns.get(network)
    if turn is None:
        yield
        return
    with turn.lock:
        turn.take(network)
        yield


def _empty(network: nn.Module) -> None:
    network.load_state_dict({name: t.to("meta") for name, t in network.state_dict().items()}, strict=True, assign=True)
