"""The code of external members: where it lies, whether it is what was sealed, and how it is imported.

A sealed bundle holds it inside the package, ``code/lumbar/members/NAME/…``, under the hash of the package; an export
that is not sealed yet, in ``members/NAME/…`` beside its weights. The manifest lists the sha256 of each file. A module
is made from the very bytes that were compared; Python's path and compiled files beside the sources play no part.

Code of a bundle runs where the package that runs holds it too (as on Kaggle, where the notebook runs the sealed code),
or where the caller trusts the bundle (``Manifest.trusts_members``).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import ModuleType

import lumbar
from lumbar.bundle.code_hash import ENTRY, MEMBERS, find_package
from lumbar.errors import ManifestError
from lumbar.io.regular_file import read_regular
from lumbar.io.text import one_line
from lumbar.stages.classifiers import External

NEEDED = ("load", "predict")
MAX_CODE_BYTES = 4 << 20  # of one file
_INIT = "__init__"


def member_folders(bundle: Path, name: str) -> list[Path]:
    """Where a bundle may hold a member's code: in its package, or beside its weights while it is not sealed."""
    package = find_package(bundle)
    return [*([package / MEMBERS / name] if package is not None else []), bundle / MEMBERS / name]


def verify_member(bundle: Path, name: str, external: External) -> Path:
    """The folder of a member's code in a bundle, whose files have the listed hashes.

    Raises:
        ManifestError: a file is missing, or is not the one that was listed.
    """
    folders = member_folders(bundle, name)
    folder = next((one for one in folders if (one / ENTRY).is_file()), folders[0])
    read_code(folder, external.files)
    return folder


def read_code(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """The content of each listed file, by its place.

    Raises:
        ManifestError: one that is missing or has another sha256 than listed.
    """
    code = {}
    for place, sha256 in sorted(files.items()):
        content = read_regular(folder / place, MAX_CODE_BYTES, "a file of an external member's code")
        digest = hashlib.sha256(content).hexdigest()
        if digest != sha256:
            raise ManifestError(f"{folder / place}: found sha256 {digest[:12]}…, expected {sha256[:12]}… as sealed")
        code[place] = content
    return code


def code_that_may_run(
    bundle: Path, name: str, external: External, *, is_trusted: bool
) -> tuple[Path, dict[str, bytes]]:
    """A member's code, from the package that runs, or from a bundle that is trusted: its folder, and what was read.

    Raises:
        ManifestError: only the bundle holds it and the bundle is not trusted, or it is not what was sealed.
    """
    own = Path(lumbar.__file__).resolve().parent / MEMBERS / name
    if (own / ENTRY).is_file():
        try:
            return own, read_code(own, external.files)
        except ManifestError:  # of another bundle
            if not is_trusted:
                raise
    folder = verify_member(bundle, name, external)
    if not is_trusted:
        raise ManifestError(
            f"{folder}: found code of external member {name}, which runs only where it is trusted, expected "
            "--trust-members (predict(…, trust_members=True)), or the bundle's own package running, as on Kaggle"
        )
    return folder, read_code(folder, external.files)


@dataclass(frozen=True)
class _Source:
    """What a module is made from."""

    content: bytes
    origin: str
    is_package: bool


class _Members(MetaPathFinder, Loader):
    """Finds the modules of members by name, and makes them from the sources that were read."""

    def __init__(self) -> None:
        self.sources: dict[str, _Source] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A member's module; None for all others."""
        source = self.sources.get(fullname)
        if source is None:
            return None
        return ModuleSpec(fullname, self, origin=source.origin, is_package=source.is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Python."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the source that was read."""
        source = self.sources[module.__name__]
        module.__file__ = source.origin
        exec(compile(source.content, source.origin, "exec", dont_inherit=True), module.__dict__)


_members = _Members()


def import_member(name: str, folder: Path, code: Mapping[str, bytes]) -> ModuleType:
    """Import a member's ``member.py``; its other modules are imported from it as ``from .net import Net``.

    Args:
        name: of the member.
        folder: where the code lies, for tracebacks.
        code: content of each file by its place; those that are not ``.py`` play no part.

    Raises:
        ManifestError: the module raises, lacks a module that it imports, or has not both functions.
    """
    content = b"".join(place.encode() + b"\0" + code[place] + b"\0" for place in sorted(code))
    package = f"lumbar_member_{name}_{hashlib.sha256(content).hexdigest()[:8]}"  # two bundles may have one name
    _members.sources.update(_sources(package, folder, code))
    if _members not in sys.meta_path:
        sys.meta_path.insert(0, _members)
    where = folder / ENTRY
    try:
        module = importlib.import_module(f"{package}.{PurePosixPath(ENTRY).stem}")
    except (Exception, SystemExit) as error:  # whatever somebody's module does while it is imported
        why = reason(error, folder)
        raise ManifestError(
            f"{where}: cannot be imported ({why}), expected {' and '.join(NEEDED)}{_hint(error, code)}"
        ) from None
    for function in NEEDED:
        if not callable(getattr(module, function, None)):
            raise ManifestError(f"{where}: found no function {function}, expected {' and '.join(NEEDED)}")
    return module


def reason(error: BaseException, folder: Path) -> str:
    """An error of a member's code as one line, with the last line of that code that it came through."""
    inside = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{folder}/")]
    where = f" at {Path(inside[-1].filename).relative_to(folder).as_posix()}:{inside[-1].lineno}" if inside else ""
    return f"{one_line(error)}{where}"


def _sources(package: str, folder: Path, code: Mapping[str, bytes]) -> dict[str, _Source]:
    sources = {package: _Source(b"", str(folder / f"{_INIT}.py"), True)}
    for place, content in code.items():
        path = PurePosixPath(place)
        if path.suffix != ".py":
            continue
        for above in list(path.parents)[:-1]:  # folders without an __init__.py are packages as well
            inner = ".".join([package, *above.parts])
            sources.setdefault(inner, _Source(b"", str(folder / above / f"{_INIT}.py"), True))
        parts = path.with_suffix("").parts
        is_package = parts[-1] == _INIT
        fullname = ".".join([package, *(parts[:-1] if is_package else parts)])
        sources[fullname] = _Source(content, str(folder / place), is_package)
    return sources


def _hint(error: BaseException, code: Mapping[str, bytes]) -> str:
    """Put behind an import that fails since it does not say that the module lies beside it."""
    missing = str(getattr(error, "name", None) or "").partition(".")[0]
    beside = {PurePosixPath(place).with_suffix("").parts[0] for place in code}
    if isinstance(error, ModuleNotFoundError) and missing in beside:
        return f"; {missing} lies beside it: write from .{missing} import …"
    return ""
