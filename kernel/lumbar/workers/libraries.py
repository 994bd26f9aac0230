"""What a worker process imports before it loads networks, and what it does not.

timm imports torchvision for one class and two functions, and for the pictures of its training; torchvision, and a
decorator of timm, import torch's compiler. No network of a chain uses any of it. So stand-ins take their place while
timm is imported; the two functions import the real torchvision when they are called. No other thread may import
anything of these meanwhile: the worker's readings wait until ``import_libraries`` has ended.

numba's first kernel imports scipy.linalg only to ask whether it is there, which no kernel of ours wants to know. And
what modules make is kept, so the collection of garbage rests meanwhile: it took a fifth of the time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_EXTRACTION = "torchvision.models.feature_extraction"
_FUNCTIONS = ("create_feature_extractor", "get_graph_node_names")


def import_libraries(names: Sequence[str], is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Import modules one after another, as long as ``is_wanted`` says so.

    Raises:
        Exception: whatever an import raises.
    """
    special = {"numba": import_numba, "timm": import_timm}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            if not is_wanted():
                return
            if name in special:
                special[name]()
            else:
                importlib.import_module(name)
    finally:
        if was_enabled:
            gc.enable()


def import_numba() -> None:
    """Import numba without scipy.linalg, which kernels that need it import later."""
    importlib.import_module("numba")
    if "scipy.linalg" in sys.modules:
        return
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    modules["scipy.linalg"] = None  # so its import fails at once
    try:
        with contextlib.suppress(ImportError):  # a numba of another make is left to itself
            importlib.import_module("numba.np.arraymath")
    finally:
        del modules["scipy.linalg"]


def import_timm() -> None:
    """Import timm without torchvision where that is possible, else as it is."""
    if "timm" in sys.modules:
        return
    if "torchvision" not in sys.modules:
        with contextlib.suppress(Exception), _stand_ins():  # a timm of another make is imported as it is, below
            importlib.import_module("timm")
        if "timm" in sys.modules:
            return
    importlib.import_module("timm")


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Let stand-ins be found in the place of torchvision and timm.data; they are gone afterwards."""
    import torch.compiler

    before, disable = set(sys.modules), torch.compiler.disable
    torch.compiler.disable = cast(Any, _same)  # nothing is compiled here, so nothing must be kept from it
    placed = {module.__name__: module for module in (*_torchvision(), _timm_data())}
    sys.modules.update(placed)
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "timm":  # half imported
                del sys.modules[name]
        raise
    finally:
        torch.compiler.disable = disable
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _same(function: Any = None, *_arguments: Any, **_options: Any) -> Any:
    """A decorator that changes nothing, with or without arguments."""
    return _same if function is None else function


def _torchvision() -> list[ModuleType]:
    from torch import nn

    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.models", _EXTRACTION)
    modules = {name: ModuleType(name) for name in names}
    for name in names[:2] + names[3:4]:
        modules[name].__path__ = []
    # timm asks whether layers are of this class, and none is
    setattr(modules["torchvision.ops.misc"], "FrozenBatchNorm2d", type("FrozenBatchNorm2d", (nn.Module,), {}))  # noqa: B010
    for function in _FUNCTIONS:
        setattr(modules[_EXTRACTION], function, _late(function))
    return list(modules.values())


def _late(function: str) -> Callable[..., Any]:
    """A function of torchvision, which is imported when it is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(_EXTRACTION), function)(*arguments, **options)

    return call


def _timm_data() -> ModuleType:
    """``timm.data`` with the constants that networks name: means and deviations of their training images."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("timm")
    folder = Path(spec.submodule_search_locations[0], "data")
    constants = importlib.util.spec_from_file_location("timm.data.constants", folder / "constants.py")
    if constants is None or constants.loader is None:
        raise ImportError("timm.data.constants")
    data = ModuleType("timm.data")
    data.__path__ = [str(folder)]
    values = importlib.util.module_from_spec(constants)
    constants.loader.exec_module(values)
    vars(data).update({name: value for name, value in vars(values).items() if name.isupper()})
    return data
