"""What an ensemble of twelve fits costs on a CPU, against the sum of its parts.

    python benchmarks/ensemble_cost.py [--data COHORT] [--size 256] [--rounds 3] [--limit 1.15]

Four members with three fits each, made-up small networks at the crop sizes of strong recipes; two of the members look
at the same crops, so three crops differ. A phantom's study goes through the whole chain (localisation, crops, twelve
fits, aggregator), and its parts are timed by themselves in the same round: one localisation, one cutting of each crop
that differs, and each fit's forward pass. All are timed on one thread by the processor's clock, so that other work on
the machine counts little. The ratio of the two is told, each the fastest of the rounds, and the program ends with
status 1 where it is above ``--limit``. Then the same with all fits in turn, as where the memory does not hold them: the
answer must be the same bit for bit. The seconds themselves say nothing; the networks mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar.bundle.manifest import read_manifest  # noqa: E402
from lumbar.bundle.weights import load_network, save_network  # noqa: E402
from lumbar.chains.main import predict_study  # noqa: E402
from lumbar.config import (  # noqa: E402
    CLASSIFIERS,
    AggregatorConfig,
    AxialClassifierConfig,
    BackboneConfig,
    SagittalClassifierConfig,
    to_dict,
)
from lumbar.models import build, name_of  # noqa: E402
from lumbar.models.inference import Networks  # noqa: E402
from lumbar.models.turns import Turn  # noqa: E402
from lumbar.stages.classify import all_levels, run_levels, series_to_classify  # noqa: E402
from lumbar.stages.localise import localise  # noqa: E402
from lumbar.study import Study, read_study  # noqa: E402
from lumbar.workers.budget import Effort  # noqa: E402
from lumbar.workers.run_inputs import read_table  # noqa: E402

N_FITS = 3
PRIOR = np.full((25, 3), [0.6, 0.3, 0.1])
LEVEL = Effort.NO_AUGMENTATION  # all fits, one view


def configs(size: int) -> dict[str, Any]:
    """The members: two look at the same axial crops."""
    small = BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8)
    more: dict[str, Any] = {"hidden": 16, "level_embedding": 4, "position_embedding": 4}
    return {
        "a_sagittal": SagittalClassifierConfig(small, size=size, window=5, **more),
        "a_axial": AxialClassifierConfig(small, conditions=(0, 1, 2, 3, 4), size=size, window=5, **more),
        "b_axial": AxialClassifierConfig(small, conditions=(3, 4), size=size, window=5, **more),
        "b_wide": AxialClassifierConfig(small, conditions=(3, 4), size=size, window=7, box_scale=3.0, **more),
    }


def ensemble(size: int) -> Networks:
    """Localisers of the demo bundle, twelve fits with chance weights, an aggregator."""
    manifest = read_manifest(ROOT)
    networks = Networks(classifiers=tuple(configs(size)))
    for entry in manifest.weights:
        if entry.stage not in (*CLASSIFIERS, "aggregator"):
            path = ROOT / "weights" / "demo" / Path(entry.file).name
            networks.by_stage.setdefault(entry.stage, []).append(load_network(path, entry))
    torch.manual_seed(0)
    for name, config in configs(size).items():
        networks.by_stage[name] = [build(name_of(config), to_dict(config)).eval() for _ in range(N_FITS)]
    config = AggregatorConfig(models=tuple(configs(size)), hidden=8)
    networks.by_stage["aggregator"] = [build(name_of(config), to_dict(config)).eval()]
    return networks


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of the processor that a call takes."""
    started = time.process_time()
    call()
    return time.process_time() - started


def parts(study: Study, networks: Networks) -> dict[str, float]:
    """Seconds of one localisation, of one cutting of each crop that differs, and of all forward passes."""
    seconds = {"forward passes": 0.0, "crops": 0.0}
    started = time.process_time()
    place = localise(study, networks, augment=False)
    seconds["localisation"] = time.process_time() - started
    cut: dict[str, Any] = {}
    same = {"b_axial": "a_axial"}
    for name in networks.classifiers:
        first: Any = networks.stage(name)[0]
        if name not in same:
            started = time.process_time()
            cut[name] = [all_levels(study, place, first, look) for look in series_to_classify(place, first)]
            seconds["crops"] += time.process_time() - started
        for network in networks.stage(name):
            for tensors in cut[same.get(name, name)]:
                seconds["forward passes"] += seconds_of(partial(run_levels, network, tensors, flip=False))
    return seconds


def take_turns(networks: Networks, folder: Path) -> Turn:
    """Let the fits of all members share one place in memory; their weights lie in files, as in a bundle."""
    turn = Turn("cpu")
    for name in networks.classifiers:
        for number, network in enumerate(networks.stage(name)):
            path = folder / f"{name}.{number}.safetensors"
            save_network(network, path, half=False)
            turn.add(network, partial(weights_of, path, network))
    return turn


def weights_of(path: Path, network: nn.Module) -> dict[str, Any]:
    """The weights in a file."""
    from safetensors.torch import load_file

    return load_file(path)


def phantom(folder: Path) -> Path:
    """One study in the competition's layout."""
    command = [sys.executable, "-m", "lumbar_phantom", "--out", str(folder), "--studies", "1", "--split", "test"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="competition folder with a test study; default: a phantom is made")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of all crops; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=1.15, help="the ratio that is allowed; default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lumbar-ensemble-") as scratch:
        root = options.data or phantom(Path(scratch) / "cohort")
        frame = read_table(root, "test", read_manifest(ROOT))[0].frame
        study = read_study(root, "test", sorted(frame["study_id"].tolist())[0], frame)
        networks = ensemble(options.size)
        expected = predict_study(study, networks, PRIOR, LEVEL).probs  # compiles, fills caches
        wholes, sums = [], []
        for _ in range(options.rounds):
            wholes.append(seconds_of(lambda: predict_study(study, networks, PRIOR, LEVEL)))
            sums.append(parts(study, networks))
        best = min(sums, key=lambda one: sum(one.values()))
        ratio = min(wholes) / sum(best.values())
        print(f"{len(networks.classifiers) * N_FITS} fits: {min(wholes):.2f} s a study")
        print("parts: " + ", ".join(f"{name} {value:.2f} s" for name, value in best.items()))
        print(f"ratio: {ratio:.3f} (allowed: {options.limit:g})")
        turn = take_turns(networks, Path(scratch))
        answer = predict_study(study, networks, PRIOR, LEVEL).probs
        is_same = np.array_equal(answer, expected)
        in_turn = min(seconds_of(lambda: predict_study(study, networks, PRIOR, LEVEL)) for _ in range(options.rounds))
        n_loads = turn.n_loads // (options.rounds + 1)
        print(
            f"in turn: {in_turn:.2f} s a study, {in_turn / min(wholes):.3f} times, {n_loads} loads a study; "
            f"answers {'the same' if is_same else 'differ'}"
        )
    return 0 if ratio <= options.limit and is_same else 1


if __name__ == "__main__":
    sys.exit(main())
