"""Mutations of whole data elements, in file meta, data set and sequences; and files that hold many kinds of them."""

import io
import struct
import warnings

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset

from codec_frames import noisy_image
from lumbar.dicom.parsing import scan

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
VRS = [b"DS", b"IS", b"US", b"SS", b"UL", b"SL", b"FL", b"FD", b"LO", b"UT", b"UN", b"OB", b"SQ", b"CS", b"AT"]
ODD_VRS = [b"  ", b"??", b"\0\0", b"us", b"RE", b"--", b"\xff\xff"]
LENGTHS = (0, 1, 2, 3, 4, 7, 8, 12, 255, 256, 65534, 65535, 1 << 16, 0x7FFFFFFF, 0x80000000, UNDEFINED - 1, UNDEFINED)
READ = [0x00020010, scan.PIXEL_DATA, *scan.WANTED]
TEXTS = (
    b"",
    b"\0\0",
    b"NaN ",
    b"1e40",
    b"-1",
    b"0,5\\0,5 ",
    b"1\\2\\3\\4 ",
    b"\x1b$B",
    b"9" * 64,
    b"\\" * 40,
    b"3.0 ",
    b"+7",
)


def elements(data):
    """(start, length field, its size, value, end, is big, has VR) of each element and item, outermost first."""
    at = 132 if data[128:132] == b"DICM" else 0
    elements, is_meta, is_big = [], True, False
    stack = [len(data)]
    while at + 8 <= len(data) and len(elements) < 2000:
        while len(stack) > 1 and at >= stack[-1]:
            stack.pop()
        order = ">" if is_big else "<"
        group, number = struct.unpack_from(f"{order}HH", data, at)
        if is_meta and group != 2:
            is_meta = False
            # A large group at the start is a small one in the other byte order
            is_big = group >= 0x100 and data[at + 4 : at + 6].isalpha()
            continue
        tag = group << 16 | number
        has_vr = group != 0xFFFE and data[at + 4 : at + 6].isalpha() and data[at + 4 : at + 6].isupper()
        field, size = at + 4, 4
        if has_vr:
            field, size = (at + 8, 4) if bytes(data[at + 4 : at + 6]) in LONG else (at + 6, 2)
        if field + size > len(data):
            break
        length = int.from_bytes(data[field : field + size], "big" if is_big else "little")
        value = field + size
        end = value if length == UNDEFINED else min(value + length, len(data))
        elements.append((at, field, size, value, end, is_big, has_vr))
        if tag == scan.PIXEL_DATA and len(stack) == 1:
            break
        is_sequence = data[value : value + 4] in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
        if length != UNDEFINED and (is_sequence or tag == ITEM):
            stack.append(end)
        at = value if length == UNDEFINED or is_sequence or tag == ITEM else end
    return elements


def mutate(out, rng):
    """Change one element of ``out`` (a bytearray): its length, VR, value, place, or what it lies in."""
    places = elements(out)
    if places:
        wanted = [place for place in places if _tag(out, place) in READ]
        place = rng.choice(wanted if wanted and rng.random() < 0.6 else places)
        rng.choice(_KINDS)(out, place, places, rng)


def _tag(data, place):
    group, number = struct.unpack_from(">HH" if place[5] else "<HH", data, place[0])
    return group << 16 | number


def _length(out, place, _places, rng):
    """An undefined or lying length."""
    _, field, size, value, end, is_big, _ = place
    length = rng.choice((*LENGTHS, end - value + rng.randrange(-8, 9), len(out) - value, len(out) - value + 1))
    out[field : field + size] = (length % (1 << 8 * size)).to_bytes(size, "big" if is_big else "little")


def _undefined(out, place, _places, rng):
    """An undefined length, in the four bytes that it needs."""
    start, field, _, value, _, _, has_vr = place
    if has_vr and value - start == 8:
        out[start + 4 : start + 8] = rng.choice((b"UN", b"SQ", b"OB", b"UT")) + b"\0\0\xff\xff\xff\xff"
    else:
        out[field : field + 4] = b"\xff" * 4


def _vr(out, place, _places, rng):
    if place[6]:
        out[place[0] + 4 : place[0] + 6] = rng.choice(VRS + ODD_VRS)


def _value(out, place, _places, rng):
    """Another value, with a length that is right."""
    _, field, size, value, end, is_big, _ = place
    text = rng.choice((*TEXTS, rng.randbytes(rng.choice((1, 2, 4, 8, 16)))))
    out[value:end] = text
    out[field : field + size] = len(text).to_bytes(size, "big" if is_big else "little")


def _swap(out, place, places, rng):
    """Two elements, or all from one to another, in each other's place: groups out of order."""
    other = rng.choice(places)
    first, second = sorted((place, other))
    if first[4] <= second[0]:
        one, two = bytes(out[first[0] : first[4]]), bytes(out[second[0] : second[4]])
        between = bytes(out[first[4] : second[0]])
        out[first[0] : second[4]] = two + between + one if rng.random() < 0.5 else two + one + between


def _copy(out, place, places, rng):
    """The element once more somewhere else, inside a sequence or outside, the meta's in the data set."""
    at = rng.choice(places)[rng.choice((0, 3))]
    out[at:at] = out[place[0] : place[4]]


def _remove(out, place, _places, _rng):
    del out[place[0] : place[4]]


def _tag_of_another(out, place, _places, rng):
    """A tag that is read, at a place where another belongs."""
    tag = rng.choice((*READ, 0x00091001, 0x2005140F, ITEM, ITEM_END, SEQUENCE_END, 0x00081140))
    out[place[0] : place[0] + 4] = struct.pack(">HH" if place[5] else "<HH", tag >> 16, tag & 0xFFFF)


def _wrap(out, place, _places, rng):
    """The element inside a sequence, private or not, whose lengths are right, undefined or lie."""
    start, _, _, _, end, is_big, has_vr = place
    order, content = (">" if is_big else "<"), bytes(out[start:end])
    for tag in (ITEM, rng.choice((0x00091001, 0x2005140F, 0x00081140, scan.SHARED_GROUPS, scan.PER_FRAME_GROUPS))):
        is_item = tag == ITEM
        length = rng.choice((len(content), len(content), UNDEFINED, max(0, len(content) - 8), len(content) + 8))
        head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        if has_vr and not is_item:
            head += rng.choice((b"SQ\0\0", b"UN\0\0"))
        close = struct.pack(f"{order}HHI", 0xFFFE, 0xE00D if is_item else 0xE0DD, 0) if length == UNDEFINED else b""
        content = head + struct.pack(f"{order}I", length) + content + close
    out[start:end] = content


def _split(out, place, _places, rng):
    """A file that ends within the element."""
    del out[rng.randrange(place[0], place[4] + 1) :]


_KINDS = (_length, _length, _undefined, _undefined, _vr, _value, _swap, _copy, _remove, _tag_of_another, _wrap, _split)


def _item(**values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def enhanced(syntax, *, frames=1, is_undefined=False, shape=(20, 27), character_set="ISO_IR 100"):
    """An enhanced MR object: geometry, rescaling and times in functional groups only; stored values 12 bits."""
    ds = Dataset()
    ds.SpecificCharacterSet, ds.SeriesDescription = character_set, "Wirbelsäule"
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.3.4", "MR"
    ds.InstanceNumber, ds.NumberOfFrames, ds.SamplesPerPixel = 5, frames, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelPaddingValue = 4095
    ds.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=[0.5, 0.75], SliceThickness=4, SpacingBetweenSlices=4.4)],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])],
            MRTimingAndRelatedParametersSequence=[_item(RepetitionTime=3500)],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=[4.4 * k - 10, -100, 100])],
            PixelValueTransformationSequence=[_item(RescaleSlope=k + 1, RescaleIntercept=-k, RescaleType="US")],
            MREchoSequence=[_item(EffectiveEchoTime=90.5 + k)],
            FrameVOILUTSequence=[_item(WindowCenter=[400 + k, 300], WindowWidth=[800, 600])],
            FrameContentSequence=[_item(TemporalPositionIndex=k + 1, FrameAcquisitionNumber=k + 2)],
            MRImageFrameTypeSequence=[_item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])],
        )
        for k in range(frames)
    ]
    if is_undefined:
        _make_undefined(ds)
    pixels = np.stack([noisy_image(shape, 12, seed=k) for k in range(frames)])
    is_big = syntax.endswith(".1.2.2")
    ds.PixelData = pixels.astype(">u2" if is_big else "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = syntax, ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        is_implicit = syntax == "1.2.840.10008.1.2"
        ds.save_as(out, implicit_vr=is_implicit, little_endian=not is_big, enforce_file_format=True)
    return out.getvalue()


def _make_undefined(dataset):
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _make_undefined(item)


def seeds():
    """Name -> bytes of each file."""
    implicit, explicit, big = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
    return {
        "enhanced implicit": enhanced(implicit),
        "enhanced explicit": enhanced(explicit, is_undefined=True, character_set=["", "ISO 2022 IR 100"]),
        "enhanced big": enhanced(big),
        "enhanced frames": enhanced(explicit, frames=3),
        "enhanced frames undefined": enhanced(implicit, frames=3, is_undefined=True),
    }
