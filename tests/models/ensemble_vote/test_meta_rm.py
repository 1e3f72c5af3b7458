"""MetaRM: steps by hand, plain training at rate 0, precision, accumulation, and weights that nobody sees moved."""

import copy
import itertools
import math

import lightning as L
import pytest
import torch

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig, MetaRM

RATE = 0.5
"""Large, so that a step without the ascent would be seen."""
QUIET = [
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
pytestmark = QUIET


@pytest.fixture
def backbone(tiny):
    def build(**settings):
        sizes = {"vocab_size": 64, "num_hidden_layers": 2, **settings.pop("config", {})}
        return BackboneConfig(config=tiny(**sizes), **settings)

    return build


@pytest.fixture
def groups(rows):
    """Groups of responses without judgements."""

    def build(counts=(3, 2, 1, 4), seed=7, **settings):
        return PreferenceCollator(**settings)(rows(counts, seed, pairs=False))

    return build


@pytest.fixture
def batches(batch, groups):
    """Training batches, each with groups of its own."""

    def build(number=4, **settings):
        made = []
        for i in range(number):
            data = batch((2, 3, 2), seed=i, **settings)
            data["unlabelled"] = groups(seed=100 + i, **settings)
            made.append(data)
        return made

    return build


@pytest.fixture
def module(backbone):
    def build(kind=MetaRM, *, learning_rate=0.1, **settings):
        names = [name for name in settings if name in BackboneConfig.__dataclass_fields__]
        shape = backbone(**{name: settings.pop(name) for name in names})
        if kind is MetaRM:
            settings = {"meta_rate": RATE, "check_every": 0, **settings}
        torch.manual_seed(0)
        made = kind(shape, optimizer=lambda weights: torch.optim.SGD(weights, lr=learning_rate), **settings)
        made.configure_model()
        return made

    return build


def loaded(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def in_double(batch):
    return {
        name: in_double(value)
        if isinstance(value, dict)
        else value.double()
        if torch.is_tensor(value) and value.is_floating_point()
        else value
        for name, value in batch.items()
    }


def trained(module):
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def copied(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def by_loops(rewards, prompts):
    """J of groups, in plain loops."""
    found = []
    for prompt in sorted(set(prompts)):
        scores = [reward for reward, of in zip(rewards, prompts, strict=True) if of == prompt]
        pairs = itertools.combinations(scores, 2)
        total = sum(1 / (1 + math.exp(-abs(first - second))) for first, second in pairs)
        if len(scores) > 1:
            found.append(2 * total / len(scores) ** 2)
    return sum(found) / len(found)


def moved_by_hand(module, groups, rate):
    """A copy of the module whose weights went up J, without the meta step's code."""
    climber = copy.deepcopy(module)
    weights = trained(climber)
    climber.separation(groups).objective.backward()
    with torch.no_grad():
        for weight in weights.values():
            weight += rate * weight.grad
            weight.grad = None
    return climber


def gradients_by_hand(module, data, rate=RATE):
    """First-order gradient of a batch."""
    climber = moved_by_hand(module, data["unlabelled"], rate)
    climber.compute_loss(climber(data), data).backward()
    return {name: weight.grad for name, weight in trained(climber).items()}


def test_the_objective_is_the_written_out_formula(module, groups):
    made, data = module(), groups((3, 2, 1, 4))
    found = made.separation(data)
    rewards = made(data)["reward"].detach()
    expected = by_loops(rewards.tolist(), data["response_prompt"].tolist())
    assert found.objective.item() == pytest.approx(expected, rel=1e-6) == found.mean.item()
    assert float(found.std) == pytest.approx(float(rewards.std(correction=0)))


KINDS = {
    "whole": {},
    "checkpointing": {"gradient_checkpointing": True},
    "adapters": {"lora": LoRAConfig(rank=2)},
    "adapters_checkpointing": {"lora": LoRAConfig(rank=2), "gradient_checkpointing": True},
    "head": {"frozen": True},
    "separate": {"layout": "separate"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_gradient_at_the_moved_weights_applied_to_those_of_before(
    module, batches, trainer, kind
):
    made = module(**KINDS[kind])
    for _ in range(2):  # adapters' first matrices have a gradient once the second ones are no longer zero
        (data,), before = batches(1), copied(made)
        expected = gradients_by_hand(made, data)
        trainer(max_epochs=1).fit(made, loaded([data]))
        for name, weight in made.named_parameters():
            step = before[name] - weight.detach()
            if not weight.requires_grad:
                assert not step.any(), name
            else:
                torch.testing.assert_close(step, 0.1 * expected[name], rtol=1e-3, atol=1e-7)
    plain = copy.deepcopy(made)
    plain.compute_loss(plain(data), data).backward()
    other = gradients_by_hand(made, data)
    gap = sum((weight.grad - other[name]).norm() for name, weight in trained(plain).items())
    assert gap > 1e-2, "the ascent makes a difference"


class Recorder(L.Callback):
    """Weights as callbacks see them, and gradients of each optimiser step."""

    def __init__(self):
        self.weights, self.gradients, self.logged = [], [], []

    def take(self, module):
        self.weights.append(copied(module))

    def on_before_backward(self, trainer, pl_module, loss):
        self.take(pl_module)

    def on_after_backward(self, trainer, pl_module):
        self.take(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.take(pl_module)
        self.gradients.append({name: weight.grad.clone() for name, weight in trained(pl_module).items()})

    def on_train_batch_end(self, trainer, pl_module, *others):
        self.take(pl_module)
        self.logged.append(dict(trainer.logged_metrics))

    def on_exception(self, trainer, pl_module, exception):
        self.take(pl_module)


def test_nobody_sees_moved_weights(module, batches, trainer):
    made, seen = module(learning_rate=0.0, check_every=1), Recorder()
    before = copied(made)
    trainer(seen).fit(made, loaded(batches()))
    assert len(seen.weights) == 4 * 4
    for weights in [*seen.weights, copied(made)]:
        assert all(torch.equal(weights[name], before[name]) for name in before)


class Failing(MetaRM):
    """Fails where its weights are moved."""

    def compute_loss(self, output, batch):
        assert any(not torch.equal(weight, self.before[name]) for name, weight in self.named_parameters())
        raise KeyError("no loss today")


def test_an_exception_finds_weights_where_they_were(module, batches, trainer, backbone):
    made, seen = Failing(backbone(), meta_rate=RATE), Recorder()
    made.configure_model()
    made.before = copied(made)
    with pytest.raises(KeyError, match="no loss today"):
        trainer(seen).fit(made, loaded(batches(1)))
    assert len(seen.weights) == 1
    assert all(torch.equal(seen.weights[0][name], weight) for name, weight in made.before.items())


DROPOUT = {"config": {"attention_dropout": 0.3, "vocab_size": 64, "num_hidden_layers": 2}}


def test_rate_zero_is_plain_training_to_the_bit(module, batches, trainer):
    ended = []
    for kind, settings in ((BradleyTerryRM, {}), (MetaRM, {"meta_rate": 0.0, "check_every": 1})):
        made, seen = module(kind, **DROPOUT, **settings), Recorder()
        data = batches()
        if kind is MetaRM:
            data[1].pop("unlabelled")  # which nobody reads
        L.seed_everything(3, verbose=False)
        trainer(seen, gradient_clip_val=0.5, accumulate_grad_batches=2).fit(made, loaded(data))
        ended.append((copied(made), seen.logged, torch.get_rng_state()))
    (plain, logged, state), (meta, also, other) = ended
    assert all(torch.equal(plain[name], meta[name]) for name in plain)
    assert logged == also and torch.equal(state, other)


def test_checks_change_nothing_but_what_is_logged(module, batches, trainer):
    ended = []
    for every in (0, 2):
        made, seen = module(check_every=every, **DROPOUT, meta_rate=1e-2), Recorder()
        L.seed_everything(3, verbose=False)
        trainer(seen).fit(made, loaded(batches()))
        ended.append((copied(made), seen.logged))
    (plain, logged), (checked, also) = ended
    assert all(torch.equal(plain[name], checked[name]) for name in plain)
    assert ["train/objective_rise" in values for values in logged] == [False] * 4
    assert "train/objective_rise" in also[0] and float(also[0]["train/objective_rise"]) > 0
    names = {"train/objective", "train/reward_std"}
    for mine, other in zip(logged, also, strict=True):
        assert names <= mine.keys() and all(mine[name] == other[name] for name in names)
