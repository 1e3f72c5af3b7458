"""MetaRM: steps by hand, plain training at rate 0, precision, accumulation, and weights that nobody sees moved."""

import copy
import itertools
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig, MetaRM
from pluralign.models.ensemble_vote import MetaOutcome

RATE = 0.5
"""Large, so that a step without the ascent would be seen."""
QUIET = [
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings(
        "ignore:BradleyTerryRM does not read the unlabelled groups"
    ),  # it is compared with
]
pytestmark = QUIET


@pytest.fixture
def backbone(tiny):
    def build(**settings):
        sizes = {"vocab_size": 64, "num_hidden_layers": 2, **settings.pop("config", {})}
        config = {name: value for name, value in tiny(**sizes).items() if value is not None}
        return BackboneConfig(config=config, **settings)

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
    names = {"train/objective", "train/unlabelled_std"}
    for mine, other in zip(logged, also, strict=True):
        assert names <= mine.keys() and all(mine[name] == other[name] for name in names)


def test_accumulated_batches_climb_each_by_itself_and_add_up(module, batches, trainer):
    made, data = module(learning_rate=1.0), batches(3)
    data[1]["weight"] = torch.tensor([0.5, 2.0, 1.0, 3.0])
    parts, denominators = [gradients_by_hand(made, each) for each in data], [4.0, 6.5, 4.0]
    before = copied(made)
    trainer(accumulate_grad_batches=3).fit(made, loaded(data))
    for name, weight in made.named_parameters():
        weighed = zip(denominators, parts, strict=True)
        expected = sum(of * part[name] for of, part in weighed) / sum(denominators)
        torch.testing.assert_close(before[name] - weight.detach(), expected, rtol=1e-3, atol=1e-6)


DOUBLE = {
    "model_type": "gpt2",
    "intermediate_size": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"layout": "separate"}])
def test_finite_differences_of_each_weight_of_a_language_model(
    module, batches, trainer, settings, second_order
):
    """In float64, along a random direction of each parameter tensor and along all of them together."""
    settings = {"config": DOUBLE, **settings}  # Llama's norms compute in float32
    made, seen = module(learning_rate=0.0, second_order=second_order, **settings), Recorder()
    made.head = torch.nn.Linear(16, 1, bias=False)  # the own one computes in float32
    (data,) = batches(1)
    trainer(seen, precision="64-true").fit(made, loaded([data]))
    (found,), data, made = seen.gradients, in_double(data), made.double()
    point = made if second_order else moved_by_hand(made, data["unlabelled"], RATE)

    def value(directions, step):
        moved = copy.deepcopy(point)
        with torch.no_grad():
            for name, direction in directions.items():
                moved.get_parameter(name).add_(direction, alpha=step)
        if second_order:
            moved = moved_by_hand(moved, data["unlabelled"], RATE)
        return moved.compute_loss(moved(data), data).item()

    random = {name: torch.randn_like(weight) / weight.numel() ** 0.5 for name, weight in found.items()}
    for directions in [*({name: random[name]} for name in random), random]:
        expected = (value(directions, 1e-5) - value(directions, -1e-5)) / 2e-5
        slope = sum((found[name] * direction).sum().item() for name, direction in directions.items())
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-9), list(directions)


@pytest.mark.filterwarnings("ignore:MetaRM with meta_rate")
def test_bfloat16_sees_the_moved_weights(module, batches, trainer):
    made, (data,), seen = module(learning_rate=0.0, check_every=1), batches(1), Recorder()
    expected, plain = gradients_by_hand(made, data), gradients_by_hand(made, data, rate=0.0)
    trainer(seen, precision="bf16-mixed").fit(made, loaded([data]))
    (found,) = seen.gradients
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    flat = [torch.cat([of[name].flatten() for name in found]) for of in (found, expected, plain)]
    assert (flat[0] - flat[1]).norm() < 0.2 * (flat[1] - flat[2]).norm()


# What is refused, and what is told -----------------------------------------------------------------------


def test_no_groups_name_the_setting(module, batches, batch, groups, trainer):
    with pytest.raises(
        ValueError, match=r"no 'unlabelled' groups.*MixtureDataModule\(unlabelled=\[.*meta_rate=0"
    ):
        trainer().fit(module(), loaded([batch()]))
    alone = {**batch(), "unlabelled": groups((1, 1))}
    with pytest.raises(ValueError, match=r"no prompt of batch\['unlabelled'\] has two.*unlabelled=\["):
        trainer().fit(module(), loaded([alone]))
    long = {**batch(), "unlabelled": groups()}
    with pytest.raises(ValueError, match="positions"):
        trainer().fit(module(config={"max_position_embeddings": 4}), loaded([long]))


def test_a_batch_whose_groups_are_single_is_plain_training(module, batches, groups, trainer):
    data, ended = batches(2), []
    data[1]["unlabelled"] = groups((1, 1))
    made, seen = module(learning_rate=0.0), Recorder()
    trainer(seen).fit(made, loaded(data))
    ended = gradients_by_hand(made, data[1], rate=0.0)
    for name, gradient in seen.gradients[1].items():
        torch.testing.assert_close(gradient, ended[name])


def test_validation_needs_no_groups(module, batches, batch, trainer):
    made, run = module(), trainer()
    run.fit(made, loaded(batches(2)), loaded([batch()]))
    assert "val/accuracy" in run.callback_metrics
    trainer().validate(made, loaded([batch()]))
    assert "reward" in trainer().predict(made, loaded([batch()]))[0]


def test_starts_from_a_bradley_terry_model(module, batches, trainer, tmp_path):
    before = module(BradleyTerryRM)
    first = trainer(max_epochs=1)
    first.fit(before, loaded(batches(2)))
    first.save_checkpoint(tmp_path / "round.ckpt")
    after = module(init_from=str(tmp_path / "round.ckpt"))
    assert all(torch.equal(weight, after.get_parameter(name)) for name, weight in before.named_parameters())
    second = trainer()
    second.fit(after, loaded(batches(2)))
    second.save_checkpoint(tmp_path / "next.ckpt")
    again = MetaRM.load_from_checkpoint(tmp_path / "next.ckpt")
    assert again.meta_rate == RATE
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in after.named_parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_trained_weights_of_16_bits_would_lose_the_ascent(module, batches, trainer, dtype):
    weight = torch.full((), 0.02, dtype=torch.bfloat16)
    assert weight + 5e-6 * 10 == weight, "pitfall 9"
    with pytest.raises(
        ValueError, match=r"16 bits, such as backbone\.model.*backbone\.dtype=float32.*backbone\.lora"
    ):
        trainer().fit(module(dtype=dtype), loaded(batches(1)))
    trainer().fit(module(dtype=dtype, meta_rate=0.0), loaded(batches(1)))


def test_float32_adapters_on_a_16_bit_base_do(module, batches, trainer):
    made, seen = module(dtype="bfloat16", lora=LoRAConfig(rank=2)), Recorder()
    trainer(seen).fit(made, loaded(batches(1)))
    assert {gradient.dtype for gradient in seen.gradients[0].values()} == {torch.float32}


def test_what_cannot_be_moved_or_differentiated_twice_is_refused(
    module, batches, trainer, backbone, monkeypatch
):
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"16-mixed.*bf16-mixed or 32-true"):
        trainer(plugins=[half]).fit(module(), loaded(batches(1)))
    trainer(plugins=[half]).validate(module(), loaded(batches(1)))
    made = module(second_order=True)
    made.trainer = run = trainer()
    run.state.fn = TrainerFn.FITTING
    monkeypatch.setattr(L.Trainer, "strategy", ModelParallelStrategy())
    with pytest.raises(ValueError, match="second_order=true does not work on sharded weights"):
        made.check_trainer()
    monkeypatch.setattr(L.Trainer, "strategy", FSDPStrategy())
    with pytest.raises(ValueError, match=r"FSDPStrategy holds weights in pieces.*strategy=ddp"):
        made.check_trainer()
    monkeypatch.undo()
    base = BackboneConfig(name="any", quantization="8bit", lora=LoRAConfig())
    with pytest.raises(ValueError, match=r"second_order=true differentiates twice.*quantization"):
        MetaRM(base, second_order=True)
    for name in ("meta_rate", "smoothing", "check_every"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            MetaRM(backbone(), **{name: -1})


class Told:
    """A meta step that reports a rise of the objective that was made up."""

    def __init__(self, rise, expected):
        self.second_order, self.said = False, (torch.tensor(rise), torch.tensor(expected))

    def __call__(self, module, objective, loss, *, check):
        objective()
        return MetaOutcome(loss(), *(self.said if check else ()))


@pytest.mark.parametrize(
    ("rise", "expected", "precision", "message"),
    [
        (-1e-3, 2e-3, "32-true", r"lowers the objective, by 1\.0e-03 .* rise of 2\.0e-03 was expected.* lower meta_rate"),
        (-3e-8, 1e-9, "32-true", r"cannot be seen: 1\.0e-09 .* torch\.float32 tells apart .*larger meta_rate.*normalized"),
        (-1e-3, 1e-5, "bf16-mixed", r"cannot be seen: .* torch\.bfloat16 tells apart"),
        (float("nan"), 1.0, "32-true", r"lowers the objective"),
    ],
)  # fmt: skip
def test_a_checked_step_that_does_not_rise_is_told_once(
    module, batches, trainer, rise, expected, precision, message
):
    made = module(check_every=2, learning_rate=0.0)
    made._meta_step = Told(rise, expected)
    with pytest.warns(UserWarning, match=message) as seen:
        trainer(precision=precision).fit(made, loaded(batches(5)))
    assert len([each for each in seen if "MetaRM" in str(each.message)]) == 1


def test_a_head_of_zeros_never_separates_unless_ties_are_broken(module, batches, trainer):
    """Pitfall 10: |d| has no slope where rewards are equal."""
    for settings in ({}, {"smoothing": 0.1}):
        made, seen = module(check_every=1, **settings), Recorder()
        torch.nn.init.zeros_(made.head.weight)
        (data,), before = batches(1), copied(made)
        with pytest.warns(UserWarning, match=r"no gradient, so that this is plain training.*break_ties=true"):
            trainer(seen).fit(made, loaded([data]))
        plain = module(BradleyTerryRM)
        plain.load_state_dict(before, strict=True)
        trainer().fit(plain, loaded([data]))
        assert torch.equal(plain.head.weight, made.head.weight)
    made, seen = module(check_every=1, break_ties=True), Recorder()
    torch.nn.init.zeros_(made.head.weight)
    trainer(seen).fit(made, loaded(batches(1)))
    assert float(seen.logged[0]["train/objective_rise"]) > 1e-3


def test_any_separation_and_any_scale_raise_the_objective_which_the_log_shows(module, batches, trainer):
    """Pitfall 11: J knows no right and wrong, and grows with the scale; accuracy and the rewards' std tell."""
    data, found = batches(1), []
    data[0]["preference"] = torch.ones_like(data[0]["preference"])
    for factor in (1.0, -1.0, 10.0):
        made, seen = module(meta_rate=1e-9, learning_rate=0.0), Recorder()
        with torch.no_grad():
            made.head.weight *= factor
        run = trainer(seen)
        run.fit(made, loaded(data))
        rewards = made(data[0]["unlabelled"])["reward"].detach()
        names = ("train/objective", "train/unlabelled_std", "train/accuracy", "train/reward_std")
        values = [float(run.callback_metrics[name]) for name in names]
        assert values[1] == pytest.approx(float(rewards.std(correction=0)), rel=1e-5)
        found.append(values)
    (right, std, accuracy, labelled), (wrong, other, inaccuracy, _), (large, wide, _, scaled) = found
    assert wrong == pytest.approx(right, rel=1e-5) and other == pytest.approx(std, rel=1e-5)
    assert inaccuracy == pytest.approx(1 - accuracy)
    assert large > right + 0.05 and wide == pytest.approx(10 * std, rel=1e-5)
    assert scaled == pytest.approx(10 * labelled, rel=1e-5)


def test_every_checked_step_of_a_run_rises(module, batches, trainer):
    made, seen = module(meta_rate=1e-2, check_every=1, learning_rate=1e-2), Recorder()
    trainer(seen, max_epochs=3).fit(made, loaded(batches(5)))
    rises = [float(values["train/objective_rise"]) for values in seen.logged]
    assert len(rises) == 15 and min(rises) > 0


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_an_average_is_of_weights_that_did_not_move(module, batches, trainer):
    made = module(learning_rate=0.0)
    before = copied(made)
    trainer(EMAWeightAveraging(decay=0.5)).fit(made, loaded(batches()))
    for name, weight in made.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name])
