"""The data module: splits, what becomes of rows, room for responses, the contract with those who answer."""

import re
from itertools import chain

import lightning as L
import pytest
import torch

from pluralign.datamodules import PromptLoaderConfig, TextConfig
from pluralign.datamodules.prompt_batch import PromptSource
from pluralign.datamodules.records import Message, RecordError

HELD_OUT = [["tone.kind", "length.long"]]


def asked(number):
    return [{"id": f"q{i}", "prompt": f"Question {i}?"} for i in range(number)]


def prompts_of(data, split):
    return {prompt for batch in data.batches(split) for prompt in batch["prompt"]}


def test_it_is_a_prompt_source(invented):
    data = invented(3)
    assert isinstance(data, PromptSource)
    assert data.dimensions == ("tone.kind", "tone.rude", "length.short", "length.long")
    assert dict(data.axes) == {"tone": ("kind", "rude"), "length": ("short", "long")}
    assert (data.pad_id, data.end_id) == (0, 2)
    assert data.decode([[*data.tokenizer.encode.whole([" yes"])[0], 2]]) == ["yes"]
    assert data.pieces(data.tokenizer.encode.whole(["ok"])[0]) == ["o", "k"]
    assert data.text_format()["format"] == "plain"


def test_shares_of_the_training_prompts_are_held_out_and_equal_prompts_stay_together(invented):
    rows = asked(100)
    rows += [{**row, "id": f"again {row['id']}"} for row in rows]
    data = invented({"train": rows}, validation_share=0.2, test_share=0.1, preferences=[["tone.kind"]])
    assert data.splits == ("train", "validation", "test")
    data.setup()
    sides = [prompts_of(data, split) for split in data.splits]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 100
    assert [len(side) for side in sides] == pytest.approx([70, 20, 10], abs=12)
    assert sum(data.reports[split].prompts for split in data.splits) == 200
    more = invented(
        {"train": [*asked(100), {"id": "new", "prompt": "New?"}]}, validation_share=0.2, test_share=0.1
    )
    more.setup()
    for split, side in zip(data.splits, sides, strict=True):
        assert prompts_of(more, split) - {"New?"} == side, "a row more moves no other"


def test_of_a_few_prompts_one_is_held_out(invented):
    data = invented({"train": asked(2)}, validation_share=0.01)
    data.setup()
    assert [data.reports[split].prompts for split in ("train", "validation")] == [1, 1]


def test_stages_open_their_splits(invented):
    data = invented({split: asked(3) for split in ("train", "test", "predict")}, axes={})
    assert data.splits == ("train", "validation", "test", "predict")
    with pytest.warns(UserWarning, match="invented test: 2 of its prompts are in the training split"):
        data.setup("test")
    with pytest.raises(RuntimeError, match="the train split is not open: call setup"):
        data.train_dataloader()
    data.setup("fit")
    assert set(data.reports) == {"train", "validation", "test"}
    alone = invented({"test": asked(3)})
    with pytest.raises(ValueError, match=r"InventedPrompts has no train split; it has test"):
        alone.train_dataloader()


def test_what_is_held_out_is_in_test_alone(invented):
    data = invented(40, held_out=HELD_OUT, test_share=0.2)
    data.setup()
    wanted = ("tone.kind", "length.long")
    for split, there in (("train", False), ("validation", False), ("test", True)):
        preferences = {one for batch in data.batches(split) for one in batch["preference"]}
        assert (wanted in preferences, len(preferences)) == (there, 1 if there else 3)
    with pytest.raises(ValueError, match="held_out keeps preferences for the test split, and there is none"):
        invented(40, held_out=HELD_OUT).setup()


def test_rows_with_a_preference_of_another_split_are_dropped_and_counted(invented):
    rows = [{**row, "preference": HELD_OUT[0][:: 1 if i else -1]} for i, row in enumerate(asked(2))]
    seen = [
        {**row, "id": f"s{row['id']}", "prompt": f"S{row['prompt']}", "preference": ["tone.rude"]}
        for row in asked(2)
    ]
    data = invented(
        {"train": [*rows, *seen], "validation": asked(1), "test": [*rows, *seen]}, held_out=HELD_OUT
    )
    with pytest.warns(UserWarning, match="in the training split"):
        data.setup()
    assert data.reports["train"].dropped == {"preference that is held out": 2}
    assert data.reports["test"].dropped == {"preference that is not held out": 2}
    assert {batch["preference"][0] for batch in data.batches("train", batch_size=1)} == {("tone.rude",)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "q1", "prompt": "Twice?"}, "duplicate id"),
        ({"id": "new", "prompt": " "}, "blank prompt"),
        ({"id": "new", "prompt": "New?", "preference": ["tone.gruff"]}, "unknown dimension"),
        (RecordError("line", "{", "JSON", reason="not JSON", file="test.jsonl", line=4), "not JSON"),
    ],
)
def test_a_malformed_row_is_named_or_counted(invented, row, reason):
    rows = {"test": [*asked(3), row]}
    with pytest.raises(RecordError, match=rf"test\.jsonl:4: {reason}: field .* allowed: .") as caught:
        invented(rows).setup()
    assert caught.value.reason == reason
    data = invented(rows, on_invalid="skip")
    data.setup()
    report = data.reports["test"]
    assert (report.rows, report.prompts, report.items, dict(report.invalid)) == (4, 3, 12, {reason: 1})
    assert str(report) == (
        f"3 prompts of 4 rows, 12 items; 4 different preferences, up to 51 tokens; skipped: 1 {reason}"
    )
    assert reason in report.first_errors[0]


def test_a_conversation_that_the_format_has_no_form_for_is_a_malformed_row(invented):
    turns = (Message("user", "How warm is it?"), Message("tool", "21"))
    rows = {"test": [*asked(1), {"id": "tool", "prompt": turns}]}
    with pytest.raises(RecordError, match=r"test\.jsonl:2: role without a plain form"):
        invented(rows).setup()
    data = invented(rows, on_invalid="skip")
    data.setup()
    assert (data.reports["test"].prompts, dict(data.reports["test"].invalid)) == (
        1,
        {"role without a plain form": 1},
    )


def test_nothing_left_of_a_split(invented):
    with pytest.raises(ValueError, match="invented: nothing is left of the test split: 0 prompts of 0 rows"):
        invented({"test": []}).setup()
    with pytest.raises(
        ValueError, match=r"nothing is left of the test split: .*; the first: test.jsonl:1: blank"
    ):
        invented({"test": [{"id": "q", "prompt": ""}]}, on_invalid="skip").setup()


# Room for a response -------------------------------------------------------------------------------------


class Answers:
    """What the data ask of a network."""

    def __init__(self, max_positions, max_new_tokens):
        self.max_positions, self.max_new_tokens = max_positions, max_new_tokens


LONG = {"test": [{"id": "q", "prompt": "Why" * 20 + "?"}, {"id": "r", "prompt": "Why?"}]}
"""Of 61 and 4 bytes, around which the format puts 21, and preferences of up to 19."""


def test_a_long_prompt_is_cut_and_counted_but_never_its_preference(invented):
    data = invented(
        LONG, text=TextConfig(max_length=90), max_new_tokens=20, preferences=[["tone.kind", "length.long"]]
    )
    data.setup()
    (batch,) = data.test_dataloader()
    lengths = dict(zip(batch["prompt"], batch["attention_mask"].sum(1).tolist(), strict=True))
    assert lengths == {LONG["test"][0]["prompt"]: 70, "Why?": 43}
    assert (
        data.reports["test"].cut_items,
        data.reports["test"].cut_tokens,
        data.reports["test"].longest,
    ) == (1, 30, 70)
    assert "1 items cut by 30 tokens" in str(data.reports["test"])
    for ids in batch["input_ids"]:
        assert data.tokenizer.tokenizer.decode(ids).endswith("? Be kind. Say all.\n\nAssistant:")


def test_a_preference_that_leaves_no_room_is_dropped_and_counted(invented):
    data = invented(
        LONG, text=TextConfig(max_length=30), max_new_tokens=3, preferences=[["tone.kind", "length.long"], []]
    )
    data.setup()
    report = data.reports["test"]
    assert (report.prompts, report.items, dict(report.dropped)) == (2, 2, {"prompt too long": 2})


def test_long_prompts_are_dropped_or_refused_elsewhere(invented):
    text = TextConfig(max_length=90, truncation="drop")
    data = invented(LONG, text=text, max_new_tokens=20)
    data.setup()
    report = data.reports["test"]
    assert (report.prompts, report.items, dict(report.dropped)) == (1, 4, {"prompt too long": 4})
    with pytest.raises(RecordError, match=r"test.jsonl:1: prompt too long: .*at most 70 tokens"):
        invented(LONG, text=TextConfig(max_length=90, truncation="error"), max_new_tokens=20).setup()


def test_positions_and_length_of_responses_are_the_networks_where_nothing_is_said(invented):
    data = invented(LONG)
    data.network = Answers(90, 20)
    data.setup()
    assert data.reports["test"].longest == 70
    other = invented(LONG, max_new_tokens=10)
    other.network = Answers(90, 20)
    other.setup()
    assert other.reports["test"].longest == 80
    full = invented(LONG)
    full.network = Answers(20, 20)
    with pytest.raises(ValueError, match=r"max_new_tokens=20 leaves nothing of text.max_length=20"):
        full.setup()


# Training ------------------------------------------------------------------------------------------------


class Counts(L.LightningModule):
    """Learns nothing, and notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["id"])
        return self.weight * batch["input_ids"].float().mean()

    def validation_step(self, batch, batch_idx):
        assert batch["attention_mask"].shape == batch["input_ids"].shape

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_reads_it(invented, trainer):
    module, data = Counts(), invented(12, loader=PromptLoaderConfig(batch_size=5, num_workers=0))
    trainer(max_epochs=2, reload_dataloaders_every_n_epochs=0).fit(module, data)
    epochs = module.seen[: len(module.seen) // 2], module.seen[len(module.seen) // 2 :]
    assert epochs[0] != epochs[1]
    assert sorted(chain.from_iterable(epochs[0])) == sorted(chain.from_iterable(epochs[1]))


def test_ranks_without_an_item_are_refused(invented):
    data = invented({"test": asked(2)}, axes={})
    data.setup()

    class Ranks:
        global_rank, world_size = 0, 3

    data.trainer = Ranks()
    with pytest.raises(ValueError, match="2 items cannot be divided among 3 ranks"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_share": 0}, "validation_share must be > 0 and < 1; got 0"),
        ({"test_share": 1}, "test_share must be"),
        ({"validation_share": 0.6, "test_share": 0.5}, "validation_share + test_share must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"on_invalid": "ignore"}, "on_invalid must be one of error, skip; got 'ignore'"),
    ],
)
def test_settings_out_of_range(invented, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        invented(3, **settings)
