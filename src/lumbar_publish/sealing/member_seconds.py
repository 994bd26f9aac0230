"""What each member of an ensemble costs a study: timed at sealing, projected to the machine that the notebook asks for.

Networks of this kind are limited by memory bandwidth. ``lumbar_train.pipeline.machines`` has how a machine's rate
follows from it: timm's benchmark gives 12.6 TFLOP/s of counted operations at the 936 GB/s of an RTX 3090. Bandwidths
are those of NVIDIA's data sheets. So seconds are good to a factor of two; how members compare with one another is
measured, and that is what decides how much each one left out saves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumbar.bundle.member_seconds import FILE, KEY, weights_key
from lumbar.errors import ManifestError
from lumbar_publish.files import write_text
from lumbar_publish.sealing.accelerators import Accelerator
from lumbar_publish.sealing.smoke_test import run_sealed

_PROGRAM = Path(__file__).with_name("measure_members.py")  # imports torch, which this command does not
_RUN_FILE = """\
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
_RATE, _AT_GB_S = 12.6e12, 936.0
_BANDWIDTH_GB_S = {
    "NvidiaTeslaT4": 320.0,
    "NvidiaL4": 300.0,
    "NvidiaL4X1": 300.0,
    "NvidiaTeslaA100": 1555.0,
    "NvidiaH100": 3350.0,
    "NvidiaRtxPro6000": 1792.0,
}
_DIGITS = 6  # of a second


def is_ensemble(data: Mapping[str, Any]) -> bool:
    """Whether a manifest's classifiers are members whose seconds count: the usual three, not listed, are left out."""
    return "classifiers" in data


def measured(folder: Path, sample: Path, machine: Accelerator) -> dict[str, Any]:
    """The manifest's entry, timed on the first test study of a sample.

    Args:
        folder: the staged bundle with its code.
        sample: a competition folder.
        machine: that the seconds are meant for.

    Raises:
        ManifestError: the sealed code does not get through the study.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar-seconds-") as scratch:
        out = Path(scratch) / "seconds.json"
        arguments = [str(_PROGRAM), str(folder.resolve()), str(sample.resolve()), str(out)]
        run_sealed(_RUN_FILE, folder, arguments, Path(scratch))
        told = json.loads(out.read_text(encoding="utf-8"))
    return projected(told, machine)


def projected(told: Mapping[str, Any], machine: Accelerator) -> dict[str, Any]:
    """What ``measure_members`` told, in seconds of a machine; of a CPU, those of this one.

    The operations counted in the members and the seconds that they took give the rate of this machine; on another one a
    member takes so much less as the other's rate is higher. Of the localisation that is said of what its networks take
    by their counted operations; what a CPU does in any case, as cutting crops, stays as it is.
    """
    counted = [one for one in told["members"].values() if one["flops"]]
    flops, seconds = (sum(one[key] for one in counted) for key in ("flops", "seconds"))
    rate = flops / seconds if flops and seconds else _RATE
    bandwidth = _BANDWIDTH_GB_S.get(machine.name)
    factor = rate / (_RATE * bandwidth / _AT_GB_S) if bandwidth else 1.0

    def localised(one: Mapping[str, float]) -> float:
        networks_s = min(one["flops"] / rate, one["seconds"])
        return one["seconds"] - networks_s + networks_s * factor

    return {
        "machine": str(machine),
        "rest": round(localised(told["localise"]) + told["cut_seconds"], _DIGITS),
        "members": {name: round(one["seconds"] * factor, _DIGITS) for name, one in told["members"].items()},
        "localisers": {name: round(localised(one), _DIGITS) for name, one in told["localisers"].items()},
    }


def kept_seconds(run: Path | None, data: Mapping[str, Any], machine: Accelerator) -> dict[str, Any] | None:
    """What an earlier sealing of the same run measured for the same machine; None where there is nothing.

    Raises:
        ManifestError: the file in the run is damaged.
    """
    if run is None or not (run / FILE).is_file():
        return None
    try:
        told = json.loads((run / FILE).read_text(encoding="utf-8"))
        is_same = (told["weights"], told[KEY]["machine"]) == (weights_key(data), str(machine))
        return dict(told[KEY]) if is_same else None
    except (ValueError, OSError, KeyError, TypeError):
        raise ManifestError(
            f"{run / FILE}: found no seconds of members, expected what sealing wrote; remove it"
        ) from None


def keep_seconds(run: Path, data: Mapping[str, Any]) -> None:
    """Note what was sealed in the run's folder: an ensemble that takes its members chooses with measured seconds."""
    if KEY in data:
        write_text(run / FILE, json.dumps({"weights": weights_key(data), KEY: data[KEY]}, indent=1) + "\n")
