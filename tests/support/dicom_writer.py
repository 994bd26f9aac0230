"""DICOM files written by hand, byte by byte, so that tests depend on no library's idea of what is allowed."""

import struct
import zlib

import numpy as np

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"

UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


def element(tag, vr, value, *, implicit=False, big=False, length=None):
    """One data element; ``length`` overrides what the value's bytes say."""
    order = ">" if big else "<"
    vr = vr.encode()
    length = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(f"{order}I", length) + value
    if vr in _LONG:
        return head + vr + b"\0\0" + struct.pack(f"{order}I", length) + value
    return head + vr + struct.pack(f"{order}H", length) + value


def item(value, *, big=False, length=None):
    head = struct.pack(">HH" if big else "<HH", 0xFFFE, 0xE000)
    return head + struct.pack(">I" if big else "<I", len(value) if length is None else length) + value


def delimiter(kind, *, big=False):
    """``kind`` 0xE00D ends an item, 0xE0DD a sequence."""
    return struct.pack(">HHI" if big else "<HHI", 0xFFFE, kind, 0)


def text(value):
    """Text padded to even length."""
    raw = value.encode() if isinstance(value, str) else value
    return raw + b" " * (len(raw) % 2)


def meta(syntax):
    """Preamble, prefix and file meta."""
    raw = syntax.encode() + b"\0" * (len(syntax) % 2)
    body = element(0x00020010, "UI", raw)
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(body))) + body


def image_elements(
    shape, *, allocated=16, stored=None, signed=0, photometric=None, frames=None, planar=0, extra=(), **how
):
    """Elements that say what the pixels are, in order; ``extra`` are (tag, VR, bytes) put among them."""
    order = ">H" if how.get("big") else "<H"
    samples = shape[2] if len(shape) == 3 else 1
    stored = stored or allocated
    elements = [
        (0x00280002, "US", struct.pack(order, samples)),
        (0x00280004, "CS", text(photometric or ("RGB" if samples == 3 else "MONOCHROME2"))),
        (0x00280010, "US", struct.pack(order, shape[0])),
        (0x00280011, "US", struct.pack(order, shape[1])),
        (0x00280100, "US", struct.pack(order, allocated)),
        (0x00280101, "US", struct.pack(order, stored)),
        (0x00280102, "US", struct.pack(order, stored - 1)),
        (0x00280103, "US", struct.pack(order, signed)),
    ]
    if samples == 3:
        elements.append((0x00280006, "US", struct.pack(order, planar)))
    if frames is not None:
        elements.append((0x00280008, "IS", text(str(frames))))
    elements = [entry for entry in elements if entry[0] not in [more[0] for more in extra]] + list(extra)
    return b"".join(element(tag, vr, value, **how) for tag, vr, value in sorted(elements))


def native_file(pixels, syntax=EXPLICIT, *, extra=(), tail=b"", has_meta=True, before=b"", frames=None, **image):
    """A file of uncompressed pixels, ``(rows, columns[, 3])`` or with frames before."""
    how = {"implicit": syntax == IMPLICIT, "big": syntax == BIG}
    shape = pixels.shape[1:] if frames else pixels.shape
    image.setdefault("allocated", 8 * pixels.dtype.itemsize)
    image.setdefault("signed", int(pixels.dtype.kind == "i"))
    body = image_elements(shape, extra=extra, frames=frames, **image, **how)
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == BIG else "<")).tobytes()
    raw += b"\0" * (len(raw) % 2)
    data = before + body + element(0x7FE00010, "OW", raw, **how) + tail
    if syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
    return (meta(syntax) if has_meta else b"") + data


def encapsulated_file(parts, shape, syntax, *, table=b"", extra=(), closed=True, **image):
    """A file of compressed pixels; ``parts`` are its fragments, ``table`` the basic offset table's bytes."""
    body = image_elements(shape, extra=extra, **image)
    padded = [part + b"\0" * (len(part) % 2) for part in parts]
    value = item(table) + b"".join(item(part) for part in padded) + (delimiter(0xE0DD) if closed else b"")
    return meta(syntax) + body + element(0x7FE00010, "OB", value, length=UNDEFINED)


def noisy_slice(shape, bits=12, seed=0):
    """An MR-like slice, uint16: smooth tissue inside a dark border, Rician noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    tissue = (2 + np.sin(y / 6) + np.cos(x / 9)) * 0.2 * (np.hypot(y - shape[0] / 2, x - shape[1] / 2) < shape[0] / 2)
    top = 2**bits - 1
    real, imaginary = rng.normal(tissue, 0.01, shape), rng.normal(0, 0.01, shape)
    return np.clip(np.hypot(real, imaginary) * top, 0, top).astype(np.uint16)
