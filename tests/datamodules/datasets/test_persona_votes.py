"""Persona votes: rows, drift, and an update of stored posteriors that happens whole or not at all; invented rows."""

import gzip
import hashlib
import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pluralign.datamodules.crowd import CrowdConfig, crowd_posterior, crowd_target, dirichlet_update
from pluralign.datamodules.datasets.persona_votes import update as _persona_update
from pluralign.datamodules.datasets.persona_votes.module import PersonaVotesDataModule
from pluralign.datamodules.datasets.persona_votes.update import update_posteriors
from pluralign.datamodules.records import Message, RecordError, Response

PRIOR = [0.3, 0.4, 0.2, 0.05, 0.03, 0.02]
MEAN = [0.4, 0.25, 0.3, 0.025, 0.015, 0.01]
REWARDS = (1, 0.5, -1, -1, -1.5, -3)
LABELS = [0] * 5 + [1] + [2] * 4
"""Ten votes of the worked example: prior of strength 10 and these give ``MEAN``."""
DICES = Path(__file__).resolve().parents[4] / "shared" / "data" / "dices" / "dices_350_crowdsourced.json.gz"


def vote(label, persona="baker", **more):
    return {"persona": persona, "label": label, **more}


def row(**changes):
    base = {"id": "q1", "prompt": "Name a fruit.", "responses": ["Apple.", "Chair."]}
    return {**base, "votes": [[vote(0), vote(1, "poet")], [vote(2)]], **changes}


def write(folder, rows, name="train.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def example(folder, fields, **options):
    data = PersonaVotesDataModule(train=str(write(folder, [fields])), **options)
    return data.to_example(next(data.load("train")))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row(id=f"q{i}", prompt=f"Name fruit {i // 2}.") for i in range(40)] + [
        row(votes=[[vote(9)], []])
    ] * bad
    test = write(folder, [row(id="held out")], "test.jsonl")
    return PersonaVotesDataModule(train=str(write(folder, rows)), test=str(test), **settings)


# Rows ------------------------------------------------------------------------------------------------------


def content_name(prompt, responses=("Apple.", "Chair.")):
    content = {"prompt": prompt, "responses": list(responses)}
    return hashlib.sha1(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def test_ids_of_rows_without_one_follow_prompt_and_responses(tmp_path):
    def names(*rows):
        data = PersonaVotesDataModule(train=str(write(tmp_path, rows)))
        return [data.to_example(row).id for row in data.load("train")]

    fruit, tree = row(id=None), row(id="", prompt="Name a tree.")
    first, second = content_name("Name a fruit."), content_name("Name a tree.")
    assert names(fruit, tree) == [first, second]
    assert names(tree, row(id="q0"), fruit) == [second, "q0", first], "whatever stands before"
    assert names(fruit, row(id=None, votes=[[], []], prior=PRIOR)) == [first, f"{first}:2"], (
        "whatever the votes"
    )


def test_votes_are_counted_and_priors_kept(tmp_path):
    prior = [PRIOR, None]
    record = example(tmp_path, row(prior=prior, target=[MEAN, None], note="passed over"))
    assert (record.id, record.prompt, record.comparisons, record.group) == ("q1", "Name a fruit.", (), None)
    assert record.responses == (
        Response("Apple.", votes=(1, 1, 0, 0, 0, 0), prior=tuple(PRIOR)),
        Response("Chair.", votes=(0, 0, 1, 0, 0, 0)),
    )


def test_a_vote_that_is_there_again_counts_once(tmp_path):
    times = [{"time": 3}, {"time": 3.0}, {"time": 4}, {}, {"time": None}, {"time": "2024-05-30"}]
    votes = [[vote(1, **time) for time in times] + [vote(1, "poet", time=3)], []]
    assert example(tmp_path, row(votes=votes)).responses[0].votes == (0, 5, 0, 0, 0, 0)
    data = PersonaVotesDataModule(test=str(write(tmp_path, [row(votes=votes)], "test.jsonl")))
    with pytest.warns(
        UserWarning, match=r"persona_votes test: 2 votes of .*test\.jsonl repeat one .*count once"
    ):
        data.setup("test")
    stored = write(tmp_path, [row(votes=votes)], "stored.jsonl")
    report = update_posteriors(stored, write(tmp_path, [], "new.jsonl"))
    assert report.repeated == 2 and "stored twice, counted once  2" in str(report)
    assert read(stored)[0]["votes"] == votes, "what is stored stays"
    assert read(stored)[0]["target"][0] == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "times", [(1, 1.0), (None, None), ("2024-05-30", "2024-05-30T01:00+01:00"), (2**60, 2**60)]
)
def test_two_labels_at_one_time_contradict(tmp_path, times):
    votes = [
        [vote(0), vote(4, "poet", time=5)],
        [vote(label, "poet", time=time) for label, time in enumerate(times)],
    ]
    with pytest.raises(
        RecordError,
        match=r"contradictory votes: field 'votes\[1\]\[1\]\.label' is 1; allowed: label 0, which 'poet'",
    ):
        example(tmp_path, row(votes=votes))


def test_times_are_exact(tmp_path):
    now = 1_700_000_000_000_000_000
    votes = [[vote(0, time=now), vote(1, time=now + 1)], []]
    assert example(tmp_path, row(votes=votes), forgetting=0.5).responses[0].votes == (0.5, 1, 0, 0, 0, 0)


def test_columns_of_text_that_are_not_read_are_named(tmp_path):
    data = PersonaVotesDataModule(
        test=str(write(tmp_path, [row(priors=[PRIOR], why="of taste")], "test.jsonl"))
    )
    with pytest.warns(UserWarning, match=r"no field reads these columns of .*test\.jsonl: why$"):
        data.setup("test")
    assert data.reports["test"].unread_columns == ["priors", "why"]


def test_what_a_row_may_leave_out_or_say_otherwise(tmp_path):
    messages = [{"role": "user", "content": "Name a fruit."}]
    record = example(tmp_path, row(id=None, prompt=messages, prior=PRIOR, votes=[[vote(5)], []]))
    assert (record.id, record.prompt) == (content_name(messages), (Message("user", "Name a fruit."),))
    assert [response.prior for response in record.responses] == [tuple(PRIOR)] * 2
    assert record.responses[1].votes == (0,) * 6, "a prior alone is a judgement, too"
    assert example(tmp_path, row(id=17)).id == "17"
    assert example(tmp_path, row(votes=[[], [vote(1)]])).responses[0].votes is None


def test_the_number_of_labels_is_data(tmp_path):
    record = example(
        tmp_path, row(prior=[[0.5, 0.5], [0.1, 0.9]], votes=[[vote(1)], [vote(0)]]), num_labels=2
    )
    assert [response.votes for response in record.responses] == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("reason", "field", "changes"),
    [
        ("wrong type", "id", {"id": True}),
        ("missing field", "id", {"id": " "}),
        ("missing field", "prompt", {"prompt": None}),
        ("wrong type", "prompt", {"prompt": 3}),
        ("missing field", "responses", {"responses": None}),
        ("missing field", "responses", {"responses": [], "votes": []}),
        ("wrong type", "responses", {"responses": "Apple."}),
        ("missing field", "responses[1]", {"responses": ["Apple.", None]}),
        ("empty response", "responses[1].text", {"responses": ["Apple.", " "]}),
        ("missing field", "votes", {"votes": None}),
        ("wrong length", "votes", {"votes": [[vote(0)]]}),
        ("wrong type", "votes", {"votes": {"0": []}}),
        ("wrong type", "votes[1]", {"votes": [[], vote(0)]}),
        ("wrong type", "votes[0][1]", {"votes": [[vote(0), 3], []]}),
        ("missing field", "votes[0][0].persona", {"votes": [[{"label": 0}], []]}),
        ("missing field", "votes[0][0].label", {"votes": [[{"persona": "poet"}], []]}),
        ("missing field", "votes[0][0].persona", {"votes": [[vote(0, " ")], []]}),
        ("wrong type", "votes[0][0].label", {"votes": [[vote(1.0)], []]}),
        ("wrong type", "votes[0][0].label", {"votes": [[vote(True)], []]}),
        ("wrong type", "votes[0][0].label", {"votes": [[vote("0")], []]}),
        ("out of range", "votes[0][0].label", {"votes": [[vote(6)], []]}),
        ("out of range", "votes[0][0].label", {"votes": [[vote(-1)], []]}),
        ("wrong type", "votes[0][0].time", {"votes": [[vote(0, time="soon")], []]}),
        ("wrong type", "votes[0][0].time", {"votes": [[vote(0, time=[1])], []]}),
        ("not finite", "votes[0][0].time", {"votes": [[vote(0, time=math.nan)], []]}),
        ("not finite", "votes[0][0].time", {"votes": [[vote(0, time=10**400)], []]}),
        ("wrong type", "prior", {"prior": "uniform"}),
        ("wrong length", "prior", {"prior": []}),
        ("wrong length", "prior", {"prior": [PRIOR]}),
        ("wrong length", "prior[0]", {"prior": [0.5, 0.5]}),
        ("wrong length", "prior[1]", {"prior": [PRIOR, PRIOR[:5]]}),
        ("out of range", "prior[0]", {"prior": [[0.3, 0.4, 0.2, 0.05, 0.03, 0.01], None]}),
        ("out of range", "prior[0]", {"prior": [[1.5, -0.5, 0, 0, 0, 0], None]}),
        ("not finite", "prior[0][2]", {"prior": [[0.5, 0.5, math.nan, 0, 0, 0], None]}),
        ("not finite", "prior[0][0]", {"prior": [[math.inf, 0, 0, 0, 0, 0], None]}),
        ("wrong type", "prior[0][0]", {"prior": [["1", 0, 0, 0, 0, 0], None]}),
        ("wrong type", "prior[1]", {"prior": [PRIOR, 0.5]}),
        ("out of range", "target[0]", {"target": [[0.5] * 6, None]}),
    ],
)
def test_malformed_rows(tmp_path, reason, field, changes):
    fields = {name: value for name, value in row(**changes).items() if value is not None}
    with pytest.raises(RecordError) as caught:
        example(tmp_path, fields)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_wrong_arguments(tmp_path):
    with pytest.raises(
        ValueError, match="either data_dir or at least one of train, validation, test; got neither"
    ):
        PersonaVotesDataModule()
    with pytest.raises(ValueError, match="got both"):
        PersonaVotesDataModule(data_dir=str(tmp_path), test="x.jsonl")
    with pytest.raises(ValueError, match="num_labels must be finite and >= 2; got 1"):
        PersonaVotesDataModule(train="x.jsonl", num_labels=1)
    with pytest.raises(ValueError, match="forgetting must be > 0 and <= 1; got 0"):
        PersonaVotesDataModule(train="x.jsonl", forgetting=0)
    with pytest.raises(FileNotFoundError, match=r"data_dir=.* has none of train\.jsonl, validation\.jsonl"):
        PersonaVotesDataModule(data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"test='.*x\.jsonl' is not a file .*change test"):
        PersonaVotesDataModule(test=str(tmp_path / "x.jsonl")).setup("test")


# Drift -----------------------------------------------------------------------------------------------------


def test_votes_are_forgotten_by_time_steps(tmp_path):
    votes = [[vote(0, time=3), vote(1, "poet", time=10), vote(0, "cook", time=10), vote(2, time=-1.5)], []]
    assert example(tmp_path, row(votes=votes)).responses[0].votes == (2, 1, 1, 0, 0, 0)
    found = example(tmp_path, row(votes=votes), forgetting=0.5).responses[0].votes
    assert found == (1.5, 1, 0.25, 0, 0, 0)


def test_dates_are_times(tmp_path):
    times = ["2024-05-30", "2024-05-30T02:00:00+02:00", "2024-05-30T00:00:01Z"]
    votes = [[vote(i, f"p{i}", time=time) for i, time in enumerate(times)], []]
    assert example(tmp_path, row(votes=votes), forgetting=0.5).responses[0].votes == (0.5, 0.5, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("reason", "second"),
    [("missing field", {}), ("missing field", {"time": None}), ("wrong type", {"time": "2024-05-30"})],
)
def test_forgetting_needs_comparable_times(tmp_path, reason, second):
    fields = row(votes=[[], [vote(0, time=1), vote(1, **second)]])
    example(tmp_path, fields)
    with pytest.raises(RecordError) as caught:
        example(tmp_path, fields, forgetting=0.9)
    assert (caught.value.reason, caught.value.field) == (reason, "votes[1][1].time")


@settings(derandomize=True, deadline=None, database=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=15), st.floats(0.2, 0.99)
)
def test_forgotten_counts_are_the_sequential_update(tmp_path_factory, given_votes, forgetting):
    votes = [vote(label, f"p{i}", time=time) for i, (label, time) in enumerate(given_votes)]
    fields = row(responses=["Apple."], votes=[votes])
    folder = tmp_path_factory.mktemp("rows")
    counts = example(folder, fields, num_labels=3, forgetting=forgetting).responses[0].votes
    target, strength = crowd_target(torch.tensor([counts]), CrowdConfig())
    prior = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    bare, bare_total, full, total = prior, 0.0, prior, 10.0
    for time in sorted({time for _, time in given_votes}):
        step = torch.bincount(
            torch.tensor([label for label, when in given_votes if when == time]), minlength=3
        )
        bare, bare_total = dirichlet_update(bare, bare_total, step, forgetting=forgetting)
        full, total = dirichlet_update(full, total, step, forgetting=forgetting)
    assert_close(target[0].double(), bare, atol=1e-6, rtol=0)
    assert strength.item() == pytest.approx(bare_total.item(), rel=1e-6)
    stored = write(folder, [{**fields, "prior": prior.tolist()}], "stored.jsonl")
    nothing = write(folder, [], "new.jsonl")
    update_posteriors(stored, nothing, num_labels=3, forgetting=forgetting)
    assert_close(torch.tensor(read(stored)[0]["target"][0], dtype=torch.float64), full, atol=1e-12, rtol=0)


# Splits and batches ----------------------------------------------------------------------------------------


def test_files_of_a_folder(tmp_path):
    write(tmp_path, [row(id="held out")], "test.jsonl")
    with gzip.open(tmp_path / "validation.jsonl.gz", "wt") as stream:
        stream.write(json.dumps(row(prompt="Another fruit?")))
    data = PersonaVotesDataModule(data_dir=str(tmp_path))
    assert data.sources == data.splits == ("validation", "test")
    data.setup("test")
    assert data.reports["test"].responses == 2


def test_a_batch_holds_the_posterior(tmp_path):
    rows = [
        row(prior=[PRIOR, None], votes=[[vote(label, f"p{i}") for i, label in enumerate(LABELS)], [vote(2)]]),
        row(id="q2", prompt="Another?", responses=["Pear."], prior=PRIOR, votes=[[]]),
    ]
    data = PersonaVotesDataModule(test=str(write(tmp_path, rows, "test.jsonl")))
    data.setup("test")
    (batch,) = data.test_dataloader()
    order = sorted(
        range(3), key=lambda i: (batch["id"][batch["response_prompt"][i]], batch["response_index"][i])
    )
    assert_close(batch["target"][order], torch.tensor([MEAN, [0, 0, 1, 0, 0, 0], PRIOR]))
    assert batch["target_votes"][order].tolist() == [20, 1, 10]
    assert batch["votes"][order].sum(1).tolist() == [10, 1, 0]


def test_records_without_a_judgement_are_counted(tmp_path):
    write(tmp_path, [row(), row(id="q2", prompt="Other?", votes=[[], []])], "test.jsonl")
    data = PersonaVotesDataModule(data_dir=str(tmp_path))
    data.setup("test")
    assert (data.reports["test"].records, data.reports["test"].dropped) == (
        1,
        {"record without a judgement": 1},
    )


def test_the_cache_follows_the_settings(tmp_path):
    path = str(write(tmp_path, [row(votes=[[vote(0, time=1)], []])]))
    folders = {PersonaVotesDataModule(train=path, **options).cache_folder() for options in (
        {}, {"forgetting": 0.5}, {"num_labels": 7})}  # fmt: skip
    assert len(folders) == 3


# Update ----------------------------------------------------------------------------------------------------


def stored(folder, **changes):
    fields = row(prior=[PRIOR, PRIOR], votes=[[], []], target=[PRIOR, PRIOR], **changes)
    return write(
        folder, [fields, row(id="q2", prompt="Where is it?", responses=["Here."], votes=[[]])], "stored.jsonl"
    )


def new(folder, votes, name="new.jsonl"):
    return write(folder, votes, name)


def line(label, persona, **more):
    return {"id": "q1", "response": 0, "persona": persona, "label": label, **more}


TEN = [line(label, f"p{i}") for i, label in enumerate(LABELS)]


def test_an_update_of_the_worked_example(tmp_path):
    path = stored(tmp_path)
    report = update_posteriors(path, new(tmp_path, TEN))
    first, second = read(path)
    assert first["target"][0] == pytest.approx(MEAN, abs=1e-12)
    assert sum(r * p for r, p in zip(REWARDS, first["target"][0], strict=True)) == pytest.approx(0.1475)
    assert first["target"][1] == pytest.approx(PRIOR, abs=1e-12)
    assert second["target"] == [None]
    assert first["votes"] == [[vote(label, f"p{i}") for i, label in enumerate(LABELS)], []]
    assert (report.records, report.records_voted, report.votes_added) == (2, 1, 10)
    assert (report.targets, report.moved, report.without_target) == (2, 2, 1)
    assert report.mean_moved == pytest.approx(0.1)  # .2 for the first response, nothing for the second
    assert report.most_moved == pytest.approx(0.2)
    content = path.read_bytes()
    again = update_posteriors(path, new(tmp_path, []))
    assert path.read_bytes() == content and again.mean_moved == again.votes_added == 0


def test_an_update_with_forgetting(tmp_path):
    path = stored(tmp_path)
    update_posteriors(path, new(tmp_path, [{**vote, "time": 1} for vote in TEN]), forgetting=0.9)
    expected = [0.405263, 0.242105, 0.305263, 0.023684, 0.014211, 0.009474]
    assert read(path)[0]["target"][0] == pytest.approx(expected, abs=5e-7)


def test_the_votes_of_a_figure(tmp_path):
    """Without priors the target is the share of the votes."""
    path = write(tmp_path, [row(votes=[[], []])], "stored.jsonl")
    second = [line(label, f"p{i}", response=1) for i, label in enumerate([0] * 3 + [2] * 5 + [4] * 2)]
    update_posteriors(path, new(tmp_path, TEN + second))
    (record,) = read(path)
    assert record["target"][0] == pytest.approx([0.5, 0.1, 0.4, 0, 0, 0])
    assert record["target"][1] == pytest.approx([0.3, 0, 0.5, 0, 0.2, 0])
    rewards = [sum(r * p for r, p in zip(REWARDS, target, strict=True)) for target in record["target"]]
    assert rewards == pytest.approx([0.15, -0.5])


@pytest.mark.parametrize("seed", range(3))
def test_votes_may_come_in_any_order_and_number(tmp_path, seed):
    path = stored(tmp_path)
    votes = list(TEN)
    random.Random(seed).shuffle(votes)
    for size in (1, 4, 5):
        some, votes = votes[:size], votes[size:]
        assert update_posteriors(path, new(tmp_path, some)).votes_added == size
    assert read(path)[0]["target"][0] == pytest.approx(MEAN, abs=1e-12)
    assert len(read(path)[0]["votes"][0]) == 10


def test_steps_with_forgetting_follow_the_rule(tmp_path):
    path = stored(tmp_path)
    mean, strength = torch.tensor(PRIOR, dtype=torch.float64), 10.0
    for time, labels in enumerate(([0, 0, 1], [2], [5, 5, 2, 0])):
        votes = [line(label, f"p{i}", time=time) for i, label in enumerate(labels)]
        update_posteriors(path, new(tmp_path, votes), forgetting=0.8)
        counts = torch.bincount(torch.tensor(labels), minlength=6)
        mean, strength = dirichlet_update(mean, strength, counts, forgetting=0.8)
        assert read(path)[0]["target"][0] == pytest.approx(mean.tolist(), abs=1e-12)
    assert read(path)[0]["target"][1] == pytest.approx(PRIOR), "nobody voted on it: it stays"


def test_every_setting_of_the_crowd_is_used(tmp_path):
    path = stored(tmp_path)
    options = {
        "prior_strength": 1.0,
        "prior_floor": 0.1,
        "smoothing": 0.3,
        "vote_correlation": 0.2,
        "max_votes": 3.0,
    }
    update_posteriors(path, new(tmp_path, [line(0, f"p{i}") for i in range(40)]), **options)
    counts = torch.tensor([[40.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    expected, _ = crowd_posterior(counts, CrowdConfig(**options), torch.tensor(PRIOR, dtype=torch.float64))
    assert read(path)[0]["target"][0] == pytest.approx(expected[0].tolist(), abs=1e-12)


def test_nothing_that_was_stored_is_lost(tmp_path):
    old = [
        vote(3, "poet", time="2024-05-30", why="it rhymes"),
        vote(3, "poet", time="2024-05-30", why="twice"),
    ]
    path = stored(tmp_path, note={"deep": [1, 2.50]}, source="größer")
    records = read(path)
    records[0]["votes"][1] = old
    write(tmp_path, records, "stored.jsonl")
    votes = [
        line(1, "baker", response=1, why="crisp"),
        {**line(2, "cook"), "id": None, "prompt": "Where is it?"},
    ]
    update_posteriors(path, new(tmp_path, votes))
    first, second = read(path)
    assert first["votes"] == [[], [*old, vote(1, "baker", why="crisp")]]
    assert second["votes"] == [[vote(2, "cook")]]
    assert {name: first[name] for name in ("id", "prompt", "responses", "prior", "note", "source")} == {
        name: records[0][name] for name in ("id", "prompt", "responses", "prior", "note", "source")
    }
    assert "größer" in path.read_text(), "text stays readable"


def test_records_are_named_by_id_content_or_prompt(tmp_path):
    messages = [{"role": "user", "content": "Name a fruit."}]
    rows = [row(id=7, votes=[[], []]), row(id=None, prompt=messages, votes=[[], []])]
    path = write(tmp_path, rows, "stored.jsonl")
    by = [
        {"id": "7"},
        {"id": content_name(messages)},
        {"prompt": [{"content": "Name a fruit.", "role": "user"}]},
    ]
    votes = [{"response": 0, "persona": f"p{i}", "label": i, **name} for i, name in enumerate(by)]
    assert update_posteriors(path, new(tmp_path, votes)).records_voted == 2
    assert [[one["label"] for one in record["votes"][0]] for record in read(path)] == [[0], [1, 2]]


def test_packed_files_links_and_modes(tmp_path):
    real = tmp_path / "real.jsonl.gz"
    with gzip.open(real, "wt") as stream:
        stream.write(json.dumps(row()))
    real.chmod(0o640)
    link = tmp_path / "link.jsonl.gz"
    link.symlink_to(real)
    update_posteriors(link, new(tmp_path, [line(3, "cook")]))
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    with gzip.open(real, "rt") as stream:
        assert [one["label"] for one in json.loads(stream.read())["votes"][0]] == [0, 1, 3]


def test_another_output_leaves_the_stored_file_alone(tmp_path):
    path, output = stored(tmp_path), tmp_path / "next.jsonl"
    before = path.read_bytes()
    update_posteriors(path, new(tmp_path, TEN), output=output)
    assert path.read_bytes() == before
    assert read(output)[0]["target"][0] == pytest.approx(MEAN)


@pytest.mark.parametrize("place", ["replace", "fsync", "write"])
def test_a_killed_update_leaves_the_file_whole(tmp_path, monkeypatch, place):
    path = stored(tmp_path)
    before, files = path.read_bytes(), sorted(tmp_path.iterdir())
    votes = new(tmp_path, TEN)
    monkeypatch.setattr(_persona_update, "CHUNK", 1)  # killed after the first of two records

    def killed(*_):
        raise KeyboardInterrupt

    if place == "write":
        measure = _persona_update.UpdateReport.measure

        def once(report, *arguments):
            if report.targets:
                killed()
            measure(report, *arguments)

        monkeypatch.setattr(_persona_update.UpdateReport, "measure", once)
    else:
        monkeypatch.setattr(os, place, killed)
    with pytest.raises(KeyboardInterrupt):
        update_posteriors(path, votes)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([*files, votes]), "no left-overs"


def test_two_updates_at_once_do_not_undo_each_other(tmp_path, monkeypatch):
    path, mine, theirs = stored(tmp_path), new(tmp_path, TEN[:2]), new(tmp_path, TEN[2:], "theirs.jsonl")
    copy = _persona_update.shutil.copymode

    def slow(*arguments):
        monkeypatch.setattr(_persona_update.shutil, "copymode", copy)
        update_posteriors(path, theirs)
        copy(*arguments)

    monkeypatch.setattr(_persona_update.shutil, "copymode", slow)
    with pytest.raises(RuntimeError, match="changed while it was updated; nothing was written"):
        update_posteriors(path, mine)
    assert len(read(path)[0]["votes"][0]) == 8


@pytest.mark.parametrize("repeated", [line(4, "p1"), line(LABELS[1], "p1")])
def test_duplicates_stop_or_are_skipped_and_counted(tmp_path, repeated):
    path = stored(tmp_path)
    update_posteriors(path, new(tmp_path, TEN))
    before = path.read_bytes()
    votes = new(tmp_path, [line(3, "new"), repeated])
    with pytest.raises(
        RecordError, match=r"new\.jsonl:2: duplicate vote: field 'persona' is 'p1'.*with label 0"
    ):
        update_posteriors(path, votes)
    assert path.read_bytes() == before
    report = update_posteriors(path, votes, on_duplicate="skip")
    assert (report.votes_added, report.duplicates_skipped) == (1, 1)
    assert report.conflicts_skipped == (repeated["label"] != LABELS[1])
    assert [one["label"] for one in read(path)[0]["votes"][0]] == [*LABELS, 3]


def test_another_time_or_response_is_another_vote(tmp_path):
    path = stored(tmp_path)
    votes = [
        line(0, "ann"),
        line(0, "ann", time=1),
        line(0, "ann", time="2024-05-30"),
        line(0, "ann", response=1),
    ]
    assert update_posteriors(path, new(tmp_path, votes)).votes_added == 4
    same = [line(0, "ann", time=1.0), line(0, "ann", time="2024-05-30T00:00:00Z")]
    assert update_posteriors(path, new(tmp_path, same), on_duplicate="skip").duplicates_skipped == 2
    with pytest.raises(RecordError, match="duplicate vote"):
        update_posteriors(path, new(tmp_path, [line(0, "bob"), line(0, "bob")]))


@pytest.mark.parametrize(
    ("reason", "field", "place", "votes"),
    [
        ("unknown record", "id", 2, [TEN[0], line(0, "ann", id="q3"), line(0, "ann", id="q4")]),
        ("unknown record", "prompt", 1, [{**line(0, "ann", id=None), "prompt": "Who?"}]),
        ("missing field", "id", 1, [line(0, "ann", id=None)]),
        ("missing field", "id", 1, [line(0, "ann", prompt="Name a fruit.")]),
        ("wrong type", "id", 1, [line(0, "ann", id=1.5)]),
        ("missing field", "response", 1, [{"id": "q1", "persona": "ann", "label": 0}]),
        ("wrong type", "response", 1, [line(0, "ann", response="0")]),
        ("out of range", "response", 2, [TEN[0], line(0, "ann", response=2)]),
        ("out of range", "response", 1, [line(0, "ann", response=-1)]),
        ("out of range", "label", 1, [line(6, "ann")]),
        ("wrong type", "persona", 1, [line(0, 5)]),
        ("wrong type", "time", 1, [line(0, "ann", time="soon")]),
        ("wrong type", "line", 1, [[]]),
    ],
)
def test_votes_that_are_refused(tmp_path, reason, field, place, votes):
    path, file = stored(tmp_path), new(tmp_path, votes)
    before = path.read_bytes()
    with pytest.raises(RecordError) as caught:
        update_posteriors(path, file)
    error = caught.value
    assert (error.reason, error.field, error.file, error.line) == (reason, field, str(file), place)
    assert path.read_bytes() == before


SAME_CHECKS = [
    row(id="q0", prompt=[]),
    row(id="q0", prompt=[{"role": "robot", "content": "Hi"}]),
    row(id="q0", responses=["Apple.", " "]),
    row(id="\u200b"),
    row(id="q0", votes=[[vote(0, "\u00a0")], []]),
    row(id="q0", votes=[[vote(0, "\udc00")], []]),
    row(id="q0", votes=[[vote(0), vote(1)], []]),
    row(id="q0", target=[[2, -1, 0, 0, 0, 0], None]),
    row(id="q0", note=[[[]]] * 99 + [json.loads("[" * 120 + "]" * 120)]),
    row(),
]


@pytest.mark.parametrize("second", SAME_CHECKS)
def test_loader_and_update_refuse_the_same_in_the_same_words(tmp_path, second):
    path = write(tmp_path, [row(), second], "stored.jsonl")
    data = PersonaVotesDataModule(test=str(path))
    messages = []
    for check in (data.prepare_data, lambda: update_posteriors(path, new(tmp_path, []))):
        with pytest.raises(RecordError, match=r"stored\.jsonl:2: ") as caught:
            check()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_new_vote_that_would_make_the_record_unreadable_is_refused(tmp_path):
    path = stored(tmp_path)
    before = path.read_bytes()
    votes = new(tmp_path, [line(0, "ann", why=json.loads("[" * 99 + "]" * 99))])
    with pytest.raises(RecordError, match=r"stored\.jsonl:1: nested too deeply"):
        update_posteriors(path, votes)
    assert path.read_bytes() == before


def test_a_half_character_in_a_new_vote_has_its_place(tmp_path):
    with pytest.raises(RecordError, match=r"new\.jsonl:2: not UTF-8: field 'persona'"):
        update_posteriors(stored(tmp_path), new(tmp_path, [TEN[0], line(0, "\ud800")]))


def test_the_new_votes_are_not_replaced_by_the_output(tmp_path):
    votes = new(tmp_path, TEN)
    with pytest.raises(ValueError, match=r"output='.*new\.jsonl' is votes_file itself"):
        update_posteriors(stored(tmp_path), votes, output=votes)
    assert len(read(votes)) == 10


@pytest.mark.parametrize(
    ("reason", "rows"),
    [
        ("duplicate id", [row(), row()]),
        ("out of range", [row(id="q0"), row(votes=[[vote(9)], []])]),
        ("not UTF-8", [row(id="q0"), row(note="\ud800")]),
        ("missing field", [row(id="q0", votes=[[], []]), row()]),
    ],
)
def test_stored_rows_that_are_refused(tmp_path, reason, rows):
    path = write(tmp_path, rows, "stored.jsonl")
    before = path.read_bytes()
    with pytest.raises(RecordError) as caught:
        update_posteriors(path, new(tmp_path, []), forgetting=0.5 if reason == "missing field" else 1.0)
    assert (caught.value.reason, caught.value.file, caught.value.line) == (reason, str(path), 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("reason", "time"), [("missing field", None), ("wrong type", "2024-05-30")])
def test_new_votes_need_comparable_times_to_forget(tmp_path, reason, time):
    path = write(tmp_path, [row(votes=[[vote(0, time=1)], []])], "stored.jsonl")
    votes = new(tmp_path, [line(0, "ann", time=2), line(1, "bob", time=time)])
    with pytest.raises(RecordError) as caught:
        update_posteriors(path, votes, forgetting=0.5)
    error = caught.value
    assert (error.reason, error.field, error.file, error.line) == (reason, "time", str(votes), 2)


def test_a_prompt_of_several_records_is_ambiguous(tmp_path):
    path = write(tmp_path, [row(), row(id="q2")], "stored.jsonl")
    votes = new(tmp_path, [{**line(0, "ann", id=None), "prompt": "Name a fruit."}])
    with pytest.raises(RecordError, match=r"new\.jsonl:1: ambiguous prompt"):
        update_posteriors(path, votes)


def test_wrong_settings_of_an_update(tmp_path):
    path, votes = stored(tmp_path), new(tmp_path, [])
    for words, options in {
        "num_labels must be finite and >= 2": {"num_labels": 1},
        "forgetting must be > 0 and <= 1": {"forgetting": 1.5},
        "on_duplicate must be one of error, skip; got 'keep'": {"on_duplicate": "keep"},
        "prior_strength must be": {"prior_strength": -1.0},
    }.items():
        with pytest.raises(ValueError, match=words):
            update_posteriors(path, votes, **options)
    with pytest.raises(FileNotFoundError, match="votes_file='nowhere' is not a file"):
        update_posteriors(path, "nowhere")


@pytest.mark.skipif(not DICES.is_file(), reason="the shared DICES sample is not beside this checkout")
def test_real_votes_as_persona_votes(tmp_path):
    """Conversations with some 123 raters each: half of the raters, then the rest, equal all at once."""
    names = ("No", "Yes", "Unsure")
    with gzip.open(DICES, "rt") as stream:
        items = json.load(stream)["instances"]
    rows, votes = [], [[], []]
    for item in items:
        text, scores = item["instance"], item["annotations"]["safety"]["individual_human_scores"]
        name = str(item["id"])
        rows.append(
            {"id": name, "prompt": text["user_prompt"], "responses": [text["response"]], "votes": [[]]}
        )
        for i, score in enumerate(scores):
            votes[i % 2].append(
                {"id": name, "response": 0, "persona": f"rater {i}", "label": names.index(score)}
            )
    path = write(tmp_path, rows, "stored.jsonl")
    for part in votes:
        report = update_posteriors(path, new(tmp_path, part), num_labels=3)
    assert (report.records, report.targets, report.records_voted) == (len(rows), len(rows), len(rows))
    data = PersonaVotesDataModule(test=str(path), num_labels=3)
    records = [data.to_example(one) for one in data.load("test")]
    counts = torch.tensor([record.responses[0].votes for record in records])
    target, strength = crowd_target(counts, CrowdConfig())
    assert strength.sum() == sum(map(len, votes))
    assert_close(target, torch.tensor([record["target"][0] for record in read(path)]), atol=1e-6, rtol=0)
