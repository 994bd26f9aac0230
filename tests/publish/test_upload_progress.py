"""What an upload shows: the client's lines as they are, its bars no more often than those of other commands."""

import io

from lumbar_publish.kaggle.upload_progress import UploadProgress

BAR = "\r{percent:3d}%|{blocks}| {done:.2f}M/5.00M [00:0{second}<00:00, 1.2MB/s]"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fed(stream):
    shown = UploadProgress(stream)
    shown.feed("out", "Starting upload for file weights.zip\n")
    for k in range(0, 501):
        text = BAR.format(percent=k // 5, blocks="\u2588" * (k // 50), done=k / 100, second=k // 56)
        half = len(text) // 2  # streams come in pieces
        shown.feed("err", text[:half])
        shown.feed("err", text[half:])
    shown.feed("err", "\n")
    shown.feed("out", "Upload successful: weights.zip (5MB)\nlast line without an end")
    shown.close()
    return stream.getvalue()


def test_where_there_is_no_terminal_the_lines_of_the_client_are_left():
    assert fed(io.StringIO()).splitlines() == [
        "Starting upload for file weights.zip", "Upload successful: weights.zip (5MB)", "last line without an end",
    ]  # fmt: skip


def test_on_a_terminal_there_is_one_bar_with_the_file_and_its_size():
    shown = fed(Terminal())
    assert "upload of weights.zip: " in shown
    assert "5120 of 5120 kilobytes" in shown
    assert "00:00" not in shown
    assert shown.index("5120 of 5120") < shown.index("Upload successful")


def test_a_secret_that_comes_in_two_pieces_is_hidden(monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "abcdef0123456789")
    stream = io.StringIO()
    shown = UploadProgress(stream)
    shown.feed("err", "PUT failed: key abcdef01")
    shown.feed("err", "23456789\n")
    shown.close()
    assert "PUT failed: key " in stream.getvalue()
    assert "abcdef01" not in stream.getvalue()
