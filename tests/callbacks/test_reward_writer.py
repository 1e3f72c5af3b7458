"""Files of rewards: complete, exact, never overwritten by accident."""

import json
import random
import tracemalloc

import lightning as L
import pytest
import torch

from pluralign.callbacks import RewardWriter
from pluralign.callbacks.prediction_lines import PredictionLines, merged
from pluralign.datamodules.batch import Basis, GivenRecord, Labels
from pluralign.models import BradleyTerryRM


class Labelled(BradleyTerryRM):
    """Gives labels, a basis, and what no other method gives."""

    on = "responses"

    def forward(self, batch):
        output = super().forward(batch)
        share = output["reward"].sigmoid()
        if self.on == "comparisons":
            share = share[batch["comparisons"][:, 0]]
        probs, names = torch.stack([share, 1 - share], dim=1), ("yes", "no")
        labels = Labels(probs, share, share.square(), names, self.on, sets=probs[:, :1], set_names=("any",))
        rewards = output["reward"][:, None] * torch.tensor([1.0, 2.0, 3.0])
        return {
            **output,
            "labels": labels,
            "basis": Basis(rewards, ("a", "b", "c"), "prototype_rewards", True),
            "of_responses": {"depth": output["reward"] + 1},
            "of_comparisons": {"weights": batch["comparisons"].float()} if "comparisons" in batch else {},
        }


class Comparing(Labelled):
    on = "comparisons"

    def forward(self, batch):
        output = super().forward(batch)
        del output["reward"]
        return output | {"preference": output["labels"].probs[:, 0]}


class Misplaced(BradleyTerryRM):
    """Says of comparisons what it calls one of responses."""

    def forward(self, batch):
        return {**super().forward(batch), "of_responses": {"gap": torch.zeros(3)}}


class Pairs(L.LightningDataModule):
    """Two batches of tokens; responses and comparisons are equal in number, so that only names tell them apart."""

    def __init__(self, comparisons=True):
        super().__init__()
        self.comparisons = comparisons

    def predict_dataloader(self):
        tokens = torch.arange(1, 13).view(4, 3)
        batch = {
            "input_ids": tokens,
            "position_ids": torch.arange(3).expand(4, 3),
            "segment_ids": torch.tensor([[0, 1, 1]]).expand(4, 3),
            "row_lengths": [3] * 4,
            "response_row": torch.arange(4),
            "response_end": torch.full((4,), 2),
            "response_prompt": torch.tensor([0, 0, 0, 1]),
            "response_index": torch.tensor([2, 0, 1, 0]),
            "comparisons": torch.tensor([[0, 1], [2, 1], [2, 0], [0, 1]]),
            "comparison_index": torch.tensor([0, 1, 3, 4]),
        }
        if not self.comparisons:
            del batch["comparisons"], batch["comparison_index"]
        batches = [{"id": [f"{name}.0", f"{name}.1"], **batch} for name in ("first", "second")]
        return torch.utils.data.DataLoader(batches, batch_size=None)


class Breaks(BradleyTerryRM):
    """Stops in its second batch."""

    calls = 0

    def forward(self, batch):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("out of memory")
        return super().forward(batch)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(outputs, name="reward"):
    found = {}
    for output in outputs:
        for n, prompt in enumerate(output["response_prompt"].tolist()):
            found[output["id"][prompt], int(output["response_index"][n])] = output[name][n].tolist()
    return found


def test_the_file_holds_every_response_exactly(trainer, module, data, tmp_path):
    path = tmp_path / "some" / "folder" / "rewards.jsonl"
    outputs = trainer(RewardWriter(str(path))).predict(module(), data())
    written = lines(path)
    assert all(list(line) == ["id", "response", "prompt", "text", "reward"] for line in written)
    assert {(line["id"], line["response"]): line["reward"] for line in written} == table(outputs)
    assert [(line["id"], line["response"]) for line in written] == [
        (f"predict:{n}", response) for n in range(1, 6) for response in range(4)
    ], "the order of the data, whatever the batches'"
    records = list(data().given("predict"))
    assert [(line["prompt"], line["text"]) for line in written] == [
        (record.prompt, response.text) for record in records for response in record.responses
    ]
    assert [child.name for child in path.parent.iterdir()] == ["rewards.jsonl"]


def test_everything_of_a_response_is_written(trainer, module, tmp_path):
    path = tmp_path / "rewards.jsonl"
    outputs = trainer(RewardWriter(str(path))).predict(module(Labelled), Pairs())
    names = ["id", "response", "reward", "label_probs", "expected_reward", "reward_std", "label_set_probs"]
    written = lines(path)
    assert [list(line) for line in written] == [[*names, "prototype_rewards", "depth"]] * 8
    assert [(line["id"], line["response"]) for line in written[4:]] == [
        ("second.0", 2),
        ("second.0", 0),
        ("second.0", 1),
        ("second.1", 0),
    ]
    output = outputs[1]
    labels = output["labels"]
    for name, value in {
        "reward": output["reward"],
        "label_probs": labels.probs,
        "expected_reward": labels.expected,
        "reward_std": labels.std,
        "label_set_probs": labels.sets,
        "prototype_rewards": output["basis"].rewards,
        "depth": output["of_responses"]["depth"],
    }.items():
        assert [line[name] for line in written[4:]] == value.tolist(), name


def test_what_is_said_of_comparisons_has_a_file_of_its_own(trainer, module, tmp_path):
    path = tmp_path / "rewards.jsonl"
    outputs = trainer(RewardWriter(str(path))).predict(module(Comparing), Pairs())
    assert set(lines(path)[0]) == {"id", "response", "prototype_rewards", "depth"}
    written = lines(tmp_path / "rewards.comparisons.jsonl")
    names = [
        "id",
        "comparison",
        "chosen",
        "rejected",
        "preference",
        "label_probs",
        "expected_reward",
        "reward_std",
    ]
    assert [list(line) for line in written] == [[*names, "label_set_probs", "weights"]] * 8
    assert [(line["id"], line["comparison"]) for line in written[:4]] == [
        ("first.0", i) for i in (0, 1, 3, 4)
    ]
    for number, output in enumerate(outputs):
        rows = written[4 * number :][:4]
        for name in ("chosen", "rejected", "preference"):
            assert [line[name] for line in rows] == output[name].tolist()
        assert [line["label_probs"] for line in rows] == output["labels"].probs.tolist()
        assert [line["weights"] for line in rows] == output["of_comparisons"]["weights"].tolist()
    assert not list(tmp_path.glob("*.partial"))


def test_without_comparisons_there_is_one_file(trainer, module, tmp_path):
    path, beside = tmp_path / "rewards.jsonl", tmp_path / "rewards.comparisons.jsonl"
    trainer(RewardWriter(str(path))).predict(module(), Pairs())
    assert set(lines(beside)[0]) == {"id", "comparison", "chosen", "rejected"}
    path.unlink()
    with pytest.raises(FileExistsError, match=r"rewards\.comparisons\.jsonl is there already"):
        trainer(RewardWriter(str(path))).predict(module(), Pairs(comparisons=False))
    trainer(RewardWriter(str(path), overwrite=True)).predict(module(), Pairs(comparisons=False))
    assert len(lines(path)) == 8 and not beside.exists(), "those of another run would mislead"


def test_a_value_of_the_wrong_item_is_refused(trainer, module, tmp_path):
    with pytest.raises(
        ValueError, match=r"gap must have a row for each of 4 responses, got a shape of \(3,\)"
    ):
        trainer(RewardWriter(str(tmp_path / "rewards.jsonl"))).predict(module(Misplaced), Pairs())


class Asking(Pairs):
    """Three records ask for the same response, one of them beside another one."""

    def predict_dataloader(self):
        first = next(iter(super().predict_dataloader()))
        asked = {
            "request_response": torch.tensor([3, 3, 0, 3]),
            "request_prompt": torch.tensor([0, 1, 1, 1]),
            "request_index": torch.tensor([4, 0, 1, 2]),
            "request_user_id": torch.tensor([1, -1, 0, 2]),
        }
        return torch.utils.data.DataLoader([{**first, **asked}], batch_size=None)


@pytest.mark.filterwarnings("ignore:rows to predict have user")
def test_every_request_has_a_line_with_all_that_is_said_of_its_response(trainer, module, tmp_path):
    path = tmp_path / "rewards.jsonl"
    (output,) = trainer(RewardWriter(str(path))).predict(module(Labelled), Asking(comparisons=False))
    written = lines(path)
    assert [(line["id"], line["response"], line["user"]) for line in written] == [
        ("first.0", 4, 1),
        ("first.1", 0, None),
        ("first.1", 1, 0),
        ("first.1", 2, 2),
    ], "these data have no names"
    for line, response in zip(written, (3, 3, 0, 3), strict=True):
        assert line["reward"] == float(output["reward"][response])
        assert line["label_probs"] == output["labels"].probs[response].tolist()
        assert line["prototype_rewards"] == output["basis"].rewards[response].tolist()


class Renaming(BradleyTerryRM):
    """Calls something of its own as lines call something else."""

    place, name = "of_responses", "id"

    def forward(self, batch):
        output = super().forward(batch)
        if self.place == "basis":
            return {**output, "basis": Basis(output["reward"][:, None], ("a",), self.name, True)}
        item = "reward" if self.place == "of_responses" else "chosen"
        return {**output, self.place: {self.name: output[item]}}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("of_responses", "id"),
        ("of_responses", "reward"),
        ("of_responses", "label_probs"),
        ("basis", "text"),
        ("of_comparisons", "comparison"),
        ("of_comparisons", "chosen"),
    ],
)
def test_a_method_cannot_overwrite_what_lines_say(trainer, module, tmp_path, place, name):
    model = module(Renaming)
    model.place, model.name = place, name
    with pytest.raises(ValueError, match=f"has '{name}', which a line of predictions has for something else"):
        trainer(RewardWriter(str(tmp_path / "rewards.jsonl"))).predict(model, Pairs())


def test_lines_need_no_path_and_no_texts(trainer, module, data, tmp_path, capsys):
    trainer(RewardWriter(texts=False)).predict(module(), data(), return_predictions=False)
    written = lines(tmp_path / "predictions.jsonl")
    assert len(written) == 20 and set(written[0]) == {"id", "response", "reward"}
    assert f"20 predictions: {tmp_path / 'predictions.jsonl'}" in capsys.readouterr().out
    trainer(RewardWriter(overwrite=True), limit_predict_batches=1).predict(module(), data())
    assert "4 of 20 responses of the input have none" in capsys.readouterr().out
    assert len(lines(tmp_path / "predictions.jsonl")) == 16


def test_a_file_that_is_there_is_kept_unless_told(trainer, module, data, tmp_path):
    path = tmp_path / "rewards.jsonl"
    path.write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"rewards\.jsonl is there already"):
        trainer(RewardWriter(str(path))).predict(module(), data())
    assert path.read_text() == "mine\n"
    assert [child.name for child in tmp_path.glob("rewards*")] == ["rewards.jsonl"]
    trainer(RewardWriter(str(path), overwrite=True)).predict(module(), data())
    assert len(lines(path)) == 20


def test_what_was_written_before_an_error_is_kept_under_another_name(trainer, module, data, tmp_path):
    path = tmp_path / "rewards.jsonl"
    path.write_text("mine\n")
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(RewardWriter(str(path), overwrite=True)).predict(module(Breaks), data())
    assert path.read_text() == "mine\n", "replaced only by a complete file"
    partial = lines(tmp_path / "rewards.jsonl.partial")
    assert len(partial) == 16, "the first batch of four prompts"

    path.unlink()
    with pytest.raises(
        FileExistsError, match=r"rewards\.jsonl\.partial holds what an interrupted run predicted"
    ):
        trainer(RewardWriter(str(path))).predict(module(), data())
    trainer(RewardWriter(str(path), overwrite=True)).predict(module(), data())
    assert len(lines(path)) == 20
    assert not (tmp_path / "rewards.jsonl.partial").exists()


def test_other_verbs_write_nothing(trainer, module, data, tmp_path):
    trainer(RewardWriter(str(tmp_path / "rewards.jsonl")), max_steps=1, max_epochs=-1).fit(module(), data())
    assert not list(tmp_path.glob("rewards*"))


@pytest.mark.slow
def test_two_processes_write_one_file(trainer, module, data, tmp_path):
    one = trainer(RewardWriter(str(tmp_path / "one.jsonl"))).predict(model := module(), data())
    two = trainer(RewardWriter(str(tmp_path / "two.jsonl")), strategy="ddp_spawn", devices=2)
    two.predict(model, data(), return_predictions=False)
    written = lines(tmp_path / "two.jsonl")
    assert {(line["id"], line["response"]): line["reward"] for line in written} == pytest.approx(
        table(one), abs=1e-6
    )
    assert [line["id"] for line in written] == [line["id"] for line in lines(tmp_path / "one.jsonl")]
    assert not list(tmp_path.glob("*.partial"))


def test_lines_of_another_machine_are_missed_by_name(tmp_path):
    kept = PredictionLines(tmp_path / "rewards.jsonl", rank=0, ranks=2)
    kept.open()
    kept.add({"id": ["a"], "response": [0]})
    with pytest.raises(
        FileNotFoundError, match=r"rewards\.jsonl\.rank1\.partial is not here.*all machines share"
    ):
        kept.check_ranks()
    assert lines(tmp_path / "rewards.jsonl.rank0.partial") == [{"id": "a", "response": 0}]


def test_lines_follow_the_input_and_none_is_lost(tmp_path):
    order = [f"é{n}" for n in range(50)]
    shuffled = random.Random(0).sample(order, 50)
    for number, names in enumerate((shuffled[:20], shuffled[20:])):
        rows = [{"id": name, "response": i, "number": int(name[1:])} for name in names for i in range(2)]
        (tmp_path / f"{number}").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [tmp_path / "0", tmp_path / "1"]
    given = [GivenRecord(name, "", [], [], "") for name in (*order[:30], "dropped", *order[31:])]
    found = list(merged(files, given))
    names = [(line["id"], line["response"]) for _, line in found]
    assert names == [(name, i) for name in (*order[:30], *order[31:], order[30]) for i in range(2)]
    assert [record is None for record, _ in found] == [False] * 98 + [True] * 2
    assert all(line["number"] == int(line["id"][1:]) for _, line in found)


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path):
    path = tmp_path / "lines"
    rows = ({"id": f"{number}", "response": 0, "text": "x" * 2000} for number in range(3000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (GivenRecord(f"{number}", "", [], [], "") for number in reversed(range(3000)))
    tracemalloc.start()
    number = sum(record is not None for record, _ in merged([path], given))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 3000 and path.stat().st_size > 6e6 and peak < 1e6
