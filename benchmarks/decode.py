"""Speed of the DICOM decoder: the table that docs/measurements.md quotes.

    python benchmarks/decode.py [--repeats 60] [--study ../shared/real/lumbar_cc0] [--seconds 120]

Whole ``read_slice`` on files in the page cache, one thread, 12-bit MR slices of 320², 400² and 512² with real noise.
Peers and our reader take turns, a series' worth of slices at a time, and a row gives the median of each and the ratio
of the medians. The slices are the real study's, where it is at hand, given receiver noise again (its interpolation to
512² smoothed it away); else phantoms with Rician noise. "codec only" peers are given the codestream in memory; ours
opens the file, parses its header and decodes. Peers that are not installed are left out (the extra ``bench`` installs
them).

What is compared with dicomsdl: a ``read_slice`` gives the stored values as an array of the file's type and a header of
33 typed fields. The same from dicomsdl is ``open``, each of those fields, ``pixelData(storedvalue=True)`` (checked to
be equal in values and type); these are the rows "with all fields", for which we are asked for every field, too. Both
leave a header's values undecoded until someone asks, so the other rows show less work on both sides: stored values and
no field, and dicomsdl's default, ``pixelData()``, which gives floats. Where a plain read of the file alone takes more
than a third of a peer's time, the last column says so: nobody who reads the file that way can then be three times as
fast.

On a machine that others use, ``chrt -f 10 python benchmarks/decode.py`` (Linux, root) keeps them off its cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import imagecodecs  # encodes the corpus; also a peer
import numpy as np

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # OpenCV warns about every JPEG 2000 image without a colour space
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "tests" / "support"), str(ROOT / "tests")]

import dicom_writer  # noqa: E402
import rle_encoder  # noqa: E402
from lumbar.dicom import Header, Slice, read_series, read_slice  # noqa: E402
from lumbar.dicom.codecs.frames import split_frames  # noqa: E402
from lumbar.dicom.header import read_file  # noqa: E402

warnings.simplefilter("ignore")

SIZES = (320, 400, 512)
Clock = Callable[[], float]
PLAIN, OURS_WHOLE = "open().read()", "lumbar, with all fields"
FIELDS = [field.name for field in fields(Header)]
KEYWORDS = [
    "".join(part.capitalize() for part in field.split("_")).replace("Uid", "UID").replace("Sop", "SOP")
    for field in FIELDS[2:]
]
NOISE = 12.0  # standard deviation of each channel, of 4,096 grey levels


def real_slices(study: Path) -> Iterator[np.ndarray]:
    """Slices of the study, every sixth, (512, 512) float."""
    for path in sorted(study.glob("test_images/*/*/*.dcm"))[::6]:
        yield read_slice(path).pixels.astype(float)


def phantom_slices() -> Iterator[np.ndarray]:
    """Drawn slices, (512, 512) float, used without the real study."""
    for seed in range(9):
        yield dicom_writer.noisy_slice((512, 512), seed=seed).astype(float)


def corpus(study: Path) -> dict[int, list[np.ndarray]]:
    """Size -> slices, uint16 of 12 bits, with Rician noise."""
    rng = np.random.default_rng(0)
    sources = list(real_slices(study)) or list(phantom_slices())
    sizes: dict[int, list[np.ndarray]] = {size: [] for size in SIZES}
    for source in sources:
        for size in SIZES:
            start = (source.shape[0] - size) // 2
            part = np.maximum(source[start : start + size, start : start + size], 0)
            noisy = np.hypot(part + rng.normal(0, NOISE, part.shape), rng.normal(0, NOISE, part.shape))
            sizes[size].append(np.clip(noisy, 0, 4095).astype(np.uint16))
    return sizes


def encode_jpeg_lossless(pixels: np.ndarray) -> bytes:
    """JPEG Lossless of 12 bits, predictor 1."""
    return bytes(imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=12, predictor=1))


# Name -> transfer syntax, encoder (None: uncompressed)
SYNTAXES: dict[str, tuple[str, Callable[[np.ndarray], bytes] | None]] = {
    "Explicit LE": (dicom_writer.EXPLICIT, None),
    "RLE": (dicom_writer.RLE, rle_encoder.encode),
    "JPEG Lossless": (dicom_writer.JPEG_LOSSLESS_SV1, encode_jpeg_lossless),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", lambda pixels: bytes(imagecodecs.jpegls_encode(pixels))),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        lambda pixels: bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", bitspersample=12)),
    ),
}

POSITION = b"-20.64528\\-109.5597\\201.9066 "
# What a file of the competition holds besides its image
TAGS = [
    (0x00080018, "UI", b"1.2.826.0.1.3680043.8.498.1"),
    (0x0008103E, "LO", b"T2"),
    (0x00100020, "LO", b"100206310 "),
    (0x00180050, "DS", b"4.0 "),
    (0x00180088, "DS", b"4.4 "),
    (0x00185100, "CS", b"HFS "),
    (0x0020000D, "UI", b"100206310 "),
    (0x0020000E, "UI", b"100206310.1.1 "),
    (0x00200013, "IS", b"7 "),
    (0x00200032, "DS", POSITION),
    (0x00200037, "DS", b"0.02684\\0.999638\\0.001381\\-0.018573\\0.00188\\-0.999825"),
    (0x00200052, "UI", b"1.2.826.0.1.3680043.8.498.2"),
    (0x00201041, "DS", b"21.46 "),
    (0x00280030, "DS", b"0.68359375\\0.68359375 "),
    (0x00281050, "DS", b"918 "),
    (0x00281051, "DS", b"1616"),
]


def write_corpus(folder: Path, sizes: dict[int, list[np.ndarray]]) -> dict[str, dict[int, list[Path]]]:
    """Files of every syntax; the pixels are checked once, so that no wrong decoder is timed."""
    files: dict[str, dict[int, list[Path]]] = {}
    for name, (syntax, encode) in SYNTAXES.items():
        files[name] = {size: [] for size in sizes}
        for size, slices in sizes.items():
            for number, pixels in enumerate(slices):
                path = folder / name.replace(" ", "_") / str(size) / f"{number}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                if encode is None:
                    data = dicom_writer.native_file(pixels, syntax, stored=12, extra=TAGS)
                else:
                    data = dicom_writer.encapsulated_file(
                        [encode(pixels)], pixels.shape, syntax, stored=12, extra=TAGS, table=bytes(4)
                    )
                path.write_bytes(data)
                if not np.array_equal(read_slice(path).pixels, pixels):
                    raise SystemExit(f"{path}: pixels differ")
                files[name][size].append(path)
    return files


def plain_read(path: Path) -> bytes:
    """The bytes of a file and nothing else: the lower limit of every reader."""
    return open(path, "rb").read()


def with_fields(path: Path) -> Slice:
    """Ours, with every field of the header."""
    image = read_slice(path)
    for field in FIELDS:
        getattr(image.header, field)
    return image


def dicomsdl_with_fields(path: Path) -> object:
    """Stored values and every field of our header, by dicomsdl."""
    import dicomsdl

    dataset = dicomsdl.open(str(path))
    for keyword in KEYWORDS:
        getattr(dataset, keyword)
    return dataset.pixelData(storedvalue=True)


def pydicom_with_fields(path: Path) -> object:
    """Pixels and every field of our header, by pydicom."""
    import pydicom

    dataset = pydicom.dcmread(path)
    for keyword in KEYWORDS:
        dataset.get(keyword)
    return dataset.pixel_array


def file_peers(name: str) -> dict[str, Callable[[Path], object]]:
    """Readers of whole files, by name."""
    peers: dict[str, Callable[[Path], object]] = {}
    if name == "Explicit LE":
        peers[PLAIN] = plain_read
    with contextlib.suppress(ImportError):
        import dicomsdl

        if name != "JPEG 2000":
            peers["dicomsdl"] = lambda path: dicomsdl.open(str(path)).pixelData()
            peers["dicomsdl, stored values"] = lambda path: dicomsdl.open(str(path)).pixelData(storedvalue=True)
            peers["dicomsdl, stored values, with all fields"] = dicomsdl_with_fields
    import pydicom

    if name == "Explicit LE":
        peers["pydicom"] = lambda path: pydicom.dcmread(path).pixel_array
        peers["pydicom, with all fields"] = pydicom_with_fields
    if name == "RLE":
        peers["pydicom without plugins"] = pydicom_alone
    return peers


def pydicom_alone(path: Path) -> np.ndarray:
    """Pixels by pydicom's own decoder, in Python, which is what Kaggle has."""
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.pixel_array_options(decoding_plugin="pydicom")
    pixels: np.ndarray = dataset.pixel_array
    return pixels


def codec_peers(name: str) -> dict[str, Callable[[bytes], object]]:
    """Decoders of codestreams in memory, by name."""
    if name == "RLE":
        return {"imagecodecs RLE (codec only)": lambda raw: imagecodecs.dicomrle_decode(raw, np.dtype("<u2"))}
    if name == "JPEG Lossless":
        return {"libjpeg-turbo (codec only)": imagecodecs.jpeg_decode}
    if name == "JPEG-LS":
        return {"CharLS (codec only)": imagecodecs.jpegls_decode}
    if name == "JPEG 2000":
        import cv2

        return {
            "OpenJPEG in OpenCV (codec only)": lambda raw: cv2.imdecode(
                np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED
            )
        }
    return {}


def check_dicomsdl(path: Path) -> None:
    """Whether dicomsdl's stored values are what ``read_slice`` gives, so that like is compared with like."""
    with contextlib.suppress(ImportError):
        import dicomsdl

        theirs, ours = dicomsdl.open(str(path)).pixelData(storedvalue=True), read_slice(path).pixels
        if theirs.dtype != ours.dtype or not np.array_equal(theirs, ours):
            raise SystemExit(f"{path}: dicomsdl's stored values differ")


def measure(name: str, paths: list[Path], repeats: int, limit_s: float, clock: Clock) -> dict[str, list[float]]:
    """Microseconds a slice of each reader, taking turns; as many repeats as fit into ``limit_s`` seconds.

    A turn is one untimed slice, then all slices in a row, as a series is read.
    """
    if name != "JPEG 2000":
        check_dicomsdl(paths[0])
    codecs = codec_peers(name)
    streams = {path: split_frames(read_file(path))[0].tobytes() for path in paths} if codecs else {}
    readers: dict[str, Callable[[Path], object]] = {"lumbar": read_slice, OURS_WHOLE: with_fields, **file_peers(name)}
    for peer, decode in codecs.items():
        readers[peer] = lambda path, decode=decode: decode(streams[path])  # type: ignore[misc]
    times: dict[str, list[float]] = {reader: [] for reader in readers}
    order = list(readers)
    stop = time.perf_counter() + limit_s
    for _ in range(repeats):
        order = order[1:] + order[:1]  # so that no reader always runs after the one that leaves the coldest caches
        for reader in order:
            call = readers[reader]
            call(paths[0])
            start = clock()
            for path in paths:
                call(path)
            times[reader].append((clock() - start) * 1e6 / len(paths))
        if time.perf_counter() > stop:
            break
    return times


def report(name: str, size: int, times: dict[str, list[float]]) -> None:
    """A row for each reader; "with all fields" is compared with ours that asks for them, too."""
    plain = statistics.median(times[PLAIN]) if PLAIN in times else 0.0
    for reader, values in times.items():
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4)
        own = times[OURS_WHOLE if reader.endswith("with all fields") else "lumbar"]
        ours, best = statistics.median(own), min(values) / min(own)
        notes = [f"spread {(quartiles[2] - quartiles[0]) / median:.0%}"]
        if reader in ("lumbar", OURS_WHOLE):
            ratio = ""
        elif reader == PLAIN:
            ratio = f"{ours / median:.2f} × its time"
            notes.append(f"of the minima {1 / best:.2f}")
        else:
            ratio = f"{median / ours:.2f} × faster"
            notes.append(f"of the minima {best:.2f}")
            if 3 * plain > median:
                notes.append(f"a plain read would be {median / plain:.2f} × faster")
        print(f"| {name} | {size}² | {reader} | {median:.0f} | {ratio} | {', '.join(notes)} |", flush=True)


def write_series(root: Path, sources: list[Path]) -> None:
    """36 slices, 4.4 mm apart, of the files in ``sources``."""
    for number in range(36):
        data = sources[number % len(sources)].read_bytes()
        position = f"{-20.0 + 4.4 * number:.5f}\\-109.5597\\201.9066".encode().ljust(len(POSITION))
        if data.count(POSITION) != 1 or len(position) != len(POSITION):
            raise SystemExit(f"{sources[0]}: no position to replace")
        (root / f"{number}.dcm").write_bytes(data.replace(POSITION, position))


def measure_threads(files: dict[str, dict[int, list[Path]]], repeats: int) -> None:
    """``read_series`` with one thread and with two, on a folder of 36 slices that make one stack."""
    print("\n| read_series, 36 slices of 512² | 1 thread, ms | 2 threads, ms | gain | |\n|---|---|---|---|---|")
    for name in ("Explicit LE", "RLE", "JPEG Lossless", "JPEG-LS"):
        with tempfile.TemporaryDirectory() as root:
            write_series(Path(root), files[name][512])
            if [len(stack.instance_numbers) for stack in read_series(root).stacks] != [36]:
                raise SystemExit(f"{name}: the slices make no stack")
            times: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(max(5, repeats // 4)):
                for workers in times:
                    start = time.perf_counter()
                    read_series(root, workers=workers)
                    times[workers].append((time.perf_counter() - start) * 1e3)
            one, two = statistics.median(times[1]), statistics.median(times[2])
            best = min(times[1]) / min(times[2])
            print(f"| {name} | {one:.1f} | {two:.1f} | {one / two:.2f} × | of the minima {best:.2f} |", flush=True)


def measure_cold_start(path: Path) -> None:
    """Seconds from the start of the interpreter's work to the first RLE slice, with an empty and a filled cache."""
    code = (
        "import time; start = time.perf_counter()\n"
        "import sys; from lumbar.dicom import read_slice; read_slice(sys.argv[1])\n"
        "print(time.perf_counter() - start, time.process_time())"
    )
    print("\n| first RLE slice, import included | s | CPU s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        for label in ("empty numba cache", "warm cache"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT / "kernel")}
            done = subprocess.run(
                [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=True
            )
            elapsed, busy = (float(value) for value in done.stdout.split())
            print(f"| {label} | {elapsed:.2f} | {busy:.2f} |")


def measure_idle(seconds: float = 1.0) -> float:
    """How much slower a fixed loop runs at its median than at its best: the machine's noise."""
    values = []
    stop = time.perf_counter() + seconds
    array = np.arange(20_000)
    while time.perf_counter() < stop:
        start = time.perf_counter()
        array.sum()
        values.append(time.perf_counter() - start)
    return statistics.median(values) / min(values)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=20.0, help="limit for one row of the table")
    parser.add_argument("--study", type=Path, default=ROOT.parent / "shared" / "real" / "lumbar_cc0")
    parser.add_argument("--only", choices=[*SYNTAXES, "series", "start"], help="one part of the figures")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: time of the thread, for a machine that is busy"
    )
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.thread_time
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    print(
        f"noise: a fixed loop's median is {measure_idle():.2f} × its best; load {os.getloadavg()[0]:.1f}; "
        f"{options.clock} clock\n"
    )
    with tempfile.TemporaryDirectory() as root:
        files = write_corpus(Path(root), corpus(options.study))
        if options.only in (None, *SYNTAXES):
            print("| syntax | size | reader | µs | ratio | |\n|---|---|---|---|---|---|")
        for name, sizes in files.items():
            if options.only in (None, name):
                for size, paths in sizes.items():
                    report(name, size, measure(name, paths, options.repeats, options.seconds, clock))
        if options.only in (None, "series"):
            measure_threads(files, options.repeats)
        if options.only in (None, "start"):
            measure_cold_start(files["RLE"][320][0])


if __name__ == "__main__":
    main()
