import pytest
import torch

from pluralign.models import Backbone
from pluralign.models.backbone.rows import (
    pool,
    repeat,
    segment_lengths,
    separate_rows,
)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_lengths_of_segments_are_those_the_collator_says(batch, layout):
    data = batch((2, 3, 1), layout=layout)
    said = data.pop("segment_lengths")
    assert segment_lengths(data) == said
    assert [sum(lengths) for lengths in said] == data["row_lengths"]
    assert segment_lengths({**data, "segment_lengths": said[:1]}) == said, (
        "a list of other rows is not believed"
    )


def test_separate_rows_equals_the_separate_collation(batch):
    made, collated = separate_rows(batch((3, 1, 4))), batch((3, 1, 4), layout="separate")
    for name in ("input_ids", "position_ids", "segment_ids", "response_row", "response_end", "comparisons"):
        assert torch.equal(made[name], collated[name]), name


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_pooling_finds_each_response_by_index(batch, rows, layout, pooling):
    records = rows((2, 3, 1))
    data = batch((2, 3, 1), layout=layout)
    hidden = torch.randn(*data["input_ids"].shape, 5)
    pooled = pool(hidden, data, pooling)
    response = 0
    for i, record in enumerate(records):
        ends = record.lengths.cumsum()
        for j in range(len(record.response_index)):
            line = i if layout == "shared" else response
            prefix = list(range(ends[0]))
            own = (
                list(range(ends[j], ends[j + 1]))
                if layout == "shared"
                else list(range(ends[0], ends[0] + record.lengths[j + 1]))
            )
            columns = {"last": own[-1:], "mean": prefix + own, "cls": [0]}[pooling]
            torch.testing.assert_close(pooled[response], hidden[line, columns].mean(dim=0))
            response += 1


def test_mean_pooling_in_bfloat16_sums_in_float32():
    hidden = torch.full((1, 4000, 1), 1.0078125, dtype=torch.bfloat16)
    data = {
        "segment_ids": torch.cat([torch.zeros(1, 10), torch.ones(1, 3990)], dim=1).long(),
        "response_row": torch.tensor([0]),
        "response_end": torch.tensor([3999]),
    }
    assert float(pool(hidden, data, "mean")) == 1.0078125


def test_unknown_pooling_is_named(batch):
    with pytest.raises(ValueError, match="last, mean or cls, got 'max'"):
        pool(torch.zeros(3, 40, 2), batch(), "max")


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_repeated_rows_are_whole_copies_that_judgements_do_not_follow(batch, layout):
    data = batch((2, 3, 1), layout=layout)
    data["prompts"] = batch((1, 1, 1))
    data["prompt_features"] = torch.rand(3, 4)
    rows, responses = len(data["input_ids"]), len(data["response_row"])
    twice = repeat(data, 2)
    for name in ("input_ids", "segment_ids", "position_ids", "prompt_features", "record_key"):
        assert torch.equal(twice[name], torch.cat([data[name], data[name]])), name
    for name in ("response_end", "response_index", "response_length"):
        assert torch.equal(twice[name], torch.cat([data[name], data[name]])), name
    assert torch.equal(twice["response_row"], torch.cat([data["response_row"], data["response_row"] + rows]))
    assert torch.equal(
        twice["response_prompt"], torch.cat([data["response_prompt"], data["response_prompt"] + 3])
    )
    assert twice["id"] == data["id"] * 2 and twice["row_lengths"] == data["row_lengths"] * 2
    assert len(twice["response_row"]) == 2 * responses
    assert len(twice["prompts"]["input_ids"]) == 6
    for name in ("comparisons", "comparison_index", "preference"):
        assert twice[name] is data[name], name
    assert len(data["input_ids"]) == rows, "the batch itself stays as it is"


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("wanted", ["shared", "separate"])
def test_a_network_gives_every_copy_the_same_states(batch, llama, layout, attention, wanted):
    backbone = Backbone(llama(layout=wanted, attention=attention)).eval()
    data = batch((2, 3, 1), layout=layout) if layout == wanted else batch((2, 3, 1))
    once, thrice = backbone(data), backbone(repeat(data, 3)).unflatten(0, (3, -1))
    torch.testing.assert_close(thrice, once.expand(3, *once.shape), atol=1e-5, rtol=1e-4)
