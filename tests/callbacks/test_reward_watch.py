"""RewardWatch: a second reward model's word, and the end of a run in which the two part."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from pluralign.callbacks import RewardWatch
from pluralign.models import BackboneConfig, PolicyTuner


def longer(prompts, responses, columns):
    return [float(len(response)) for response in responses]


def says_b(prompts, responses, columns):
    assert set(columns) == {"preference", "user"}
    return [response.count("b") / max(1, len(response)) for response in responses]


class Letters(L.LightningDataModule):
    """Prompts of three tokens; token n is said as the n-th letter."""

    name, splits, dimensions, pad_id, end_id = "letters", ("train", "validation"), (), 0, 1

    def __init__(self):
        super().__init__()
        self.axes, self.extents = {}, {}

    def text_format(self):
        return {"name": "letters"}

    def decode(self, responses):
        return ["".join(chr(96 + token) for token in response if token > 1) for response in responses]

    def pieces(self, response):
        return self.decode([[token] for token in response])

    def loader(self, number):
        batch = {
            "id": ["p", "q"],
            "item_key": torch.tensor([1, 2]),
            "prompt": ["p", "q"],
            "preference": [(), ()],
            "columns": {"user": ["ann", "bob"]},
            "input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]]),
            "attention_mask": torch.ones(2, 3, dtype=torch.int64),
        }
        return torch.utils.data.DataLoader([batch] * number, batch_size=None)

    def train_dataloader(self):
        return self.loader(4)

    def val_dataloader(self):
        return self.loader(2)


@pytest.fixture
def policy(tiny):
    return PolicyTuner(
        BackboneConfig(config=tiny(vocab_size=12)),
        rewards={"length": longer},
        reference="none",
        max_new_tokens=5,
    )


def judged(watch, *validations):
    """What a fit with these means of the trained reward and the watching one would do; whether it ends."""
    trainer = SimpleNamespace(should_stop=False, global_step=0, state=SimpleNamespace(fn=TrainerFn.FITTING))
    trainer.sanity_checking, trainer.testing, trainer.world_size = False, False, 1
    module = SimpleNamespace(device=torch.device("cpu"), log=lambda *_: None)
    for step, (trained, watching) in enumerate(validations):
        trainer.global_step = step
        watch._sums = torch.tensor([10 * trained, 10 * watching, 10.0], dtype=torch.float64)
        watch.on_validation_epoch_end(trainer, module)
    return trainer.should_stop


def test_its_mean_is_logged_over_all_responses(policy, trainer):
    fit = trainer(RewardWatch(says_b))
    data = Letters()
    fit.validate(policy, datamodule=data, verbose=False)
    logged = float(fit.callback_metrics["val/watch"])
    policy.prompt_source = data
    scores = []
    for number, batch in enumerate(data.val_dataloader()):
        generator = torch.Generator().manual_seed(policy.seed_of(number, -2))
        rollouts = policy.respond(batch, num_samples=2, sample=True, generator=generator)
        scores += says_b([], rollouts.texts, {"preference": [], "user": []})
    assert logged == pytest.approx(sum(scores) / len(scores)) and len(scores) == 8


def test_a_fit_goes_on_while_both_rise(policy, trainer):
    fit = trainer(RewardWatch(longer), max_epochs=2)
    fit.fit(policy, datamodule=Letters())
    assert fit.current_epoch == 2 and "val/watch" in fit.callback_metrics


def test_the_run_ends_where_the_two_part_for_long_enough():
    parting = [(0.1, 0.5), (0.2, 0.6), (0.3, 0.5), (0.4, 0.4)]
    assert not judged(RewardWatch(longer), *parting)
    with pytest.warns(
        UserWarning, match=r"ends the run at step 4: since step 1 .* rose from 0.2 to 0.5.* from 0.6 to 0.3"
    ):
        assert judged(RewardWatch(longer), *parting, (0.5, 0.3))


@pytest.mark.parametrize(
    "validations",
    [
        [(0.2, 0.6), (0.3, 0.5), (0.4, 0.7), (0.5, 0.6)],  # the watching one goes on to a new best
        [(0.2, 0.6), (0.3, 0.5), (0.1, 0.4), (0.3, 0.5)],  # both fell in between
        [(0.2, 0.6), (0.3, 0.56), (0.4, 0.56), (0.5, 0.56)],  # by less than counts
        [
            (0.2, 0.6),
            (0.1, 0.5),
            (0.1, 0.4),
            (0.1, 0.3),
        ],  # both fall: training fails, the reward is not to blame
    ],
)
def test_nothing_ends_that_did_not_part(validations):
    assert not judged(RewardWatch(longer, patience=2, min_drop=0.05), *validations)


def test_a_run_that_goes_on_counts_on():
    first = RewardWatch(longer, patience=2)
    judged(first, (0.2, 0.6), (0.3, 0.5))
    second = RewardWatch(longer, patience=2)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="RewardWatch ends the run"):
        assert judged(second, (0.4, 0.5))


def test_a_module_that_writes_nothing_is_refused():
    trainer = SimpleNamespace(sanity_checking=False)
    with pytest.raises(TypeError, match="rates the responses of a policy, and SimpleNamespace writes none"):
        RewardWatch(longer).on_validation_batch_end(trainer, SimpleNamespace(), {}, {}, 0)
    with pytest.raises(ValueError, match="patience"):
        RewardWatch(longer, patience=0)
