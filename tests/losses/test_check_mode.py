"""Argument values are read in the first call of a module or step, not in those that follow."""

import threading
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pluralign.losses import (
    ArgumentChecksOnce,
    BradleyTerryLoss,
    CategoricalWassersteinLoss,
    SinkhornDivergenceLoss,
    argument_checks,
    bradley_terry_loss,
    categorical_wasserstein,
    sinkhorn_divergence,
)

GOOD, BAD = torch.zeros(1), torch.tensor([float("nan")])
READ = "_local_scalar_dense"  # a number that the host reads


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(call, *args):
    with Operations() as counted:
        call(*args)
    return counted.seen


def distributions(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, rows, 6, generator=generator, dtype=dtype).softmax(-1).unbind()


class TestModules:
    def test_the_first_call_is_checked_and_later_ones_are_not(self):
        module = BradleyTerryLoss()
        with pytest.raises(ValueError, match="chosen must be finite"):
            module(BAD, GOOD)
        with pytest.raises(ValueError, match="chosen must be finite"):
            module(BAD, GOOD)  # one that raises does not count
        module(GOOD, GOOD)
        assert module(BAD, GOOD).isnan()
        with pytest.raises(ValueError, match="chosen must be finite"):
            bradley_terry_loss(BAD, GOOD)

    def test_so_is_the_first_one_in_evaluation(self):
        module = BradleyTerryLoss()
        module(GOOD, GOOD)
        with pytest.raises(ValueError, match="chosen must be finite"):
            module.eval()(BAD, GOOD)

    def test_shapes_always_are(self):
        module = BradleyTerryLoss()
        module(GOOD, GOOD)
        with pytest.raises(ValueError, match="rejected must have the shape"):
            module(GOOD, torch.zeros(2))

    def test_who_asks_for_every_check_gets_it(self):
        module = BradleyTerryLoss()
        module(GOOD, GOOD)
        with argument_checks("always"), pytest.raises(ValueError, match="chosen"):
            module(BAD, GOOD)
        with argument_checks("never"):
            assert BradleyTerryLoss()(BAD, GOOD).isnan()


class TestBlocks:
    def test_inside_a_first_call_all_is_checked_and_inside_a_later_one_nothing(self):
        module, checks = BradleyTerryLoss(), ArgumentChecksOnce()
        module(GOOD, GOOD)
        with pytest.raises(ValueError, match="chosen"), checks.of("train"):
            module(BAD, GOOD)
        with checks.of("train"):
            pass
        with checks.of("train"), checks.of("another"):
            assert bradley_terry_loss(BAD, GOOD).isnan()
        with pytest.raises(ValueError, match="chosen"), checks.of("another"):
            bradley_terry_loss(BAD, GOOD)

    def test_reset_begins_anew(self):
        checks = ArgumentChecksOnce()
        with checks.of("train"):
            pass
        checks.reset()
        with pytest.raises(ValueError, match="chosen"), checks.of("train"):
            bradley_terry_loss(BAD, GOOD)

    def test_an_error_leaves_the_setting_as_it_was(self):
        checks = ArgumentChecksOnce()
        with checks.of("train"):
            pass
        with pytest.raises(KeyError), checks.of("train"):
            raise KeyError
        with pytest.raises(KeyError), checks.of("first"):
            raise KeyError
        module = BradleyTerryLoss()
        module(GOOD, GOOD)
        assert module(BAD, GOOD).isnan()
        with pytest.raises(ValueError, match="chosen"):
            bradley_terry_loss(BAD, GOOD)

    def test_other_threads_go_on_checking(self):
        checks, inside, done = ArgumentChecksOnce(), threading.Event(), threading.Event()
        with checks.of("train"):
            pass

        def train():
            with checks.of("train"):
                inside.set()
                done.wait(10)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            assert inside.wait(10)
            with pytest.raises(ValueError, match="chosen"):
                bradley_terry_loss(BAD, GOOD)
        finally:
            done.set()
            thread.join()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
    def test_what_is_compiled_is_compiled_once_for_first_and_later_calls(self):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(bradley_terry_loss, backend=backend, fullgraph=True)
        checks = ArgumentChecksOnce()
        for _ in range(2):
            with checks.of("train"):
                compiled(GOOD, GOOD)
        with argument_checks("always"):
            compiled(GOOD, GOOD)
        assert len(graphs) == 1


class TestCounts:
    def test_a_line_costs_a_module_what_its_formula_costs(self):
        p, q = distributions(8)
        module = CategoricalWassersteinLoss()
        first, later = operations(module, p, q), operations(module, p, q)
        bare = operations(lambda: ((p - q)[..., :-1].cumsum(-1).abs()).sum(-1).mean())
        assert first[READ] > 0 and later[READ] == 0
        assert later.total() <= bare.total() + 2  # the labels' places, and a sum divided for a mean

    def test_a_function_reads_every_distribution_once(self):
        p, q = distributions(8)
        counted = operations(categorical_wasserstein, p, q)
        assert counted["aminmax"] == counted["amin"] == 2 and counted[READ] == 6

    @pytest.mark.parametrize("rows", [3, 300])
    def test_sinkhorn_is_two_products_an_iteration_whatever_the_batch(self, rows):
        p, q = distributions(rows)
        counted = operations(lambda: sinkhorn_divergence(p, q, epsilon=0.02, num_iterations=40))
        assert counted["bmm"] + counted["mm"] == 2 * 40 + 1

    def test_sinkhorn_ends_once_nothing_changes(self):
        p, q = distributions(20)
        module = SinkhornDivergenceLoss(epsilon=1.0, num_iterations=10_000)
        counted = operations(module, p, q)
        assert counted["bmm"] + counted["mm"] < 2 * 200
