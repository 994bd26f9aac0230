"""Mutations of DICOM files, and the one thing a decoder may do with them: pixels of the right shape, or a refusal."""

import contextlib
import random
import sys

import fuzz_header

INTERESTING = (0, 1, 2, 3, 4, 7, 8, 15, 16, 32, 63, 64, 127, 128, 255, 256, 4095, 32767, 32768, 65534, 65535)
TAGS = tuple(bytes.fromhex(tag) for tag in ("28001000", "28001100", "28000001", "28000101", "28000201", "28000200"))
MARKERS = tuple(bytes([0xFF, second]) for second in (0x51, 0xC0, 0xC3, 0xC4, 0xDA, 0xDB, 0xDD, 0xF7, 0xF8))

SYNTAXES = tuple(
    f"1.2.840.10008.1.2{end}".encode() for end in ("", ".1", ".2", ".5", *(f".4.{n}" for n in (50, 51, 57)))
)
SYNTAXES += (*tuple(f"1.2.840.10008.1.2.4.{n}".encode() for n in (70, 80, 81, 90, 91, 201)), b"1.2.840.113619.5.2")
MAX_CASE_BYTES = 1 << 30  # of memory, beyond what the process has
_OUT_OF_MEMORY = ("no memory", "alloc", "Insufficient memory")


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


def _scan(out, _at, _others, rng):
    """A scan again and again: with its header and data, up to the next marker."""
    start = out.find(b"\xff\xda")
    stop = next((i for i in range(start + 2, len(out) - 1) if out[i] == 0xFF and not _in_scan(out[i + 1])), len(out))
    if start >= 0:
        out[stop:stop] = out[start:stop] * rng.choice((1, 2, 3, 70, 400))


def _in_scan(byte):
    return byte == 0 or 0xD0 <= byte <= 0xD7


def _fragments(out, _at, _others, rng):
    """A flood of fragments, empty or of two bytes, before or after one that is there."""
    places = [i for i in range(len(out) - 8) if out[i : i + 4] == b"\xfe\xff\x00\xe0"]
    if places:
        at = rng.choice((*places, len(out) - 8))
        out[at:at] = rng.choice((b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\x00\xe0\2\0\0\0\xff\xd9")) * rng.choice(
            (1, 5, 70, 4000)
        )


def _dimensions(out, _at, _others, rng):
    """A lying size in the codestream, which the header may repeat."""
    rows, columns = (rng.choice((1, 19, 21, 255, 4096, 7000, 32767, 65535)) for _ in range(2))
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2", b"\xff\xc3", b"\xff\xf7"):
        at = out.find(marker)
        if at >= 0:
            out[at + 5 : at + 9] = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
            break
    else:
        at = out.find(b"\xff\x4f\xff\x51")
        if at >= 0:
            out[at + 8 : at + 16] = columns.to_bytes(4, "big") + rows.to_bytes(4, "big")
            if rng.random() < 0.5:
                out[at + 24 : at + 32] = rng.choice((columns, 1, 16)).to_bytes(4, "big") + rows.to_bytes(4, "big")
    if rng.random() < 0.7:
        for tag, value in ((b"\x28\0\x10\0US\2\0", rows), (b"\x28\0\x11\0US\2\0", columns)):
            at = out.find(tag)
            if at >= 0:
                out[at + 8 : at + 10] = value.to_bytes(2, "little")


def _interval(out, _at, _others, rng):
    """A restart interval that is not kept, or restart markers that nobody announced."""
    at = out.find(b"\xff\xda")
    if at < 0:
        return
    if rng.random() < 0.7:
        value = rng.choice(INTERESTING) % 65536
        out[at:at] = b"\xff\xdd\0\4" + value.to_bytes(2, "big")
    for _ in range(rng.choice((0, 1, 3, 300))):
        place = rng.randrange(at, len(out))
        out[place:place] = bytes([0xFF, 0xD0 + rng.randrange(8)])


def _segments(out, _at, _others, rng):
    """A segment of the codestream's header many times."""
    start = out.find(rng.choice(MARKERS))
    if start >= 0:
        length = int.from_bytes(out[start + 2 : start + 4], "big") + 2
        out[start:start] = out[start : start + min(length, 200)] * rng.choice((1, 2, 40, 5000 // (1 + length // 8)))


def _syntax(out, _at, _others, rng):
    """Another transfer syntax in the file meta, whose group length is left as it was."""
    at = out.find(b"\x02\0\x10\0UI")
    if at >= 0:
        length = int.from_bytes(out[at + 6 : at + 8], "little")
        uid = rng.choice(SYNTAXES)
        uid += b"\0" * (len(uid) % 2)
        out[at + 6 : at + 8 + length] = len(uid).to_bytes(2, "little") + uid


def _style(out, _at, _others, rng):
    """Layers, levels, block and precinct sizes of JPEG 2000 that nothing stands behind."""
    at = out.find(b"\xff\x52")
    if at >= 0 and at + 14 < len(out):
        place = at + rng.choice((4, 5, 6, 7, 9, 10, 11, 12))
        out[place] = rng.choice((0, 1, 2, 4, 8, 32, 255, rng.randrange(256)))


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
    _scan,
    _fragments,
    _dimensions,
    _interval,
    _segments,
    _syntax,
    _style,
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
        one_slice = read_slice(path)
        header, pixels = one_slice.header, one_slice.pixels
        n_frames = header.number_of_frames or 1
        shape = header.frame_shape if n_frames <= 1 else (n_frames, *header.frame_shape)
        with np.errstate(all="ignore"):  # float pixels may hold anything
            float(np.sum(pixels, dtype=np.float64))  # every value can be read
    except DicomError as error:
        text = str(error)
        if any(words in text for words in _OUT_OF_MEMORY):
            return f"more memory asked for than the limit: {text}"
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
    for view in (header, header.of_frame(frames - 1)):
        for field, value in asdict(view).items():
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
        return "" if pixels.ndim != 2 else f"pixels, but no series: {error}"
    except Exception as error:
        return f"{type(error).__name__} from a series: {error}"
    n_slices = 0
    for stack in series.stacks:
        for index, image in enumerate(stack.volume):
            frame = (stack.frame(index) or 1) - 1
            own = header if pixels.ndim == 2 else header.of_frame(frame)
            slope = 1.0 if own.rescale_slope is None else own.rescale_slope
            intercept = own.rescale_intercept or 0.0
            expected = (pixels if pixels.ndim == 2 else pixels[frame]).astype(np.float32)
            if 0 < abs(slope) <= 1e9 and abs(intercept) <= 1e9:  # else the slice is left as it is stored
                with np.errstate(over="ignore", invalid="ignore"):
                    expected *= np.float32(slope)
                    expected += np.float32(intercept)
            if not np.array_equal(image, expected, equal_nan=True):
                return f"slice {index} of a stack of {stack.volume.shape} is not frame {frame} of {pixels.shape}"
            n_slices += 1
    n_expected = 1 if pixels.ndim == 2 else len(pixels)
    return "" if 0 < n_slices <= n_expected else f"{n_slices} slices from {n_expected} frames"


def without_plugins():
    """Make pydicom's plugins unimportable, as on Kaggle: their failures are not ours."""
    for name in ("gdcm", "pylibjpeg", "openjpeg", "libjpeg", "rle", "PIL"):
        sys.modules[name] = None


def limit_memory(n_bytes):
    """Let an allocation fail that takes ``n_bytes`` of address space more than there is now; Linux only."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        limit = _memory("VmSize") + n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def peak_memory(function, *arguments):
    """What ``function`` returns, and by how many bytes resident memory grew meanwhile at most; 0 where unknown."""
    try:
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")  # the peak is now what is resident (proc(5))
        before = _memory("VmRSS")
    except OSError:
        return function(*arguments), 0
    result = function(*arguments)
    return result, _memory("VmHWM") - before


def _memory(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10
