"""What goes to Kaggle, in a form whose upload can go on after an interruption.

The client takes up an upload where the file's path, size and time are those noted in its temporary folder. Archives
that it makes itself lie under another path each time, so those, the large ones, would start anew: they are made here,
once for each manifest. Folder and notes are named after the manifest's hash, which covers code and weights: other
content has other notes, so that bytes of an older state can never be taken for those of the present one. Whether what
arrived is still valid is Kaggle's to say: the client asks, and starts an expired upload again (its own notes count for
six days, see its ``ResumableFileUpload``).
"""

from __future__ import annotations

import filecmp
import shutil
import zipfile
from pathlib import Path

from lumbar_publish.files import replaced_folder
from lumbar_publish.kaggle.publication import Publication
from lumbar_publish.sealing.seal import UPLOAD_METADATA

_STORED = {".safetensors"}  # hardly compress
_OLDEST = (1980, 1, 1, 0, 0, 0)  # of a zip archive's entries; times are the manifest's matter


def folder_of(publication: Publication) -> Path:
    """What is uploaded: the manifest, and an archive of each folder."""
    return publication.folder / "upload"


def notes_of(publication: Publication) -> Path:
    """The client's temporary folder: which uploads have begun, with their addresses."""
    return publication.folder / "upload-notes"


def prepare(publication: Publication) -> bool:
    """Make both folders; whether an upload of this very content was begun before.

    Raises:
        ManifestError: a place that cannot be written.
    """
    notes, folder = notes_of(publication), folder_of(publication)
    has_begun = any(notes.glob(".kaggle-uploads*/*.json")) and _holds(folder, publication.sealed.folder)
    if not has_begun:
        for other in publication.folder.parent.glob("*/upload*"):  # of any manifest: large, and of no use any more
            shutil.rmtree(other, ignore_errors=True)
        notes.mkdir(parents=True, mode=0o700)  # holds signed addresses
        with replaced_folder(folder) as new:
            _fill(new, publication.sealed.folder)
    return has_begun


def discard(publication: Publication) -> None:
    """Remove the upload's files: it is done, or cannot be continued."""
    for folder in (notes_of(publication), folder_of(publication)):
        shutil.rmtree(folder, ignore_errors=True)


def names(publication: Publication) -> list[str]:
    """Names under which the content is uploaded."""
    return sorted(path.name for path in folder_of(publication).iterdir() if path.name not in UPLOAD_METADATA)


def _holds(folder: Path, sealed: Path) -> bool:
    """Whether what lies ready is, byte for byte, what is sealed: a changed file would go on after its old start."""
    try:
        names = {f"{entry.name}.zip" if entry.is_dir() else entry.name for entry in sealed.iterdir()}
        if {path.name for path in folder.iterdir()} != names:
            return False
        for entry in sealed.iterdir():
            if entry.is_file() and not filecmp.cmp(entry, folder / entry.name, shallow=False):
                return False
            if entry.is_dir() and not _holds_archive(folder / f"{entry.name}.zip", entry):
                return False
    except (OSError, zipfile.BadZipFile):
        return False
    return True


def _holds_archive(archive: Path, folder: Path) -> bool:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    with zipfile.ZipFile(archive) as packed:
        if sorted(packed.namelist()) != sorted(files):
            return False
        for name, path in files.items():
            with packed.open(name) as one, path.open("rb") as other:
                while (block := one.read(1 << 20)) == other.read(1 << 20):
                    if not block:
                        break
                else:
                    return False
    return True


def _fill(folder: Path, sealed: Path) -> None:
    for entry in sorted(sealed.iterdir()):
        target = folder / (f"{entry.name}.zip" if entry.is_dir() else entry.name)
        if entry.is_dir():
            _pack(entry, target)
            shutil.copystat(entry, target)  # the time that the manifest gives
            target.chmod(0o644)
        else:
            shutil.copy2(entry, target)


def _pack(folder: Path, archive: Path) -> None:
    """An archive of a folder's files, without its own name: Kaggle unpacks it into a folder of the archive's name."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _OLDEST)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.suffix in _STORED else zipfile.ZIP_DEFLATED
            entry.file_size = path.stat().st_size  # tells whether the archive needs its 64-bit form
            with path.open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
