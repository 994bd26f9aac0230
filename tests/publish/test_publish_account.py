"""Accounts and connections that Kaggle refuses: exit 1, and one line that says what to do next."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lumbar_publish.cli import main
from lumbar_publish.kaggle import client
from lumbar_publish.names import Layout
from publish.conftest import Publish, error_line
from publish.kaggle_server import KEY, TOKEN, USER, KaggleServer


def test_placeholder_owner_is_refused(layout: Layout, competition: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sample", str(competition), "--owner", "your-kaggle-name", "--publish", "-m", "x"]
    assert main(layout, lambda folder: None, arguments) == 1
    assert "--owner NAME or KAGGLE_USERNAME" in error_line(capsys.readouterr().err)


def test_no_credentials(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    code, _, err = publish()
    assert code == 1
    assert "no Kaggle credentials: set KAGGLE_API_TOKEN" in error_line(err)


@pytest.mark.parametrize("place", ["variable", "file"])
def test_stale_token_that_shadows_a_good_key(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "variable":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    else:
        (Path.home() / ".kaggle" / "access_token").write_text(TOKEN)
    code, out, err = publish()
    line = error_line(err)
    assert code == 1
    assert "takes before the key in KAGGLE_KEY: remove or renew that token" in line
    assert ("KAGGLE_API_TOKEN" if place == "variable" else "~/.kaggle/access_token") in line
    assert TOKEN not in out + err
    assert KEY not in out + err


def test_good_token_alone_works(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.delenv("KAGGLE_KEY")
    kaggle.token_is_valid = True
    assert publish("dataset")[0] == 0


def test_wrong_key(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "f" * 32)
    code, _, err = publish()
    assert code == 1
    assert "Kaggle refused the credentials in KAGGLE_KEY (401): make new ones" in error_line(err)


def test_dataset_of_another_owner(kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    kaggle.refuse("CreateDataset", 403, "Permission 'datasets.create' was denied")
    code, _, err = publish("dataset")
    assert code == 1
    assert "check that the owner is your account" in error_line(err)


def test_server_that_cannot_be_reached(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.close()
    code, _, err = publish("dataset")
    assert code == 1
    assert "Kaggle cannot be reached" in error_line(err)
    assert "check the network" in err


@pytest.mark.own_process
def test_client_that_hangs_is_ended(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    kaggle.fail["GetDatasetStatus"] = [lambda _: time.sleep(3) or {}] * 3
    monkeypatch.setattr(client, "SHORT_S", 2.0)
    code, _, err = publish("dataset")
    assert code == 1
    assert "Kaggle cannot be reached" in error_line(err)
