"""pydicom with our plugin beside its own: values and speed on its bundled files, the table of docs/pydicom-plugin.md.

    python benchmarks/pydicom_plugin.py [--repeats 30] [--seconds 5] [--slices] [--clock cpu]

Each plugin decodes the same data set in memory by ``get_decoder(...).as_array``, which is what ``Dataset.pixel_array``
calls; plugins take turns, one image each, and a row gives the ratio of the medians to ours. Values are compared with
those of the first of pydicom's plugins that decodes the file, which is the one that ``pixel_array`` takes without ours;
type, shape and the description of the pixels must be the same too. ``--slices`` adds noisy 12-bit slices of 512 x 512,
because most bundled files are too small to say anything about a decoder.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "tests" / "support"), str(ROOT / "tests")]

from pydicom.pixels import get_decoder  # noqa: E402

import dicom_writer  # noqa: E402
import pydicom_datasets as datasets  # noqa: E402
from lumbar.dicom import pydicom_plugin  # noqa: E402
from lumbar.dicom.syntaxes import NAMES  # noqa: E402

Clock = Callable[[], float]
SLICE_SYNTAXES = {
    datasets.RLE: 16,
    datasets.LOSSLESS: 12,
    datasets.LOSSLESS_SV1: 12,
    datasets.LS: 12,
    datasets.LS_NEAR: 12,
    datasets.EXTENDED: 12,
    datasets.BASELINE: 8,
}


def slices() -> Iterator[tuple[str, Any]]:
    """A noisy slice of 512 x 512 pixels in every transfer syntax."""
    image = dicom_writer.noisy_slice((512, 512), seed=1).astype(np.uint16)
    for syntax, bits in SLICE_SYNTAXES.items():
        pixels = (image >> 4).astype(np.uint8) if bits == 8 else image
        yield f"slice of 512², {min(bits, 12)} bits", datasets.dataset_of([pixels], syntax, bits)


def decode(dataset: Any, plugin: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and their description by one plugin."""
    pixels, description = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, decoding_plugin=plugin)
    return pixels, description


def decoded(dataset: Any) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """What each plugin that decodes the data set makes of it, in the order in which pydicom asks them."""
    results = {}
    for plugin in get_decoder(dataset.file_meta.TransferSyntaxUID)._available:
        try:
            results[plugin] = decode(dataset, plugin)
        except RuntimeError:
            continue
    return results


def measure(dataset: Any, plugins: list[str], repeats: int, limit_s: float, clock: Clock) -> dict[str, float]:
    """Median microseconds of each plugin, taking turns."""
    times: dict[str, list[float]] = {plugin: [] for plugin in plugins}
    stop = time.perf_counter() + limit_s
    for turn in range(repeats):
        for plugin in plugins[turn % len(plugins) :] + plugins[: turn % len(plugins)]:
            start = clock()
            decode(dataset, plugin)
            times[plugin].append((clock() - start) * 1e6)
        if time.perf_counter() > stop:
            break
    return {plugin: statistics.median(values) for plugin, values in times.items()}


def row(name: str, dataset: Any, repeats: int, limit_s: float, clock: Clock) -> str:
    """The row of one data set."""
    results = decoded(dataset)
    ours = results.pop("lumbar")
    equal = []
    for plugin, theirs in results.items():
        if theirs[0].dtype != ours[0].dtype or theirs[0].shape != ours[0].shape or theirs[1] != ours[1]:
            raise SystemExit(f"{name}: {plugin} gives another type, shape or description")
        difference = np.abs(theirs[0].astype(np.int64) - ours[0].astype(np.int64)).max()
        equal.append(f"{plugin} {'yes' if not difference else f'within {difference}'}")
    times = measure(dataset, ["lumbar", *results], repeats, limit_s, clock)
    ratios = [
        f"{plugin} {times[plugin] / times['lumbar']:{'.0f' if times[plugin] > 10 * times['lumbar'] else '.1f'}} ×"
        for plugin in results
    ]
    syntax = NAMES[dataset.file_meta.TransferSyntaxUID]
    cells = [
        f"`{name}`" if name.endswith("dcm") else name,
        syntax,
        "lumbar",
        ", ".join(equal) or "only ours decodes it",
    ]
    return "| " + " | ".join([*cells, f"{times['lumbar']:.0f}", ", ".join(ratios) or "–"]) + " |"


def main() -> None:
    """Compare, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=5.0, help="limit for one row of the table")
    parser.add_argument("--slices", action="store_true", help="also slices of 512 x 512")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: time of the thread, for a machine that is busy"
    )
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.thread_time
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    pydicom_plugin.register()
    images = [(name, pydicom.dcmread(path)) for name, path in datasets.bundled_files().items()]
    images.sort(key=lambda image: (NAMES[image[1].file_meta.TransferSyntaxUID], image[0]))
    print("| file | transfer syntax | decoded by | equal to | µs | time of pydicom's plugins, ours being 1 |")
    print("|---|---|---|---|---|---|")
    for name, dataset in [*images, *(slices() if options.slices else [])]:
        print(row(name, dataset, options.repeats, options.seconds, clock), flush=True)


if __name__ == "__main__":
    main()
