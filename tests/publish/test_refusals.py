"""Every call of every step refused with every status: exit 1 and one line, and the next try goes through."""

from __future__ import annotations

import pytest

from lumbar_publish.names import Layout
from publish.conftest import Publish, error_line
from publish.kaggle_server import USER, KaggleServer

KERNEL = f"{USER}/lumbar-kit-submission"

ADVICE = {
    401: "refused the credentials in KAGGLE_KEY",
    403: "not allowed|accept the rules|failed half-way",
    404: "not there|failed half-way|lists no such",
    429: "wait some minutes|failed half-way",
    500: "run this again later|failed half-way",
}


def refused(kaggle: KaggleServer, run: Publish, step: str, method: str, status: int) -> None:
    # Words that tell nothing; the client tries uploads up to ten times.
    kaggle.refuse(method, status, "nope", times=12)
    code, out, err = run(step)
    line = error_line(err)
    assert code == 1, out + err
    assert any(words in line for words in ADVICE[status].split("|")), line
    kaggle.fail.clear()
    code, out, err = run(step)
    assert code == 0, out + err


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 429, 500])
@pytest.mark.parametrize("method", ["StartBlobUpload", "CreateDatasetVersion", "ListDatasetFiles"])
def test_dataset(
    kaggle: KaggleServer, published: str, publish: Publish, layout: Layout, method: str, status: int
) -> None:
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    refused(kaggle, publish, "dataset", method, status)


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 429, 500])
def test_notebook_that_cannot_be_looked_at(kaggle: KaggleServer, published: str, publish: Publish, status: int) -> None:
    refused(kaggle, publish, "kernel", "GetKernel", status)
    assert len(kaggle.kernels[KERNEL].versions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("method", ["SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"])
def test_kernel(kaggle: KaggleServer, published: str, publish: Publish, method: str, status: int) -> None:
    refused(kaggle, publish, "kernel", method, status)
    assert len(kaggle.kernels[KERNEL].versions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("method", ["CreateCodeSubmission", "ListSubmissions"])
def test_submit(kaggle: KaggleServer, checked: None, publish: Publish, method: str, status: int) -> None:
    refused(kaggle, publish, "submit", method, status)
    assert len(kaggle.submissions) == 1
