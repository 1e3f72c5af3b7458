"""What a split's Arrow stream holds."""

from typing import TYPE_CHECKING

from ..columns import optional_columns

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["schema"]


def schema() -> "pa.Schema":
    """Names and types of the columns of a token cache: a record's own, lists over its items, and where they come from."""
    import pyarrow as pa

    integers = ("tokens", "lengths", "response_index", "comparisons", "comparison_index")
    origins = ("response_origin", "response_place", "comparison_origin", "comparison_place")
    keys = [("record_key", pa.int64()), ("split_key", pa.int64())]
    plain = [("id", pa.string()), *keys, ("file", pa.string()), ("line", pa.int64())]
    return pa.schema(
        [*plain, ("prompt_length", pa.int32())]
        + [(name, pa.list_(pa.int32())) for name in (*integers, *origins)]
        + [("merged_id", pa.list_(pa.string())), ("merged_key", pa.list_(pa.int64()))]
        + [("preference", pa.list_(pa.float32()))]
        + [
            (entry.stored, pa.list_(pa.string() if entry.kind == "name" else pa.float32()))
            for entry in optional_columns()
        ]
    )
