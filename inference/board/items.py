"""Everything behind the numbers: a row for each comparison and model, and one for each response and model, as Parquet."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pluralign.datamodules.whole_files import written_whole

from .cells import rightness
from .data import EvaluationData
from .scoring import Scores

__all__ = ["write_items"]

COMPARISONS = {
    "data": "string",
    "model": "string",
    "record": "string",
    "comparison": "int64",
    "prompt": "int64",
    "chosen": "int64",
    "rejected": "int64",
    "preference": "float64",
    "user": "string",
    "domain": "string",
    "chosen_reward": "float64",
    "rejected_reward": "float64",
    "log_odds": "float64",
    "right": "bool_",
}
"""Of a comparison: record and place there, places of both responses in the record, what people say, what the model says. ``right``
is null for a tie of people, and rewards are where the model could not read a side."""
RESPONSES = {
    "data": "string",
    "model": "string",
    "record": "string",
    "response": "int64",
    "reward": "float64",
    "labels": "float64s",
}
"""Of a response: record and place there, and its reward, as the one user or in the one domain of its record's comparisons."""


def write_items(
    comparisons: Path, responses: Path, scored: Sequence[tuple[EvaluationData, Mapping[str, Scores]]]
) -> None:
    """Write both files, each whole or not at all.

    Args:
        comparisons: File of comparisons.
        responses: File of responses.
        scored: Data with the scores of each model, by name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path, columns, rows in (
        (comparisons, COMPARISONS, _comparisons),
        (responses, RESPONSES, _responses),
    ):
        schema = pa.schema(
            [
                (name, pa.list_(pa.float64()) if kind == "float64s" else getattr(pa, kind)())
                for name, kind in columns.items()
            ]
        )
        with written_whole(path, setting="--output") as stream, pq.ParquetWriter(stream, schema) as writer:
            for data, of_models in scored:
                for model, scores in of_models.items():
                    values = rows(data, scores)
                    number = len(values["record"])
                    names = {"data": [data.name] * number, "model": [model] * number}
                    writer.write_table(pa.table(values | names, schema=schema))


def _comparisons(data: EvaluationData, scores: Scores) -> dict[str, list[object]]:
    records = [data.records[one.record] for one in data.comparisons]
    given = [record.comparisons[one.place] for record, one in zip(records, data.comparisons, strict=True)]
    right = rightness(data, scores).tolist()
    return {
        "record": [record.id for record in records],
        "comparison": [one.place for one in data.comparisons],
        "prompt": [one.prompt for one in data.comparisons],
        "chosen": [one.chosen for one in given],
        "rejected": [one.rejected for one in given],
        "preference": data.share.tolist(),
        "user": [one.user for one in data.comparisons],
        "domain": [one.domain for one in data.comparisons],
        "chosen_reward": _numbers(scores.first.tolist()),
        "rejected_reward": _numbers(scores.second.tolist()),
        "log_odds": _numbers(scores.odds.tolist()),
        "right": [bool(one) if one in (0, 1) else None for one in right],
    }


def _responses(data: EvaluationData, scores: Scores) -> dict[str, list[object]]:
    labels: list[object] = [None] * sum(map(len, data.places))
    if scores.labels is not None and not scores.on_comparisons:
        of_response = scores.labels.tolist()
        labels = [_labels(of_response[place]) for places in data.places for place in places]
    return {
        "record": [record.id for record in data.records for _ in record.responses],
        "response": [i for places in data.places for i in range(len(places))],
        "reward": _numbers(scores.of_records.tolist()),
        "labels": labels,
    }


def _numbers(values: Sequence[float]) -> list[object]:
    return [None if math.isnan(value) else value for value in values]


def _labels(values: Sequence[float]) -> list[float] | None:
    return None if any(map(math.isnan, values)) else [*values]
