"""The callback on real runs: whom it counts, what it logs, writes, prints, and what it refuses."""

import csv
import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from pluralign.callbacks import UserMetrics
from pluralign.datamodules import LocalDataModule
from pluralign.models import PAL, BackboneConfig, BradleyTerryRM, RewardModule
from pluralign.tests.callbacks.conftest import HandMade

pytestmark = [pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")]

NAMES = ["ann", "bob", "[eve]", "tim"]
GROUPS = {"ann": "red", "bob": "[blue]", "[eve]": "red", "nobody": "green"}


class GivenRM(RewardModule):
    """Rewards that a batch brings along as features, times one weight."""

    requires = frozenset()

    def __init__(self):
        super().__init__(BackboneConfig(config={"model_type": "llama"}), optimizer=sgd)

    def configure_model(self):
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        rewards = batch["features"].squeeze(-1) * self.scale
        chosen, rejected = rewards[batch["comparisons"]].unbind(dim=1)
        return {"chosen": chosen, "rejected": rejected}

    def compute_loss(self, output, batch):
        return (output["chosen"] - output["rejected"]).square().sum()


class SharesRM(GivenRM):
    """A share beside the rewards, which disagrees with them."""

    def forward(self, batch):
        output = super().forward(batch)
        return {**output, "preference": (output["rejected"] - output["chosen"]).sigmoid()}


class PrototypesRM(GivenRM):
    def effective_prototypes(self):
        return torch.tensor(1.75)


class LossRM(GivenRM):
    """Its steps return a loss, as those of somebody else's module do."""

    def validation_step(self, batch, batch_idx):
        return self.compute_loss(self(batch), batch)

    test_step = validation_step


class SilentRM(GivenRM):
    def forward(self, batch):
        return {"reward": batch["features"].squeeze(-1) * self.scale}

    def compute_loss(self, output, batch):
        return output["reward"].sum()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def judged(*rows):
    """A batch of (user, margin) or (user, margin, share)."""
    number = torch.arange(len(rows))
    return {
        "id": [str(i) for i in range(len(rows))],
        "features": torch.tensor([[x] for row in rows for x in (row[1], 0.0)]),
        "response_row": number.repeat_interleave(2),
        "comparisons": torch.stack([2 * number, 2 * number + 1], 1),
        "user_id": torch.tensor([row[0] for row in rows]),
        "preference": torch.tensor([row[2] if len(row) > 2 else 1.0 for row in rows]),
    }


# ann is right 2 of 3 times, bob 0 of 1 (an equal reward), eve 4 of 4, tim has a tie only, and one is of nobody
BATCHES = [
    judged((0, 1.0), (0, -1.0), (2, 0.5), (-1, -3.0)),
    judged((1, 0.0)),
    judged((0, -1.0, 0.0), (2, 2.0), (2, -2.0, 0.25), (2, 1.0), (3, 1.0, 0.5), (0, 1.0, 0.5)),
]


class Data(HandMade):
    def __init__(self, batches=BATCHES, users=NAMES):
        super().__init__(batches, users)


class Grouped(Data):
    def user_groups(self):
        return GROUPS


def read(folder, name="val_step000000"):
    return json.loads((folder / "user_metrics" / f"{name}.json").read_text(encoding="utf-8"))


MACRO = (2 / 3 + 0 + 1) / 3


@pytest.mark.parametrize("kind", [GivenRM, SharesRM])
def test_a_validation_is_judged_as_by_hand(trainer, tmp_path, kind):
    callback = UserMetrics(groups=GROUPS)
    run = trainer(callback)
    run.validate(kind(), Data(), verbose=False)
    content = read(tmp_path)
    right = {"ann": 2 / 3, "bob": 0.0, "[eve]": 1.0}
    if kind is SharesRM:
        right = {"ann": 1 / 3, "bob": 0.0, "[eve]": 0.0}
    counts = {"ann": 3, "bob": 1, "[eve]": 4}
    assert content["of_user"] == {name: [pytest.approx(right[name]), counts[name]] for name in right}
    macro = sum(right.values()) / 3
    assert content["user_accuracy"]["value"] == pytest.approx(macro)
    assert content["accuracy"]["value"] == pytest.approx(
        sum(right[name] * counts[name] for name in right) / 8
    )
    low, middle, _ = sorted(right.values())
    assert content["low_user_accuracy"] == pytest.approx(low + 0.2 * (middle - low))
    assert content["groups"]["red"]["value"] == pytest.approx((right["ann"] + right["[eve]"]) / 2)
    assert content["groups"]["[blue]"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (content["worst_group"], content["num_without_group"], list(content["groups"])) == (
        "[blue]",
        0,
        ["[blue]", "red"],
    )
    assert (content["num_users"], content["num_judgements"]) == (3, 8)
    assert (content["num_ties"], content["num_anonymous"]) == (2, 1)
    assert (content["stage"], content["step"], content["num_resamples"], content["seed"]) == (
        "val",
        0,
        1000,
        0,
    )
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["val/user_macro_accuracy"] == pytest.approx(macro)
    assert logged["val/low_user_accuracy"] == pytest.approx(content["low_user_accuracy"])
    assert (logged["val/worst_group_accuracy"], logged["val/num_users"]) == (0, 3)
    assert "val/effective_prototypes" not in logged
    (entry,) = callback.history
    assert entry["group/red"] == content["groups"]["red"]["value"]


def test_groups_come_from_the_data(trainer, tmp_path, capsys):
    trainer(UserMetrics()).validate(GivenRM(), Grouped(), verbose=False)
    assert read(tmp_path)["worst_group"] == "[blue]"
    trainer(UserMetrics(groups={"ann": "x"})).validate(GivenRM(), Grouped(), verbose=False)
    content = read(tmp_path)
    assert (list(content["groups"]), content["num_without_group"]) == (["x"], 2)
    run = trainer(UserMetrics())
    run.validate(GivenRM(), Data(), verbose=False)
    assert (read(tmp_path)["groups"], read(tmp_path)["worst_group"]) == ({}, None)
    assert "val/worst_group_accuracy" not in run.callback_metrics


def test_groups_come_from_a_column_of_a_file(trainer, module, tmp_path):
    rows = [
        {
            "prompt": f"Why {i}?",
            "chosen": f"yes {i}",
            "rejected": "no",
            "user": f"u{i % 4}",
            "land": "AB"[i % 2],
        }
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = LocalDataModule(
        test=str(tmp_path / "rows.jsonl"), columns={"group": "land"}, cache_dir=str(tmp_path / "cache")
    )
    trainer(UserMetrics()).test(module(BradleyTerryRM), data, verbose=False)
    content = read(tmp_path, "test_step000000")
    assert content["groups"].keys() == {"A", "B"} and content["num_without_group"] == 0
    assert content["gain"] is None, "one reward for all"


def test_users_without_names_are_numbers(trainer, tmp_path):
    loader = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    trainer(UserMetrics(groups={"1": "one"})).validate(GivenRM(), loader, verbose=False)
    content = read(tmp_path)
    assert list(content["of_user"]) == ["0", "1", "2"] and content["worst_group"] == "one"


def test_a_fit_logs_and_writes_every_validation_and_prints_once(trainer, tmp_path, capsys):
    callback, logger = UserMetrics(groups=GROUPS), CSVLogger(tmp_path, name="run")
    run = trainer(callback, max_epochs=3, num_sanity_val_steps=-1, logger=logger)
    run.fit(PrototypesRM(), Data())
    assert [entry["step"] for entry in callback.history] == [3, 6, 9], "sanity checks are ignored"
    folder = tmp_path / "run" / "version_0" / "user_metrics"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"val_step00000{step}.json" for step in (3, 6, 9)
    ]
    with (folder.parent / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["val/user_macro_accuracy"]]
    assert [float(row["val/user_macro_accuracy"]) for row in rows] == pytest.approx([MACRO] * 3)
    assert [float(row["val/effective_prototypes"]) for row in rows] == [1.75] * 3
    assert read(folder.parent, "val_step000009")["effective_prototypes"] == 1.75
    printed = capsys.readouterr().out
    assert printed.count("Validation at step 9: 3 users, 8 judgements") == 1
    shown = " ".join(printed.split())
    for wanted in (
        "step 3",
        "step 9",
        "0.556",
        "accuracy of group [blue]",
        "effective number of prototypes",
        "1.750",
    ):
        assert wanted in shown, wanted
    assert "2 ties left out" in shown and "1 judgements without a user left out" in shown
    assert printed.rstrip().endswith(f"user metrics: {folder / 'val_step000009'}.json")


class PersonalRM(GivenRM):
    """Users' own rewards beside one for all, which is ``factor`` times theirs."""

    factor = -1.0

    def forward(self, batch):
        return {**super().forward(batch), "reward": self.factor * batch["features"].squeeze(-1)}


def test_what_users_own_rewards_add_to_one_for_all(trainer, tmp_path, capsys):
    """The other side is right where theirs is not: ann 1 of 3 times, bob and eve never."""
    run = trainer(UserMetrics())
    run.validate(PersonalRM(), Data(), verbose=False)
    content = read(tmp_path)
    assert content["shared_accuracy"]["value"] == pytest.approx(1 / 9)
    assert content["gain"]["value"] == pytest.approx(MACRO - 1 / 9)
    assert float(run.callback_metrics["val/user_gain"]) == pytest.approx(MACRO - 1 / 9)
    shown = " ".join(capsys.readouterr().out.split())
    assert "accuracy of the mean user's reward, mean over users │ 0.111" in shown
    assert "users' own rewards do not beat one reward for all" in shown, (
        "bob's adds nothing, nor may a resample"
    )
    certain = Data([judged(*((i, 1.0) for i in range(9)))], [f"u{i}" for i in range(9)])
    run.validate(PersonalRM(), certain, verbose=False)
    assert (read(tmp_path)["gain"], read(tmp_path)["warnings"]) == (
        {"value": 1.0, "low": 1.0, "high": 1.0},
        [],
    )
    assert "do not beat" not in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "number"), [(2.0, 1), (1.0, 0), (1 + 1e-6, 0)])
def test_rewards_that_do_not_beat_one_for_all_are_named(trainer, tmp_path, capsys, factor, number):
    module = PersonalRM()
    module.factor = factor
    trainer(UserMetrics()).validate(module, Data(), verbose=False)
    line = (
        "warning: users' own rewards do not beat one reward for all: 0.556 against 0.556 of the mean user's"
    )
    assert capsys.readouterr().out.count(line) == number, "one reward is not compared with itself"
    assert len(read(tmp_path)["warnings"]) == number
    assert (read(tmp_path)["gain"] is None) == (number == 0)


class Overfitted(Data):
    """Training judgements that are all right, and a validation of which half is."""

    def __init__(self, wrong):
        super().__init__([judged(*((i, 1.0) for i in range(8)))], [f"u{i}" for i in range(8)])
        self.judged_later = [judged(*((i, -1.0 if i < wrong else 1.0) for i in range(8)))]

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.judged_later, batch_size=None)


def test_a_gross_difference_to_training_is_named(trainer, tmp_path, capsys):
    callback = UserMetrics()
    trainer(callback, max_epochs=2).fit(GivenRM(), Overfitted(wrong=4))
    assert [entry["training_accuracy"] for entry in callback.history] == [1.0, 1.0]
    assert read(tmp_path, "val_step000002")["training_accuracy"] == 1.0
    shown = " ".join(capsys.readouterr().out.split())
    assert "accuracy, all judgements, in training │ 1.000 │ 1.000" in shown
    assert "warning: the model overfits: accuracy 1.000 in training, 0.500 here (" in shown
    trainer(UserMetrics()).fit(GivenRM(), Overfitted(wrong=0))
    run = trainer(UserMetrics())
    run.validate(GivenRM(), Overfitted(wrong=4), verbose=False)
    assert "overfits" not in capsys.readouterr().out, "no training, nothing to compare with"
    assert read(tmp_path)["training_accuracy"] is None


def test_test_is_judged_too_and_many_groups_are_cut(trainer, tmp_path, capsys):
    rows = [(i, 1.0 if i else -1.0) for i in range(14)]
    data = Data([judged(*rows)], [f"u{i}" for i in range(14)])
    callback = UserMetrics(
        "here", groups={f"u{i}": f"g{i:02d}" for i in range(14)}, num_resamples=100, seed=4
    )
    run = trainer(callback)
    run.test(GivenRM(), data, verbose=False)
    content = json.loads((tmp_path / "here" / "test_step000000.json").read_text())
    assert (content["stage"], content["seed"], content["worst_group"]) == ("test", 4, "g00")
    assert float(run.callback_metrics["test/worst_group_accuracy"]) == 0
    printed = capsys.readouterr().out
    assert "Test at step 0: 14 users" in printed
    assert "accuracy of group g09" in printed and "accuracy of group g10" not in printed
    assert "(4 better groups: see the file)" in " ".join(printed.split())
    assert callback.history == []


def test_prototypes_of_pal_are_counted(trainer, data, tmp_path):
    tiny = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    run = trainer(UserMetrics())
    run.fit(PAL(BackboneConfig(config=tiny), num_prototypes=3), data(num_users=5))
    assert float(run.callback_metrics["val/effective_prototypes"]) == pytest.approx(3, abs=0.1)
    assert 2 <= float(run.callback_metrics["val/num_users"]) <= 5
    (path,) = (tmp_path / "user_metrics").iterdir()
    assert json.loads(path.read_text())["effective_prototypes"] <= 3


def test_nothing_to_judge_is_warned_about(trainer, tmp_path, capsys):
    run = trainer(callback := UserMetrics())
    with pytest.warns(UserWarning, match="none of 2 judgements of this validation is decided and has a user"):
        run.validate(GivenRM(), Data([judged((0, 1.0, 0.5), (-1, 1.0))]), verbose=False)
    assert callback.history == [] and not (tmp_path / "user_metrics").exists()
    trainer(UserMetrics(), limit_val_batches=0).fit(GivenRM(), Data())
    assert not (tmp_path / "user_metrics").exists()
    assert "user metrics" not in capsys.readouterr().out


@pytest.mark.parametrize("first", ["sanity", "validate", "test"])
@pytest.mark.parametrize(
    ("model", "drop", "message"),
    [
        (
            GivenRM,
            "user_id",
            r"needs batch keys that this data lacks: 'user_id' \(provided by data with judges",
        ),
        (SilentRM, "comparisons", r"lacks: 'comparisons' \(provided by every data module of pairs"),
        (SilentRM, None, r"needs chosen and rejected, or preference, .* but SilentRM gives \['reward'\]"),
        (LossRM, None, r"needs chosen and rejected, or preference, .* but LossRM gives \[\]"),
    ],
)
def test_what_is_missing_is_named_at_once(trainer, first, model, drop, message):
    batches = [{name: value for name, value in batch.items() if name != drop} for batch in BATCHES]
    run = trainer(UserMetrics())
    call = {"sanity": run.fit, "validate": run.validate, "test": run.test}[first]
    with pytest.raises(ValueError, match=message):
        call(model(), Data(batches))


def test_names_that_do_not_fit(trainer, module, data):
    message = r"groups names none of the 4 users of these data \(first: 'ann'\), but \['Ann'\] and such"
    with pytest.raises(ValueError, match=message):
        trainer(UserMetrics(groups={"Ann": "x"})).validate(GivenRM(), Data(), verbose=False)
    with pytest.raises(ValueError, match="user_id must be below 2, the number of users; got 3"):
        trainer(UserMetrics()).validate(GivenRM(), Data(users=["ann", "bob"]), verbose=False)
    with pytest.raises(ValueError, match=r"'user_id' \(provided by"):
        trainer(UserMetrics()).validate(module(BradleyTerryRM), data(judgements="crowd"), verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_resamples": 99}, "num_resamples must be finite and >= 100; got 99"),
        ({"seed": -1}, "seed must be finite and >= 0; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UserMetrics(**settings)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(trainer, tmp_path, capfd, monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath)  # a spawned process imports this file by its name
    trainer(UserMetrics(groups=GROUPS)).validate(PrototypesRM(), Data(), verbose=False)
    one = read(tmp_path)
    capfd.readouterr()
    run = trainer(
        UserMetrics("two", groups=GROUPS), strategy="ddp_spawn", devices=2, use_distributed_sampler=False
    )
    values = run.validate(PrototypesRM(), Data(), verbose=False)[0]
    assert json.loads((tmp_path / "two" / "val_step000000.json").read_text(encoding="utf-8")) == one
    assert values["val/user_macro_accuracy"] == pytest.approx(MACRO)
    assert values["val/effective_prototypes"] == 1.75
    assert capfd.readouterr().out.count("Validation at step 0: ") == 1
