"""Training on Kaggle: session after session until the run is whole, with the real client and a training in no time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lumbar_publish.names import Layout
from lumbar_publish.training import command
from publish.conftest import error_line
from publish.kaggle_machines import Machines
from publish.kaggle_server import KEY, USER, KaggleServer
from publish.stub_trainer import write_trainer

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "lumbar-train-demo"
Train = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repository(layout: Layout) -> Path:
    """The tiny repository, with a training beside the kernel."""
    write_trainer(layout.root)
    for file in ("constraints-kaggle.txt", "constraints-kaggle-next.txt"):
        shutil.copy(REPOSITORY / file, layout.root / file)
    return layout.root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A competition folder; ``fits.txt`` tells the training in how many sessions, ``does.txt`` what to do wrong."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "fits.txt").write_text("2")
    (folder / "train.csv").write_text("study_id\n1\n")
    return folder


@pytest.fixture
def machines(kaggle: KaggleServer, tmp_path: Path, data: Path) -> Machines:
    return Machines(kaggle, tmp_path / "machines", data)


@pytest.fixture
def train(repository: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Run ``python -m lumbar_publish train``: exit code, output, errors."""

    def run(*arguments: str, recipe: str = "demo") -> tuple[int, str, str]:
        words = ["--recipe", recipe, "--root", str(repository), "--out", str(repository / "runs" / "mine")]
        code = command.main([*words, *arguments])
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


def pushed(kaggle: KaggleServer) -> dict[str, int]:
    """Versions of each notebook, by its slug."""
    return {name.partition("/")[2]: len(kernel.versions) for name, kernel in kaggle.kernels.items()}


def test_a_run_of_three_sessions_comes_home_whole(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path, data: Path
) -> None:
    (data / "fits.txt").write_text("3")
    code, out, err = train("--set", "axial_all.size=96", "--wait")
    assert code == 0, out + err
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 1, f"{NAME}-3": 1}
    assert out.index("session 1: time limit") < out.index("session 2: time limit") < out.index("session 3: whole")
    assert out.count("quota: 12.5") >= 3
    run = repository / "runs" / "mine"
    assert [path.read_text() for path in sorted((run / "axial_all").iterdir())] == [
        f"{index} demo ['axial_all.size=96']" for index in range(3)
    ]
    assert json.loads((run / "session.json").read_text())["sessions"] == 3
    assert f"seal it: python build_dataset.py --run {run} --owner {USER}" in out
    last = kaggle.kernels[f"{USER}/{NAME}-3"].versions[0]
    assert last["kernelDataSources"] == [f"{USER}/{NAME}-2"]
    assert last["isPrivate"] is True
    assert last["machineShape"] == "NvidiaTeslaT4"
    assert not last.get("enableInternet")
    assert "jobs=2" in last["text"]
    again = train("--set", "axial_all.size=96")
    assert again[0] == 0, again
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 1, f"{NAME}-3": 1}


def test_each_call_goes_one_step_further_and_never_pushes_twice(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path
) -> None:
    code, out, err = train()
    assert code == 0, out + err
    assert "session 1 (notebook tester/lumbar-train-demo-1 version 1): at work on Kaggle" in out
    for file in ("notes.json", "session-1"):  # notes that are lost cost questions, no session
        path = repository / "dist" / "train" / NAME / file
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    code, out, err = train()
    assert code == 0, out + err
    assert "this very one: not pushed again" in out
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 1}
    assert train()[0] == 0
    assert (repository / "runs" / "mine" / "export").is_dir()
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 1}


def test_a_session_that_failed_is_gone_on_from_where_it_left_its_run(
    kaggle: KaggleServer, machines: Machines, train: Train, data: Path
) -> None:
    (data / "does.txt").write_text("failed")
    code, _, err = train("--wait")
    assert code == 1
    assert "training failed: lumbar_train: axial_all, fold 1: the loss is not a number: mend that" in error_line(err)
    (data / "does.txt").unlink()
    code, out, err = train("--wait")
    assert code == 0, out + err
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 1}


def test_a_session_that_kaggle_cancelled_is_begun_anew_and_the_one_before_stays(
    kaggle: KaggleServer, machines: Machines, train: Train
) -> None:
    machines.endings = ["", "CANCEL_ACKNOWLEDGED"]
    kaggle.failure_message = "Your notebook was stopped: more than 12 hours"
    code, _, err = train("--wait")
    line = error_line(err)
    assert code == 1
    assert f"session 2 (notebook {USER}/{NAME}-2 version 1): ended with CANCEL_ACKNOWLEDGED" in line
    assert "it left nothing to go on from (found no evidence.json, expected one), so what it trained is lost" in line
    assert "what session 1 left stays; run this again to begin session 2 anew" in line
    code, out, err = train("--wait")
    assert code == 0, out + err
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 2}


@pytest.mark.parametrize("is_mounted", [True, False])
def test_the_output_of_a_session_that_kaggle_ended_is_gone_on_from_where_it_was_kept(
    kaggle: KaggleServer, machines: Machines, train: Train, data: Path, repository: Path, is_mounted: bool
) -> None:
    (data / "fits.txt").write_text("3")
    train()
    (data / "does.txt").write_text("ended by Kaggle")
    machines.endings, machines.keeps = ["CANCEL_ACKNOWLEDGED"], True
    code, _, err = train("--wait")
    line = error_line(err)
    assert code == 1
    assert f"session 2 (notebook {USER}/{NAME}-2 version 1): ended with CANCEL_ACKNOWLEDGED" in line
    assert "its output was kept and holds the run, interrupted after 0.0 hours; left: axial_all 1" in line
    assert "session 3 goes on from there" in line
    (data / "does.txt").unlink()
    machines.unmounted = set() if is_mounted else {f"{USER}/{NAME}-2"}
    code, out, err = train("--wait")
    assert code == 0, out + err
    # Kaggle says nowhere whether it hands such an output on, so the last one that ended in order goes along
    assert kaggle.kernels[f"{USER}/{NAME}-3"].versions[0]["kernelDataSources"] == [f"{USER}/{NAME}-{k}" for k in (2, 1)]
    assert ("session 3: went on from session 1: what was trained in between is lost" in out) is not is_mounted
    assert pushed(kaggle) == {f"{NAME}-{k}": 1 for k in range(1, 4 if is_mounted else 5)}
    assert len(list((repository / "runs/mine/axial_all").iterdir())) == 3


def test_a_run_that_a_session_had_copied_in_part_is_not_gone_on_from(
    kaggle: KaggleServer, machines: Machines, train: Train, data: Path
) -> None:
    train()
    (data / "does.txt").write_text("copied in part")
    machines.endings, machines.keeps = ["CANCEL_ACKNOWLEDGED"], True
    _, _, err = train("--wait")
    assert "(found no whole run folder, expected run/session.json), so what it trained is lost" in error_line(err)
    (data / "does.txt").unlink()
    assert train("--wait")[0] == 0
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 2}


def test_a_run_that_was_whole_when_kaggle_ended_its_session_comes_home(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path
) -> None:
    train()
    machines.endings, machines.keeps = ["ERROR"], True
    code, out, err = train("--wait")
    assert code == 0, out + err
    assert "it had come to its end, and its output was kept" in out
    assert (repository / "runs" / "mine" / "export").is_dir()


def test_an_output_without_a_run_folder_is_not_gone_on_from(
    kaggle: KaggleServer, machines: Machines, train: Train
) -> None:
    machines.change = lambda files: edit(files, files={})
    code, _, err = train("--wait")
    assert code == 1
    assert f"session 1 (notebook {USER}/{NAME}-1 version 1): found no run folder, expected run/" in error_line(err)
    machines.change = dict.clear
    code, _, err = train("--wait")
    assert "version 2): found no evidence.json, expected one" in error_line(err)


def edit(output: dict[str, bytes], **changes: object) -> None:
    """Change an output's evidence."""
    output["evidence.json"] = json.dumps(json.loads(output["evidence.json"]) | changes).encode()


def test_a_changed_recipe_is_refused_before_anything_is_sent(
    kaggle: KaggleServer, machines: Machines, train: Train
) -> None:
    assert train("--set", "axial_all.size=96")[0] == 0
    calls = kaggle.calls.copy()
    code, _, err = train("--set", "axial_all.size=64")
    assert code == 1
    line = error_line(err)
    assert "arguments: found --set axial_all.size=64, expected --set axial_all.size=96" in line
    assert f"the run {NAME} has begun; --name begins another" in line
    assert {name for name in kaggle.calls if kaggle.calls[name] != calls[name]} <= {"GetAcceleratorQuotaStatistics"}


def test_a_slip_in_an_option_costs_no_upload(kaggle: KaggleServer, machines: Machines, train: Train) -> None:
    code, _, err = train("--set", "axial.size=64")
    assert code == 1
    assert "--set axial.size=64: no such stage (did you mean axial_all?)" in error_line(err)
    code, _, err = train(recipe="demoo")
    assert "recipe 'demoo': unknown, expected one of demo, strong" in error_line(err)
    assert kaggle.calls["StartBlobUpload"] == 0


def test_code_that_changes_meanwhile_is_taken_only_when_asked_for(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path, data: Path
) -> None:
    (data / "fits.txt").write_text("3")
    train()
    (repository / "src" / "lumbar_train" / "more.py").write_text("X = 1\n")
    assert train()[0] == 0
    dataset = kaggle.datasets[f"{USER}/{NAME}-code"]
    assert len(dataset.versions) == 1
    code, out, err = train("--new-code", "--wait")
    assert code == 0, out + err
    assert len(dataset.versions) == 2
    assert "code/lumbar_train/more.py" in dataset.versions[1]
    assert pushed(kaggle) == {f"{NAME}-1": 1, f"{NAME}-2": 1, f"{NAME}-3": 1}


def test_a_session_that_finishes_nothing_is_not_followed_by_another(
    kaggle: KaggleServer, machines: Machines, train: Train, data: Path
) -> None:
    train()
    (data / "does.txt").write_text("stuck")
    code, _, err = train("--wait", "--hours", "2")
    assert code == 1
    assert "session 2: found nothing more than session 1 left, after 2 hours: give --hours more" in error_line(err)
    (data / "does.txt").unlink()
    assert train("--wait", "--hours", "3")[0] == 0


def test_the_plain_client_takes_what_is_written(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path
) -> None:
    code, out, err = train("--no-push", "--owner", USER)
    assert code == 0, out + err
    assert kaggle.requests == []
    folder = repository / "dist" / "train-kernel"
    assert f"kaggle kernels push -p {folder}" in out
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    dataset = ["datasets", "create", "-p", str(repository / "dist" / "train" / NAME / "dataset"), "--dir-mode", "zip"]
    for words in (dataset, ["kernels", "push", "-p", str(folder)]):
        words = [sys.executable, "-m", "kaggle", *words]
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=600)
    code, out, err = train("--owner", USER)
    assert code == 0, out + err
    assert "this very one: not pushed again" in out
    assert len(kaggle.datasets[f"{USER}/{NAME}-code"].versions) == 1


def test_weights_are_fetched_with_internet_or_go_along(
    kaggle: KaggleServer, machines: Machines, train: Train, tmp_path: Path
) -> None:
    kaggle.allows_internet = True
    code, out, err = train("--name", "online-run", recipe="strong")
    assert code == 0, out + err
    assert "internet is on: weights of net are fetched" in out
    assert kaggle.kernels[f"{USER}/online-run-1"].versions[0]["enableInternet"] is True
    (tmp_path / "net.safetensors").write_bytes(b"weights")
    weights = ("--backbone-weights", f"net={tmp_path / 'net.safetensors'}")
    code, out, err = train("--name", "offline-run", *weights, recipe="strong")
    assert code == 0, out + err
    assert not kaggle.kernels[f"{USER}/offline-run-1"].versions[0].get("enableInternet")
    assert kaggle.datasets[f"{USER}/offline-run-code"].versions[0]["code/given/net.safetensors"] == b"weights"
    log = machines.outputs[f"{USER}/offline-run-1", 1]["train.log"].decode()
    assert "--backbone-weights net=" in log
    assert "/code/given/net.safetensors" in log


def test_a_file_that_arrives_damaged_is_fetched_again_or_named(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path, data: Path
) -> None:
    (data / "fits.txt").write_text("1")
    out_of = machines.output_of
    damaged = {"run/axial_all/0.safetensors": b"half"}
    kaggle.output_of = lambda kernel, number: out_of(kernel, number) | damaged  # type: ignore[method-assign]
    code, _, err = train("--wait")
    assert code == 1
    assert f"{NAME}-1 version 1: axial_all/0.safetensors did not arrive as the session left them" in error_line(err)
    assert not (repository / "runs" / "mine").exists()
    kaggle.output_of = out_of  # type: ignore[method-assign]
    code, out, err = train("--wait")
    assert code == 0, out + err
    assert pushed(kaggle) == {f"{NAME}-1": 1}


def test_a_run_folder_that_is_another_is_left_alone(
    kaggle: KaggleServer, machines: Machines, train: Train, repository: Path
) -> None:
    (repository / "runs" / "mine").mkdir(parents=True)
    code, _, err = train()
    assert code == 1
    assert "which is not this run, expected a folder that is not there yet" in error_line(err)
    assert pushed(kaggle) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hours", "12"), "--hours: found 12, expected 0.05 to less than 12"),
        (("--hours", "0"), "--hours: found 0, expected 0.05"),
        (("--hours", "nan"), "--hours: found nan, expected"),
        (("--accelerator", "TpuV5E8"), "--accelerator: found TpuV5E8, expected one with GPUs, or none"),
        (("--name", "Mine"), "--name: found 'Mine', expected 6 to 30 lower-case letters"),
        (("--points", "nowhere.csv"), "nowhere.csv: found no such file, expected one to take to Kaggle"),
        (("--wheels", "."), "--wheels: found no *.whl in ., expected some"),
        (("--owner", "your-kaggle-name"), "--owner NAME or KAGGLE_USERNAME"),
    ],
)
def test_options_that_cannot_be(kaggle: KaggleServer, train: Train, words: tuple[str, ...], message: str) -> None:
    code, _, err = train(*words)
    assert code == 1
    assert message in error_line(err)
    assert kaggle.calls["SaveKernel"] == 0


def test_no_gpu_time_left_is_said_before_kaggle_refuses(kaggle: KaggleServer, machines: Machines, train: Train) -> None:
    kaggle.gpu_hours = (30.0, 30.0)
    code, out, err = train()
    assert code == 1
    assert "Kaggle will refuse the push until then" in out
    assert "Maximum weekly GPU quota reached" in error_line(err)
