"""DPRM under a Trainer: where it starts, when it switches its loss, what it refuses, and whether it finds the truth."""

import json

import lightning as L
import numpy as np
import pytest
import torch

from pluralign.callbacks import CrowdCalibration
from pluralign.datamodules import CrowdConfig, LoaderConfig, LocalDataModule, SyntheticDataModule, TextConfig
from pluralign.datamodules.records import RecordError
from pluralign.models import DPRM, BackboneConfig

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
COMPARED = {"labels": ["first", "tie", "second"], "rewards": [1, 0, -1], "judged": "comparisons"}
RATED = {"labels": list("abcde"), "rewards": [-2, -1, 0, 1, 2]}
ORDER = {"crowd": COMPARED, "ratings": RATED}


def data(judgements, **settings):
    sizes = {"num_train": 24, "num_validation": 9, "num_test": 9, "num_predict": 4}
    loader = settings.pop("loader", LoaderConfig(batch_size=4))
    return SyntheticDataModule(judgements=judgements, **{**sizes, **settings}, loader=loader)


def still(parameters):
    """An optimiser that leaves everything as it is."""
    return torch.optim.SGD(parameters, lr=0.0)


def module(judgements, cls=DPRM, **settings):
    return cls(BackboneConfig(config=TINY), **{**ORDER[judgements], "cost": "index", **settings})


def trainer(tmp_path, **settings):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return L.Trainer(
        default_root_dir=tmp_path, **{**quiet, "max_steps": 2, "log_every_n_steps": 1, **settings}
    )


def symmetrised(source):
    """Mean shares of the training split's votes, with every comparison counted from both sides."""
    shares = []
    for record in map(source.to_example, source.load("train")):
        for votes in [c.votes for c in record.comparisons] or [r.votes for r in record.responses]:
            share = np.array(votes) / sum(votes)
            shares.append((share + share[::-1]) / 2 if record.comparisons else share)
    return np.mean(shares, 0)


def probabilities(model, loader):
    """Predictions of every judged item, in the order of the loader."""
    with torch.no_grad():
        return torch.cat([model.eval()(batch)["labels"].probs for batch in loader])


@pytest.mark.parametrize("judgements", ORDER)
@pytest.mark.parametrize("head", ["categorical", "beta"])
def test_fit_validate_test_and_predict(tmp_path, judgements, head):
    model, source = module(judgements, head=head), data(judgements)
    run = trainer(tmp_path, max_steps=-1, max_epochs=1)
    run.fit(model, source)
    found = run.test(model, source, verbose=False)[0]
    assert ("test/accuracy" in found) == (judgements == "crowd")
    assert np.isfinite(list(found.values())).all()
    outputs = run.predict(model, source)
    assert sum(len(output["reward"]) for output in outputs) == 16
    assert {output["labels"].on for output in outputs} == {model.judged}


def test_the_validation_loss_is_the_mean_over_ragged_batches(tmp_path):
    model, source = module("ratings"), data("ratings")
    run = trainer(tmp_path)
    run.fit(model, source)
    votes = torch.cat([batch["votes"] for batch in source.val_dataloader()]).double()
    shares = (votes / votes.sum(1, keepdim=True)).numpy()
    probs = probabilities(model, source.val_dataloader()).double().numpy()
    steps = np.abs(probs.cumsum(1) - shares.cumsum(1))[:, :-1].sum(1)
    assert float(run.validate(model, source, verbose=False)[0]["val/loss"]) == pytest.approx(
        steps.mean(), rel=1e-5
    )


# Start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judgements", ORDER)
def test_the_constant_baseline_is_the_training_distribution_at_once(tmp_path, judgements):
    model, source = module(judgements, loss="constant", optimizer=still), data(judgements)
    run = trainer(tmp_path, max_steps=-1, max_epochs=1)
    run.fit(model, source)
    probs = probabilities(model, source.val_dataloader()).numpy()
    np.testing.assert_allclose(probs, np.broadcast_to(symmetrised(source), probs.shape), atol=1e-6)
    if judgements == "crowd":  # a tie is not right, though the first response is the majority's
        assert float(run.callback_metrics["val/accuracy"]) == 0
        assert float(run.callback_metrics["val/tied_scores"]) == 1
    votes = torch.cat([batch[model.keys.votes] for batch in source.val_dataloader()]).numpy()
    shares = votes / votes.sum(1, keepdims=True)
    entropy = -(shares * np.log(symmetrised(source))).sum(1).mean()
    found = run.validate(model, source, verbose=False)[0]["val/loss"]
    assert found == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("judgements", ORDER)
@pytest.mark.parametrize("loss", ["wasserstein", "cross_entropy", "bradley_terry"])
def test_every_head_starts_around_the_training_distribution(tmp_path, judgements, loss):
    model, source = module(judgements, loss=loss, optimizer=still), data(judgements)
    trainer(tmp_path, max_steps=1).fit(model, source)
    with torch.no_grad():
        shares = model.bias.softmax(-1).numpy()
    np.testing.assert_allclose(shares, symmetrised(source), atol=1e-6)


@pytest.mark.parametrize(("judgements", "count"), [("crowd", 3), ("ratings", 5), ("ratings", 2), ("ratings", 100)])  # fmt: skip
def test_beta_heads_start_at_the_training_shares(tmp_path, judgements, count):
    labels = {"labels": [str(i) for i in range(count)], "rewards": [float(i) for i in range(count)]}
    model = module(judgements, head="beta", optimizer=still, **labels)
    source = data(judgements, num_labels=count)
    trainer(tmp_path, max_steps=1).fit(model, source)
    with torch.no_grad():
        alpha, beta = (torch.nn.functional.softplus(model.bias) + 1e-3).view(-1, 2).T.numpy()
    expected = symmetrised(source).clip(1e-4)[: 1 if count == 2 else count]
    np.testing.assert_allclose(alpha, (count * expected).clip(1e-2 * count) + 1e-3, rtol=1e-4)
    np.testing.assert_allclose(alpha + beta, count + 2e-3, rtol=2e-2)


def test_labels_that_nobody_chose_stay_possible(tmp_path):
    rows = [
        {"prompt": f"Say {i}.", "responses": ["Yes.", "No."], "votes": [[3, 1, 0], [1, 2, 0]]}
        for i in range(8)
    ]
    source = local(tmp_path, rows)
    model = module("ratings", labels=list("abc"), rewards=[1, 0, -1], loss="constant", optimizer=still)
    trainer(tmp_path, max_steps=1).fit(model, source)
    expected = np.array([13 / 24, 11 / 24, 1e-4]) / (1 + 1e-4)
    np.testing.assert_allclose(
        probabilities(model, source.val_dataloader())[0], expected, rtol=1e-4, atol=1e-7
    )


def test_a_trained_bias_is_kept_when_a_run_goes_on(tmp_path):
    model = module("ratings", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, data("ratings"))
    run.save_checkpoint(tmp_path / "model.ckpt")
    trained = model.bias.detach().clone()
    assert not torch.allclose(trained.softmax(-1), torch.tensor(symmetrised(data("ratings"))).float())
    resumed = module("ratings", optimizer=still)
    # the optimiser's own state would come back with its rate
    trainer(tmp_path, max_steps=2).fit(
        resumed, data("ratings"), ckpt_path=tmp_path / "model.ckpt", weights_only=True
    )
    assert torch.equal(resumed.bias.detach(), trained)
    loaded = DPRM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.bias.detach(), trained)
    loaded.optimizer = still
    trainer(tmp_path, max_steps=1).fit(loaded, data("ratings", seed=5))
    assert torch.equal(loaded.bias.detach(), trained)


@pytest.mark.parametrize("judgements", ORDER)
@pytest.mark.parametrize(("head", "loss"), [("categorical", "sinkhorn"), ("beta", "wasserstein"), ("categorical", "constant")])  # fmt: skip
def test_checkpoints_reload_to_equal_outputs(tmp_path, tensors_of, judgements, head, loss):
    sets = {"ends": [ORDER[judgements]["labels"][0]]}
    model, source = module(judgements, head=head, loss=loss, label_sets=sets), data(judgements)
    run = trainer(tmp_path)
    run.fit(model, source)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = DPRM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert again.labels == model.labels and again.label_rewards == model.label_rewards
    batch = next(iter(source.val_dataloader()))
    with torch.no_grad():
        output, found = tensors_of(model.eval()(batch)), tensors_of(again(batch))
    assert output.keys() == found.keys()
    for name, value in output.items():
        assert torch.equal(found[name], value), name


def test_a_module_that_only_tests_starts_from_nothing(tmp_path):
    model = module("ratings")
    trainer(tmp_path).test(model, data("ratings"), verbose=False)
    assert not model.bias.any()


# Steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "accumulated"), [("categorical", 1), ("categorical", 2), ("beta", 2)])
def test_the_loss_changes_after_the_optimizer_steps_of_the_warm_up(tmp_path, head, accumulated):
    steps = []

    class Watched(DPRM):
        def compute_loss(self, output, batch):
            loss = super().compute_loss(output, batch)
            shares, _ = self.keys.shares(batch)
            entropy = -(shares * output["labels"].probs.log()).sum(-1).mean()
            steps.append((self.training, self.global_step, bool(torch.isclose(loss, entropy))))
            return loss

    model = module("crowd", cls=Watched, head=head, warmup_steps=2)
    run = trainer(tmp_path, max_steps=4, accumulate_grad_batches=accumulated, num_sanity_val_steps=1)
    run.fit(model, data("crowd", num_train=32))
    training = [step[1:] for step in steps if step[0]]
    assert training == [(step, step < 2) for step in range(4) for _ in range(accumulated)]
    assert {step[2] for step in steps if not step[0]} == {False}, "validation never warms up"


def test_mixed_precision_keeps_scores_apart(tmp_path):
    model, source = module("ratings"), data("ratings", num_validation=40)
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(model, source)
    scores = torch.cat([output["reward"] for output in run.predict(model, source)])
    assert scores.dtype == torch.float32
    assert not torch.equal(scores.bfloat16().float(), scores), "rounded to 16 bits on the way"


def test_crowd_calibration_judges_either_kind(tmp_path):
    for judgements, labels in (("crowd", 3), ("ratings", 5)):
        callback = CrowdCalibration(figure_every_n_validations=0)
        run = trainer(tmp_path / judgements, callbacks=[callback], max_steps=-1, max_epochs=1)
        run.fit(module(judgements), data(judgements))
        (table,) = (tmp_path / judgements).rglob("val_*.json")
        assert len(json.loads(table.read_text())["labels"]) == labels
        assert 0 < float(run.callback_metrics["val/total_variation"]) < 1


# Errors ------------------------------------------------------------------------------------------------


def local(folder, rows, split="train", **settings):
    """Files of which one split has these rows, and the others sound ones."""
    files = {}
    for name in {"train", "validation", split}:
        files[name] = str(folder / f"{name}.jsonl")
        lines = rows if name == split else [{**SOUND, "prompt": f"{name} {i}?"} for i in range(8)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return LocalDataModule(**files, loader=LoaderConfig(batch_size=4, crowd=CrowdConfig(**settings)))


SOUND = {"prompt": "Name a fruit.", "responses": ["Apple.", "Chair."], "votes": [[3, 1, 0], [0, 2, 2]]}
HOLES = [
    {"id": f"q{i}", "prompt": f"Name fruit {i}.", "responses": ["Apple.", "Chair."], "votes": [[3, 1, 0], None]}
    for i in range(8)
]  # fmt: skip
THREE = {"labels": list("abc"), "rewards": [1, 0, -1]}


@pytest.mark.parametrize(
    ("judgements", "wrong", "message"),
    [
        ("ratings", {"labels": list("abc"), "rewards": [1, 0, -1]}, r"votes count 5 labels, the head has 3 \(a, b, c\)"),
        ("crowd", {"labels": ["first", "second"], "rewards": [1, -1]}, r"comparison_votes count 3 labels, the head has 2"),
    ],
)  # fmt: skip
def test_another_number_of_labels_than_the_data_s(tmp_path, judgements, wrong, message):
    with pytest.raises(ValueError, match=message + r".*set model\.labels and model\.rewards to those"):
        trainer(tmp_path).fit(module(judgements, **wrong), data(judgements))


def test_data_without_the_votes_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"DPRM needs batch keys that this data lacks: 'votes' \(provided by"
    ):
        trainer(tmp_path).fit(module("ratings"), data("crowd"))
    with pytest.raises(ValueError, match=r"lacks: 'comparison_votes'.*; 'comparisons'"):
        trainer(tmp_path).fit(module("crowd"), data("ratings"))


def test_items_without_votes_need_a_prior(tmp_path):
    with pytest.raises(ValueError, match=r"item 1 of record 'q\d' has no votes and no prior.*loader\.crowd"):
        trainer(tmp_path).fit(module("ratings", **THREE), local(tmp_path, HOLES))
    with pytest.raises(ValueError, match="has no votes and no prior"):
        source = local(tmp_path, HOLES, prior="mean", prior_strength=0)
        trainer(tmp_path).fit(module("ratings", **THREE), source)
    run = trainer(tmp_path)
    run.fit(module("ratings", **THREE), local(tmp_path, HOLES, prior="mean"))
    assert bool(torch.isfinite(run.callback_metrics["train/loss"]))


@pytest.mark.parametrize("loss", ["wasserstein", "cross_entropy"])
def test_a_later_split_with_holes_is_an_error_too(tmp_path, loss):
    source = local(tmp_path, HOLES, split="test")
    model, run = module("ratings", loss=loss, **THREE), trainer(tmp_path)
    run.fit(model, source)
    with pytest.raises(ValueError, match="test: item 1 of record 'q0' has no votes and no prior"):
        run.test(model, source, verbose=False)


def test_negative_counts_stop_at_the_row_that_has_them(tmp_path):
    rows = [{**SOUND, "votes": [[3, -1, 0], [1, 1, 1]]}] * 4
    with pytest.raises(RecordError, match=r"train\.jsonl.*votes\[1\]"):
        trainer(tmp_path).fit(module("ratings", **THREE), local(tmp_path, rows))


# Science -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_crowd_s_distribution_is_recovered(tmp_path):
    """From 20 votes a comparison: half of the held-out distributions within 0.05, a fifth of the constant's distance."""
    torch.set_num_threads(1)
    epochs, size = 6, 1024
    source = SyntheticDataModule(
        judgements="crowd", num_train=size, num_test=256, votes_per_comparison=20,
        loader=LoaderConfig(batch_size=16, max_tokens=None), text=TextConfig(max_length=256),
    )  # fmt: skip
    config = {
        **TINY,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = DPRM(
        BackboneConfig(config=config),
        **COMPARED,
        cost="index",
        warmup_steps=128,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=3e-3, total_steps=size // 16 * epochs, pct_start=0.1
        ),
    )  # fmt: skip
    run = trainer(tmp_path, max_steps=-1, max_epochs=epochs, limit_val_batches=0, num_sanity_val_steps=0)
    run.fit(model, source)
    source.setup("test")
    truth, found = source.truth("test"), {}
    with torch.no_grad():
        for batch in source.test_dataloader():
            prompts = batch["response_prompt"][batch["comparisons"][:, 0]].tolist()
            probs = model.eval()(batch)["labels"].probs.numpy()
            for prompt, number, row in zip(prompts, batch["comparison_index"].tolist(), probs, strict=True):
                found[batch["id"][prompt], number] = row
    # Six comparisons of each prompt, in the order of the records.
    predicted = np.stack([found[f"test:{i // 6 + 1}", i % 6] for i in range(len(truth.comparisons))])
    distance = np.abs(predicted - truth.label_distribution).sum(1) / 2
    constant = np.abs(symmetrised(source) - truth.label_distribution).sum(1) / 2
    print(f"median total variation {np.median(distance):.4f}, of the constant {np.median(constant):.4f}")
    assert np.median(distance) <= 0.05
    assert np.median(constant) >= 5 * np.median(distance)
