"""Kaggle's own words in what the client prints, and the client's advice below them."""

from __future__ import annotations

import pytest

from lumbar_publish.kaggle.reply import Reply, Trouble, split_message

NOT_FOUND = (
    "The resource was not found. Check the spelling of the reference you passed.\n"
    "References are usually '<owner>/<slug>', which you can find in the resource's URL.\n"
    "To search for one, try 'kaggle search <query>'.\n"
)
REPORT = (
    "If this is unexpected, you can re-run with `kaggle --debug [command]` to see the full\n"
    "traceback. If you think this is a bug, please report it at https://github.com/Kaggle/kaggle-cli/issues\n"
)
RETRY = "Request failed: 429 Client Error: Too Many Requests. Will retry in 0.9 seconds\n"
BAR = "\r  0%|          | 0.00/404 [00:00<?, ?B/s]\r100%|##########| 404/404 [00:00<00:00, 500B/s]\n"
RETIRED = "⚠ Warning: 'NvidiaTeslaP100' is retired.\n"


@pytest.mark.parametrize(
    ("err", "out", "message", "hint"),
    [
        (f"Dataset not found\n\n{NOT_FOUND}", "", "Dataset not found", NOT_FOUND),
        (f"{RETRY}{RETRY}Too Many Requests\n\nWait a little.\n", "", "Too Many Requests", "Wait a little."),
        (f"{BAR}Upload unsuccessful: weights.zip\n", "Starting upload", "Upload unsuccessful: weights.zip", ""),
        (f"{RETIRED}Title must be at least five characters\n", "", "Title must be at least five characters", ""),
        (f"KeyError: 'error'\n\n{REPORT}", "", "KeyError: 'error'", REPORT),
        (
            "Submission 7 failed to score.\n  Error: Unexpected Column: 'a'\n  Required column 'b'\n",
            "Submission ref: 7\n",
            "Submission 7 failed to score. Error: Unexpected Column: 'a' Required column 'b'",
            "",
        ),
        ("", "Upload successful: a (404B)\nDataset creation error: taken\n", "Dataset creation error: taken", ""),
        ("", "Authentication required to call the Kaggle API.\n\nFirst, you\n", "Authentication required to", ""),
        ('Traceback (most recent call last):\n  File "x"\n\nImportError: no six\n', "", "ImportError: no six", ""),
        (f"Warning: your key is readable\n{BAR}", "", "nothing", ""),
        ("", "", "nothing", ""),
    ],
    ids=["hint", "retries", "bar", "warning", "bug", "lines", "exit 0", "no account", "traceback", "noise", "silence"],
)
def test_message_is_what_stands_before_the_first_blank_line(err: str, out: str, message: str, hint: str) -> None:
    message_line, advice = split_message(err, out)
    assert message_line.startswith(message)
    assert "search" not in message_line
    assert advice.split() == hint.split()


def test_hint_is_no_part_of_the_message_and_does_not_decide_the_kind() -> None:
    reply = Reply("kaggle kernels pull a/b", 1, "", f"Server says no\n\n{NOT_FOUND}", status=409)
    assert reply.trouble is Trouble.OTHER
    error = reply.error()
    assert str(error) == "kaggle kernels pull a/b: Server says no: see the line above, then run this again"
    assert error.hint.splitlines()[-1] == "To search for one, try 'kaggle search <query>'."


def test_a_client_that_was_ended_tells_of_what_it_tried() -> None:
    assert Reply("kaggle x", 1, "", f"{RETRY}\nno answer within 2 s", in_time=False).trouble is Trouble.LIMITED
    assert Reply("kaggle x", 1, "", "\nno answer within 2 s", in_time=False).trouble is Trouble.UNREACHABLE


@pytest.mark.parametrize(("status", "words"), [(403, "nope"), (400, "Bad Request")])
def test_submission_that_is_refused_names_the_rules(status: int, words: str) -> None:
    reply = Reply("kaggle competitions submit c -f submission.csv", 1, "", words, status)
    assert f"{words}: accept the rules on kaggle.com/competitions/" in str(reply.error())
