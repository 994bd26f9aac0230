"""Whether a folder is a sealed bundle: a look at names alone, and for one that is not, how to get one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lumbar.errors import ManifestError

FILE_NAME = "weights_manifest.json"
SEAL = "python build_dataset.py"
SEALED = "dist/dataset"


def check_presence(folder: str | Path) -> None:
    """See that a bundle has its manifest; the file itself may be named too.

    Raises:
        ManifestError: it has none; the message says what was probably meant, or how weights are sealed.
    """
    path = Path(folder)
    is_there = os.path.lexists(path / FILE_NAME if os.path.isdir(path) else path)
    if is_there or not os.path.isdir(_existing(path)):
        return  # what stands there, or a name that no file can have, is refused where it is read
    manifest = path if path.suffix == ".json" else path / FILE_NAME
    reason = os.strerror(errno.ENOENT)
    raise ManifestError(f"{manifest}: cannot be read ({reason}), expected a sealed bundle's manifest: {_hint(path)}")


def _existing(path: Path) -> Path:
    """The nearest folder above that is there; the path itself where its name cannot be one."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return next((above for above in path.absolute().parents if os.path.lexists(above)), path)
    except (OSError, ValueError):
        return path
    return path


def unsealed_hint(folder: Path) -> str:
    """Put behind a refusal of weights that a manifest names and that are not there; empty in most folders."""
    if (folder / "build_dataset.py").is_file():  # the lock file at the top of the repository is a manifest too
        return f": this is the lock file; seal with {SEAL}, then name {SEALED}"
    return ""


def _hint(folder: Path) -> str:
    if os.path.isfile(folder / "export" / FILE_NAME):
        return f"this is a training run; seal it with {SEAL} --run {folder}, then name {SEALED}"
    for near in (folder.parent, folder / "dataset", folder / "bundle"):
        is_lock = os.path.isfile(near / "build_dataset.py")
        if os.path.isfile(near / FILE_NAME) and not is_lock and near != folder:
            return f"{near} has one, name that folder"
    if any(_weights_in(place) for place in (folder, folder / "weights")):
        return f"these weights are not sealed; seal them with {SEAL}, then name {SEALED}"
    return f"{SEAL} seals the weights that ship into {SEALED}, or those of a training run with --run"


def _weights_in(folder: Path) -> bool:
    try:
        return any(name.endswith(".safetensors") for name in os.listdir(folder)[:1000])
    except OSError:
        return False
