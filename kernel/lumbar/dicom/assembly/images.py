"""The images of a series' folder: its files in order, and what the header of each says before any pixel is read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from lumbar.dicom.direct import FastPath, find_fast_path
from lumbar.dicom.header import File, Header, read_file
from lumbar.dicom.limits import check_memory
from lumbar.errors import DicomError

_HEAD_BYTES = 1 << 13  # read first of each file, for its header; the whole file is read where they are too few
_MIN_FRAME_BYTES = 8  # of a file for each frame that it claims: an item's tag and length


@dataclass(slots=True)
class Image:
    """One image of ``shape`` (rows, columns), of a file whose header was read.

    ``frame`` is its frame number (from 1, PS3.3 section C.7.6.6) in a multi-frame file, else ``None``.
    """

    path: str
    instance_number: int
    header: Header
    shape: tuple[int, ...]
    is_inverted: bool
    size: int  # bytes of the file; of a multi-frame file, this frame's share of them
    fast_path: FastPath | None
    frame: int | None = None
    failure: str = ""  # why its pixels cannot be read, once that was tried
    is_decoded: bool = False

    @property
    def name(self) -> str:
        """The file's name, and the frame where the file has several."""
        name = os.path.basename(self.path)
        return name if self.frame is None else f"{name} frame {self.frame}"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of a series; ``index`` counts its files in the order of their names.

    With ``is_numbered_by_name`` a number in its name is its instance number, as in the competition's folders.
    """

    path: str
    name: str
    index: int
    is_numbered_by_name: bool = True


def list_files(folder: str) -> list[ImageFile]:
    """The folder's ``*.dcm`` files: those named by a number in numeric order, then the others.

    Raises:
        DicomError: the folder cannot be listed, or holds no such file.
    """
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(".dcm") and not name.startswith(".")]
    except (OSError, ValueError) as error:
        raise DicomError(f"{folder}: found {getattr(error, 'strerror', error)}, expected a series' folder") from error
    if not names:
        raise DicomError(f"{folder}: found no *.dcm file, expected a series' slices")
    names.sort(key=lambda name: (len(name), name) if _stem_number(name) is not None else (1000, name))
    return [ImageFile(os.path.join(folder, name), name, index) for index, name in enumerate(names)]


def open_images(file: ImageFile) -> list[Image] | DicomError:
    """The images of a file, one for each frame, from its header; the error where they are not gray or not readable."""
    path = file.path
    try:
        parsed = read_file(path, limit=_HEAD_BYTES)
        header = parsed.header
        shape = header.frame_shape
        n_frames = header.number_of_frames or 1
        if len(shape) != 2:
            raise DicomError(f"{path}: found pixels of shape {shape}, expected 2-D")
        number, is_inverted = _instance_number(file, header), header.photometric_interpretation == "MONOCHROME1"
        if n_frames <= 1:
            return [Image(path, number, header, shape, is_inverted, parsed.size, find_fast_path(parsed))]
        _check_frames(parsed, n_frames)
        needed = n_frames * shape[0] * shape[1] * (header.pixel_dtype.itemsize + 4)  # as decoded, and in the volume
        n_held = max(parsed.size, parsed.source.size)
        check_memory(path, needed, n_held, f"{n_frames} frames of {shape[0]} x {shape[1]} pixels")
        return [
            Image(path, number, header.of_frame(k), shape, is_inverted, parsed.size // n_frames, None, k + 1)
            for k in range(n_frames)
        ]
    except DicomError as error:
        return error


def _stem_number(name: str) -> int | None:
    """The file's name without its extension, where that is a number."""
    stem = name[: name.rfind(".")]
    return int(stem) if stem.isascii() and stem.isdigit() else None


def _instance_number(file: ImageFile, header: Header) -> int:
    """The number in the file's name where that counts, else that of its header, else its place among the files."""
    number = _stem_number(file.name) if file.is_numbered_by_name else None
    if number is None:
        number = header.instance_number
    return file.index + 1 if number is None else number


def _check_frames(parsed: File, n_frames: int) -> None:
    """Refuse a number of frames that the file is too small for, before anything is made for each of them.

    Raises:
        DicomError: the file is too small for so many frames.
    """
    header = parsed.header
    n_bytes = float(_MIN_FRAME_BYTES)
    if parsed.pixels_length >= 0:  # not encapsulated
        n_bytes = math.prod(header.frame_shape) * (header.bits_allocated or 8) / 8
    n_held = max(parsed.size, parsed.source.size)  # more than the file where it was deflated
    most = int(n_held / n_bytes)
    if n_frames > most:
        raise DicomError(f"{header.path}: found NumberOfFrames {n_frames} in {n_held} bytes, expected at most {most}")
