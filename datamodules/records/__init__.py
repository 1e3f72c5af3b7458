"""A source's row becomes a record: readers, checks of fields, votes, splits."""

from .arrow_files import read_arrow, read_parquet, read_saved
from .cells import conversation, is_number, json_cell, number_cell
from .delimited import read_csv, read_tsv
from .fields import (
    choice_field,
    flag_field,
    list_field,
    mapping_field,
    name_field,
    nested_field,
    number_field,
    text_field,
    user_field,
    whole_field,
)
from .files import ENDINGS, TableKind, has_text_cells, read_table, table_kind
from .hub import HubDataset
from .json_files import read_json, read_json_lines, read_json_list, read_json_rows, source_row
from .json_text import check_json, decode_json
from .names import ContentNames
from .reading import find_file, hash_files, open_bytes, readable
from .record import (
    FLOAT32_MAX,
    Comparison,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    is_blank,
    listed,
    parse_messages,
    record_key,
    shown,
)
from .rows import SourceRow, parse_rows
from .sources import SourceTable, TableSource, find_tables
from .splits import PER_10_000, PERCENT, hash_share, hash_split, ordered_split
from .votes import DistinctResponses, majority_comparison, vote_counts

__all__ = [
    "ENDINGS",
    "FLOAT32_MAX",
    "PERCENT",
    "PER_10_000",
    "Comparison",
    "ContentNames",
    "DistinctResponses",
    "HubDataset",
    "Message",
    "PreferenceRecord",
    "RecordError",
    "Response",
    "SourceRow",
    "SourceTable",
    "TableKind",
    "TableSource",
    "check_json",
    "choice_field",
    "conversation",
    "decode_json",
    "find_file",
    "find_tables",
    "flag_field",
    "has_text_cells",
    "hash_files",
    "hash_share",
    "hash_split",
    "is_blank",
    "is_number",
    "json_cell",
    "list_field",
    "listed",
    "majority_comparison",
    "mapping_field",
    "name_field",
    "nested_field",
    "number_cell",
    "number_field",
    "open_bytes",
    "ordered_split",
    "parse_messages",
    "parse_rows",
    "read_arrow",
    "read_csv",
    "read_json",
    "read_json_lines",
    "read_json_list",
    "read_json_rows",
    "read_parquet",
    "read_saved",
    "read_table",
    "read_tsv",
    "readable",
    "record_key",
    "shown",
    "source_row",
    "table_kind",
    "text_field",
    "user_field",
    "vote_counts",
    "whole_field",
]
