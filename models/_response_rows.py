"""Responses that a policy wrote, as rows that a backbone reads: the prompt once, its responses as segments behind it."""

from typing import NamedTuple

import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch

__all__ = ["ResponseRows", "response_rows"]


class ResponseRows(NamedTuple):
    """Rows, and where in them the state stands from which each token of a response was predicted."""

    batch: PreferenceBatch
    row: Tensor
    """(S,) int64: row of each response."""
    source: Tensor
    """(S, T) int64: column of the state that predicts each token: the prompt's last for the first one; 0 on padding."""

    def predicting(self, states: Tensor) -> Tensor:
        """States that predict the tokens, (S, T, H), of those of all tokens, (rows, L, H)."""
        return states[self.row[:, None], self.source]


def response_rows(
    prompt_ids: Tensor, prompt_mask: Tensor, tokens: Tensor, lengths: Tensor, item: Tensor, *, layout: str
) -> ResponseRows:
    """Put prompts and responses into rows.

    Args:
        prompt_ids: Prompts, padded on the left, (N, L) int64; each of one token at least.
        prompt_mask: 1 on their tokens, (N, L) int64.
        tokens: Responses, padded on the right, (S, T) int64.
        lengths: Tokens of each, (S,) int64, >= 1.
        item: Prompt of each, (S,) int64, ascending.
        layout: ``shared`` for a row for each prompt, which must have a response; ``separate`` for one for each response.
    """
    if layout == "separate":
        prompt_ids, prompt_mask = prompt_ids[item], prompt_mask[item]
        item = torch.arange(len(item), device=item.device)
    prompt = prompt_mask.sum(1)
    before = lengths.cumsum(0) - lengths
    first = torch.searchsorted(item, torch.arange(len(prompt), device=item.device))
    start = prompt[item] + before - before[first[item]]
    numbers: list[int] = torch.cat(
        [prompt, lengths, item]
    ).tolist()  # all that the host has to know, waited for once
    segment_lengths = [[size] for size in numbers[: len(prompt)]]
    for size, at in zip(
        numbers[len(prompt) : len(prompt) + len(item)], numbers[len(prompt) + len(item) :], strict=True
    ):
        segment_lengths[at].append(size)
    row_lengths = [sum(each) for each in segment_lengths]
    shape = len(prompt), max(row_lengths)
    ids, positions = tokens.new_zeros(shape), tokens.new_zeros(shape)
    segments = tokens.new_full(shape, -1)

    row, column = prompt_mask.nonzero(as_tuple=True)
    place = column - (prompt_mask.shape[1] - prompt)[row]
    ids[row, place], positions[row, place], segments[row, place] = prompt_ids[row, column], place, 0
    response, step = (torch.arange(tokens.shape[1], device=item.device) < lengths[:, None]).nonzero(
        as_tuple=True
    )
    row, place = item[response], start[response] + step
    ids[row, place] = tokens[response, step]
    positions[row, place] = prompt[row] + step
    segments[row, place] = 1 + (torch.arange(len(item), device=item.device) - first[item])[response]

    source = torch.zeros_like(tokens)
    source[response, step] = torch.where(step > 0, place - 1, prompt[row] - 1)
    batch = PreferenceBatch(
        input_ids=ids,
        position_ids=positions,
        segment_ids=segments,
        row_lengths=row_lengths,
        segment_lengths=segment_lengths,
        response_row=item,
        response_prompt=item,
        response_end=start + lengths - 1,
    )
    return ResponseRows(batch, item, source)
