"""What a board has of a model is what the model says when it is asked for each response alone."""

import random

import pytest
import torch

from pluralign.datamodules import Comparison, LocalDataModule, PreferenceRecord, Response, TextConfig
from pluralign.datamodules.records import Message
from pluralign.inference import ModuleReward
from pluralign.inference.board import evaluation_data, score_data
from pluralign.models import (
    DPRM,
    PAL,
    AutoregressiveRM,
    BackboneConfig,
    BradleyTerryRM,
    CustomizedRM,
    EnsembleVoteRM,
)

TEXT = TextConfig(max_length=96)
FRUITS = ("fig", "plum", "pear", "quince", "melon", "cherry")
LABELS = {"labels": ["bad", "fair", "good"], "rewards": [-1.0, 0.0, 1.0]}
METHODS = {
    "AutoregressiveRM": (AutoregressiveRM, {}),
    "BradleyTerryRM": (BradleyTerryRM, {}),
    "DPRM": (DPRM, LABELS),
    "DPRM on comparisons": (DPRM, {**LABELS, "judged": "comparisons"}),
    "PAL": (PAL, {"num_prototypes": 2, "user_init": "normal", "num_users": 3}),
    "CustomizedRM": (CustomizedRM, {"domains": ["trees", "bushes"], "per_domain": "head"}),
    "EnsembleVoteRM": (EnsembleVoteRM, {"num_members": 3, "members": "head", "resample": "none"}),
}


def records(number=20):
    draw = random.Random(7)
    for i in range(number):
        responses = tuple(Response(f"A {name}{' or so' * (i % 3)}") for name in draw.sample(FRUITS, 3))
        user, domain = ("0", "1", "dan", None)[i % 4], ("trees", "bushes", None)[i % 3]
        prompt = f"Fruit {i % 6}?" if i % 5 else (Message("system", "Short."), Message("user", "Fruit?"))
        yield PreferenceRecord(
            f"r{i}",
            prompt,
            responses,
            (Comparison(0, 1, 1.0, user, domain), Comparison(2, 1, 0.7, user, domain)),
        )


def judged(rows=None):
    return evaluation_data("fruits", "test", LocalDataModule(test="none.jsonl"), list(rows or records()))


@pytest.fixture
def reward(tiny):
    def build(kind=BradleyTerryRM, *, max_tokens=16_384, text=TEXT, changes=None, **settings):
        module = kind(BackboneConfig(config=tiny(**(changes or {}))), **settings)
        module.configure_model()
        for name, weight in module.named_parameters():  # heads begin at zero, and would tell nothing apart
            if "head" in name or weight.abs().max() == 0:
                torch.nn.init.normal_(weight, std=0.3)
        return ModuleReward(
            module.eval(), text=text, unknown_users="mean", device="cpu", max_tokens=max_tokens
        )

    return build


def alone(reward, data, users, domains):
    """Rewards of every side of every comparison, each response in a call of its own."""
    found = []
    for comparison in data.comparisons:
        pair = []
        for place in (comparison.first, comparison.second):
            prompt = data.prompts[comparison.prompt]
            if not isinstance(prompt, str):
                prompt = [{"role": turn.role, "content": turn.content} for turn in prompt]
            user = comparison.user if comparison.user in users else None
            domain = comparison.domain if comparison.domain in domains else None
            columns = {"user": [user], "domain": [domain]}
            pair.append(float(reward([prompt], [data.responses[place].text], columns)))
        found.append(pair)
    return torch.tensor(found, dtype=torch.float64)


def test_equal_prompts_and_responses_are_one():
    rows = [
        PreferenceRecord("a", "Fruit?", (Response("Fig"), Response("Plum")), (Comparison(0, 1),)),
        PreferenceRecord("b", "Fruit?", (Response("Plum"), Response("Pear")), (Comparison(1, 0, 0.5),)),
        PreferenceRecord("c", "Fruit?", (Response("Fig"), Response("Fig")), (Comparison(0, 1),)),
        PreferenceRecord("d", "Tree?", (Response("Fig"),)),
    ]
    data = judged(rows)
    assert data.prompts == ["Fruit?", "Tree?"] and [one.text for one in data.responses] == [
        "Fig",
        "Plum",
        "Pear",
        "Fig",
    ]
    assert data.sides.tolist() == [[0, 1], [2, 1]] and data.identical == 1
    assert data.places == [[0, 1], [1, 2], [0, 0], [3]]
    assert data.fingerprint != judged(rows[:3]).fingerprint == judged(rows[:3]).fingerprint


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("max_tokens", [100, pytest.param(16_384, marks=pytest.mark.slow)])
def test_every_side_is_as_its_judge_would_give_it(reward, method, max_tokens):
    kind, settings = METHODS[method]
    model, data = reward(kind, max_tokens=max_tokens, **settings), judged()
    scores = score_data(model, data)
    expected = alone(model, data, model.known("user"), model.known("domain"))
    torch.testing.assert_close(torch.stack([scores.first, scores.second], 1), expected, atol=2e-5, rtol=0)
    assert expected.unique().numel() > 20, "or nothing would be told apart"
    assert scores.swap < 1e-4
    if "DPRM" in method:
        assert scores.labels is not None and scores.on_comparisons == ("comparisons" in method)
        torch.testing.assert_close(scores.labels.sum(1), torch.ones(len(scores.labels), dtype=torch.float64))
    else:
        assert scores.labels is None


def test_rewards_of_records_are_those_of_their_one_user(reward):
    kind, settings = METHODS["PAL"]
    model, data = reward(kind, **settings), judged()
    scores = score_data(model, data)
    parts = scores.of_records.split([3] * len(data.records))
    for record, own in zip(data.records, parts, strict=True):
        user = record.comparisons[0].user
        prompt = record.prompt
        if not isinstance(prompt, str):
            prompt = [{"role": turn.role, "content": turn.content} for turn in prompt]
        known = user if user in model.known("user") else None
        texts = [response.text for response in record.responses]
        expected = model([prompt] * 3, texts, {"user": [known] * 3}).double()
        torch.testing.assert_close(own, expected, atol=2e-5, rtol=0)
    counts = scores.counts
    assert counts["users whom the model does not know (mean of all users)"] == 1
    assert counts["comparisons of users whom the model does not know"] == 10
    assert counts["comparisons of nobody in particular (mean of all users)"] == 10


def test_what_cannot_be_read_is_missing_and_counted_and_nothing_else_changes(reward):
    rows = [
        *records(6),
        PreferenceRecord(
            "long", "Fruit 1?", (Response("A fig"), Response("A plum " * 40)), (Comparison(0, 1),)
        ),
    ]
    model, data = reward(), judged(rows)
    scores, short = score_data(model, data), score_data(model, judged(rows[:6]))
    assert scores.odds.isnan().tolist() == [False] * 12 + [True]
    torch.testing.assert_close(scores.odds[:12], short.odds, atol=1e-5, rtol=0)
    assert scores.counts["responses longer than the text format's max_length"] == 1


def test_a_damaged_model_has_no_numbers_rather_than_wrong_ones(reward):
    model, data = reward(), judged()
    torch.nn.init.constant_(next(model.module.head.parameters()), torch.inf)
    scores = score_data(model, data)
    assert bool(scores.odds.isnan().all())
    assert scores.counts["responses whose reward is not finite"] == len(data.responses)


def test_a_network_that_looks_at_what_comes_after_is_caught_by_the_probe(reward, monkeypatch):
    model, data = reward(), judged()
    forward = type(model.module).forward

    def by_place(module, batch):
        output = forward(module, batch)
        output["chosen"] = output["chosen"] + 0.5
        return output

    monkeypatch.setattr(type(model.module), "forward", by_place)
    assert score_data(model, data).swap == pytest.approx(0.5, abs=1e-4)
    assert str(score_data(model, data, probed=0).swap) == "nan"


def test_one_judges_reward_that_is_not_finite_is_found_though_the_general_one_is(reward, monkeypatch):
    model, data = reward(), judged()
    forward = type(model.module).forward

    def torn(module, batch):
        output = forward(module, batch)
        output["chosen"] = torch.where(batch["preference"] < 1, torch.inf, output["chosen"])
        return output

    monkeypatch.setattr(type(model.module), "forward", torn)
    scores = score_data(model, data, probed=0)
    lost = data.share < 1
    assert scores.odds.isnan().equal(lost) and scores.first.isnan().equal(lost)
    assert scores.second.isnan().equal(lost) and not bool(scores.reward.isnan().any())
    assert scores.counts == {
        "comparisons with a reward, as their judge would give it, that is not finite": int(lost.sum())
    }


@pytest.mark.parametrize(("broken", "swap"), [("second", "inf"), ("both", "nan")])
def test_the_probe_does_not_take_what_is_not_finite_for_no_change(reward, monkeypatch, broken, swap):
    model, data = reward(), judged()
    forward, calls = type(model.module).forward, []

    def damaged(module, batch):
        output = forward(module, batch)
        calls.append(len(calls))
        if broken == "both" or len(calls) > 1:
            for name in ("reward", "chosen", "rejected"):
                output[name] = output[name] * torch.nan
        return output

    monkeypatch.setattr(type(model.module), "forward", damaged)
    assert str(score_data(model, data).swap) == swap


def test_votes_on_one_text_and_on_one_pair_are_added_up():
    fig, plum = Response("Fig", votes=(2.0, 1.0, 0.0)), Response("Plum", votes=(0.0, 0.0, 3.0))
    rows = [
        PreferenceRecord("a", "Fruit?", (fig, plum), (Comparison(0, 1, votes=(3.0, 1.0, 0.0)),)),
        PreferenceRecord("b", "Fruit?", (plum, fig), (Comparison(0, 1, 0.0, votes=(0.0, 1.0, 4.0)),)),
        PreferenceRecord("c", "Fruit?", (fig, Response("Pear")), (Comparison(0, 1),)),
    ]
    data = judged(rows)
    assert data.votes == {(0, 3): (6.0, 3.0, 0.0), (1, 3): (0.0, 0.0, 6.0)}
    assert data.votes_of_pairs == {(0, 3): (7.0, 2.0, 0.0)}  # the second is the first the other way round
