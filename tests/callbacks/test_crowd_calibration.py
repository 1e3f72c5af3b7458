"""The callback on real runs: what it collects, logs, writes, prints, and what it refuses."""

import csv
import json
import struct
import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from pluralign.callbacks import CrowdCalibration
from pluralign.callbacks.pictures import draw_crowd_table, save_picture
from pluralign.datamodules.batch import Labels
from pluralign.metrics import crowd_table
from pluralign.models import BackboneConfig, BradleyTerryRM, RewardModule
from pluralign.tests.callbacks.conftest import HandMade

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
]

VALUES = (
    "wasserstein_index",
    "wasserstein_reward",
    "kl",
    "total_variation",
    "total_variation_expected",
    "total_variation_floor",
    "top1_agreement",
    "expected_reward_error",
)


class LabelRM(RewardModule):
    """Label probabilities that a batch brings along as features, sharpened by one weight."""

    requires = frozenset()
    labels = ("[good]", "fine", "bad")
    label_rewards = (1.0, 0.0, -1.0)
    judged = "responses"

    def __init__(self):
        super().__init__(BackboneConfig(config={"model_type": "llama"}), optimizer=sgd)

    def configure_model(self):
        self.sharpness = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        probs = (batch["features"] * self.sharpness).softmax(-1)
        if self.judged == "comparisons":
            probs = probs[batch["comparisons"][:, 0]]
        rewards = probs.new_tensor(self.label_rewards[:1] * 3)
        return {"labels": Labels(probs, probs @ rewards, probs.std(-1), self.labels, self.judged)}

    def compute_loss(self, output, batch):
        return output["labels"].probs.square().sum()


class ComparingRM(LabelRM):
    judged = "comparisons"


class Nameless(BradleyTerryRM):
    pass


class OneRewardTooFew(LabelRM):
    label_rewards = (1.0, 0.0)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def make_batches(sizes=(3, 1, 2), seed=0, drop=()):
    """Prompts with two responses each, a comparison of the second with the first and one the other way round."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number, size in enumerate(sizes):
        responses = torch.arange(2 * size)
        pairs = responses.view(-1, 2)
        batch = {
            "id": [f"prompt {number}.{i}" for i in range(size)],
            "features": 2 * torch.randn(2 * size, 3, generator=generator),
            "response_row": responses,
            "response_prompt": responses // 2,
            "votes": torch.randint(0, 4, (2 * size, 3), generator=generator).float(),
            "comparisons": torch.cat([pairs.flip(1), pairs[:1]]),
            "comparison_votes": torch.randint(0, 4, (size + 1, 3), generator=generator).float(),
        }
        batch["votes"][-1] = 0
        batches.append({name: value for name, value in batch.items() if name not in drop})
    return batches


class Data(HandMade):
    def __init__(self, batches=None):
        super().__init__(make_batches() if batches is None else batches)


def expected(batches, *, comparisons=False, seed=0, num_resamples=1000):
    """The table of an untrained module's predictions, collected by a loop."""
    probs, votes, names = [], [], []
    for batch in batches:
        all_probs = batch["features"].softmax(-1)
        pairs = [(i, i) for i in range(len(all_probs))]
        counts = batch["votes"]
        if comparisons:
            pairs, counts = batch["comparisons"].tolist(), batch["comparison_votes"]
        for (first, _), row in zip(pairs, counts, strict=True):
            probs.append(all_probs[first])
            votes.append(row)
            names.append(batch["id"][int(batch["response_prompt"][first])])
    numbers = torch.tensor([sorted(set(names)).index(name) for name in names])
    settings = {"labels": LabelRM.labels, "label_rewards": LabelRM.label_rewards, "both_orders": comparisons}
    return crowd_table(
        torch.stack(probs), torch.stack(votes), numbers, **settings, num_resamples=num_resamples, seed=seed
    )


def read(folder, name="val_step000000"):
    return json.loads((folder / "crowd_calibration" / f"{name}.json").read_text(encoding="utf-8"))


def points(content):
    """Numbers of a file that do not depend on the order of prompts in the bootstrap."""
    names = ("num_items", "num_without_votes", "num_prompts", "num_votes", "calibration_error")
    names += ("calibration_error_floor", "labels", "label_rewards", "both_orders")
    return {name: content[name] for name in names} | {
        name: value["value"] for name, value in content["values"].items()
    }


def flat(values):
    return [one for value in values.values() for one in (value if isinstance(value, list) else [value])]


def assert_same(found, wanted):
    found, wanted = flat(points(found)), flat(points(wanted))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, abs=1e-6))


@pytest.mark.parametrize("comparisons", [False, True])
def test_a_validation_is_judged_as_by_hand(trainer, tmp_path, comparisons):
    callback, data = CrowdCalibration(), Data()
    run = trainer(callback)
    run.validate((ComparingRM if comparisons else LabelRM)(), data, verbose=False)
    wanted = expected(data.hand_made, comparisons=comparisons)
    content = read(tmp_path)
    assert_same(content, json.loads(json.dumps(wanted.as_json())))
    assert wanted.num_without_votes >= (0 if comparisons else 3)
    assert wanted.num_prompts == 6
    assert content["judged"] == ("comparison_label_probs" if comparisons else "label_probs")
    assert (content["stage"], content["step"], content["num_resamples"]) == ("val", 0, 1000)
    logged = {name: float(run.callback_metrics[f"val/{name}"]) for name in VALUES}
    assert logged == pytest.approx({name: value.value for name, value in wanted.values.items()}, abs=1e-6)
    assert float(run.callback_metrics["val/label_calibration_error"]) == pytest.approx(
        wanted.mean_calibration_error, abs=1e-6
    )
    (entry,) = callback.history
    assert entry["kl"] == pytest.approx(wanted.values["kl"].value, abs=1e-6)
    assert entry["calibration_error/[good]"] == pytest.approx(wanted.calibration_error[0], abs=1e-6)


def test_a_record_in_two_batches_is_one_prompt(trainer, tmp_path):
    batches = make_batches((2, 2))
    batches[1]["id"] = batches[0]["id"]
    trainer(CrowdCalibration()).validate(LabelRM(), Data(batches), verbose=False)
    assert read(tmp_path)["num_prompts"] == 2


def picture_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000, "not an empty page"
    return struct.unpack(">II", content[16:24])


def test_a_fit_logs_and_writes_every_validation_and_prints_once(trainer, tmp_path, capsys):
    callback, logger = CrowdCalibration(), CSVLogger(tmp_path, name="run")
    run = trainer(callback, max_epochs=3, num_sanity_val_steps=-1, logger=logger)
    run.fit(LabelRM(), Data())
    assert [entry["step"] for entry in callback.history] == [3, 6, 9], "sanity checks are ignored"
    folder = tmp_path / "run" / "version_0" / "crowd_calibration"
    names = [f"val_step00000{step}.{kind}" for step in (3, 6, 9) for kind in ("json", "png")]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert picture_size(folder / names[-1]) == (1020, 840)
    with (folder.parent / "metrics.csv").open() as stream:
        rows = [float(row["val/kl"]) for row in csv.DictReader(stream) if row["val/kl"]]
    assert rows == pytest.approx([entry["kl"] for entry in callback.history], abs=1e-6)
    assert read(folder.parent, "val_step000009")["values"]["kl"]["value"] == callback.history[-1]["kl"]

    printed = capsys.readouterr().out
    assert printed.count("Validation at step 9: ") == 1
    assert "step 3" in printed
    assert "calibration error of [good]" in printed, "names are no markup"
    shown = " ".join(printed.split())
    missing = read(folder.parent, "val_step000009")["num_without_votes"]
    assert f"{missing} items without votes left out" in shown
    for name in VALUES:
        assert f"{callback.history[-1][name]:.3f}" in printed, name
        assert f"{callback.history[0][name]:.3f}" in printed, name
    assert printed.rstrip().endswith(f"crowd calibration: {folder / 'val_step000009'}.json and .png")


def test_pictures_are_drawn_as_often_as_asked_for_and_at_the_end(trainer, tmp_path, capsys):
    def drawn(folder, **settings):
        callback = CrowdCalibration(str(tmp_path / folder), **settings)
        trainer(callback, max_epochs=4).fit(LabelRM(), Data())
        return [int(path.stem[-6:]) for path in sorted((tmp_path / folder).glob("*.png"))]

    assert drawn("two", figure_every_n_validations=2) == [3, 9, 12]
    assert drawn("many", figure_every_n_validations=9) == [3, 12]
    assert drawn("none", figure_every_n_validations=0) == []
    assert len(list((tmp_path / "none").glob("*.json"))) == 4
    assert capsys.readouterr().out.rstrip().endswith("val_step000012.json")


def test_test_is_judged_too(trainer, tmp_path, capsys):
    callback = CrowdCalibration(seed=4, num_resamples=100)
    run = trainer(callback)
    run.test(LabelRM(), data := Data(), verbose=False)
    content = read(tmp_path, "test_step000000")
    assert_same(content, json.loads(json.dumps(expected(data.hand_made).as_json())))
    assert (content["stage"], content["seed"], content["num_resamples"]) == ("test", 4, 100)
    assert float(run.callback_metrics["test/kl"]) == pytest.approx(content["values"]["kl"]["value"])
    assert picture_size(tmp_path / "crowd_calibration" / "test_step000000.png") == (1020, 840)
    printed = capsys.readouterr().out
    assert "Test at step 0: " in printed
    assert callback.history == []


def test_a_validation_alone_prints_its_table(trainer, tmp_path, capsys):
    trainer(CrowdCalibration()).validate(ComparingRM(), Data(), verbose=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Validation at step 0: " in shown
    assert "comparisons, in both orders," in shown


def test_without_validation_there_is_nothing(trainer, tmp_path, capsys):
    trainer(CrowdCalibration(), limit_val_batches=0).fit(LabelRM(), Data())
    assert not (tmp_path / "crowd_calibration").exists()
    assert "crowd calibration" not in capsys.readouterr().out


def test_a_sanity_check_alone_leaves_nothing(trainer, tmp_path):
    callback = CrowdCalibration()
    trainer(callback, num_sanity_val_steps=2, max_epochs=5, check_val_every_n_epoch=9).fit(LabelRM(), Data())
    assert callback.history == []
    assert not (tmp_path / "crowd_calibration").exists()


def test_data_without_any_vote_are_warned_about(trainer, tmp_path, capsys):
    batches = make_batches()
    for batch in batches:
        batch["votes"].zero_()
    run = trainer(callback := CrowdCalibration())
    with pytest.warns(UserWarning, match="none of 12 items of this validation has votes"):
        run.validate(LabelRM(), Data(batches), verbose=False)
    assert callback.history == []
    assert "val/kl" not in run.callback_metrics
    assert not (tmp_path / "crowd_calibration").exists()


@pytest.mark.parametrize(
    ("model", "drop", "message"),
    [
        (
            LabelRM,
            ["votes"],
            r"LabelRM predicts labels of responses and needs 'votes' \(provided by .*LocalDataModule",
        ),
        (
            ComparingRM,
            ["comparison_votes"],
            r"ComparingRM predicts labels of comparisons and needs 'comparison_votes' \(provided by UKPConvArg",
        ),
        (LabelRM, ["id"], "counts by prompt and needs id in the batch"),
        (
            OneRewardTooFew,
            [],
            r"OneRewardTooFew must have one of label_rewards for each of its 3 labels, got \(1",
        ),
    ],
)
@pytest.mark.parametrize("first", ["sanity", "validate", "test"])
def test_what_is_missing_is_named_at_once(trainer, model, drop, message, first):
    run = trainer(CrowdCalibration())
    call = {"sanity": run.fit, "validate": run.validate, "test": run.test}[first]
    with pytest.raises(ValueError, match=message):
        call(model(), Data(make_batches(drop=drop)))


def test_a_module_without_labels_is_refused(trainer, module, data):
    with pytest.raises(ValueError, match="Nameless has no labels and no label_rewards"):
        trainer(CrowdCalibration()).validate(module(Nameless), data(), verbose=False)


def test_a_module_without_probabilities_is_refused(trainer, module, data):
    class Rewards(BradleyTerryRM):
        labels, label_rewards = LabelRM.labels, LabelRM.label_rewards

    message = (
        r"needs labels, predicted distributions, .* but Rewards gives \['chosen', 'rejected', 'reward'\]"
    )
    with pytest.raises(ValueError, match=message):
        trainer(CrowdCalibration()).validate(module(Rewards), data(), verbose=False)
    with pytest.raises(ValueError, match=r"but Rewards gives \[\]"):
        CrowdCalibration().on_test_batch_end(trainer(), module(Rewards), None, {}, 0)


def test_votes_over_other_labels_are_refused(trainer):
    batches = make_batches()
    batches[0]["votes"] = torch.ones(6, 4)
    with pytest.raises(ValueError, match=r"must both be \(responses, 3\), .*; got \(6, 3\) and \(6, 4\)"):
        trainer(CrowdCalibration()).validate(LabelRM(), Data(batches), verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"figure_every_n_validations": -1}, "figure_every_n_validations must be finite and >= 0; got -1"),
        ({"num_resamples": 99}, "num_resamples must be finite and >= 100; got 99"),
        ({"seed": -1}, "seed must be finite and >= 0; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CrowdCalibration(**settings)


@pytest.mark.parametrize("number", [2, 5, 7, 10])
def test_pictures_of_any_number_of_labels(tmp_path, number):
    generator = torch.Generator().manual_seed(number)
    probs = torch.rand(40, number, generator=generator)
    votes = torch.randint(0, 3, (40, number), generator=generator)
    names = tuple(f"label ${i}$ of quite a length that must be broken and cut {i}" for i in range(number))
    table = crowd_table(
        probs / probs.sum(-1, keepdim=True),
        votes,
        torch.arange(40),
        labels=names,
        label_rewards=range(number),
        both_orders=False,
        num_resamples=100,
        seed=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_picture(draw_crowd_table(table, "100 $ and $ more"), tmp_path / "picture", ["png"])
    width, height = picture_size(tmp_path / "picture.png")
    assert (width, height) == {2: (780, 840), 5: (1500, 840), 7: (1200, 1200), 10: (1500, 1200)}[number]


def drawn_panels(number, *, both_orders):
    """Titles of the labels' panels, the words in them, and the names and heights of the bars of means."""
    generator = torch.Generator().manual_seed(number)
    names = tuple(f"label {i}" for i in range(number))
    probs = (2 * torch.randn(60, number, generator=generator)).softmax(-1)
    votes = torch.randint(0, 4, (60, number), generator=generator) + 1
    table = crowd_table(
        probs, votes, torch.arange(60), labels=names, label_rewards=torch.linspace(1, -1, number).tolist(),
        both_orders=both_orders, num_resamples=100, seed=0,
    )  # fmt: skip
    figure = draw_crowd_table(table, "title")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    curves = {title: axes for title, axes in panels.items() if title.startswith("label")}
    notes = [axes.texts[0].get_text() for axes in curves.values()]
    means = panels.get("mean distribution")
    bars = [] if means is None else [tick.get_text().replace("\n", " ") for tick in means.get_xticklabels()]
    (rewards,) = (axes for title, axes in panels.items() if title.startswith("expected reward"))
    return list(curves), notes, bars, rewards.collections[0].get_offsets()


@pytest.mark.parametrize(
    ("number", "both_orders", "panels", "bars"),
    [
        (2, False, [0], ["label 0", "label 1"]),
        (3, False, [0, 1, 2], ["label 0", "label 1", "label 2"]),
        (2, True, [0], []),
        (3, True, [0, 1], ["label 0, as label 2", "label 1"]),
        (4, True, [0, 1], ["label 0, as label 3", "label 1, as label 2"]),
    ],
)
def test_no_panel_mirrors_another(number, both_orders, panels, bars):
    titles, notes, names, rewards = drawn_panels(number, both_orders=both_orders)
    assert titles == [f"label {k}" for k in panels]
    assert names == bars
    mirrored = {number - 1 - k for k in panels} - set(panels)
    assert {k for k in range(number) for note in notes if f"label {k}:" in note} == mirrored, (
        "each says which"
    )
    assert len(rewards) == 60, "every item once"
    assert not both_orders or float(rewards[:, 0].min()) >= 0


class Overconfident(LabelRM):
    """Its first labels are right, and then it gets surer with every step."""

    def compute_loss(self, output, batch):
        return -4 * self.sharpness

    def forward(self, batch):
        batch = {**batch, "features": batch["votes"].clamp_min(0.3).log()}
        return super().forward(batch)


class Calm(Overconfident):
    """The same, in small steps."""

    def compute_loss(self, output, batch):
        return -0.02 * self.sharpness


def test_it_says_since_when_calibration_got_worse(trainer, tmp_path, capsys):
    callback, logger = CrowdCalibration(), CSVLogger(tmp_path, name="run")
    trainer(callback, max_epochs=3, logger=logger).fit(Overconfident(), Data())
    errors = [entry["label_calibration_error"] for entry in callback.history]
    above = [entry["label_calibration_error_above_best"] for entry in callback.history]
    assert errors == sorted(errors) and errors[0] < errors[-1]
    assert above == pytest.approx([error - errors[0] for error in errors])
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as stream:
        rows = [row["val/label_calibration_error_above_best"] for row in csv.DictReader(stream)]
    assert [float(value) for value in rows if value] == pytest.approx(above, abs=1e-6)
    printed = capsys.readouterr().out
    assert (
        f"calibration got worse: mean error of the labels {errors[-1]:.3f}, up from {errors[0]:.3f} at step 3, the best "
        "of 3 validations" in printed
    )


def test_a_validation_that_is_the_best_or_almost_says_nothing(trainer, capsys):
    callback = CrowdCalibration()
    trainer(callback, max_epochs=2, num_sanity_val_steps=0).fit(Calm(), Data())
    errors = [entry["label_calibration_error"] for entry in callback.history]
    above = [entry["label_calibration_error_above_best"] for entry in callback.history]
    assert above == [0.0, pytest.approx(errors[1] - min(errors))]
    assert 0 < above[1] < 0.1 * errors[1]
    trainer(CrowdCalibration()).validate(LabelRM(), Data(), verbose=False)
    assert "got worse" not in capsys.readouterr().out, "alone there is nothing before it"


@pytest.mark.slow
def test_two_processes_find_what_one_finds(trainer, tmp_path, capfd, monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath)  # a spawned process imports this file by its name
    data = Data(make_batches((3, 1, 2)))  # five prompts on one rank, one on the other
    trainer(CrowdCalibration()).validate(LabelRM(), data, verbose=False)
    one = read(tmp_path)
    capfd.readouterr()
    run = trainer(
        CrowdCalibration("two"),
        strategy="ddp_spawn",
        devices=2,
        use_distributed_sampler=False,
    )
    values = run.validate(LabelRM(), data, verbose=False)[0]
    two = json.loads((tmp_path / "two" / "val_step000000.json").read_text(encoding="utf-8"))
    assert_same(two, one)
    for name, value in one["values"].items():
        assert two["values"][name] == pytest.approx(value, abs=1e-6), name
        assert values[f"val/{name}"] == pytest.approx(value["value"], abs=1e-6), name
    assert picture_size(tmp_path / "two" / "val_step000000.png") == (1020, 840)
    assert capfd.readouterr().out.count("Validation at step 0: ") == 1
