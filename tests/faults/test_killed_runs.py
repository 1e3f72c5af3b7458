"""Runs that are killed go on as if nothing had happened, and no kill leaves half a checkpoint: the benchmark, in small."""

import importlib
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

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHODS = ("BradleyTerryRM", "DPRM", "PAL", "EnsembleVoteRM", "MetaRM", "PolicyTuner")


@pytest.fixture(scope="module")
def benchmark():
    """A module of the folder of benchmarks, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_method_of_each_family_is_killed(benchmark):
    assert tuple(benchmark("killed_recipes").METHODS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_one_that_was_left_alone(benchmark, method, tmp_path):
    runs = benchmark("killed_runs").runs_of(method, 2, tmp_path, random.Random(method))
    assert [run.differs for run in runs] == [[], []]


@pytest.mark.parametrize("method", METHODS)
def test_so_does_one_of_two_ranks_all_or_one_of_which_are_killed(benchmark, method, tmp_path):
    runs = benchmark("killed_runs").runs_of(method, 2, tmp_path, random.Random(method), ranks=2)
    assert [(run.victim, run.differs) for run in runs] == [("all", []), ("first", [])]
    assert runs[0].outlived is None and runs[1].outlived is not None


def test_no_kill_leaves_half_a_checkpoint(benchmark, tmp_path):
    killed = benchmark("killed")
    with killed.temporary_folder(killed.OTHER_DISK):
        assert killed.unreadable_after(AtomicCheckpointIO(), 10, tmp_path, random.Random(0)) == 0


def test_a_chain_that_is_killed_ends_as_one_that_was_left_alone(benchmark, tmp_path):
    chains = benchmark("killed_chain").chains(1, tmp_path, random.Random(0))
    assert [(chain.stage, chain.differs) for chain in chains] == [("general", []), ("customized", [])]
