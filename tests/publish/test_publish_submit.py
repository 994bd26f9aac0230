"""The submission's step: refusals, the list of submissions, and scoring."""

from __future__ import annotations

import pytest

from lumbar_publish.names import COMPETITION
from publish.conftest import Publish, error_line
from publish.kaggle_server import KaggleServer


def test_submission_that_kaggle_refuses(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.refuse("CreateCodeSubmission", 400, "Submission not allowed: daily limit reached")
    code, _, err = publish("submit")
    assert code == 1
    assert "daily limit reached" in error_line(err)
    assert publish("submit")[0] == 0
    assert len(kaggle.submissions) == 1


@pytest.mark.parametrize("shown", ["", "first t"])
def test_submission_whose_description_is_not_listed(
    kaggle: KaggleServer, checked: None, publish: Publish, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    listed = kaggle.on_ListSubmissions
    monkeypatch.setattr(
        kaggle,
        "on_ListSubmissions",
        lambda request: {"submissions": [row | {"description": shown} for row in listed(request)["submissions"]]},
    )
    for _ in range(2):
        code, out, err = publish("submit")
        assert code == 0, out + err
        assert "public score 0.355" in out
    assert len(kaggle.submissions) == 1


def test_competition_whose_rules_are_not_accepted(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.refuse("CreateCodeSubmission", 403, "nope")
    code, _, err = publish("submit")
    assert code == 1
    assert f"accept the rules on kaggle.com/competitions/{COMPETITION}/rules" in error_line(err)


def test_submission_that_fails_in_scoring(kaggle: KaggleServer, checked: None, publish: Publish) -> None:
    kaggle.submission_status = "ERROR"
    code, _, err = publish("submit")
    assert code == 1
    assert "ended with" in error_line(err)
    assert f"kaggle.com/competitions/{COMPETITION}/submissions" in err
