"""Every reader of files, with valid files that it reads: what `bad_inputs.py` damages and reads again."""

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

import pluralign.datamodules
from pluralign.datamodules import (
    LoaderConfig,
    LocalDataModule,
    MixtureDataModule,
    PreferenceDataModule,
    TextConfig,
)
from pluralign.datamodules.batches.features import FeatureStore, FeatureWriter
from pluralign.datamodules.crowd.priors import read_priors
from pluralign.datamodules.joins import SideTable
from pluralign.datamodules.records import Comparison, PreferenceRecord, RecordError, Response
from pluralign.datamodules.votes import VoteFolder, VoteShard, VoteSource, VoteTable
from pluralign.models import BackboneConfig, BradleyTerryRM, restored_module
from pluralign.models.rollouts import Rollouts, RolloutStore
from pluralign.train import main

__all__ = ["Counted", "Reader", "readers"]

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", "vocab_size": 259, **SIZES}
PAIR = {
    "prompt": "Name a fruit.",
    "chosen": "A fig.",
    "rejected": "A chair.",
    "user": "ann",
    "preference": 0.75,
}
MANY = {
    "id": "m", "prompt": [{"role": "user", "content": "Name a fruit."}], "responses": ["A fig.", "A plum.", "A chair."],
    "comparisons": [[0, 2], [1, 2, 0.9], {"chosen": 0, "rejected": 1, "user": "bo", "weight": 2.0}],
    "scores": [4.5, 4, 1], "votes": [[0, 5], [1, 4], [5, 0]], "domain": "food",
}  # fmt: skip
ROWS = [{**PAIR, "id": f"q{i}", "prompt": f"Name fruit {i}."} for i in range(5)]


class Counted(NamedTuple):
    """What a reader made of files."""

    rows: int
    """Rows that were there, as the reader counts them."""
    kept: int
    skipped: int


class Reader(NamedTuple):
    """Something that reads files which somebody else may have written."""

    name: str
    group: str
    make: Callable[[Path], object]
    """Writes valid files into a folder; what it returns is given to :attr:`read`."""
    read: Callable[[Path, Any], Counted | None]
    """Reads them; None where there are no rows to count."""
    anew: bool = False
    """Whether what :attr:`make` returns knows the folder, so that every case makes its own."""
    exits: bool = False
    """Whether it is a verb, which says what is wrong and exits with status 2."""


# Rows --------------------------------------------------------------------------------------------------


def _read_rows(folder: Path, data: PreferenceDataModule) -> Counted:
    """Every row becomes a record or is told of; of JSON Lines the rows are counted by hand besides."""
    rows = kept = skipped = 0
    files = [path for source in data.sources for path in data.files(source)]
    for source in data.sources:
        here = 0
        for row in data.load(source):
            here += 1
            if isinstance(row, RecordError):
                _named(row)
                skipped += 1
                continue
            try:
                data.to_example(row)
                kept += 1
            except RecordError as error:
                _named(error.at(row.file, row.line))
                skipped += 1
        rows += here
    if isinstance(data, LocalDataModule) and all(path.suffix == ".jsonl" for path in files):
        rows = sum(bool(line.strip()) for path in files for line in path.read_bytes().split(b"\n"))
    return Counted(rows, kept, skipped)


def _named(error: RecordError) -> None:
    """Make sure that a skip says where and what."""
    if not (error.file and error.field and error.reason):
        raise AssertionError(f"a skip without file, field or reason: {error!r}")


def _prepare(folder: Path, data: PreferenceDataModule) -> Counted:
    """Into the token cache and out of it."""
    data.setup()
    rows = sum(
        bool(line.strip()) for path in folder.glob("*.jsonl") for line in path.read_bytes().split(b"\n")
    )
    kept = skipped = 0
    for split, report in data.reports.items():
        kept += sum(1 if row.origins is None else len(row.origins.ids) for row in data.table(split).rows())
        skipped += report.invalid.total() + sum(
            number for reason, number in report.dropped.items() if reason.startswith("record")
        )
        for batch in data.batches(split):
            assert batch["input_ids"].numel()
    return Counted(rows, kept, skipped)


def _tables(ending: str) -> Callable[[Path], LocalDataModule]:
    def make(folder: Path) -> LocalDataModule:
        rows = ROWS if ending in ("csv", "tsv") else [*ROWS, MANY] if "json" in ending else ROWS
        path = folder / f"rows.{ending}"
        _write_rows(path, ending, rows)
        return LocalDataModule(
            train=str(path), on_invalid="skip", cache_dir=str(folder.with_suffix(".cache"))
        )

    return make


def _write_rows(path: Path, ending: str, rows: list[dict[str, object]]) -> None:
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    if ending in ("jsonl", "jsonl.gz"):
        text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    elif ending == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif ending in ("csv", "tsv"):
        mark = "," if ending == "csv" else "\t"
        lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        path.write_text("".join(f"{mark.join(line)}\n" for line in lines))
    elif ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "saved":
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(path)
    else:
        table = pa.Table.from_pylist(rows)
        opened = pa.ipc.new_file if ending == "feather" else pa.ipc.new_stream
        with opened(str(path), table.schema) as writer:
            writer.write_table(table)


def _data_sets() -> list[Reader]:
    """Every data set, on the rows that its own tests invent."""
    found = []
    for name in pluralign.datamodules.__all__:
        member = getattr(pluralign.datamodules, name)
        if not (isinstance(member, type) and issubclass(member, PreferenceDataModule)):
            continue
        if member in (PreferenceDataModule, MixtureDataModule) or name.startswith(
            ("Synthetic", "StyleGrammar")
        ):
            continue
        short = member.__module__.split(".")[3]
        found.append(
            Reader(f"data set {short}", "rows of data sets", _invented(member, short), _read_rows, anew=True)
        )
    return found


def _invented(kind: type[PreferenceDataModule], short: str) -> Callable[[Path], PreferenceDataModule]:
    def make(folder: Path) -> PreferenceDataModule:
        tests = importlib.import_module(f"pluralign.tests.datamodules.datasets.test_{short}")
        settings: dict[str, object] = {"loader": LoaderConfig(batch_size=8), "on_invalid": "skip"}
        if not kind.sources or "validation" not in kind.sources:
            settings["validation_share"] = 0.3
        data: PreferenceDataModule = tests.invented(folder, **settings)
        return data

    return make


def _local(folder: Path) -> LocalDataModule:
    for name, rows in (("train", [*ROWS, MANY]), ("test", ROWS[:2])):
        _write_rows(folder / f"{name}.jsonl", "jsonl", rows)
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return LocalDataModule(**files, on_invalid="skip", cache_dir=str(folder.with_suffix(".cache")))


# Files of ours -----------------------------------------------------------------------------------------


def _cache(folder: Path) -> Path:
    rows = folder.with_suffix(".jsonl")
    _write_rows(rows, "jsonl", [*ROWS, MANY])
    LocalDataModule(train=str(rows), cache_dir=str(folder)).prepare_data()
    return rows


def _read_cache(folder: Path, rows: Path) -> Counted:
    """A cache that is damaged is made anew."""
    again = LocalDataModule(train=str(rows), cache_dir=str(folder))
    again.setup()
    tables = [again.table(split) for split in again.splits]
    number = sum(
        1 if row.origins is None else len(row.origins.ids) for table in tables for row in table.rows()
    )
    return Counted(6, number, 0)


NETWORK: dict[str, object] = {"weights": "0f", "dtype": "float32", "pooling": "last"}
FORMAT: dict[str, object] = {"format": "plain", "tokenizer": "byte", "tokenizer_digest": "0a"}


def _features(folder: Path) -> None:
    writer = FeatureWriter(
        folder,
        backbone=NETWORK,
        text_format=FORMAT,
        hidden_size=4,
        dtype="float32",
        prompts=False,
    )
    writer.add(np.arange(1, 7, dtype=np.uint64), torch.randn(6, 4))
    writer.flush()


def _read_features(folder: Path, made: object) -> None:
    store = FeatureStore(folder)
    store.take(store.find(np.arange(1, 9, dtype=np.uint64)))
    store.check_tokenizer(FORMAT)
    store.check_backbone(NETWORK)


PROMPTS: Any = {
    "id": ["a", "b"], "item_key": torch.tensor([3, 4]), "prompt": ["One?", [{"role": "user", "content": "Two?"}]],
    "preference": [("tone.warm",), ()], "wanted": torch.eye(2, dtype=torch.bool), "columns": {"user": ["ann", None]},
    "input_ids": torch.arange(6).reshape(2, 3), "attention_mask": torch.ones(2, 3, dtype=torch.int64),
}  # fmt: skip


def _rollouts(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([2, 3, 1])
    mask = torch.arange(3) < lengths[:, None]
    numbers = torch.where(mask, torch.randn(3, 3, generator=generator), 0.0)
    RolloutStore(folder, {"temperature": 1.0}).write(
        0, 0,
        Rollouts(
            prompts=PROMPTS, item=torch.tensor([0, 0, 1]), tokens=torch.where(mask, 7, 2), lengths=lengths,
            finished=torch.tensor([True, False, True]), log_prob=numbers, texts=["x", "y", ""], reward=torch.ones(3),
            token_values={"values": numbers}, rewards={"kind": torch.ones(3)}, reference_rewards={}, reference_log_prob=None,
        ),
    )  # fmt: skip


def _read_rollouts(folder: Path, made: object) -> None:
    store = RolloutStore(folder, {"temperature": 1.0})
    store.read(0, 0, PROMPTS)
    store.references()


def _votes(folder: Path) -> None:
    written = VoteFolder(
        folder,
        VoteSource({"parts": {"local": {"sources": {}}}, "text": {}}, "ab12", 3, "bootstrap"),
        {"train": 4},
        shard_records=2,
    )
    for shard in written.pending("train"):
        first, stop = written.span("train", shard)
        keys = np.arange(first, stop)
        written.write(
            "train", shard, VoteShard(keys, np.zeros_like(keys), np.ones((len(keys), 3), np.float32))
        )
    written.finish()


def _read_votes(folder: Path, made: object) -> None:
    VoteTable.load(folder).side_table()


def _read_side(folder: Path, made: object) -> None:
    SideTable.load(folder / "side.parquet")


def _priors(folder: Path) -> None:
    lines = [{"id": f"q{i}", "prior": [0.25, 0.75] if i % 2 else [[0.5, 0.5], [1.0, 0.0]]} for i in range(4)]
    (folder / "priors.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _scores(folder: Path) -> object:
    from pluralign.inference.board import Scores, evaluation_data
    from pluralign.inference.board.kept import keep_scores

    rows = [
        PreferenceRecord(f"r{i}", f"Fruit {i}?", (Response("Fig"), Response("Plum")), (Comparison(0, 1),))
        for i in range(3)
    ]
    six, three = torch.arange(6).double(), torch.arange(3).double()
    values = {"reward": six, "first": three, "second": three, "odds": three, "of_records": six}
    keep_scores(
        folder / "kept.npz",
        Scores(**values, labels=None, label_names=(), on_comparisons=True, swap=0.0, seconds=1.0),
    )
    return evaluation_data("fruits", "test", LocalDataModule(test="none.jsonl"), rows)


def _read_scores(folder: Path, data: Any) -> Counted:  # noqa: ANN401  what _scores gives
    """Scores that are damaged are made anew, with a warning."""
    from pluralign.inference.board.kept import kept_scores

    found = kept_scores(folder / "kept.npz", data)
    return Counted(1, int(found is not None), int(found is None))


# Models ------------------------------------------------------------------------------------------------


def _module() -> BradleyTerryRM:
    torch.manual_seed(0)
    module = BradleyTerryRM(BackboneConfig(config=LLAMA))
    module.configure_model()
    module.text_format = LocalDataModule(train="never.jsonl", text=TextConfig(max_length=64)).text_format()
    return module


def _checkpoint(folder: Path) -> None:
    import lightning as L

    module = _module()
    content: dict[str, Any] = {
        "state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "global_step": 3, "epoch": 1,
        "pytorch-lightning_version": L.__version__, "hparams_name": "kwargs",
    }  # fmt: skip
    module.on_save_checkpoint(content)
    torch.save(content, folder / "last.ckpt")


def _read_checkpoint(folder: Path, made: object) -> None:
    restored_module(folder / "last.ckpt")


def _load_checkpoint(folder: Path, made: object) -> None:
    BradleyTerryRM.load_from_checkpoint(folder / "last.ckpt", map_location="cpu")


def _resume(folder: Path, made: object) -> None:
    from pluralign.callbacks import AtomicCheckpointIO

    AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt", "cpu", weights_only=True)


def _exported(folder: Path) -> None:
    from pluralign.inference import OpenedModel
    from pluralign.inference.exporting import export_folder

    module = _module().eval().requires_grad_(False)
    opened = OpenedModel(module, TextConfig(max_length=64), "made", "made", kind="transformers")
    export_folder(opened, folder, check="none", overwrite=True)


def _read_exported(folder: Path, made: object) -> None:
    from pluralign.inference import open_model

    open_model(folder)


def _adapter(folder: Path) -> object:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = dict(LLAMA)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    wrapped = get_peft_model(network, LoraConfig(r=2, target_modules="all-linear"))
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.unload()


def _read_adapter(folder: Path, network: Any) -> None:  # noqa: ANN401  what _adapter gives
    from pluralign.models.pcm.adapter_files import read_adapter

    read_adapter(str(folder), network, "warm")


# What verbs read ---------------------------------------------------------------------------------------


RECIPE = {
    "model": {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": LLAMA}}},
    "data": {"class_path": "SyntheticDataModule", "init_args": {"num_train": 8, "loader": {"batch_size": 4}}},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "gradient_clip_val": 1.0},
}


def _recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


def _read_recipe(folder: Path, made: object) -> None:
    _verb("fit", "--config", str(folder / "recipe.yaml"), "--print_config")


def _run(folder: Path) -> None:
    number = {"last": {"value": 0.5, "step": 4}, "best": {"value": 0.4, "step": 2}}
    session = {
        "command": ["fit"], "started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T11:00:00+00:00", "status": "finished",
        "from_step": 0, "to_step": 4, "host": "h", "process": 1, "git": None, "versions": {"torch": "2"}, "device": "cpu",
        "processes": 1, "precision": "32-true",
    }  # fmt: skip
    run = folder / "version_0"
    run.mkdir()
    record = {
        "version": 1, "method": "BradleyTerryRM", "data": {"class": "LocalDataModule", "name": "local", "splits": {"train": {"records": 3}}},
        "sessions": [session], "status": "finished", "step": 4, "monitor": "val/loss", "numbers": {"val/loss": number},
        "checkpoints": {"last": "checkpoints/last.ckpt"}, "updated": "2026-01-01T11:00:00+00:00",
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,1,0.7,\n0,2,0.6,0.5\n")
    _recipe(run)
    (run / "recipe.yaml").rename(run / "config.yaml")


def _read_run(folder: Path, made: object) -> None:
    _verb("runs", str(folder))
    _verb("runs", "show", str(folder / "version_0"))


def _members(folder: Path) -> None:
    listed = [{"member": i, "seed": i, "checkpoint": f"member_{i}/last.ckpt"} for i in range(2)]
    (folder / "members.json").write_text(json.dumps({"version": 1, "members": listed}))


def _read_members(folder: Path, made: object) -> None:
    from pluralign.commands.members_file import read_members

    read_members(folder)


def _completed(folder: Path) -> None:
    kept = {"path": "checkpoints/last.ckpt", "sha256": "0" * 64, "size": 3, "weights": "0" * 64}
    content = {
        "inputs": {"kind": "fit"}, "checkpoints": {"last": kept}, "metrics": {"val/loss": 0.5}, "step": 4, "finished": "2026-01-01",
        "validated": 4, "version": "0.1",
    }  # fmt: skip
    (folder / "complete.json").write_text(json.dumps(content))


def _read_completed(folder: Path, made: object) -> None:
    from pluralign.commands.stage_folder import read_completed

    read_completed(folder / "complete.json")


def _responses(folder: Path) -> None:
    line = {
        "sample": 0,
        "prompt": "One?",
        "preference": [],
        "response": "Yes.",
        "num_tokens": 2,
        "finished": True,
        "source": "s",
    }
    (folder / "responses.jsonl").write_text(
        "".join(f"{json.dumps({'id': f'q{i}', **line})}\n" for i in range(4))
    )


def _read_responses(folder: Path, made: object) -> None:
    from pluralign.inference.responding import ResponseFile

    ResponseFile(folder / "responses.jsonl", "s")


def _board(folder: Path) -> None:
    from pluralign.inference.board import Board

    Board((), (), ()).write(folder / "board.json")


def _read_board(folder: Path, made: object) -> None:
    from pluralign.inference.board import Board

    Board.read(folder / "board.json")


def _verb(*words: str) -> None:
    """Run a verb; what it prints is looked at for a traceback alone."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(words))
    except SystemExit as stop:
        text = err.getvalue()
        if stop.code not in (0, None) and ("Traceback" in text or "error" not in text):
            raise AssertionError(f"exit {stop.code} with {text[-400:]!r}") from None
        if stop.code not in (0, None):
            raise


def readers() -> list[Reader]:
    """All readers, in groups."""
    endings = ("jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "arrow", "feather", "saved")
    tables = [
        Reader(f"rows of {name}", "rows of tables", _tables(name), _read_rows, anew=True) for name in endings
    ]
    return [
        *tables,
        *_data_sets(),
        Reader("rows into tokens", "rows into tokens", _local, _prepare, anew=True),
        Reader("configuration", "configurations", _recipe, _read_recipe, exits=True),
        Reader("checkpoint, restored", "checkpoints", _checkpoint, _read_checkpoint),
        Reader("checkpoint, loaded", "checkpoints", _checkpoint, _load_checkpoint),
        Reader("checkpoint, gone on from", "checkpoints", _checkpoint, _resume),
        Reader("token cache", "token caches", _cache, _read_cache),
        Reader("feature store", "feature stores", _features, _read_features),
        Reader("rollouts", "rollouts", _rollouts, _read_rollouts),
        Reader("votes", "votes", _votes, _read_votes),
        Reader("side table", "votes", _side, _read_side),
        Reader(
            "priors", "votes", _priors, lambda folder, made: read_priors(folder / "priors.jsonl") and None
        ),
        Reader("exported folder", "exported folders", _exported, _read_exported),
        Reader("adapter", "adapters", _adapter, _read_adapter),
        Reader("kept scores", "boards", _scores, _read_scores),
        Reader("board", "boards", _board, _read_board),
        Reader("run's folder", "runs", _run, _read_run, exits=True),
        Reader("members.json", "runs", _members, _read_members),
        Reader("complete.json", "runs", _completed, _read_completed),
        Reader("responses", "runs", _responses, _read_responses),
    ]


def _side(folder: Path) -> None:
    keys = np.arange(4, dtype=np.int64)
    SideTable("strength", keys, np.zeros_like(keys), np.ones(4, np.float32)).save(folder / "side.parquet")
