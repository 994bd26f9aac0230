"""The scripts of docs/torchrun.md, slurm.md, kubernetes.md and ray.md as they stand, on a chain without networks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar import __main__ as command
from lumbar.run import Collector, predict
from lumbar.workers.predictor import Predictor
from lumbar.workers.schedule import Schedule

EXAMPLES = Path(__file__).parents[2] / "examples"
# Python imports this at its start: the commands of ours then predict with the chain of the tests
SITE = """
import sys
if "lumbar" in sys.orig_argv:
    import kernel_fakes, lumbar.chains.registry
    lumbar.chains.registry.MAIN = kernel_fakes.FAKE
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort of which each of two parts has some, a bundle, and what one run writes."""
    folder = tmp_path_factory.mktemp("engines")
    root, bundle = write_cohort(folder / "data", {k: () for k in range(1, 7)}), write_bundle(folder / "bundle")
    predict(root, bundle, folder / "one.csv", chain=FAKE, processes=False)
    return root, bundle, (folder / "one.csv").read_bytes()


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    launchers = ("RANK", "WORLD_SIZE", "SLURM", "JOB_COMPLETION", "COVERAGE_PROCESS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    path = [str(tmp_path / "site"), *sys.path]
    return kept | {
        "PYTHONPATH": os.pathsep.join(path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]]),
    }


def joined(folder, n_parts=2):
    """The bytes of the merged parts in a folder."""
    parts = sorted(map(str, folder.glob(f"submission.*-of-{n_parts}.csv")))
    assert len(parts) == n_parts
    assert command.main(["merge", "--out", str(folder / "submission.csv"), *parts]) == 0
    return (folder / "submission.csv").read_bytes()


@pytest.mark.slow
def test_a_slurm_array_predicts_all_parts(cohort, environment, tmp_path):
    root, bundle, expected = cohort
    script = EXAMPLES / "slurm_array.sh"
    assert "#SBATCH --array=0-3" in script.read_text()
    environment |= {"DATA": str(root), "WEIGHTS": str(bundle), "OUT": str(tmp_path / "submission.csv")}
    for task in range(2):
        numbers = {"ID": task, "COUNT": 2, "MIN": 0, "MAX": 1, "STEP": 1}
        variables = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in numbers.items()}
        subprocess.run(["bash", script], env=environment | variables, check=True, capture_output=True, timeout=300)
    merge = EXAMPLES / "slurm_merge.sh"
    subprocess.run(["bash", merge], env=environment, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "submission.csv").read_bytes() == expected


@pytest.mark.slow
def test_torchrun_gives_each_process_its_part(cohort, environment, tmp_path):
    root, bundle, expected = cohort
    words = [
        EXAMPLES / "torchrun.sh",
        root,
        bundle,
        tmp_path / "submission.csv",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert joined(tmp_path) == expected


def test_a_kubernetes_job_predicts_all_parts(cohort, tmp_path, monkeypatch):
    root, bundle, expected = cohort
    job = yaml.safe_load((EXAMPLES / "kubernetes_job.yaml").read_text())
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][:3] == ["python", "-m", "lumbar"]
    assert f"auto/{job['spec']['completions']}" in container["args"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/data", "/weights", "/results"}
    places = {"/data": str(root), "/weights": str(bundle), "/results/submission.csv": str(tmp_path / "submission.csv")}
    words = [places.get(word, word) for word in [*container["command"][3:], *container["args"]]]
    monkeypatch.setattr("lumbar.chains.registry.MAIN", FAKE)
    monkeypatch.setattr("lumbar.run.Schedule.start", in_threads(Schedule.start))
    for index in range(job["spec"]["completions"]):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        assert command.main(words) == 0
    assert joined(tmp_path, job["spec"]["completions"]) == expected


def in_threads(start):
    """Workers as threads, which start at once."""
    return lambda self, devices, is_process: start(self, devices, False)


@pytest.mark.slow
def test_ray_data_predicts_on_a_pool_of_actors(cohort, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the optional extra of docs/ray.md")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import ray_predict
    finally:
        sys.path.remove(str(EXAMPLES))
    root, bundle, expected = cohort
    path = os.pathsep.join([str(EXAMPLES), *sys.path])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        for _ in range(2):  # the second time nothing is left
            ray_predict.main(str(root), str(bundle), str(tmp_path / "submission.csv"), "2", "0", FAKE)
    finally:
        ray.shutdown()
    assert (tmp_path / "submission.csv").read_bytes() == expected


def test_the_collector_and_a_predictor_do_what_a_run_does(cohort, tmp_path):
    """What examples/ray_predict.py is made of, without Ray."""
    root, bundle, expected = cohort
    predictor = Predictor(root, bundle, chain=FAKE)
    with Collector(root, bundle, tmp_path / "s.csv", chain=FAKE) as run:
        for study_id in run.left[:2]:
            run.add(predictor.text(study_id))
    with Collector(root, bundle, tmp_path / "s.csv", chain=FAKE) as run:
        assert run.left == [3, 4, 5, 6]
        for study_id in reversed(run.left):
            run.add(predictor.text(study_id))
    assert (tmp_path / "s.csv").read_bytes() == expected
