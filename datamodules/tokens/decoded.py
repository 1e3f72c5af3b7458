"""What a network reads, as text again."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from .table import RecordTable

__all__ = ["decoded_responses"]


def decoded_responses(
    table: RecordTable, decode: Callable[..., Any], responses: Sequence[tuple[str, int]]
) -> list[tuple[str, str]]:
    """Prompt and text of responses, decoded from their tokens.

    Args:
        table: The records.
        decode: The tokenizer's.
        responses: Record id and place in the record of each response.

    Returns:
        Both texts of each response, without special tokens; empty ones for a response that is not in the table.
    """
    wanted: dict[str, list[int]] = {}
    for name, response in responses:
        wanted.setdefault(name, []).append(response)
    texts: dict[tuple[str, int], tuple[str, str]] = {}
    rows = [i for i, name in enumerate(table.column("id").to_pylist()) if name in wanted]
    for row in table[rows]:
        parts = pairwise(accumulate(row.lengths.tolist()))
        ends = dict(zip(row.response_index.tolist(), parts, strict=True))
        prompt = row.tokens[: row.prompt_length].tolist()
        prefix = row.tokens[row.prompt_length : int(row.lengths[0])].tolist()
        for response in wanted[row.id]:
            if response in ends:
                start, stop = ends[response]
                sides = prompt, [*prefix, *row.tokens[start:stop].tolist()]
                first, second = (str(decode(side, skip_special_tokens=True)).strip() for side in sides)
                texts[row.id, response] = first, second
    return [texts.get((name, response), ("", "")) for name, response in responses]
