"""The losses of a step read their arguments in the first batch of a stage; what is not finite is seen in every batch."""

import pytest
import torch

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.losses import argument_checks, bradley_terry_loss
from pluralign.models import BradleyTerryRM

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


def data():
    return SyntheticDataModule(
        num_train=12, num_validation=4, num_test=4, num_predict=4, loader=LoaderConfig(batch_size=2)
    )


def values_are_checked():
    try:
        bradley_terry_loss(torch.tensor([torch.nan]), torch.zeros(1))
    except ValueError:
        return True
    return False


class Asking(BradleyTerryRM):
    """Takes down whether values are checked while the loss of a batch is computed."""

    def __init__(self):
        super().__init__({"config": TINY})
        self.asked = []

    def compute_loss(self, output, batch):
        self.asked.append(("train" if self.training else "val", values_are_checked()))
        return super().compute_loss(output, batch)

    def take(self, stage):
        taken = [checked for where, checked in self.asked if where == stage]
        self.asked = [each for each in self.asked if each[0] != stage]
        return taken


def test_once_in_every_stage_and_again_in_the_next_run(trainer):
    module, source = Asking(), data()
    for _ in range(2):
        trainer().fit(module, source)
        assert module.take("train") == [True] + [False] * 5
        seen = module.take("val")
        assert seen[0] is True and not any(seen[1:])
        assert values_are_checked()
    trainer().validate(module, source, verbose=False)
    assert module.take("val")[0] is True


def test_who_asks_for_every_check_gets_it(trainer):
    module = Asking()
    with argument_checks("always"):
        trainer().fit(module, data())
    assert all(module.take("train"))


class GoesWrong(Asking):
    """Rewards that are no numbers, in the fourth batch."""

    def forward(self, batch):
        output = super().forward(batch)
        if self.training and sum(where == "train" for where, _ in self.asked) == 3:
            output["reward"] = output["reward"] / 0
            output["chosen"] = output["chosen"] / 0
        return output


def test_rewards_that_are_no_numbers_are_seen_where_nothing_else_is_checked(trainer):
    with pytest.raises(RuntimeError, match="rewards are NaN or infinite at step 3"):
        trainer().fit(GoesWrong(), data())
    assert values_are_checked()
