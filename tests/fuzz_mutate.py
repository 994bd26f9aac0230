"""Mutations of DICOM files, and the one thing a decoder may do with them: pixels of the right shape, or a refusal."""

import contextlib
import random
import sys

import fuzz_header

INTERESTING = (0, 1, 2, 3, 4, 7, 8, 15, 16, 32, 63, 64, 127, 128, 255, 256, 4095, 32767, 32768, 65534, 65535)
TAGS = tuple(bytes.fromhex(tag) for tag in ("28001000", "28001100", "28000001", "28000101", "28000201", "28000200"))
MARKERS = tuple(bytes([0xFF, second]) for second in (0x51, 0xC0, 0xC3, 0xC4, 0xDA, 0xDB, 0xDD, 0xF7, 0xF8))


def mutate(data, others, rng):
    """A damaged copy of ``data``; ``others`` are files to splice segments from."""
    out = bytearray(data)
    pixels = max(out.rfind(b"\xe0\x7f\x10\x00"), 0)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 9))):
        if len(out) < 8:
            break
        low, high = (0, len(out)) if rng.random() < 0.3 else (min(pixels, len(out) - 1), len(out))
        at = rng.randrange(low, high)
        rng.choice(_KINDS)(out, at, others, rng)
    return bytes(out)


def _flip(out, at, _others, rng):
    out[at] ^= 1 << rng.randrange(8)


def _byte(out, at, _others, rng):
    out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))


def _length(out, at, _others, rng):
    """A lying length or size, 2 or 4 bytes, either byte order."""
    size = rng.choice((2, 4))
    value = rng.choice((*INTERESTING, len(out), rng.getrandbits(32), 0xFFFFFFFF, 0xFFFFFFFE)) % (1 << 8 * size)
    out[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _attribute(out, _at, _others, rng):
    """A lying value of Rows, Columns, bits or sign."""
    tag = rng.choice(TAGS)
    at = out.find(tag)
    if at >= 0 and at + 10 < len(out):
        out[at + 8 : at + 10] = rng.choice((*INTERESTING, rng.randrange(65536))).to_bytes(2, "little")


def _marker(out, _at, _others, rng):
    """A change in the parameters of a JPEG marker segment."""
    at = out.find(rng.choice(MARKERS))
    if at >= 0 and at + 24 < len(out):
        out[at + 2 + rng.randrange(20)] = rng.choice((0, 1, 0xFF, rng.randrange(256)))


def _cut(out, at, _others, rng):
    del out[at : at + rng.choice((1, 2, 3, 8, 40, len(out)))]


def _repeat(out, at, _others, rng):
    out[at:at] = out[at : at + rng.randrange(1, 60)]


def _splice(out, at, others, rng):
    other = rng.choice(others)
    start = rng.randrange(len(other))
    piece = other[start : start + rng.randrange(1, 300)]
    if rng.random() < 0.5:
        out[at : at + len(piece)] = piece
    else:
        out[at:at] = piece


def _noise(out, at, _others, rng):
    size = rng.randrange(1, 64)
    out[at : at + size] = rng.randbytes(size)


def _element(out, _at, _others, rng):
    """A change to a whole data element."""
    fuzz_header.mutate(out, rng)


_KINDS = (
    *[_element] * 6,
    _flip,
    _flip,
    _byte,
    _byte,
    _length,
    _length,
    _attribute,
    _marker,
    _cut,
    _repeat,
    _splice,
    _noise,
)


def case(files, index, seed=0):
    """The bytes of one case: ``files`` is a list, every one in turn."""
    rng = random.Random(f"{seed}/{index}")
    return mutate(files[index % len(files)], files, rng)


def verdict(path):
    """``pixels``, ``refused``, or a description of what must not happen."""
    import numpy as np

    from lumbar.dicom import read_slice
    from lumbar.errors import DicomError

    try:
        found = read_slice(path)
        header, pixels = found.header, found.pixels
        n_frames = header.number_of_frames or 1
        shape = header.frame_shape if n_frames <= 1 else (n_frames, *header.frame_shape)
        with np.errstate(all="ignore"):  # float pixels may hold anything
            float(np.sum(pixels, dtype=np.float64))  # every value can be read
    except DicomError as error:
        text = str(error)
        return "refused" if "found" in text and "expected" in text and "\n" not in text else f"refusal says: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if problem := _in_the_fields(header):
        return problem
    if pixels.shape != shape or pixels.dtype.newbyteorder("=") != header.pixel_dtype:
        return f"{pixels.shape} {pixels.dtype}, expected {shape} {header.pixel_dtype}"
    return _in_a_series(path, header, pixels) or "pixels"


def _in_the_fields(header):
    """What is wrong with any field of the header, or with that of its last frame; else nothing."""
    from dataclasses import asdict

    frames = max(1, header.number_of_frames or 1)
    for found in (header, header.of_frame(frames - 1)):
        for field, value in asdict(found).items():
            if isinstance(value, str) and field != "path" and not value.isprintable():
                return f"{field} of {value!r}, with control characters"
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not abs(number) < float("inf") for number in numbers):
                return f"{field} of {value!r}, expected finite numbers"
    return ""


def _in_a_series(path, header, pixels):
    """What is wrong with the volume of the series that ``path``, alone in its folder, makes up; else nothing."""
    import numpy as np

    from lumbar.dicom import read_series
    from lumbar.errors import DicomError

    try:
        series = read_series(path.parent, workers=1)
    except DicomError as error:
        return "" if pixels.ndim != 2 or "no memory" in str(error) else f"pixels, but no series: {error}"
    except Exception as error:
        return f"{type(error).__name__} from a series: {error}"
    volume = series.stacks[0].volume
    expected = pixels.astype(np.float32)
    if not any("not rescaled" in problem for problem in series.problems):
        with np.errstate(over="ignore"):
            expected *= np.float32(1 if header.rescale_slope is None else header.rescale_slope)
            expected += np.float32(header.rescale_intercept or 0)
    same = volume.shape == (1, *pixels.shape) and np.array_equal(
        volume[0], expected, equal_nan=volume.dtype.kind == "f"
    )
    return "" if same else f"a volume of {volume.shape} that is not the slice's {pixels.shape}"


def without_plugins():
    """Make pydicom's plugins unimportable, as on Kaggle: their failures are not ours."""
    for name in ("gdcm", "pylibjpeg", "openjpeg", "libjpeg", "rle", "PIL"):
        sys.modules[name] = None


def limit_memory(n_bytes):
    """Let an allocation beyond ``n_bytes`` of address space fail instead of being granted."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
