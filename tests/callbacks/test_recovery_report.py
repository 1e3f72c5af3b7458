"""The report's numbers against plain loops, its picture, and what it refuses."""

import math
import struct

import lightning as L
import pytest
import torch

from pluralign.callbacks import RecoveryReport
from pluralign.models import BradleyTerryRM


class PerJudge(BradleyTerryRM):
    """A reward for judges only."""

    def forward(self, batch):
        output = super().forward(batch)
        del output["reward"]
        return output


class NoScore(L.Callback):
    """Takes the truth away before RecoveryReport sees it."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        del batch["score"]


class Forget(L.Callback):
    """Makes the truth about one response per batch unknown."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        batch["score"][1] = float("nan")


def batches(source):
    source.setup("validate")
    return list(source.val_dataloader())


def correlation(pairs):
    mean_x, mean_y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    xy = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    xx = sum((x - mean_x) ** 2 for x, _ in pairs)
    yy = sum((y - mean_y) ** 2 for _, y in pairs)
    return xy / math.sqrt(xx * yy)


def by_hand(model, source, forgotten=()):
    """Every number of an entry, one response and one comparison at a time."""
    deviations, right, decided, losses = [], {"model": 0, "truth": 0}, 0, []
    for batch in batches(source):
        with torch.no_grad():
            reward = model.eval()(batch)["reward"].double().tolist()
        truth, prompts = batch["score"].double().tolist(), batch["response_prompt"].tolist()
        for prompt in set(prompts):
            members = [n for n, one in enumerate(prompts) if one == prompt and n not in forgotten]
            means = [sum(values[n] for n in members) / len(members) for values in (reward, truth)]
            deviations += [(reward[n] - means[0], truth[n] - means[1]) for n in members]
        for (i, j), share in zip(
            batch["comparisons"].tolist(), batch["preference"].double().tolist(), strict=True
        ):
            if i in forgotten or j in forgotten:
                continue
            gap = reward[i] - reward[j]
            losses.append(share * math.log1p(math.exp(-gap)) + (1 - share) * math.log1p(math.exp(gap)))
            if share == 0.5:
                continue
            decided += 1
            for name, values in (("model", reward), ("truth", truth)):
                first_wins = values[i] > values[j]
                right[name] += first_wins == (share > 0.5) and values[i] != values[j]
    return {
        "model accuracy": right["model"] / decided,
        "truth accuracy": right["truth"] / decided,
        "model correlation": correlation(deviations),
        "truth correlation": 1.0,
        "model log loss": sum(losses) / len(losses),
    }


@pytest.mark.parametrize("judgements", ["crowd", "users"])
def test_numbers_equal_plain_loops(trainer, module, data, judgements):
    report, model = RecoveryReport(), module()
    source = data(judgements=judgements, label_noise=0.3, tie_width=0.3)
    trainer(report).validate(model, source, verbose=False)
    (entry,) = report.history
    assert entry == pytest.approx({"step": 0.0, **by_hand(model, source)}, abs=1e-5)
    assert entry["truth accuracy"] > 0.6


def test_equal_rewards_are_never_right_and_their_loss_is_that_of_a_coin(trainer, module, data):
    class Zero(BradleyTerryRM):
        def forward(self, batch):
            return {name: value * 0 for name, value in super().forward(batch).items()}

    report = RecoveryReport()
    with pytest.warns(UserWarning, match="every comparison have equal rewards"):
        trainer(report).validate(module(Zero), data(), verbose=False)
    assert report.history[0]["model accuracy"] == 0
    assert report.history[0]["model log loss"] == pytest.approx(math.log(2))


def test_unknown_scores_are_left_out(trainer, module, data):
    report, model = RecoveryReport(), module()
    trainer(Forget(), report).validate(model, source := data(), verbose=False)
    assert report.history[0] == pytest.approx(
        {"step": 0.0, **by_hand(model, source, forgotten={1})}, abs=1e-5
    )


def test_a_fit_ends_with_a_table_and_a_picture(trainer, module, data, tmp_path, capsys):
    report, model = RecoveryReport(), module()
    trainer(report, max_epochs=2, num_sanity_val_steps=-1).fit(model, source := data())
    assert [entry["step"] for entry in report.history] == [0, 6, 12]
    assert report.history[-1] == pytest.approx({"step": 12.0, **by_hand(model, source)}, abs=1e-5)

    printed = capsys.readouterr().out
    assert "Recovered truth on 36 validation responses" in printed
    for name in ("model accuracy", "model correlation", "truth accuracy", "model log loss"):
        assert f"{report.history[-1][name]:.3f}" in printed, name
    path = tmp_path / "recovery.png"
    assert printed.rstrip().endswith(f"picture: {path}")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1080, 480), "9 by 4 inches at 120 dots"
    assert len(content) > 10_000, "not an empty page"


def test_a_look_at_a_part_of_the_data_is_no_entry(trainer, module, data):
    report = RecoveryReport()
    trainer(report, num_sanity_val_steps=1).fit(module(), data())
    assert [entry["step"] for entry in report.history] == [6]


def test_the_picture_may_lie_anywhere(trainer, module, data, tmp_path):
    path = tmp_path / "new" / "picture"
    trainer(RecoveryReport(filename=str(path))).fit(module(), data())
    assert path.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(
        ValueError, match=r"must have no ending, which formats=\[svg\] gives; got 'truth.svg'"
    ):
        RecoveryReport("truth.svg")


def test_without_validation_nothing_is_said(trainer, module, data, tmp_path, capsys):
    trainer(RecoveryReport(), limit_val_batches=0).fit(module(), data())
    assert "Recovered" not in capsys.readouterr().out
    assert not (tmp_path / "recovery.png").exists()


def test_data_without_a_truth_is_refused(trainer, module, data):
    wanted = "needs comparisons and true rewards as `score`, as SyntheticDataModule gives them"
    with pytest.raises(ValueError, match=wanted):
        trainer(NoScore(), RecoveryReport()).validate(module(), data(), verbose=False)
    with pytest.raises(ValueError, match=wanted):
        RecoveryReport().on_validation_batch_end(trainer(), module(), {}, {"score": torch.zeros(1)}, 0)


def test_a_module_without_one_reward_for_everyone_is_refused(trainer, module, data):
    with pytest.raises(ValueError, match=r"PerJudge gives \['chosen', 'rejected'\]"):
        trainer(RecoveryReport()).validate(module(PerJudge), data(), verbose=False)


@pytest.mark.slow
def test_two_processes_report_the_same_and_end(trainer, module, data, tmp_path, capfd):
    """Finding the picture's folder asks every process: leaving one out would stall the run for ever."""
    two = trainer(
        RecoveryReport(), strategy="ddp_spawn", devices=2, max_epochs=-1, max_steps=1, num_sanity_val_steps=-1
    )
    two.fit(model := module(), source := data())
    printed = capfd.readouterr().out
    assert printed.count("Recovered truth on 36 validation responses") == 1
    assert (tmp_path / "recovery.png").stat().st_size > 10_000
    assert f"{by_hand(model, source)['truth accuracy']:.3f}" in printed
