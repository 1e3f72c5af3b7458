"""What a training step on stored features is made of: operations, values read from the device, batches looked at by record."""

from collections import Counter

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.datamodules.batches import FeatureWriter, response_keys
from pluralign.losses import argument_checks
from pluralign.metrics import PreferenceMetrics
from pluralign.models import DPRM, PAL, BackboneConfig
from pluralign.models import reward as reward_module

BACKBONE = BackboneConfig(name="invented", tokenizer="byte", frozen=True)
RATINGS = ["1", "2", "3", "4", "5"]

# Operations that the dispatcher sees in the forward pass, loss, backward pass and everything that is ours of a step, with an
# optimiser that does nothing; of a step that is neither looked at nor logged. Fewer are welcome: lower the number then.
MOST = {"pal": 256, "dprm": 100}


class Operations(TorchDispatchMode):
    """Counts what runs."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.counts[str(function)] += 1
        return function(*arguments, **(keywords or {}))

    @property
    def read(self):
        return self.counts["aten._local_scalar_dense.default"]


class OneStep(L.Callback):
    """Counts the operations of one step, of those that are neither watched nor looked at."""

    def __init__(self, number=5):
        self.operations, self.number = Operations(), number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.number:
            self.operations.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.number:
            self.operations.__exit__(None, None, None)


def nothing(parameters):
    """An optimiser whose steps cost nothing."""
    return torch.optim.SGD(parameters, lr=0.0, foreach=True)


def make(method, folder):
    judgements = {"pal": "users", "dprm": "ratings"}[method]
    sizes = {"num_train": 40, "num_validation": 4, "num_test": 4, "num_predict": 4}
    data = SyntheticDataModule(judgements=judgements, **sizes)
    data.prepare_data()
    data.setup("fit")
    writer = FeatureWriter(
        folder, backbone=BACKBONE.description(), text_format=data.text_format(), hidden_size=8
    )
    for split in ("train", "validation"):
        for row in data.table(split).rows():
            keys = response_keys(row).tolist()
            writer.add(keys, torch.randn(len(keys), 8))
    writer.flush()
    data.loader = LoaderConfig(batch_size=4, max_tokens=None, features=str(folder))
    if method == "pal":
        return data, PAL(BACKBONE, optimizer=nothing)
    return data, DPRM(
        BACKBONE, labels=RATINGS, rewards=[0.0, 0.25, 0.5, 0.75, 1.0], cost="index", optimizer=nothing
    )


def counted(trainer, method, folder):
    data, module = make(method, folder)
    step = OneStep()
    fit = trainer(step, max_steps=8, max_epochs=1, limit_val_batches=0)
    fit.fit(module, data)
    return step.operations


@pytest.mark.parametrize("method", ["pal", "dprm"])
def test_operations_of_a_step_are_bounded(trainer, method, tmp_path):
    with argument_checks("never"):
        operations = counted(trainer, method, tmp_path / "s")
    number = sum(operations.counts.values())
    assert number <= MOST[method], (number, operations.counts.most_common())


@pytest.mark.parametrize("method", ["pal", "dprm"])
def test_a_step_reads_no_value_where_that_would_wait(trainer, method, tmp_path, monkeypatch):
    """As on a GPU, but for what asks tensors themselves whether they are on the host."""
    monkeypatch.setattr(reward_module, "reads_freely", lambda output: False)
    with argument_checks("never"):
        operations = counted(trainer, method, tmp_path / "s")
    assert (
        operations.read == {"pal": 1, "dprm": 2}[method]
    )  # of the table of users; of shares: on the host alone


def test_batches_are_counted_together_and_none_is_lost():
    whole, parts = PreferenceMetrics(), PreferenceMetrics()
    pairs = torch.arange(10).reshape(5, 2)
    batches = []
    for _ in range(70):
        chosen, rejected = torch.randn(2, 5)
        batch = {
            "comparisons": pairs,
            "preference": torch.rand(5),
            "response_length": torch.randint(9, (10,)),
        }
        batches.append(({"chosen": chosen, "rejected": rejected, "reward": torch.randn(10)}, batch))
    operations = Operations()
    with operations:
        for output, batch in batches[:31]:
            whole.update(output, batch)
    assert sum(operations.counts.values()) <= 31 * 7
    for output, batch in batches[31:]:
        whole.update(output, batch)
    for number, (output, batch) in enumerate(batches):
        parts.update(output, batch)
        if number == 40:  # as a run that was interrupted
            sums, parts = parts.sums_by_name(), PreferenceMetrics()
            parts.add_sums(sums)
    assert set(sums) >= {"waiting_pairs", "waiting_share", "waiting_lengths", "waiting_reward", "batches"}
    for name, value in whole.sums_by_name().items():
        assert torch.equal(value, parts.sums_by_name()[name]), name
    expected, values = whole.compute(), parts.compute()
    assert all(torch.equal(values[name], value) for name, value in expected.items())
    assert float(whole.sums[0]) == 350
