"""Prompts and responses as rows, against rows put together by hand."""

import pytest
import torch

from pluralign.models import Backbone
from pluralign.models._response_rows import response_rows

PROMPTS = torch.tensor([[0, 0, 5, 6, 7], [0, 8, 9, 10, 11]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
TOKENS = torch.tensor([[20, 21, 2], [22, 2, 0], [23, 24, 25]])
LENGTHS = torch.tensor([3, 2, 3])
ITEM = torch.tensor([0, 0, 1])


def test_shared_rows_by_hand():
    rows = response_rows(PROMPTS, MASK, TOKENS, LENGTHS, ITEM, layout="shared")
    batch = rows.batch
    assert batch["input_ids"].tolist() == [[5, 6, 7, 20, 21, 2, 22, 2], [8, 9, 10, 11, 23, 24, 25, 0]]
    assert batch["segment_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 3, 4], [0, 1, 2, 3, 4, 5, 6, 0]]
    assert batch["response_end"].tolist() == [5, 7, 6] and batch["row_lengths"] == [8, 7]
    assert rows.row.tolist() == [0, 0, 1]
    assert rows.source.tolist() == [[2, 3, 4], [2, 6, 0], [3, 4, 5]]


def test_separate_rows_by_hand():
    rows = response_rows(PROMPTS, MASK, TOKENS, LENGTHS, ITEM, layout="separate")
    assert rows.batch["input_ids"].tolist() == [
        [5, 6, 7, 20, 21, 2, 0],
        [5, 6, 7, 22, 2, 0, 0],
        [8, 9, 10, 11, 23, 24, 25],
    ]
    assert rows.row.tolist() == [0, 1, 2]
    assert rows.source.tolist() == [[2, 3, 4], [2, 3, 0], [3, 4, 5]]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_states_that_predict_are_those_of_each_text_alone(layout, llama):
    backbone = Backbone(llama(layout=layout)).eval()
    rows = response_rows(PROMPTS, MASK, TOKENS, LENGTHS, ITEM, layout=layout)
    states = rows.predicting(backbone.read(rows.batch).tokens)
    alone = Backbone(llama(layout="separate")).eval()
    alone.load_state_dict(backbone.state_dict())
    for i, (item, length) in enumerate(zip(ITEM.tolist(), LENGTHS.tolist(), strict=True)):
        prompt = PROMPTS[item][MASK[item] == 1]
        text = torch.cat([prompt, TOKENS[i, :length]])[None]
        with torch.no_grad():
            hidden = alone.model(input_ids=text, use_cache=False).last_hidden_state[0]
        expected = hidden[len(prompt) - 1 : len(prompt) - 1 + length]
        torch.testing.assert_close(states[i, :length], expected, rtol=1e-4, atol=1e-5)
