"""Ten million records: memory and time of a warm cache, an epoch's plan and joins; a billion and 1,024 ranks reckoned from them.

    python benchmarks/data_scale.py

A cache of short synthetic records is written by the package's own writer, but its texts are not all different. Each part then runs in a process of its own, which reads the process's
anonymous memory all the while: what is mapped from a file can be dropped and does not count. It prints a table, then one line
of JSON. The exit status is 1 if records are missing, a batch is another one than with a plain reading, an epoch of validation is
packed twice, or a goal is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from memory import memory
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

from pluralign.datamodules import LoaderConfig, LocalDataModule
from pluralign.datamodules.batches import TokenBudgetBatchSampler
from pluralign.datamodules.joins import SideTable, report_joins
from pluralign.datamodules.records import Comparison, PreferenceRecord, Response
from pluralign.datamodules.tokens import CacheReader, CacheWriter
from pluralign.datamodules.tokens.chunk import chunk_batch

PARTS = ("first_batch", "plan", "joins")
MEMORY_GOAL, SECONDS_GOAL = 2**30, 10.0
CHUNK = 8192
BILLION, RANKS = 1_000_000_000, 1024

warnings.filterwarnings("ignore")


# A cache of synthetic records --------------------------------------------------------------------------


class Warm(LocalDataModule):
    """Data whose cache stands in a folder that is given."""

    def __init__(self, folder: Path) -> None:
        """Read nothing."""
        super().__init__(
            train="unread.jsonl", validation="unread.jsonl", loader=LoaderConfig(max_tokens=8192)
        )
        self.folder = folder

    def cache_folder(self) -> Path:
        """Where the cache stands."""
        return self.folder

    def content(self) -> dict[str, object]:
        """Nothing: there are no rows."""
        return {}


def records(start: int, stop: int) -> list[PreferenceRecord]:
    """Pairs of short answers."""
    return [
        PreferenceRecord(
            f"r{number}",
            f"{number % 4096}",
            (Response("yes" * (1 + number % 7)), Response("no" * (1 + number % 5))),
            (Comparison(0, 1, user=f"u{number % 1000}"),),
        )
        for number in range(start, stop)
    ]


def write_cache(folder: Path, number: int) -> None:
    """Write a cache of so many records: the first ones as ever, further ones as copies under other ids and keys."""
    data = Warm(folder)
    tokenizer, splits = data.tokenizer, ("train", "validation")
    with CacheWriter(folder, splits, source="local", on_invalid="error") as writer:
        first = records(0, CHUNK)
        rows = list(zip(first, tokenizer(first), ["rows"] * CHUNK, range(CHUNK), strict=True))
        writer.write("validation", rows[: CHUNK // 2])
        writer.write("train", rows)
        batch = chunk_batch(rows, "train", "local")
        for start in range(CHUNK, number, CHUNK):
            places = np.arange(start, min(number, start + CHUNK))
            some = batch.slice(0, len(places))
            mixed = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            digests = np.stack([mixed, mixed[::-1]], axis=1).tobytes()
            changed = {
                "id": pa.array([f"r{place}" for place in places.tolist()]),
                "record_key": pa.array(mixed.view(np.int64)),
                "split_key": pa.array(mixed.view(np.int64)),
                "id_hash": pa.array(mixed),
                "digest": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(16), len(places), [None, pa.py_buffer(digests)]
                ),
            }
            arrays = [changed.get(each.name, some.column(each.name)) for each in some.schema]
            writer.write_batch("train", pa.record_batch(arrays, schema=some.schema))
        writer.finish(tokenizer.fingerprint())


# What is measured ---------------------------------------------------------------------------------------


@contextmanager
def watched(found: dict[str, object]) -> Iterator[None]:
    """Note seconds, and by how much anonymous memory grew at most."""
    before, most, done = memory("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, worked = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found["seconds"], found["cpu_seconds"] = time.perf_counter() - began, time.process_time() - worked
        done.set()
        watcher.join()
        most = max(most, memory("RssAnon"))
        found["anonymous_bytes"], found["grown_bytes"] = most, most - before


def first_batch(folder: Path, number: int) -> dict[str, object]:
    """Everything from an unopened data module to the first batch, every byte of the cache compared."""
    found: dict[str, object] = {}
    packed = 0
    original = TokenBudgetBatchSampler._compose

    def counted(self: TokenBudgetBatchSampler, epoch: int, attempt: int) -> object:
        nonlocal packed
        packed += 1
        return original(self, epoch, attempt)

    with watched(found):
        data = Warm(folder)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
    TokenBudgetBatchSampler._compose = counted
    loader = data.val_dataloader()
    lengths = {len(loader) for _ in range(3)}
    seen = sum(len(each["id"]) for each in loader)
    TokenBudgetBatchSampler._compose = original
    rows = data.table("train")[next(iter(data.train_dataloader().sampler))]
    return {
        **found,
        "records": len(data.table("train")),
        "whole": len(data.table("train")) == number and seen == CHUNK // 2 and len(lengths) == 1,
        "equal": [row.id for row in rows] == list(batch["id"]),
        "packed_an_epoch_of_validation": packed,
    }


def plan(folder: Path, number: int) -> dict[str, object]:
    """Two epochs' plans of one rank of many."""
    sizes = np.load(folder / "train.sizes.npy", mmap_mode="r")
    found: dict[str, object] = {}
    with watched(found):
        sampler = TokenBudgetBatchSampler(sizes, max_tokens=8192, num_replicas=RANKS, rank=7)
        next(iter(sampler))
        sampler.set_epoch(1)
        next(iter(sampler))
    seen = np.bincount(sampler.plan(1).records, minlength=number)
    grown = found["grown_bytes"]
    return {
        **found,
        "records": number,
        "whole": bool((seen == 1).all()),
        "bytes_a_record": grown / number,
        "of_a_billion": {
            "bytes": grown / number * BILLION,
            "cpu_seconds_an_epoch": found["cpu_seconds"] / 2 / number * BILLION,
        },
    }


def joins(folder: Path, number: int) -> dict[str, object]:
    """A side table with an entry for every comparison: sorted, reported, and joined to a batch."""
    table = CacheReader(folder).table("train")
    found: dict[str, object] = {}
    keys = table.column("record_key").to_numpy()
    with watched(found):
        order = np.random.default_rng(0).permutation(len(keys))
        values, mixed = np.arange(len(keys), dtype=np.float32)[order], keys[order]
        del order
        side = SideTable("strength", mixed, np.zeros(len(keys), np.int64), values)
        del values, mixed
        report_joins("data", [side], {"train": table}, {})
    some = np.arange(0, len(keys), max(1, len(keys) // 1000))
    entries = side.find(keys[some], np.zeros(len(some), np.int64))
    return {
        **found,
        "records": number,
        "whole": bool((side.values[entries] == some.astype(np.float32)).all()),
    }


def measured(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Every part in a process of its own."""
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "cache"
        write_cache(folder, options.records)
        size = sum(path.stat().st_size for path in folder.iterdir())
        for part in options.parts:
            words = [sys.executable, __file__, "--part", part, str(folder), "--records", str(options.records)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            results[part] = {**json.loads(done.stdout.splitlines()[-1]), "cache_bytes": size}
    return results


def show(results: dict[str, dict[str, object]]) -> None:
    """Print what was found beside what is aimed at."""
    table = Table("part", "records", "seconds", "CPU seconds", "anonymous memory", "grown by", "whole")
    for part, found in results.items():
        sizes = (f"{found[each] / 2**20:,.0f} MiB" for each in ("anonymous_bytes", "grown_bytes"))
        table.add_row(part, f"{found['records']:,}", f"{found['seconds']:.1f}", f"{found['cpu_seconds']:.1f}", *sizes,
                      str(found["whole"]))  # fmt: skip
    Console(width=110).print(table)


def main() -> int:
    """Run everything; the exit status says whether all is whole and the goals are reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--records", type=int, default=10_000_000, help="records of the training split")
    parser.add_argument("--folder", help="where the cache is written, a few GB; the system's by default")
    parser.add_argument("--output", type=Path, help="also write the JSON object here")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, folder = options.part
        print(json.dumps(globals()[name](Path(folder), options.records)))
        return 0
    results = measured(options)
    show(results)
    whole = all(found["whole"] and found.get("equal", True) for found in results.values())
    whole &= (
        results.get("first_batch", {"packed_an_epoch_of_validation": 1})["packed_an_epoch_of_validation"] == 1
    )
    goals = all(found["anonymous_bytes"] < MEMORY_GOAL for found in results.values())
    goals &= results.get("first_batch", {"seconds": 0.0})["seconds"] < SECONDS_GOAL
    line = json.dumps({**results, "whole": whole, "goals": {"anonymous_bytes": MEMORY_GOAL, "seconds": SECONDS_GOAL},
                       "passes": whole and goals, **surroundings("torch", "datasets", "pyarrow")})  # fmt: skip
    if options.output:
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return int(not (whole and goals))


if __name__ == "__main__":
    sys.exit(main())
