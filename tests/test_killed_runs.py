"""Runs that are killed go on as if nothing had happened, and no kill leaves half a checkpoint: the benchmark, in small."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from pluralign.callbacks import AtomicCheckpointIO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be forked"),
]


BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def benchmark(name):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as for a script that is run there
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def killed():
    """The benchmark of single runs."""
    return benchmark("killed")


@pytest.fixture(scope="module")
def killed_chain(killed):
    """The benchmark of chains of stages, which uses the one of single runs."""
    return benchmark("killed_chain")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["BradleyTerryRM", "DPRM", "PAL"])
def test_a_killed_run_ends_as_one_that_was_left_alone(killed, method, tmp_path):
    runs = killed.runs_of(method, 2, tmp_path, random.Random(method))
    assert [run.differs for run in runs] == [[], []]


def test_no_kill_leaves_half_a_checkpoint(killed, tmp_path):
    with killed.temporary_folder(killed.OTHER_DISK):
        assert killed.unreadable_after(AtomicCheckpointIO(), 10, tmp_path, random.Random(0)) == 0


def test_a_chain_that_is_killed_ends_as_one_that_was_left_alone(killed_chain, tmp_path):
    chains = killed_chain.chains(1, tmp_path, random.Random(0))
    assert [(chain.stage, chain.differs) for chain in chains] == [("general", []), ("customized", [])]
