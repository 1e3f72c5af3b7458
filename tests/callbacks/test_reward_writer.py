"""Files of rewards: complete, exact, never overwritten by accident."""

import json

import pytest
import torch

from pluralign.callbacks import RewardWriter
from pluralign.models import BradleyTerryRM


class Labels(BradleyTerryRM):
    """Gives label probabilities and a scalar besides."""

    def forward(self, batch):
        output = super().forward(batch)
        share = output["reward"].sigmoid()
        output["label_probs"] = torch.stack([share, 1 - share], dim=1)
        return {**output, "temperature": torch.tensor(2.0), "comparison": torch.zeros(len(share))}


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
    assert all(set(line) == {"id", "response", "reward"} for line in written)
    assert {(line["id"], line["response"]): line["reward"] for line in written} == table(outputs)
    assert sorted((line["id"], line["response"]) for line in written) == [
        (f"predict:{n}", response) for n in range(1, 6) for response in range(4)
    ]
    assert [child.name for child in path.parent.iterdir()] == ["rewards.jsonl"]


def test_methods_may_give_more_per_response(trainer, module, data, tmp_path):
    path = tmp_path / "rewards.jsonl"
    outputs = trainer(RewardWriter(str(path))).predict(module(Labels), data())
    written = lines(path)
    assert set(written[0]) == {"id", "response", "reward", "label_probs"}
    assert {(line["id"], line["response"]): line["label_probs"] for line in written} == table(
        outputs, "label_probs"
    )


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

    trainer(RewardWriter(str(path), overwrite=True)).predict(module(), data())
    assert len(lines(path)) == 20
    assert not (tmp_path / "rewards.jsonl.partial").exists()


def test_other_verbs_write_nothing(trainer, module, data, tmp_path):
    trainer(RewardWriter(str(tmp_path / "rewards.jsonl")), max_steps=1, max_epochs=-1).fit(module(), data())
    assert not list(tmp_path.glob("rewards*"))


@pytest.mark.slow
def test_each_process_writes_its_share(trainer, module, data, tmp_path):
    one = trainer(RewardWriter(str(tmp_path / "one.jsonl"))).predict(model := module(), data())
    two = trainer(RewardWriter(str(tmp_path / "two.jsonl")), strategy="ddp_spawn", devices=2)
    two.predict(model, data(), return_predictions=False)
    written = [line for rank in (0, 1) for line in lines(tmp_path / f"two.rank{rank}.jsonl")]
    assert {(line["id"], line["response"]): line["reward"] for line in written} == pytest.approx(
        table(one), abs=1e-6
    )
    assert not (tmp_path / "two.jsonl").exists()
