"""Every column of the data, in one table: what it is a column of, what stands where it is missing, who provides it.

The schema of the token cache, what a split may lack, the collator, the two filters below, the message of a module
that misses a key, the fields of a local file and the documentation follow from it. A new column is one line here, and
its source.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from .batch import PreferenceBatch

__all__ = [
    "COLUMNS",
    "Column",
    "Item",
    "Kind",
    "column",
    "optional_columns",
    "provided_by",
    "take_comparisons",
    "take_responses",
    "with_requests",
]

Item = Literal["record", "response", "comparison", "request"]
Kind = Literal["number", "integer", "name", "counts", "vector"]

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the data.

    Attributes:
        name: Key in the batch.
        item: What it holds one entry of: told here, since a batch may have as many responses as comparisons.
        kind: ``number`` (float32), ``integer`` (int64), ``name`` (text in the data, an index in the batch), ``counts``
            (float32, one per category) or ``vector`` (any float type).
        missing: What stands for an item that lacks it; None where no item can.
        meaning: For the documentation: shape, type, range and unit.
        provided_by: Which data have it, for the message of a module that needs it; empty where all do.
        field: Attribute of the record, response or comparison that it is read from; None where the collator makes it.
        low: Least number that a record may hold; counts are never negative.
        categories: Column whose number of categories its counts have; None for one of its own.
        in_batch: Whether batches hold it; what they do not is read by the collator alone.
        training_only: Whether only names of the training split have an index, all others -1.
        names: Stored column whose list of names its indices point into; None for its own.
    """

    name: str
    item: Item
    kind: Kind
    missing: float | None
    meaning: str
    provided_by: str = ""
    field: str | None = None
    low: float = -math.inf
    categories: str | None = None
    in_batch: bool = True
    training_only: bool = False
    names: str | None = None

    @property
    def stored(self) -> str:
        """Its name in the token cache and in a local file: the key, or for names what the key is an index of."""
        return self.name.removesuffix("_id") if self.kind == "name" else self.name

    @property
    def votes(self) -> str:
        """Column of votes whose number of categories it has."""
        return self.categories or self.name

    def of(self, item: object) -> Any:  # noqa: ANN401  a record is checked against this table
        """Value of a record, response or comparison; None if it has none."""
        assert self.field is not None  # only columns of the data are asked for it
        return getattr(item, self.field)


COLUMNS: tuple[Column, ...] = (
    Column("record_key", "record", "integer", None, "(N,) int64: source, split and id of the record as a number"),
    Column("split_key", "record", "integer", None, "(N,) int64: hash of what a random split keeps together: the prompt, or the "
           "record's group"),
    Column("source_id", "record", "name", -1, "(N,) int64: index into the data's ``names['source']``; -1 unknown",
           "MixtureDataModule; a LocalDataModule whose rows have source", field="source"),
    Column("aspect_id", "record", "name", -1, "(N,) int64: index into the data's ``names['aspect']``; -1 unknown",
           "MultiPrefDataModule; a LocalDataModule whose rows have aspect", field="aspect"),
    Column("record_weight", "record", "number", 1.0, "(N,) float32 >= 0: weight of the whole record",
           "a LocalDataModule whose rows have record_weight", field="weight", low=0.0),
    Column("response_row", "response", "integer", None, "(R,) int64, ascending: row in ``input_ids``"),
    Column("response_end", "response", "integer", None, "(R,) int64: column of the last real token (its EOS)"),
    Column("response_prompt", "response", "integer", None, "(R,) int64, ascending: index into ``id``"),
    Column("response_index", "response", "integer", None, "(R,) int64: place in the record as the data gave it"),
    Column("response_key", "response", "integer", None, "(R,) int64: record_key of its own row, where rows were merged",
           "data with several rows of one prompt, unless merged_tokens is 0"),
    Column("response_place", "response", "integer", None, "(R,) int64: place in its own row, where rows were merged",
           "data with several rows of one prompt, unless merged_tokens is 0"),
    Column("response_length", "response", "integer", None, "(R,) int64, >= 1: own tokens after the shared prefix"),
    Column("features", "response", "vector", None, "(R, H) float: pooled features in place of tokens",
           "a feature store (`pluralign embed`, then loader.features)"),
    Column("score", "response", "number", NAN, "(R,) float32: a rating", "rated data; a LocalDataModule whose rows "
           "have score or scores", field="score"),
    Column("system_id", "response", "name", -1, "(R,) int64: who wrote it (a model, a person, a system prompt), an index into "
           "the data's ``names['system']``; -1 unknown", "data that name who wrote their responses, such as DSPDataModule; a "
           "LocalDataModule whose rows have system or systems", field="system"),
    Column("votes", "response", "counts", 0.0, "(R, C) float32 >= 0: annotator counts per category",
           "BeaverTails, DICES, SQuALITY, HelpSteer2, SafeRLHF, PersonaVotes and Synthetic (judgements: ratings) data modules; a "
           "LocalDataModule whose rows have votes", field="votes"),
    Column("prior", "response", "counts", 0.0, "(R, C) float32: what to expect before anyone voted; not in batches",
           field="prior", categories="votes", in_batch=False),
    Column("target", "response", "counts", NAN, "(R, C) float32: share of every category to learn"),
    Column("target_votes", "response", "number", 0.0, "(R,) float32 >= 0: votes that ``target`` is worth"),
    Column("comparisons", "comparison", "integer", None, "(P, 2) int64: indices into R, chosen then rejected",
           "every data module of pairs; a LocalDataModule whose rows have chosen and rejected"),
    Column("comparison_index", "comparison", "integer", None, "(P,) int64: place in the record"),
    Column("comparison_prompt", "comparison", "integer", None, "(P,) int64, ascending: index into ``id``; beside "
           "requests alone", "the predict split"),
    Column("comparison_key", "comparison", "integer", None, "(P,) int64: record_key of its own row, where rows were "
           "merged", "data with several rows of one prompt, unless merged_tokens is 0"),
    Column("comparison_place", "comparison", "integer", None, "(P,) int64: place in its own row, where rows were "
           "merged", "data with several rows of one prompt, unless merged_tokens is 0"),
    Column("preference", "comparison", "number", None, "(P,) float32 in [0, 1]: share preferring the first",
           field="preference"),
    Column("margin", "comparison", "number", 0.0, "(P,) float32: required reward gap", field="margin"),
    Column("weight", "comparison", "number", 1.0, "(P,) float32 >= 0: loss weight", field="weight", low=0.0),
    Column("strength", "comparison", "number", NAN, "(P,) float32: signed strength of the preference",
           field="strength"),
    Column("comparison_votes", "comparison", "counts", 0.0, "(P, C) float32 >= 0: annotator counts per category",
           "UKPConvArg, PandaLM, SQuALITY, MultiPref and Synthetic (judgements: crowd) and HelpSteer3 (judgements: "
           "annotators) data modules; a LocalDataModule whose comparisons have votes", field="votes"),
    Column("comparison_target", "comparison", "counts", NAN, "(P, C) float32: share of every category to learn"),
    Column("comparison_target_votes", "comparison", "number", 0.0, "(P,) float32 >= 0: votes it is worth"),
    Column("user_id", "comparison", "name", -1, "(P,) int64: index into the data's ``users``; -1 unknown",
           "data with judges, such as UKPConvArgDataModule with judgements: workers", field="user"),
    Column("group_id", "comparison", "name", -1, "(P,) int64: group of users that the judge is of; not in batches",
           "MultiPrefDataModule, DICESRatersDataModule with groups; a LocalDataModule whose rows have group",
           field="group", in_batch=False),
    Column("domain_id", "comparison", "name", -1, "(P,) int64: index into the data's ``domains``; -1 unknown",
           "data with domains, such as DSPDataModule", field="domain", training_only=True),
    Column("request_response", "request", "integer", None, "(Q,) int64: index into R: whose reward is asked for",
           "the predict split"),
    Column("request_prompt", "request", "integer", None, "(Q,) int64, ascending: index into ``id``",
           "the predict split"),
    Column("request_index", "request", "integer", None, "(Q,) int64: place of the response in its record",
           "the predict split"),
    Column("request_user_id", "request", "name", -1, "(Q,) int64: index into the data's ``users``: whose reward it "
           "is; -1 for nobody in particular", "a LocalDataModule whose rows to predict have user", field="user",
           names="user"),
    Column("request_domain_id", "request", "name", -1, "(Q,) int64: index into the data's ``domains``; -1 unknown",
           "a LocalDataModule whose rows to predict have domain", field="domain", names="domain"),
)  # fmt: skip


NESTED = {"unlabelled": "a MixtureDataModule with unlabelled sources, in training"}
"""Batches within a batch that some data have, and which: their own columns are those above."""


def column(name: str) -> Column:
    """The column of a batch key.

    Raises:
        KeyError: If there is none.
    """
    for entry in COLUMNS:
        if entry.name == name:
            return entry
    raise KeyError(name)


@cache
def optional_columns(item: Item | None = None, kind: Kind | None = None) -> tuple[Column, ...]:
    """Columns that the data may bring and the token cache holds under ``stored``; of one item or kind, or all."""
    return tuple(
        entry
        for entry in COLUMNS
        if entry.field is not None
        and entry.missing is not None
        and item in (None, entry.item)
        and kind in (None, entry.kind)
    )


def provided_by(name: str) -> str:
    """Which data have a key, as a phrase."""
    for entry in COLUMNS:
        if entry.name == name and entry.provided_by:
            return entry.provided_by
        if entry.name == name and entry.missing is None and entry.item in ("record", "response"):
            return "every data module"
    return NESTED.get(name, "no data module so far")


def take_comparisons(batch: PreferenceBatch, keep: Tensor) -> PreferenceBatch:
    """The batch with some of its comparisons; responses, records and batches within it stay.

    Args:
        batch: With comparisons.
        keep: (P,) bool, or indices, int64.

    Returns:
        A new batch; tensors that hold no comparisons are the same objects.
    """
    kept = batch.copy()
    for entry in COLUMNS:
        if entry.item == "comparison" and entry.name in batch:
            kept[entry.name] = batch[entry.name][keep]  # type: ignore[literal-required]
    return kept


def take_responses(batch: PreferenceBatch, keep: Tensor) -> PreferenceBatch:
    """The batch with some of its responses; comparisons of which a side is gone go as well, and so do requests.

    Batches within it stay: their responses are others.

    Rows of tokens stay as they are: nothing reads what belongs to no response.

    Args:
        batch: A batch.
        keep: (R,) bool.

    Returns:
        A new batch; ``comparisons`` and ``request_response`` point at the responses that are left.
    """
    kept = batch.copy()
    if "comparisons" in batch:
        kept = take_comparisons(batch, keep[batch["comparisons"]].all(dim=1))
        kept["comparisons"] = (keep.cumsum(0) - 1)[kept["comparisons"]]
    masks = {"response": keep}
    if "request_response" in batch:
        masks["request"] = keep[batch["request_response"]]
    for entry in COLUMNS:
        if entry.item in masks and entry.name in batch:
            kept[entry.name] = batch[entry.name][masks[entry.item]]  # type: ignore[literal-required]
    if "request_response" in batch:
        kept["request_response"] = (keep.cumsum(0) - 1)[kept["request_response"]]
    return kept


def with_requests(batch: PreferenceBatch) -> PreferenceBatch:
    """The batch with requests: its own, else one for each response, as nobody in particular.

    A batch that does not say which records its responses are of stays as it is.
    """
    if "request_response" in batch or not {"response_prompt", "response_index"} <= batch.keys():
        return batch
    asked = batch.copy()
    asked["request_prompt"], asked["request_index"] = batch["response_prompt"], batch["response_index"]
    asked["request_response"] = torch.arange(
        len(batch["response_index"]), device=batch["response_index"].device
    )
    return asked
