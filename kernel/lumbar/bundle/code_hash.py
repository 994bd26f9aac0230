"""The hash of the package that ships, and whether a bundle's copy of it is the one that was sealed.

The rule: for every file of the package, sorted by its place (its path relative to the package), there is the line
``place NUL sha256-of-the-file NEWLINE``; the hash is the sha256 of these lines. ``__pycache__`` folders are left out.
Sealing writes the hash into the manifest; the notebook's first cell (in short form), ``build_dataset.py --verify`` and
``predict`` compare it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import lumbar
from lumbar.errors import ManifestError
from lumbar.io.regular_file import file_sha256, kind_of

FOLDER, PACKAGE = "code", "lumbar"  # places in a bundle: code/lumbar, or lumbar where the archive's folder was dropped
MEMBERS = "members"  # place in the package, or in an export, of external members' code; no source tree has it
ENTRY = "member.py"  # the module of an external member with its ``load`` and ``predict``
BYTECODE = "__pycache__"

# Endings of the files that ship; anything else in the package's folder (caches, editors' backups) does not.
SHIPPED = {".py", ".j2", ".html", ".css", ".js", ".json", ".csv", ".txt", ".typed"}
IMPORTABLE = {".py", ".pyc", ".pyd", ".so", ".pth"}  # endings of files that Python might import
MAX_FILES = 5000  # entries of a package in a bundle
_NAMED = 3  # files that a message names; of the others it gives the number


def shipped_files(package: Path) -> list[Path]:
    """The files of a source tree's package that ship, sorted by their place."""
    files = []
    for path in package.rglob("*"):
        inside = path.relative_to(package)
        is_hidden = any(part.startswith(".") or part == BYTECODE for part in inside.parts)
        if path.is_file() and path.suffix in SHIPPED and not is_hidden:
            files.append(path)
    return sorted(files, key=lambda path: path.relative_to(package).as_posix())


def shipped_hashes(package: Path) -> dict[str, str]:
    """The sha256 of each file that ships, by its place."""
    return {path.relative_to(package).as_posix(): file_sha256(path) for path in shipped_files(package)}


def digest(hashes: Mapping[str, str]) -> str:
    """The hash of files given by place and sha256, by the rule above."""
    lines = (f"{place}\0{hashes[place]}\n".encode("utf-8", "surrogateescape") for place in sorted(hashes))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def code_sha256(package: Path) -> str:
    """The hash of a source tree's package as it would be sealed."""
    return digest(shipped_hashes(package))


def own_code_sha256() -> str:
    """The hash of the package that is running."""
    return code_sha256(Path(lumbar.__file__).resolve().parent)


def code_mismatch(sealed: str, listed: Mapping[str, str] | None = None) -> str:
    """A sentence that says that the running package is not the one a bundle was sealed with; empty where it is.

    Args:
        sealed: the manifest's ``code_sha256``; empty for a bundle that was never sealed.
        listed: place → sha256 of each sealed file. Code of external members among them is the bundle's alone.
    """
    own = own_code_sha256()
    if sealed in ("", own) or (listed and digest(without_members(listed)) == own):
        return ""
    return f"this run uses its own code {own[:12]}, not the code {sealed[:12]} that the bundle was sealed with"


def without_members(hashes: Mapping[str, str]) -> dict[str, str]:
    """The files of the package itself, by place and sha256, without those of external members."""
    return {place: sha256 for place, sha256 in hashes.items() if not place.startswith(f"{MEMBERS}/")}


def sealed_hashes(package: Path) -> dict[str, str]:
    """The sha256 of every file of a bundle's package by its place, whatever its ending, but for ``__pycache__``.

    Raises:
        ManifestError: a symbolic link, a FIFO or the like, or more than ``MAX_FILES`` entries.
    """
    hashes: dict[str, str] = {}
    folders, n_entries = [package], 0
    while folders:
        folder = folders.pop()
        for entry in _entries(folder):
            n_entries += 1
            if n_entries > MAX_FILES:
                raise ManifestError(f"{package}: found more than {MAX_FILES} entries, expected the sealed package")
            if entry.name == BYTECODE:
                continue
            mode = os.lstat(entry).st_mode
            if stat.S_ISDIR(mode):
                folders.append(entry)
            elif stat.S_ISREG(mode):
                hashes[entry.relative_to(package).as_posix()] = file_sha256(entry)
            else:
                raise ManifestError(f"{entry}: found {kind_of(mode)}, expected a file or a folder as sealed")
    return hashes


def find_package(bundle: Path) -> Path | None:
    """The folder of a bundle's copy of the package: ``code/lumbar`` or ``lumbar``; None where it holds weights only."""
    for place in (bundle / FOLDER / PACKAGE, bundle / PACKAGE):
        if os.path.lexists(place):
            return place
    return None


def verify_code(bundle: Path, expected: str, listed: Mapping[str, str] | None = None) -> Path | None:
    """Compare a bundle's copy of the package, if it has one, with the hash in its manifest.

    Args:
        bundle: the folder of the manifest.
        expected: the manifest's ``code_sha256``.
        listed: place → sha256 of each sealed file, where the manifest lists them, so that a message can name files.

    Returns:
        The package's folder; None for a bundle with weights only.

    Raises:
        ManifestError: the hash differs, there is a link, or beside the package lies something that Python could import
            instead of the standard library or an installed package.
    """
    package = find_package(bundle)
    if package is None:
        return None
    for folder in {package, package.parent} - {bundle}:
        mode = os.lstat(folder).st_mode
        if not stat.S_ISDIR(mode):
            raise ManifestError(f"{folder}: found {kind_of(mode)}, expected a folder of the sealed code")
    _refuse_shadows(bundle, package)
    hashes = sealed_hashes(package)
    if (got := digest(hashes)) != expected:
        wanted = f"{expected[:12]}…" if expected else "none"
        raise ManifestError(
            f"{package}: found code hash {got[:12]}…, expected {wanted}{_differences(hashes, listed)}: this code is "
            "not what was sealed; seal and upload it again"
        )
    return package


def shadows(bundle: Path, package: Path) -> list[Path]:
    """What lies beside a bundle's package and could be imported once its folder is on Python's path."""
    expected = {FOLDER, "weights"} if package.parent != bundle else {PACKAGE, "weights"}
    beside = [
        entry
        for entry in _entries(bundle)
        if entry.name not in expected and (entry.suffix in IMPORTABLE or not entry.is_file())
    ]
    if package.parent != bundle:
        beside += [entry for entry in _entries(package.parent) if entry.name != PACKAGE]
    return beside


def _refuse_shadows(bundle: Path, package: Path) -> None:
    if beside := shadows(bundle, package):
        names = _some([entry.relative_to(bundle).as_posix() for entry in beside])
        raise ManifestError(f"{bundle}: found {names} beside {package.relative_to(bundle)}, expected no other code")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be read ({error.strerror}), expected the sealed code") from None


def _differences(hashes: Mapping[str, str], listed: Mapping[str, str] | None) -> str:
    """Which files are extra, missing or changed, as far as the manifest lets us tell."""
    if listed is None:
        extra = [place for place in sorted(hashes) if Path(place).suffix not in SHIPPED]
        return f" (not of the kinds that ship: {_some(extra)})" if extra else ""
    groups = {
        "extra": [place for place in sorted(hashes) if place not in listed],
        "missing": [place for place in sorted(listed) if place not in hashes],
        "changed": [place for place in sorted(hashes) if listed.get(place, hashes[place]) != hashes[place]],
    }
    return " (" + "; ".join(f"{name} {_some(places)}" for name, places in groups.items() if places) + ")"


def _some(names: list[str]) -> str:
    """The first names, each printable, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(ascii(name)[1:-1][:80] for name in names[:_NAMED]) + more
