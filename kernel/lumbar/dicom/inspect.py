"""Descriptions of a DICOM file, a series or a study as text, without name, id or birth date of the patient."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from lumbar.dicom.described import ORIENTATIONS, orientation_of, read_described
from lumbar.dicom.header import Header, read_header
from lumbar.dicom.pixels import read_slice
from lumbar.dicom.stack import Stack
from lumbar.dicom.syntaxes import syntax_name
from lumbar.errors import CohortError, DicomError
from lumbar.io.text import PublicText, counted, known_words, masked_name, unusual_names


def describe(path: str | os.PathLike[str]) -> str:
    """Describe a DICOM file, a series' folder (with ``*.dcm`` files) or a study's folder (with series' folders).

    Paths are relative to ``path``, names of files and folders that may be a person's are masked, and of free text
    only known words are shown (``lumbar.io.text``).

    Raises:
        DicomError: there is nothing that is DICOM; the message names ``path`` as it was given.
    """
    root = Path(path)
    if not os.path.lexists(root):
        raise DicomError(f"{root}: no such file or folder, expected a DICOM file, a series' or a study's folder")
    folder = root if root.is_dir() else root.parent
    names = {*unusual_names(root), root.name, folder.name}
    public = PublicText((root, folder), [name for name in names if masked_name(name) != name])
    return "\n".join(public(line) for line in _describe(root, public).split("\n"))


def _describe(root: Path, public: PublicText) -> str:
    if not root.is_dir():
        return _describe_file(root, public)
    if any(child.suffix.lower() == ".dcm" for child in root.iterdir()):
        return _describe_series(root, public)
    folders = sorted(child for child in root.iterdir() if child.is_dir())
    if not folders:
        raise DicomError(f"{root}: found neither *.dcm files nor series' folders, expected one of them")
    parts = [f"study {masked_name(root.name)}: {counted(len(folders), 'folder')}"]
    n_read = 0
    for folder in folders:
        try:
            parts.append(_describe_series(folder, public))
            n_read += 1
        except DicomError as error:
            parts.append(public(f"problem: {error}"))
    if not n_read:
        raise DicomError(
            f"{root}: found no readable series in {counted(len(folders), 'folder')}, expected some ({parts[1]})"
        )
    return "\n\n".join(parts)


def _describe_file(path: Path, public: PublicText) -> str:
    header = read_header(path)
    lines = [f"file {masked_name(path.name)}", f"  syntax       {_syntax(header)}", *_about(header)]
    optional = ("window_center", "window_width", "rescale_slope", "rescale_intercept", "slice_thickness")
    absent = [
        name
        for name in ("image_position_patient", "image_orientation_patient", *optional, "pixel_spacing")
        if getattr(header, name) is None
    ]
    lines.append(f"  position     {_shown(header.image_position_patient)}")
    lines.append(f"  orientation  {_shown(header.image_orientation_patient)}")
    lines.append(f"  spacing      {_shown(header.pixel_spacing, ' mm (rows, columns)')}")
    lines.append(f"  absent       {', '.join(absent) or 'none of the tags used'}")
    try:
        pixels = read_slice(path).pixels
        lines.append(
            f"  pixels       {pixels.shape} {pixels.dtype}, {pixels.min()} to {pixels.max()}, mean {pixels.mean():.1f}"
        )
    except DicomError as error:
        lines.append(f"  problem      {public(str(error))}")
    return "\n".join(lines)


def _about(header: Header) -> list[str]:
    return [
        f"  image        {_shown(header.rows)} x {_shown(header.columns)}, "
        f"{_shown(header.bits_stored)} of {_shown(header.bits_allocated)} bits, "
        f"{'signed' if header.pixel_representation == 1 else 'unsigned'}, {_shown(header.photometric_interpretation)}",
        f"  acquisition  modality {_shown(header.modality)}, manufacturer {_shown(header.manufacturer)}, "
        f"series {_shown(header.series_description)}, TR {_shown(header.repetition_time, ' ms')}, "
        f"TE {_shown(header.echo_time, ' ms')}, field {_shown(header.magnetic_field_strength, ' T')}",
    ]


def _syntax(header: Header) -> str:
    """The name of the transfer syntax; a value that is not a UID is shown as free text."""
    uid = header.transfer_syntax_uid
    return syntax_name(uid if re.fullmatch(r"[0-9.]{1,64}", uid) else known_words(uid))


def _shown(value: object, unit: str = "") -> str:
    """A tag's value as text."""
    if value is None or value == "":
        return "absent"
    return f"{known_words(value) if isinstance(value, str) else value}{unit}"


def find_description(folder: Path) -> tuple[str | None, str]:
    """The description of a series' folder, and in a few words where it is from.

    In a competition's folder (``ROOT/{split}_images/STUDY/SERIES``) it is from the table of series; ``None`` where
    there is no such table, or it has none of the three descriptions for this series.
    """
    images = folder.absolute().parent.parent
    split, is_images, _ = images.name.partition("_images")
    if not is_images or not split:
        return None, "no table of series, since the folder lies in no {split}_images/study"
    table = f"{split}_series_descriptions.csv"
    try:
        from lumbar.io.tables import read_descriptions  # late: nothing else here needs pandas

        rows = read_descriptions(images.parent, split)
    except CohortError:
        return None, f"no {table} that can be read"
    own = (folder.absolute().parent.name, folder.name)
    columns = (rows[name] for name in ("study_id", "series_id", "series_description"))
    # Compared as Python strings, because pandas refuses a folder's name that is not UTF-8.
    described = [name for *ids, name in zip(*columns, strict=True) if (*map(str, ids),) == own and name in ORIENTATIONS]
    if not described:
        return None, f"{table} has none of the descriptions that predict uses for it"
    return described[0], table


def _describe_series(folder: Path, public: PublicText) -> str:
    description, source = find_description(folder)
    series = read_described(folder, description)
    first = next(c for c in sorted(folder.iterdir()) if c.suffix.lower() == ".dcm" and not c.name.startswith("."))
    lines = [f"series {masked_name(series.series_id)}: {counted(len(series.stacks), 'stack')}"]
    expected = orientation_of(description)
    assumed = f"where no slice has an orientation it is taken as {expected}"
    lines.append(f"  description  {description or 'unknown'} ({source}); {assumed}")
    try:
        header = read_header(first)
        lines += [f"  syntax       {_syntax(header)}", *_about(header)]
    except DicomError as error:
        lines.append(f"  problem      {public(str(error))}")
    for stack in series.stacks:
        is_unused = description is not None and stack.orientation != expected
        lines.append(_describe_stack(stack) + (f"; predict leaves it unused, expected {expected}" if is_unused else ""))
    lines += [f"  problem      {public(problem)}" for problem in series.problems]
    return "\n".join(lines)


def _describe_stack(stack: Stack) -> str:
    n_slices, rows, columns = stack.volume.shape
    positions = stack.positions_mm
    steps = np.diff(positions)
    step = f"steps {steps.min():.2f} to {steps.max():.2f} mm" if n_slices > 1 else "one slice"
    numbers = stack.instance_numbers
    order = "ascending" if numbers == sorted(numbers) else "reversed" if numbers == sorted(numbers)[::-1] else "mixed"
    normal = ", ".join(f"{value:.3f}" for value in stack.normal)
    return (
        f"  stack        {stack.orientation}, {n_slices} x {rows} x {columns}, "
        f"{stack.spacing_mm[0]:.3f} x {stack.spacing_mm[1]:.3f} mm, {step}, normal ({normal}), "
        f"along it {positions[0]:.1f} to {positions[-1]:.1f} mm, instance numbers {order}"
        f"{', inverted' if stack.is_inverted else ''}{', geometry guessed' if stack.is_geometry_guessed else ''}"
    )
