"""Slices of a series on disk, each pixel its slice's number, with any tags."""

import numpy as np

from dicom_writer import native_file, text

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def tilted(degrees, roll=0.0):
    """Axial directions turned about the row direction, and by ``roll`` about the head-foot axis."""
    angle, roll = np.radians(degrees), np.radians(roll)
    row = np.array([np.cos(roll), np.sin(roll), 0])
    column = np.array([-np.sin(roll) * np.cos(angle), np.cos(roll) * np.cos(angle), np.sin(angle)])
    return (*row, *column)


def ds(*values):
    return text("\\".join(f"{value:.9g}" for value in values))


def write(
    folder,
    number,
    *,
    position=None,
    orientation=None,
    spacing=(0.5, 0.7),
    shape=(12, 10),
    extra=(),
    pixels=None,
    tag_number=None,
    name=None,
    **image,
):
    """One slice whose every pixel is its number (or ``pixels``), so that order can be read off the volume."""
    tags = [*extra, (0x00200013, "IS", text(str(number if tag_number is None else tag_number)))]
    if position is not None:
        tags.append((0x00200032, "DS", ds(*position)))
    if orientation is not None:
        tags.append((0x00200037, "DS", ds(*orientation)))
    if spacing is not None:
        tags.append((0x00280030, "DS", ds(*spacing)))
    folder.mkdir(exist_ok=True, parents=True)
    pixels = np.full(shape, number, np.uint16) if pixels is None else pixels
    (folder / (name or f"{number}.dcm")).write_bytes(native_file(pixels, extra=tags, **image))


def located(value):
    """SliceLocation."""
    return (0x00201041, "DS", ds(value))


def echo(time):
    """EchoTime."""
    return (0x00180081, "DS", ds(time))


def image_type(value):
    """ImageType."""
    return (0x00080008, "CS", text(value))


def component(value):
    """ComplexImageComponent."""
    return (0x00089208, "CS", text(value))


def repetition(time):
    """RepetitionTime."""
    return (0x00180080, "DS", ds(time))


def series_uid(value):
    """SeriesInstanceUID."""
    return (0x0020000E, "UI", text(value))


def whole_number(tag, value):
    """An element of VR IS."""
    return (tag, "IS", text(str(value)))


ECHO_NUMBER, ACQUISITION, TEMPORAL = 0x00180086, 0x00200012, 0x00200100


def order(stack):
    assert np.array_equal(stack.volume[:, 0, 0], stack.instance_numbers)
    return stack.instance_numbers
