"""Weights that the workers of a run have together."""

import os
import subprocess
import sys

import pytest
import torch

from kernel_untrained import write_untrained_bundle
from lumbar.bundle import weights
from lumbar.bundle.manifest import verify
from lumbar.bundle.probes import check_probes
from lumbar.bundle.shared_memory import SharedWeights, can_share
from lumbar.bundle.weights import load_networks, use_shared
from lumbar.errors import ManifestError

pytestmark = pytest.mark.skipif(not can_share(), reason="no memory without a name here")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return verify(write_untrained_bundle(tmp_path_factory.mktemp("shared") / "bundle"))


@pytest.fixture
def shared(manifest):
    memory = SharedWeights(manifest)
    use_shared(memory)
    yield memory
    use_shared(None)
    memory.close()


def tensors(networks):
    return {
        (stage, name): tensor
        for stage, folds in networks.by_stage.items()
        for name, tensor in folds[0].state_dict().items()
    }


def test_networks_in_shared_memory_are_the_same_bits_and_pass_their_probes(manifest, shared):
    together = load_networks(manifest.folder, manifest)
    check_probes(together, manifest)
    use_shared(None)
    alone = tensors(load_networks(manifest.folder, manifest))
    for key, tensor in tensors(together).items():
        assert torch.equal(tensor, alone[key]), key
        assert tensor.dtype == alone[key].dtype


def test_the_second_worker_reads_no_file(manifest, shared, monkeypatch):
    first = tensors(load_networks(manifest.folder, manifest))
    monkeypatch.setattr(weights, "load_file", None)
    use_shared(SharedWeights(manifest, os.dup(shared.handle)))
    second = tensors(load_networks(manifest.folder, manifest))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_a_worker_that_fails_while_it_fills_the_memory_leaves_the_place_to_the_next(manifest, shared, monkeypatch):
    def fail(path):
        raise OSError("Input/output error")

    whole = weights.load_file
    monkeypatch.setattr(weights, "load_file", fail)
    with pytest.raises(ManifestError, match="Input/output error"):
        load_networks(manifest.folder, manifest)
    monkeypatch.setattr(weights, "load_file", whole)
    check_probes(load_networks(manifest.folder, manifest), manifest)


def test_weights_that_do_not_go_into_the_memory_are_the_workers_own(manifest, shared):
    shared._places = {file: (number, start, 0) for file, (number, start, _) in shared._places.items()}
    check_probes(load_networks(manifest.folder, manifest), manifest)


WORKER = """
import gc
import sys
from lumbar.bundle.manifest import verify
from lumbar.workers.libraries import import_libraries
from lumbar.chains.registry import modules_of
from lumbar.workers.worker import share_weights
manifest = verify(sys.argv[1])
import_libraries(modules_of("main", manifest))
share_weights(manifest, int(sys.argv[2]))
from lumbar.chains import main
networks = main.load(manifest, "cpu")
print(sorted({"torchvision", "torch._dynamo", "sympy", "timm.data", "scipy.linalg"} & set(sys.modules)))
weight = next(networks.stage("sagittal_xy")[0].parameters())
place = weight.data_ptr()
regions = [line.split() for line in open("/proc/self/maps")]
ends = [(*(int(word, 16) for word in words[0].split("-")), words[1], words[5:]) for words in regions]
print([(rights, *name) for low, high, rights, name in ends if low <= place < high])
import timm, torchvision, scipy.linalg
from timm.data import create_transform
from timm.layers import create_feature_extractor
print(torchvision.models.resnet18.__name__, create_transform.__name__, scipy.linalg.norm.__name__, gc.isenabled())
import torch.fx
print(isinstance(create_feature_extractor(torchvision.models.resnet18(), ["layer1"]), torch.fx.GraphModule))
"""


def test_a_worker_imports_no_compiler_and_cannot_write_to_the_weights_of_all(manifest, shared):
    """Its libraries come without torchvision and scipy.linalg, which are there for whoever asks afterwards."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(manifest.folder), str(shared.handle)],
        env=environment, pass_fds=[shared.handle], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules, region, names, extractor = done.stdout.splitlines()
    assert modules == "[]"
    assert region == "[('r--s', '/memfd:lumbar-weights', '(deleted)')]"
    assert names == "resnet18 create_transform norm True"
    assert extractor == "True"
