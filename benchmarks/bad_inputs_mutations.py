"""Damage to files: bytes that change or go, and values in them that become others, drawn from a seeded generator."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml

__all__ = ["damage"]

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, -(10**30), 1e308, -1e-320, float("nan"), float("inf"), -float("inf"),
    "", " ", "\x00", "é\u202e", "\ud800", "nan", "None", "-1", "../../outside", "/etc/hostname", "con", [], {}, [[]], [None], {"": None},
)  # fmt: skip
"""What a value may become: other types, and ends of ranges."""
LONG, DEEP = 20_000, 3_000
NUMPY = ("<f8", "<f4", "<f2", "<i8", "<i4", "<u8", "|b1", "<c16", "<U3", "|S2")


def damage(path: Path, draw: Random) -> str:
    """Damage a file in place.

    Args:
        path: The file.
        draw: Seeded.

    Returns:
        What was done to it.
    """
    before = path.read_bytes()
    change = BY_ENDING.get(path.suffix)
    if change is not None and draw.random() < 0.6:
        try:
            return change(path, draw)
        except (ValueError, TypeError, KeyError, OverflowError, UnicodeError, RuntimeError, IndexError):
            pass  # what the damage asks for cannot be written in this format
        except Exception as error:  # of pyarrow, whose types are known only where it is imported
            if not type(error).__module__.startswith(("pyarrow", "safetensors", "yaml")):
                raise
    path.write_bytes(before)
    return _bytes(path, draw)


# Bytes -------------------------------------------------------------------------------------------------


def _bytes(path: Path, draw: Random) -> str:
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content) + 1)
    size = min(draw.choice((1, 2, 4, 8, 64, 4096)), len(content))
    what = draw.choice(
        ("cut", "flip", "flip", "zeros", "ones", "noise", "insert", "repeat", "remove", "number", "empty")
    )
    if what == "cut":
        del content[at:]
    elif what == "flip" and content:
        for _ in range(draw.choice((1, 1, 8))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif what in ("zeros", "ones"):
        content[at : at + size] = (b"\x00" if what == "zeros" else b"\xff") * len(content[at : at + size])
    elif what == "noise":
        content[at : at + size] = draw.randbytes(len(content[at : at + size]))
    elif what == "insert":
        content[at:at] = draw.randbytes(size)
    elif what == "repeat":
        content[at:at] = content[max(0, at - size) : at]
    elif what == "remove":
        del content[at : at + size]
    elif what == "number":  # a length or an offset that is far off
        content[at : at + 8] = draw.choice((2**31 - 1, 2**40, 2**62, 2**64 - 1)).to_bytes(8, "little")
    elif what == "empty":
        content.clear()
    path.write_bytes(content)
    return f"bytes: {what}"


# Values ------------------------------------------------------------------------------------------------


def _odd(draw: Random) -> object:
    if draw.random() < 0.06:
        return "x" * LONG
    if draw.random() < 0.04:
        value: object = 0
        for _ in range(draw.choice((5, 60, 200))):
            value = [value]
        return value
    return draw.choice(ODD)


def _places(value: object) -> list[tuple[Any, Any]]:
    """Every container in a value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        for key in keys:
            found.append((each, key))
            waiting.append(each[key])
    return found


def changed(value: object, draw: Random) -> tuple[object, str]:
    """A value of plain types with one thing in it changed, and what; it may change in place.

    Args:
        value: Lists, dictionaries and what they hold.
        draw: Seeded.
    """
    places = _places(value)
    if not places or draw.random() < 0.03:
        return _odd(draw), "whole"
    holder, key = draw.choice(places)
    what = draw.choice(("value", "value", "value", "remove", "rename", "add", "swap", "wrap", "repeat"))
    if what == "remove":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        holder[draw.choice((f"{key}s", key.upper() if isinstance(key, str) else "", "", "id"))] = holder.pop(
            key
        )
    elif what == "add":
        if isinstance(holder, dict):
            holder[draw.choice(("extra", "weight", "id", "../x"))] = _odd(draw)
        else:
            holder.append(_odd(draw))
    elif what == "swap":
        other, place = draw.choice(places)
        holder[key], other[place] = other[place], holder[key]
    elif what == "wrap":
        holder[key] = [holder[key]]
    elif what == "repeat" and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        what, holder[key] = "value", _odd(draw)
    return value, what


# Formats -----------------------------------------------------------------------------------------------


def _json(path: Path, draw: Random) -> str:
    text = path.read_text(encoding="utf-8")
    if draw.random() < 0.05:
        path.write_text(draw.choice(("[", '{"a":')) * DEEP, encoding="utf-8")
        return "value: deep"
    value, what = changed(json.loads(text), draw)
    path.write_text(json.dumps(value), encoding="utf-8")
    return f"value: {what}"


def _lines(path: Path, draw: Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    at = draw.randrange(len(lines))
    special = draw.random()
    if special < 0.05:
        lines[at] = "[" * DEEP
        what = "deep"
    elif special < 0.1 and lines[at].startswith("{"):
        name = json.dumps(draw.choice(list(json.loads(lines[at]))))
        lines[at] = f"{{{name}: 1, {lines[at][1:]}"
        what = "key twice"
    elif special < 0.15:
        lines.insert(at, lines[at])
        what = "row twice"
    else:
        value, what = changed(json.loads(lines[at]), draw)
        lines[at] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"value: {what}"


def _cells(path: Path, draw: Random) -> str:
    tabs = "\t" if path.suffix == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), delimiter=tabs))
    row = draw.choice(rows)
    what = draw.choice(("value", "value", "value", "remove", "add", "column twice"))
    place = draw.randrange(len(row))
    if what == "value":
        row[place] = str(_odd(draw))
    elif what == "remove":
        del row[place]
    elif what == "add":
        row.append(str(_odd(draw)))
    else:
        rows[0].append(rows[0][0])
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=tabs).writerows(rows)
    path.write_text(stream.getvalue(), encoding="utf-8")
    return f"value: {what}"


def _table(path: Path, draw: Random) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    start = path.read_bytes()[:6]
    if start[:4] == b"PAR1":
        table = parquet.read_table(path)
    elif start == b"ARROW1":
        table = pa.ipc.open_file(path.read_bytes()).read_all()
    else:
        table = pa.ipc.open_stream(path.read_bytes()).read_all()
    metadata = table.schema.metadata
    if metadata and draw.random() < 0.3:
        key = draw.choice(list(metadata))
        try:
            told, what = changed(json.loads(metadata[key]), draw)
            metadata = {**metadata, key: json.dumps(told).encode()}
        except ValueError:
            metadata, what = {**metadata, key: b"\xff"}, "text"
        table = table.replace_schema_metadata(metadata)
    else:
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        name = draw.choice(list(columns))
        what = draw.choice(("column", "cell", "rename", "remove", "rows"))
        if what == "column":
            columns[name] = [_odd(draw)] * len(table)
        elif what == "cell":
            changed(columns[name], draw)
        elif what == "rename":
            columns[f"{name}_"] = columns.pop(name)
        elif what == "remove":
            del columns[name]
        else:
            columns = {name: values * 2 for name, values in columns.items()}
        table = pa.table(columns).replace_schema_metadata(metadata)
    if start[:4] == b"PAR1":
        parquet.write_table(table, path, write_page_checksum=True)
    else:
        kind = pa.ipc.new_file if start == b"ARROW1" else pa.ipc.new_stream
        with kind(str(path), table.schema) as writer:
            writer.write_table(table)
    return f"value: {what}"


def _array(path: Path, draw: Random) -> str:
    array = np.load(path)
    what = draw.choice(("dtype", "shape", "rows", "nan", "claim", "pickled"))
    if what == "claim":  # a shape that the file does not hold
        path.write_bytes(_claimed(path.read_bytes(), array.shape, draw))
        return "value: claim"
    if what == "dtype":
        array = np.resize(array, array.shape).astype(draw.choice(NUMPY))
    elif what == "shape":
        array = array.reshape(draw.choice(((-1,), (1, *array.shape), (-1, 1), array.shape[::-1])))
    elif what == "rows":
        array = np.concatenate([array, array]) if draw.random() < 0.5 else array[: len(array) // 2]
    elif what == "nan":
        array = np.full_like(
            array, np.nan if array.dtype.kind == "f" else -1 if array.dtype.kind == "i" else 0
        )
    else:
        array = np.array([{"a": 1}], dtype=object)
    np.save(path, array, allow_pickle=True)
    return f"value: {what}"


def _claimed(content: bytes, shape: tuple[int, ...], draw: Random) -> bytes:
    """A file of numpy whose header names more rows than follow."""
    stream = io.BytesIO(content)
    if not content.startswith(b"\x93NUMPY"):
        return content
    version = np.lib.format.read_magic(stream)
    _, order, dtype = (
        np.lib.format.read_array_header_1_0(stream) if version == (1, 0) else ((), False, np.dtype("f4"))
    )
    head = io.BytesIO()
    wide = (draw.choice((10**9, 10**12, 2**62)), *shape[1:])
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": order, "shape": wide}
    )
    return head.getvalue() + content[stream.tell() :]


def _archive(path: Path, draw: Random) -> str:
    """A zip archive, of torch or of numpy: its members go, are called otherwise, or are joined by odd ones."""
    if path.suffix == ".ckpt" and draw.random() < 0.6:
        content, what = changed(torch.load(path, weights_only=True), draw)
        torch.save(content, path)
        return f"value: {what}"
    with zipfile.ZipFile(path) as old:
        members = {entry.filename: old.read(entry) for entry in old.infolist()}
    name = draw.choice(list(members))
    what = draw.choice(("remove", "rename", "odd member", "packed", "emptied", "exchanged"))
    if what == "remove":
        del members[name]
    elif what == "rename":
        members[draw.choice(("../x", "/x", f"{name}/", "-"))] = members.pop(name)
    elif what == "odd member":
        members[draw.choice(("../../outside", "/outside", "archive/code/x.py", "a" * 300))] = b"x"
    elif what == "emptied":
        members[name] = b""
    elif what == "exchanged":
        members[name] = members[draw.choice(list(members))]
    packing = zipfile.ZIP_DEFLATED if what == "packed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packing) as new:
        for each, content in members.items():
            new.writestr(each, content)
    return f"value: {what}"


def _safetensors(path: Path, draw: Random) -> str:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, what = changed(json.loads(content[8 : 8 + size]), draw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f"value: {what}"


def _yaml(path: Path, draw: Random) -> str:
    value, what = changed(yaml.safe_load(path.read_text(encoding="utf-8")), draw)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return f"value: {what}"


BY_ENDING: dict[str, Callable[[Path, Random], str]] = {
    **dict.fromkeys((".json", ".ipynb"), _json),
    **dict.fromkeys((".jsonl", ".ndjson"), _lines),
    **dict.fromkeys((".csv", ".tsv"), _cells),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), _table),
    **dict.fromkeys((".ckpt", ".npz"), _archive),
    ".npy": _array,
    ".safetensors": _safetensors,
    ".yaml": _yaml,
}
"""What damages the values of a file, by its ending."""
