"""The callback on real runs: what it collects, judges and logs, by hand; loaders, ranks, continued runs; file and picture."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from pluralign.callbacks import StrengthReport
from pluralign.callbacks.pictures import draw_strengths
from pluralign.datamodules import LoaderConfig
from pluralign.datamodules.batch import Basis
from pluralign.metrics import strength_summary
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM, RewardModule
from pluralign.tests.callbacks.conftest import HandMade
from pluralign.tests.datamodules.datasets.test_alpaca_eval import module as alpaca_eval
from pluralign.tests.datamodules.datasets.test_alpaca_eval import row as alpaca_row

pytestmark = [pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")]

USERS = ["judge", "ann", "bob"]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


class MembersRM(RewardModule):
    """Members whose rewards are the features; the last one's grow by themselves with every step."""

    requires = frozenset()
    title = "member_rewards"

    def __init__(self):
        super().__init__(BackboneConfig(config={"model_type": "llama"}), optimizer=sgd)
        self.scale = None

    def configure_model(self):
        if self.scale is None:
            self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        features = batch["features"]
        rewards = torch.cat([features[:, :-1], features[:, -1:] * self.scale], 1)
        names = tuple(f"member_{m}" for m in range(rewards.shape[1]))
        output = {"reward": rewards.mean(1), "basis": Basis(rewards, names, self.title, linear=True)}
        if "comparisons" in batch:
            output["chosen"], output["rejected"] = output["reward"][batch["comparisons"]].unbind(1)
        return output

    def compute_loss(self, output, batch):
        return -self.scale


class OtherRM(MembersRM):
    title = "prototype_rewards"


class PlainRM(MembersRM):
    def forward(self, batch):
        output = super().forward(batch)
        del output["basis"]
        return output


def votes(record, *rows, without=()):
    """A batch of one record for each row of (members' differences, share, user, turned)."""
    features, comparisons, share, user = [], [], [], []
    for number, (differences, *rest) in enumerate(rows):
        part, who, turned = (*rest, *(1.0, "ann", False)[len(rest) :])
        features += [list(differences), [0.0] * len(differences)]
        pair = (2 * number, 2 * number + 1)
        comparisons.append(pair[::-1] if turned else pair)
        share.append(part)
        user.append(-1 if who is None else USERS.index(who))
    number = torch.arange(len(rows))
    batch = {
        "id": [str(record + i) for i in range(len(rows))],
        "record_key": number + record,
        "features": torch.tensor(features),
        "response_row": torch.arange(2 * len(rows)),
        "response_prompt": number.repeat_interleave(2),
        "response_index": torch.tensor([0, 1] * len(rows)),
        "response_length": torch.ones(2 * len(rows), dtype=torch.int64),
        "comparisons": torch.tensor(comparisons),
        "comparison_index": torch.zeros(len(rows), dtype=torch.int64),
        "user_id": torch.tensor(user),
        "preference": torch.tensor(share),
    }
    return {name: value for name, value in batch.items() if name not in without}


def judged(record, differences, *judgements):
    """A batch of one record with two responses and several judgements of them: (user, share, turned)."""
    batch = votes(record, (differences,))
    pairs = [(1, 0) if turned else (0, 1) for _, _, turned in judgements]
    return batch | {
        "comparisons": torch.tensor(pairs),
        "comparison_index": torch.arange(len(pairs)),
        "user_id": torch.tensor([USERS.index(user) for user, _, _ in judgements]),
        "preference": torch.tensor([share for _, share, _ in judgements]),
    }


# Strengths 2, 1.5, -1.5, 0 and, of a label that prefers the second, 3; a tie counts nowhere.
FIRST = votes(100, ((1.0, 3.0),), ((1.0, 2.0),), ((-1.0, -2.0),))
SECOND = votes(200, ((2.0, -2.0),), ((-3.0, -3.0), 0.2), ((5.0, 5.0), 0.5))
BATCHES = [FIRST, SECOND]


class Loaders(HandMade):
    """Loaders with names, a list of batches each."""

    def __init__(self, loaders):
        super().__init__(BATCHES)
        self.loaders = loaders

    def loader_names(self, split):
        return tuple(self.loaders) if split != "train" else ()

    def val_dataloader(self):
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        return [torch.utils.data.DataLoader(b[rank::ranks], batch_size=None) for b in self.loaders.values()]

    test_dataloader = val_dataloader


def report(**settings):
    return StrengthReport(**{"num_resamples": 100, **settings})


def read(folder, name="val_step000000", where="strength_report"):
    return json.loads((folder / where / f"{name}.json").read_text(encoding="utf-8"))


def validate(trainer, data, *, model=MembersRM, **settings):
    run = trainer(callback := report(**settings))
    run.validate(model(), data, verbose=False)
    return callback, {name: float(value) for name, value in run.callback_metrics.items()}


# Numbers -------------------------------------------------------------------------------------------------


def test_strengths_are_those_by_hand(trainer, tmp_path):
    callback, logged = validate(trainer, HandMade(BATCHES, USERS))
    content = read(tmp_path)
    strengths, stds = [2, 1.5, -1.5, 0, 3], [1, 0.5, 0.5, 2, 0]
    assert content["num_comparisons"] == 5 and content["num_tied"] == 1 and content["num_members"] == 2
    assert content["share_negative"]["value"] == pytest.approx(1 / 5)
    assert logged["val/strength/share_negative"] == pytest.approx(1 / 5)
    assert logged["val/strength/std"] == pytest.approx(sum(stds) / 5)
    assert logged["val/strength/accuracy"] == pytest.approx(3 / 5), "a strength of 0 is on no side"
    # The wrong ones have stds 0.5 and 2: above 0 and, half, 0.5 and above all of 1, 0.5, 0.
    assert logged["val/strength/error_auroc"] == pytest.approx((1.5 + 3) / 6)
    assert logged["val/strength/correlation"] == pytest.approx(
        np.corrcoef([1, 1, -1, 2, 3], [3, 2, -2, -2, 3])[0, 1], abs=1e-6
    )
    assert "val/strength/label_agreement" not in logged
    assert [group["center"] for group in content["deciles"]] == sorted(strengths)
    assert callback.history[0]["std"] == pytest.approx(0.8) and content["history"] == callback.history
    one = strength_summary(
        torch.tensor([[1.0, 3], [1, 2], [-1, -2], [2, -2], [-3, -3]]),
        torch.tensor([1, 1, 1, 1, 0.2]),
        record=torch.tensor([100, 101, 102, 200, 201]),
        num_resamples=100,
    )
    assert {name: content[name] for name in one.content()} == json.loads(json.dumps(one.content())) | {
        "num_tied": 1
    }


def test_a_judge_is_the_reference_of_all_others(trainer, tmp_path):
    """Whichever response a comparison names first; the judge's own comparisons are no labels."""
    batches = [
        judged(100, (1.0, 3.0), ("judge", 0.9, True), ("ann", 1.0, False), ("bob", 0.7, True)),
        judged(101, (-1.0, -2.0), ("ann", 1.0, False), ("judge", 0.0, False)),
        judged(102, (1.0, 1.0), ("judge", 1.0, False), ("judge", 0.0, True), ("bob", 1.0, False)),
        judged(103, (1.0, 1.0), ("judge", 0.5, False), ("bob", 1.0, False)),
        judged(104, (1.0, 1.0), ("ann", 1.0, False)),
    ]
    _, logged = validate(trainer, HandMade(batches, USERS), judge="judge")
    content = read(tmp_path)
    assert (content["num_comparisons"], content["num_judged"]) == (6, 4)
    # The judge prefers the second response of 100 and of 101, the first of 102 both times.
    agreement = {"ann 100": 0, "bob 100": 1, "ann 101": 0, "bob 102": 1}
    assert logged["val/strength/label_agreement"] == pytest.approx(sum(agreement.values()) / 4)
    ensemble = {"ann 100": 0, "bob 100": 0, "ann 101": 1, "bob 102": 1}
    assert logged["val/strength/accuracy"] == pytest.approx(sum(ensemble.values()) / 4)
    assert logged["val/strength/share_negative"] == pytest.approx(2 / 6)
    assert content["judge"] == "judge" and "the judge decides 4 of the 6 comparisons" in content["notes"][0]


def test_judges_of_merged_rows_are_told_apart(trainer, tmp_path, tiny):
    """Rows of several judges on one pair are one record once they are tokenised: through a real data module."""
    questions = [f"Name fruit {i}." for i in range(60)]
    for judge, codes in (("strict", (1.0, 2.0)), ("kind", (1.0, 1.0))):
        rows = [alpaca_row(codes[i % 2], text, judge=judge) for i, text in enumerate(questions)]
        data = alpaca_eval(
            tmp_path / "data", rows, judge=judge, loader=LoaderConfig(batch_size=4), on_invalid="error"
        )
    module = EnsembleVoteRM(BackboneConfig(config=tiny()), num_members=3)
    trainer(report(judge="strict")).test(module, data, verbose=False)
    content = read(tmp_path, "test_step000000")
    assert 0 < content["num_comparisons"] < 60 and content["num_judged"] == content["num_comparisons"]
    assert 0 < content["label_agreement"]["value"] < 1, "they agree about every second fruit"


def test_an_ensemble_in_training(trainer, tmp_path, tiny, data, capsys):
    module = EnsembleVoteRM(BackboneConfig(config=tiny()), num_members=4)
    trainer(callback := report(), max_epochs=2).fit(module, data(num_validation=40))
    assert [entry["step"] for entry in callback.history] == [6, 12]
    content = read(tmp_path, "val_step000012")
    assert content["num_members"] == 4 and content["num_comparisons"] > 40
    assert (tmp_path / "strength_report" / "val_step000012.png").stat().st_size > 20_000
    printed = " ".join(capsys.readouterr().out.split())
    assert "Validation at step 12: " in printed and "groups by strength, against the label first" in printed
    assert printed.endswith("strength_report/val_step000012.json and .png")


def test_labels_without_shares_are_unanimous(trainer, tmp_path):
    batch = votes(1, ((1.0, 2.0),), ((-1.0, 0.0),), without=("preference", "user_id"))
    _, logged = validate(trainer, HandMade([batch]))
    assert logged["val/strength/share_negative"] == 0.5
    assert read(tmp_path)["deciles"][0]["label_share"] is None


# Loaders, ranks, continued runs --------------------------------------------------------------------------


def test_several_loaders_are_one_report_and_each_beside_it(trainer, tmp_path):
    silent = {
        name: value for name, value in FIRST.items() if name not in ("comparisons", "user_id", "preference")
    }
    ties = votes(300, ((1.0, 1.0), 0.5))
    data = Loaders({"web": [FIRST], "policy": [silent, silent], "chat": [SECOND], "ties": [ties]})
    _, logged = validate(trainer, data)
    assert logged["val/strength/std"] == pytest.approx(0.8)
    assert logged["val/strength/std/web"] == pytest.approx(2 / 3)
    assert logged["val/strength/share_negative/web"] == pytest.approx(1 / 3)
    assert logged["val/strength/std/chat"] == pytest.approx(1)
    assert not any(name.endswith(("policy", "/ties")) and "strength" in name for name in logged)
    content = read(tmp_path)
    assert list(content["loaders"]) == ["web", "chat"] and content["num_comparisons"] == 5
    assert content["loaders"]["web"]["share_negative"]["value"] == pytest.approx(1 / 3)


def test_sanity_checks_make_no_entry(trainer, tmp_path):
    callback = report()
    trainer(callback, num_sanity_val_steps=-1, max_epochs=3).fit(MembersRM(), HandMade(BATCHES, USERS))
    assert [entry["step"] for entry in callback.history] == [2, 4, 6]
    assert len(read(tmp_path, "val_step000006")["history"]) == 3


def test_a_continued_run_has_the_way_of_an_uninterrupted_one(trainer, tmp_path):
    data = HandMade(BATCHES, USERS)
    trainer(whole := report(folder="whole"), max_epochs=4).fit(MembersRM(), data)
    saving = ModelCheckpoint(tmp_path, filename="half", save_top_k=-1)
    trainer(report(), saving, max_epochs=2, enable_checkpointing=True).fit(MembersRM(), data)
    again = ModelCheckpoint(tmp_path / "again")
    run = trainer(continued := report(), again, max_epochs=4, enable_checkpointing=True)
    run.fit(MembersRM(), data, ckpt_path=saving.best_model_path)
    assert [entry["step"] for entry in whole.history] == [2, 4, 6, 8]
    assert continued.history == whole.history
    assert len({entry["std"] for entry in whole.history}) == 4, "the last member goes its way"
    one, two = (tmp_path / folder / "val_step000008.png" for folder in ("whole", "strength_report"))
    assert one.read_bytes() == two.read_bytes()
    assert read(tmp_path, "val_step000008") == read(tmp_path, "val_step000008", "whole")


def test_two_reports_on_one_run_keep_their_states_apart():
    assert report(folder="one").state_key != report(folder="two").state_key


def test_a_test_stands_alone(trainer, tmp_path):
    run = trainer(callback := report(), max_epochs=1)
    run.fit(module := MembersRM(), data := HandMade(BATCHES, USERS))
    run.test(module, data, verbose=False)
    assert len(callback.history) == len(read(tmp_path, "test_step000002")["history"]) == 1


@pytest.mark.slow
def test_two_processes_find_what_one_finds(trainer, tmp_path, capfd, monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath)  # a spawned process imports this file by its name
    batches = [
        judged(100 + i, (1.0, 3.0, -i), ("judge", 0.9, i % 2 == 0), ("ann", 1.0, False)) for i in range(4)
    ]
    data = HandMade(batches, USERS)
    validate(trainer, data, judge="judge")
    capfd.readouterr()
    run = trainer(
        report(folder="two", judge="judge"), strategy="ddp_spawn", devices=2, use_distributed_sampler=False
    )
    (logged,) = run.validate(MembersRM(), data, verbose=False)
    assert read(tmp_path, where="two") == read(tmp_path)
    assert logged["val/strength/std"] == pytest.approx(read(tmp_path)["std"]["value"])
    assert capfd.readouterr().out.count("Validation at step 0: ") == 1


# The picture and the tables ------------------------------------------------------------------------------


def planted(number=400, members=5, judge=True, **settings):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(number, 1, generator=generator).abs() + 0.2
    flipped = torch.rand(number, 1, generator=generator) < 0.2
    noise = 0.6 * torch.randn(number, members, generator=generator) * (1 + truth)
    share = torch.ones(number)
    if settings.pop("crowd", False):
        share = 0.6 + 0.2 * torch.randint(3, (number,), generator=generator)
    return strength_summary(
        torch.where(flipped, -truth, truth) + noise,
        share,
        judge=torch.where(flipped, 0.0, 1.0).squeeze(1) if judge else None,
        num_resamples=100,
        **settings,
    )


def boxes_of(figure):
    figure.draw_without_rendering()
    return [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]


@pytest.mark.parametrize(
    "settings", [{}, {"judge": False}, {"crowd": True}, {"number": 3}, {"num_std_groups": 40}]
)
def test_everything_is_on_the_picture(settings):
    summary = planted(**settings)
    figure = draw_strengths(
        summary, title="Validation at step 3", judge="a judge with a name that is too long to show"
    )
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert f"against the label: {summary.share_negative.value:.1%}" in words
    names = [axes.get_ylabel() for axes in figure.axes]
    assert "mean std of the members (nats)" in names
    legend = [
        text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()
    ]
    assert any(name.startswith("best possible: area") for name in legend)
    assert any(name.startswith("random order: area") for name in legend)
    agreement = {
        True: "label agrees with a judge with a name that...",
        False: "ensemble agrees with the label",
    }
    assert agreement[summary.has_judge] in legend
    assert ("annotators on the label's side" in legend) == settings.get("crowd", False)
    for box in boxes_of(figure):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    for axes in figure.axes:
        ticks = [tick.get_window_extent() for tick in axes.get_xticklabels() if tick.get_text()]
        assert all(one.x1 < two.x0 for one, two in pairwise(ticks)), "no number on another"


def test_the_line_of_zero_stands_where_strength_changes_its_sign():
    summary = planted()
    figure = draw_strengths(summary)
    lines = [line for line in figure.axes[1].lines if len(set(line.get_xdata())) == 1]
    (place,) = {line.get_xdata()[0] for line in lines}
    assert place == pytest.approx(0.5 + 10 * summary.share_negative.value, abs=0.6)


def test_without_a_decided_comparison_there_is_no_curve():
    summary = strength_summary(
        torch.tensor([[1.0, 2.0]]), torch.ones(1), judge=torch.tensor([0.5]), num_resamples=10
    )
    words = [text.get_text() for axes in draw_strengths(summary).axes for text in axes.texts]
    assert "no reference decides a comparison" in words


def test_a_picture_is_written_in_every_format(trainer, tmp_path):
    validate(trainer, HandMade(BATCHES, USERS), formats=("svg", "pdf"))
    drawing = (tmp_path / "strength_report" / "val_step000000.svg").read_text(encoding="utf-8")
    for words in (
        "strengths of the labels",
        "does uncertainty predict errors?",
        "Validation at step 0: 5 comparisons",
    ):
        assert words in drawing
    assert (tmp_path / "strength_report" / "val_step000000.pdf").exists()


def test_tables_fit_into_eighty_columns(trainer, tmp_path, capsys):
    callback = report()
    trainer(callback, max_epochs=2).fit(MembersRM(), HandMade(BATCHES, USERS))
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if not line.startswith(("strengths:", "note:"))]
    assert max(map(len, table)) <= Console(width=80).width
    (row,) = (line for line in table if "strength below 0" in line)
    assert row.count("0.400") == 2, "at the first validation and now"


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "batch", "settings", "message"),
    [
        (OtherRM, FIRST, {}, "needs the rewards of an ensemble's members, .* OtherRM gives one of 'prototype_rewards'"),
        (PlainRM, FIRST, {}, "a basis of title 'member_rewards' as EnsembleVoteRM gives it .* PlainRM gives none"),
        (MembersRM, votes(1, ((1.0,),)), {}, "needs two members at least, and this MembersRM is one alone"),
        (MembersRM, votes(1, ((1.0, 1.0),), without=("record_key",)), {}, "batch keys that this data lacks: 'record_key'"),
        (MembersRM, votes(1, ((1.0, 1.0),), without=("user_id",)), {"judge": "judge"}, "lacks: 'user_id'"),
        (MembersRM, FIRST, {"judge": "jim"}, "judge names 'jim', .* no user of these data: they have 3, such as"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_at_once(trainer, model, batch, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(report(**settings), num_sanity_val_steps=1).fit(model(), HandMade([batch], USERS))


def test_data_without_users_have_no_judge(trainer):
    with pytest.raises(ValueError, match=r"judge names 'judge', .*: they name no users"):
        validate(trainer, HandMade(BATCHES), judge="judge")


def test_a_reward_model_alone_is_told_which_module_has_members(trainer, module, data):
    with pytest.raises(ValueError, match=r"EnsembleVoteRM .* BradleyTerryRM gives none"):
        trainer(report()).validate(module(BradleyTerryRM), data(), verbose=False)


def test_nothing_to_report_is_warned_about(trainer, tmp_path):
    ties = votes(1, ((1.0, 1.0), 0.5))
    with pytest.warns(UserWarning, match="no report on this validation: of 1 comparisons, 1 of them ties"):
        callback, _ = validate(trainer, HandMade([ties], USERS))
    assert callback.history == [] and not (tmp_path / "strength_report").exists()


def test_a_judge_of_other_pairs_is_warned_about(trainer):
    batches = [judged(1, (1.0, 2.0), ("judge", 1.0, False)), judged(2, (1.0, 2.0), ("ann", 1.0, False))]
    with pytest.warns(
        UserWarning, match="'judge' judged none of the pairs of this validation that others judged"
    ):
        validate(trainer, HandMade(batches, USERS), judge="judge")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_groups": 1}, "num_groups must be finite and >= 2; got 1"),
        ({"num_resamples": 10}, "num_resamples must be finite and >= 100; got 10"),
        ({"seed": -1}, "seed must be finite and >= 0; got -1"),
        ({"formats": ["gif"]}, "formats must be one or more of png, pdf, svg"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        report(**settings)
