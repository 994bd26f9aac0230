"""What a prediction costs on this machine: start, seconds a study by stage, by workers and beside a busy process.

python benchmarks/chain.py                 about five minutes on two idle cores, with the demo weights and four phantoms
python benchmarks/chain.py --tiny          whether it runs: few studies, nothing beside
python benchmarks/chain.py --flat 2000     memory only: so many tiny studies through tiny networks
python benchmarks/chain.py --fake-gpu 2    studies in flight on a GPU only, without one: passes wait 2 s a study in all
python benchmarks/chain.py --gpu           on a GPU only: whole runs against their forward passes alone
python benchmarks/chain.py --json out.json the figures as a file too
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

PROJECT = Path(__file__).resolve().parents[1]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
KINDS = ("Sagittal T1", "Sagittal T2/STIR", "Axial T2")
T4_ERROR = 2.0  # the share of a T4's peak that networks like these reach is known to a factor of about two
POLL_S, LOOK_S = 0.05, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="competition folder (default: four phantoms are made)")
    parser.add_argument("--weights", type=Path, help="bundle (default: the demo weights)")
    parser.add_argument("--tiny", action="store_true", help="few studies, nothing beside: whether it runs")
    parser.add_argument("--flat", type=int, metavar="N", help="memory against the number of studies alone, with N")
    parser.add_argument("--fake-gpu", type=float, metavar="S", help="studies in flight alone; passes take S s a study")
    parser.add_argument("--gpu", action="store_true", help="studies in flight on a real GPU alone")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--inside", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(inside(*arguments.inside)))
        return
    with tempfile.TemporaryDirectory(prefix="lumbar-chain-") as name:
        folder = Path(name)
        if arguments.gpu:
            figures = on_gpu(folder, arguments)
        elif arguments.fake_gpu:
            figures = in_flight(folder, arguments)
        else:
            figures = flat(folder, arguments.flat) if arguments.flat else measure(folder, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    """All figures, printed as they come."""
    bundle = arguments.weights or demo_bundle(folder / "bundle")
    few = arguments.tiny
    data = repeated(arguments.data or phantoms(folder / "phantoms", 1 if few else 4), folder / "data", 4 if few else 12)
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} before; figures in seconds unless they say otherwise")
    figures: dict = {"cores": len(os.sched_getaffinity(0)), "load": load}
    run(folder, data, bundle, 1, threads=1)  # fills numba's cache
    started = run(folder, data, bundle, 1, threads=1)
    show(figures, "start: until the first study begins to be predicted, wall", started["first"] - started["study"])
    show(figures, "start: the whole command with one study, CPU", started["cpu"])
    chain = json.loads(python("--inside", data, bundle, threads=1))
    for stage, seconds in chain["stages"].items():
        show(figures, f"a study, one thread: {stage}, wall", seconds)
    show(figures, "a study, one thread: CPU in networks", chain["networks"])
    show(figures, "a study, one thread: CPU outside networks", chain["outside"], "at most 0.5")
    show(figures, "a study: GFLOP in networks", chain["flops"] / 1e9)
    one = run(folder, data, bundle, 2 if few else 7, threads=1)
    two = run(folder, data, bundle, 4 if few else 12, workers=2)
    show(figures, "one worker, one thread: a study", one["each"])
    show(figures, "two workers, one thread each: a study", two["each"])
    show(figures, "two workers against one", one["each"] / two["each"], "at least 1.7 on two idle cores")
    show(figures, "memory of a worker of its own, MB", two["private"])
    show(figures, "memory that workers share, MB", two["shared"])
    if not few:
        beside(figures, folder, data, bundle, two["each"])
    for cores in (4, 16):
        show(figures, f"predicted: a study on {cores} idle cores, {cores} workers", one["each"] / cores)
    project(figures, chain)
    return figures


def in_flight(folder: Path, arguments: argparse.Namespace) -> dict:
    """Wall time of one and of two studies in flight against their passes alone, on a fake GPU."""
    os.environ.update(environment(1))  # torch is loaded into this process
    from fake_gpu import measure

    n_unlike, n_studies = (1, 4) if arguments.tiny else (4, 16)
    data = repeated(arguments.data or phantoms(folder / "phantoms", n_unlike), folder / "data", n_studies)
    bundle = arguments.weights or demo_bundle(folder / "bundle")
    got = measure(data, bundle, arguments.fake_gpu, n_unlike, n_studies)
    figures: dict = {"cores": len(os.sched_getaffinity(0)), "load": got["load"]}
    print(
        f"{figures['cores']} cores, load {figures['load']:.1f}; {n_studies} studies; seconds unless they say otherwise"
    )
    show(figures, "a study: passes alone, wall", got["passes 2"])
    show(figures, "a study: CPU outside networks, without reading", got["cpu"])
    for count, aim in ((1, ""), (2, "at most 1.10")):
        show(figures, f"{count} in flight: a study, wall", got[f"wall {count}"])
        show(figures, f"{count} in flight: wall against passes", got[f"wall {count}"] / got[f"passes {count}"], aim)
        show(figures, f"{count} in flight: the same worked out for one idle core", got[f"idle {count}"], aim)
    show(figures, "answers of both have the same bits", got["same"], "1", digits=0)
    return figures


def on_gpu(folder: Path, arguments: argparse.Namespace) -> dict:
    """Wall time of runs on a real GPU, by the number of studies in flight, against their passes alone."""
    os.environ.update(environment(1))
    import torch
    from gpu_chain import measure

    if not torch.cuda.is_available():
        sys.exit("chain.py --gpu: found no CUDA device, expected one")

    n_unlike, n_studies = (2, 6) if arguments.tiny else (2, 24)
    data = repeated(arguments.data or phantoms(folder / "phantoms", n_unlike), folder / "data", n_studies)
    bundle = arguments.weights or demo_bundle(folder / "bundle")
    counts = [1, 2, 4]
    got = measure(data, bundle, n_unlike, n_studies, counts)
    figures: dict = {name: got[name] for name in ("gpu", "load", "n_passes")}
    print(f"{got['gpu']}, {len(os.sched_getaffinity(0))} cores, load {got['load']:.1f}; {n_studies} studies; seconds")
    show(figures, "a study: passes alone, wall", got["passes"], digits=3)
    show(figures, "a study: number of passes", got["n_passes"])
    for count in counts:
        show(figures, f"{count} in flight: a study, wall", got[f"wall {count}"], digits=3)
        show(figures, f"{count} in flight: wall against passes", got[f"wall {count}"] / got["passes"], "at most 1.10")
        show(figures, f"{count} in flight: CPU outside passes, a study", got[f"cpu {count}"], digits=3)
    show(figures, "largest difference of a probability between them", got["differ"], digits=6)
    show(figures, "peak of GPU memory, GiB", got["peak GiB"])
    return figures


def beside(figures: dict, folder: Path, data: Path, bundle: Path, idle: float) -> None:
    """The same beside one process that never rests, and the arrangement of one worker with a thread a core."""
    threads = run(folder, data, bundle, 4, workers=1)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            two = run(folder, data, bundle, 8, workers=2)
            threads_busy = run(folder, data, bundle, 3, workers=1)
        finally:
            busy.kill()
    show(figures, "two workers beside one busy process: a study", two["each"])
    show(figures, "beside one busy process against idle", two["each"] / idle, "at most 2.2")
    show(figures, "one worker with a thread a core: a study", threads["each"])
    show(figures, "one worker with a thread a core beside one busy process: a study", threads_busy["each"])


def project(figures: dict, chain: dict) -> None:
    """Hours of the hidden test on two T4, from the operations counted and the CPU seconds measured."""
    from lumbar.competitions.lumbar_spine import COMPETITION
    from lumbar_train.pipeline.machines import T4

    hours = [
        COMPETITION.hidden_studies / 2 * (factor * chain["flops"] / T4.rate + chain["outside"]) / 3600
        for factor in (1 / T4_ERROR, 1.0, T4_ERROR)
    ]
    show(figures, f"projected: hours of {COMPETITION.hidden_studies} studies on 2 x T4", hours[1], digits=3)
    print(
        f"{'':4}{hours[0]:.3f} to {hours[2]:.3f}: a T4's rate is known to a factor of {T4_ERROR:g}, one after the other"
    )
    figures["projected hours, low and high"] = [hours[0], hours[2]]


def show(figures: dict, name: str, value: float, aim: str = "", digits: int = 2) -> None:
    figures[name] = value
    print(f"{name:<78} {value:8.{digits}f}{f'   aim: {aim}' if aim else ''}", flush=True)


def demo_bundle(folder: Path) -> Path:
    shutil.copytree(PROJECT / "weights" / "demo", folder / "weights")
    shutil.copy(PROJECT / "weights_manifest.json", folder)
    return folder


def phantoms(folder: Path, count: int) -> Path:
    command = [sys.executable, "-m", "lumbar_phantom", "--out", folder, "--studies", count, "--seed", 31]
    subprocess.run([*map(str, command), "--split", "test"], check=True, capture_output=True, env=environment(1))
    return folder


def repeated(source: Path, folder: Path, count: int) -> Path:
    """A competition folder of ``count`` studies, which are links to those of another."""
    import pandas as pd

    table = pd.read_csv(source / "test_series_descriptions.csv")
    ids = list(dict.fromkeys(table["study_id"]))
    rows = []
    (folder / "test_images").mkdir(parents=True)
    for number in range(count):
        own = ids[number % len(ids)]
        (folder / "test_images" / str(number + 1)).symlink_to((source / "test_images" / str(own)).resolve())
        rows.append(table[table["study_id"] == own].assign(study_id=number + 1))
    pd.concat(rows).to_csv(folder / "test_series_descriptions.csv", index=False)
    return folder


def tiny_study(folder: Path) -> Path:
    """One study of three small series, with noise in them."""
    import numpy as np
    import pandas as pd

    from series_writer import AXIAL, SAGITTAL, write

    rng = np.random.default_rng(0)
    for series_id, kind in enumerate(KINDS, 1):
        for number in range(1, 6):
            place = (0.0, -60.0, 6.0 * number) if kind == "Axial T2" else (6.0 * number, -60.0, 60.0)
            write(
                folder / "test_images" / "1" / str(series_id), number, position=place, spacing=(3.0, 3.0),
                orientation=AXIAL if kind == "Axial T2" else SAGITTAL, pixels=rng.integers(0, 999, (48, 48), np.uint16),
            )  # fmt: skip
    table = pd.DataFrame([(1, series_id, kind) for series_id, kind in enumerate(KINDS, 1)])
    table.to_csv(
        folder / "test_series_descriptions.csv", index=False, header=["study_id", "series_id", "series_description"]
    )
    return folder


def environment(threads: int | None) -> dict[str, str]:
    """The variables of a child: ``threads`` CPU threads, None for the choice of the libraries."""
    values = {name: value for name, value in os.environ.items() if name not in THREADS}
    return values if threads is None else values | dict.fromkeys(THREADS, str(threads))


def python(*arguments: object, threads: int | None = None) -> str:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment(threads)).stdout


def run(
    folder: Path, data: Path, bundle: Path, n_studies: int, *, workers: int = 1, threads: int | None = None
) -> dict:
    """One command ``predict``: seconds until the first answer, a study's own and those that it adds, CPU, memory."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["--data", data, "--weights", bundle, "--out", out / "s.csv", "--record", out / "r.json"]
    arguments += ["--studies", n_studies, "--workers", workers, "--time-limit", "none"]
    before, began, first = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    command = [sys.executable, "-m", "lumbar", "predict", *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment(threads), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as child:
        memory: list[tuple[float, float]] = []
        looked = began
        while child.poll() is None:
            time.sleep(POLL_S)
            if not first and answered(out):
                first = time.perf_counter() - began
            if time.perf_counter() - looked > LOOK_S:  # it costs the system a walk through all pages
                memory = max(memory, memory_of(child.pid), key=lambda each: sum(own for own, _ in each))
                looked = time.perf_counter()
        if child.returncode:
            sys.exit(child.stderr.read().decode())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    each = [study["seconds"] for study in json.loads((out / "r.json").read_text())["studies"]]
    steady = each[workers:] or each  # the first of each worker warms it up
    return {
        "first": first,
        "study": each[0],
        "each": mean(steady) / workers,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "private": mean(own for own, _ in memory) if memory else 0.0,
        "shared": mean(shared for _, shared in memory) if memory else 0.0,
    }


def answered(out: Path) -> int:
    """Studies in the journal."""
    journal = out / "s.csv.journal"
    return journal.read_bytes().count(b'{"study"') if journal.is_file() else 0


def memory_of(pid: int) -> list[tuple[float, float]]:
    """MB of each worker process of a run: its own, and what it has together with others."""
    sizes = []
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()[1:]
                kb = {line.split(":")[0]: float(line.split()[1]) for line in lines}
                own = kb["Private_Clean"] + kb["Private_Dirty"]
                sizes.append((own / 1024, (kb["Rss"] - own) / 1024))
    except (OSError, KeyError):  # it has just ended
        return []
    return sizes


def inside(data: Path, bundle: Path) -> dict:
    """In a process with one thread: seconds by stage, CPU inside and outside networks, operations of a study."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lumbar.bundle.manifest import verify
    from lumbar.chains import main as chain
    from lumbar.competitions.tables import read_studies
    from lumbar.workers.budget import Effort
    from lumbar.workers.own_process import keep_memory

    keep_memory()  # as a worker does
    torch.set_num_threads(1)
    manifest = verify(bundle)
    networks = chain.load(manifest, "cpu")
    in_networks = [0.0]

    def timed(forward):
        def call(*arguments, **options):
            started = time.process_time()
            try:
                return forward(*arguments, **options)
            finally:
                in_networks[0] += time.process_time() - started

        return call

    for folds in networks.by_stage.values():
        for network in folds:
            network.forward = timed(network.forward)
    table = read_studies(data, "test", manifest.competition)
    prior = np.array([manifest.prior[key] for key in manifest.competition.keys])
    ids = list(dict.fromkeys(table.frame["study_id"]))[:5]
    stages: dict[str, list[float]] = {}
    networks_s, outside_s = [], []
    for number, study_id in enumerate(ids):
        in_networks[0], cpu, wall = 0.0, time.process_time(), time.perf_counter()
        study = chain.read(data, "test", study_id, table.frame, 1)
        seconds = {"read": time.perf_counter() - wall}
        seconds |= chain.predict(study, networks, prior, Effort.FULL).seconds
        if number or len(ids) == 1:  # the first one warms up
            networks_s.append(in_networks[0])
            outside_s.append(time.process_time() - cpu - in_networks[0])
            for name, value in seconds.items():
                stages.setdefault(name, []).append(value)
    with FlopCounterMode(display=False) as flops:
        chain.predict(study, networks, prior, Effort.FULL)
    return {
        "stages": {name: mean(values) for name, values in stages.items()},
        "networks": mean(networks_s),
        "outside": mean(outside_s),
        "flops": flops.get_total_flops(),
    }


def flat(folder: Path, n_studies: int) -> dict:
    """Memory of run and workers through many tiny studies: the first and the last tenth (at most hundred) of them."""
    sys.path.insert(0, str(PROJECT / "tests" / "support"))
    from kernel_untrained import write_untrained_bundle

    bundle = write_untrained_bundle(folder / "bundle")
    data = repeated(tiny_study(folder / "one"), folder / "data", n_studies)
    out, samples = folder / "out", []
    command = ["--data", data, "--weights", bundle, "--out", out / "s.csv", "--time-limit", "none", "--workers", 2]
    command = [sys.executable, "-m", "lumbar", "predict", *map(str, command)]
    with subprocess.Popen(command, env=environment(1), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            time.sleep(LOOK_S)
            workers = memory_of(child.pid)
            if len(workers) == 2:
                done = answered(out)
                own = float(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
                samples.append((done, own, mean(size for size, _ in workers)))
    few, figures = min(100, n_studies // 10), {}
    for name, column in (("the run", 1), ("a worker", 2)):
        first = [sample[column] for sample in samples if few / 2 <= sample[0] <= few]
        last = [sample[column] for sample in samples if sample[0] >= n_studies - few]
        show(figures, f"memory of {name}, MB, first {few} of {n_studies} studies", mean(first))
        show(figures, f"memory of {name}, MB, last {few}", mean(last))
        show(figures, f"memory of {name}: growth, %", 100 * (mean(last) / mean(first) - 1), "at most 5")
    return figures


if __name__ == "__main__":
    main()
