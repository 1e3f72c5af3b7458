"""Checkpoints in shards: a folder with what each rank has, read under any number of ranks, or made into one file.

Each rank writes its pieces as a safetensors file into a new folder within; once all are on the disk the first one writes
``meta.pt``, which says where they are and holds all that is no tensor, in one stroke. Until then the checkpoint of before is there, whole.
Nothing is pickled but plain values, as ``torch.load(weights_only=True)`` reads them.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pluralign.datamodules.untrusted import check_archive, check_bytes, check_claims
from pluralign.datamodules.whole_files import could_not_write, error_within, sync_folder, written_whole

__all__ = [
    "ShardedCheckpoint",
    "consolidate",
    "in_shards",
    "is_sharded_checkpoint",
    "on_first_rank",
    "set_aside",
]

META, SHARDS = "meta.pt", "shards-"
STATE = "state_dict"
OPTIMIZERS = "optimizer_states"


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether there is a checkpoint in shards, whole."""
    return (Path(path) / META).is_file()


@torch.no_grad()
def on_first_rank(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with whole tensors on the CPU of the first rank, and without anything on others; every rank has to ask."""
    first = distributed.get_rank() == 0

    def whole(value: object) -> object:
        if isinstance(value, DTensor):
            value = value.full_tensor()  # one at a time
        if isinstance(value, Tensor):
            return value.detach().cpu().clone() if first else None
        if isinstance(value, Mapping):
            return {key: whole(each) for key, each in value.items()}
        return [whole(each) for each in value] if isinstance(value, list) else value

    found = {key: whole(value) for key, value in state.items()}
    return found if first else {}


@torch.no_grad()
def in_shards(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose tensors are in shards where others of the same names and shapes are; nothing goes over the network.

    Args:
        state: Whole values by name, equal on all ranks.
        like: By name, what says how they are divided.
    """

    def divided(name: str, value: object) -> object:
        other = like.get(name)
        if isinstance(value, Tensor) and isinstance(other, DTensor) and value.shape == other.shape:
            if isinstance(value, DTensor):
                return value
            value = value.to(other.device)
            return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
        return value

    return {name: divided(name, value) for name, value in state.items()}


# Pieces --------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Where a stretch of rows of a tensor is; of one without rows, all of it."""

    file: Path
    key: str
    first: int
    rows: int
    checksum: int


def _local(tensor: Tensor) -> tuple[Tensor | None, int]:
    """What this rank is to write of a tensor, and the first of its rows; nothing if another one writes it."""
    if not isinstance(tensor, DTensor):
        return (tensor, 0) if distributed.get_rank() == 0 else (None, 0)
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate()
    assert coordinate is not None  # every rank is in the mesh
    first, kept = 0, True
    for dimension, placement in enumerate(placements):
        if isinstance(placement, Shard):
            if placement.dim != 0:
                raise ValueError(f"only rows are divided here, and a tensor is by dimension {placement.dim}")
            first = coordinate[dimension] * -(-tensor.shape[0] // mesh.size(dimension))
        elif coordinate[dimension] != 0:
            kept = False  # a copy, which another rank has as well
    local = tensor.to_local()
    return (local if kept and local.numel() else None), first


def _flat(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    """A value with names in place of its tensors, which are collected."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {key: _flat(each, f"{name}/{key}", tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_flat(each, f"{name}/{i}", tensors) for i, each in enumerate(value)]
    return value


def _filled(value: object, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401  any value of a checkpoint
    """The same with the tensors in their places again."""
    if isinstance(value, Mapping):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _filled(each, tensors) for key, each in value.items()}
    return [_filled(each, tensors) for each in value] if isinstance(value, list) else value


@contextmanager
def _together() -> Iterator[None]:
    """Have every rank fail where one cannot write, rather than wait for it; each waits for all of them."""
    problem: OSError | None = None
    try:
        yield
    except OSError as error:
        problem = error
    said: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(said, None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for rank, text in enumerate(said):
        if text is not None:
            raise OSError(f"rank {rank}: {text}")


def _write_pieces(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what this rank has of tensors, and have it on the disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    pieces, places = {}, {}
    for key, tensor in tensors.items():
        local, first = _local(tensor)
        if local is not None:
            pieces[key] = local.detach().cpu().contiguous().clone()
            places[key] = first, _checksum(pieces[key])
    target = folder / f"rank-{distributed.get_rank():05d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(pieces, str(target), metadata={"places": json.dumps(places)})
        with target.open("r+b") as stream:
            os.fsync(stream.fileno())
    except (OSError, SafetensorError) as error:
        of_system = error if isinstance(error, OSError) else error_within(error) or OSError(str(error))
        raise could_not_write(target, of_system) from error
    sync_folder(folder)


def set_aside(path: Path) -> Path:
    """Move a checkpoint to where ``--ckpt_path last`` finds it as well, until one of another form stands in its place.

    Args:
        path: A file, or a folder of shards.

    Returns:
        Where it is now.
    """
    aside = path.with_name(f"{path.stem}-before{path.suffix}")
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    return path.replace(aside)


class ShardedCheckpoint:
    """A checkpoint in a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Look at nothing yet.

        Args:
            folder: Where it is, or is to be.
        """
        self.folder = Path(folder)

    def write(self, checkpoint: Mapping[str, Any]) -> None:
        """Write a checkpoint in the place of the one of before, once all ranks have written theirs; every rank has to ask.

        Args:
            checkpoint: With ``state_dict`` and ``optimizer_states`` in shards.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        held = {
            part: _flat(checkpoint[part], part, tensors) for part in (STATE, OPTIMIZERS) if part in checkpoint
        }
        shards, first = self._new_shards(), distributed.get_rank() == 0
        before: Path | None = None
        try:
            with _together():
                before = set_aside(self.folder) if first and self.folder.is_file() else None
            with _together():
                _write_pieces(shards, tensors)
            with _together():
                if first:
                    shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
                    others = {key: value for key, value in checkpoint.items() if key not in held}
                    meta = {**others, "shards": shards.name, "held": held, "shapes": shapes}
                    with written_whole(self.folder / META) as stream:
                        torch.save(meta, stream)
        except OSError:
            if first:
                shutil.rmtree(shards, ignore_errors=True)
                if before is not None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    before.replace(self.folder)
            raise
        if first:
            for other in self.folder.glob(f"{SHARDS}*"):
                if other != shards:
                    shutil.rmtree(other, ignore_errors=True)
            if before is not None:
                with suppress(OSError):
                    before.unlink()
        distributed.barrier()

    def _new_shards(self) -> Path:
        """A folder within that is not there yet, the same on all ranks."""
        free = (f"{SHARDS}{number}" for number in count() if not (self.folder / f"{SHARDS}{number}").exists())
        name = [next(free)]
        distributed.broadcast_object_list(name)
        return self.folder / name[0]

    def read(
        self,
        weights: Mapping[str, Any] | None = None,
        parameters: Sequence[Sequence[Tensor]] | None = None,
    ) -> dict[str, Any]:
        """Read the checkpoint; only rows that this rank holds of what it holds in shards.

        Args:
            weights: The module's state, which says how weights are divided; None for whole ones.
            parameters: Those of each optimiser in its order, which say how its state is; None for whole ones. Without an optimiser
                none of their state is read.

        Raises:
            ValueError: If part of it is missing or damaged, or names other files than its own.
        """
        meta = self._meta()
        like: dict[str, Any] = {f"{STATE}/{name}": value for name, value in (weights or {}).items()}
        pieces, held = self._pieces(meta), meta.pop("held")
        if parameters is not None and not parameters:
            held.pop(OPTIMIZERS, None)
        tensors = {
            name: self._tensor(name, shape, pieces.get(name, []), self._like(name, like, parameters or ()))
            for name, shape in meta.pop("shapes").items()
            if name.partition("/")[0] in held
        }
        meta.pop("shards")
        return {**meta, **{part: _filled(value, tensors) for part, value in held.items()}}

    def without_tensors(self) -> dict[str, Any]:
        """What it holds besides tensors, whose names stand in their places; reads no shard.

        Raises:
            ValueError: If it is damaged.
        """
        meta = self._meta()
        return {**{name: value for name, value in meta.items() if name != "held"}, **meta["held"]}

    def check(self) -> None:
        """Make sure that every rank's file is there and as long as it was; numbers are compared where they are read.

        Raises:
            ValueError: If not.
        """
        meta = self._meta()
        pieces = self._pieces(meta)
        for name, shape in meta["shapes"].items():
            if 0 not in shape:
                self._check_rows(name, sum(piece.rows for piece in pieces.get(name, [])), (shape or [1])[0])

    def _check_rows(self, name: str, there: int, wanted: int) -> None:
        if there != wanted:
            rows = f"{there} of {wanted} rows" if there else "no rows"
            raise ValueError(f"{self.folder} has {rows} of {name}: a rank's file is missing")

    @staticmethod
    def _like(name: str, like: Mapping[str, Any], parameters: Sequence[Sequence[Tensor]]) -> object:
        if name in like or not name.startswith(f"{OPTIMIZERS}/"):
            return like.get(name)
        _, optimizer, kind, number, *_ = [*name.split("/"), "", "", ""]
        if kind != "state" or not optimizer.isdigit() or not number.isdigit():
            return None
        known = parameters[int(optimizer)] if int(optimizer) < len(parameters) else ()
        return known[int(number)] if int(number) < len(known) else None

    def _meta(self) -> dict[str, Any]:
        path = self.folder / META
        try:
            check_archive(path)
            check_bytes(path)
            meta = torch.load(path, map_location="cpu", weights_only=True)
            check_claims(meta, path.stat().st_size)
            shards = meta["shards"]
            assert isinstance(meta["held"], dict) and isinstance(meta["shapes"], dict)
        except Exception as error:
            raise ValueError(f"{path} is no checkpoint in shards, or not all of one: {error}") from error
        named = isinstance(shards, str) and re.fullmatch(rf"{SHARDS}\w+", shards)
        if not named or not (self.folder / shards).is_dir():
            raise ValueError(f"{path} names shards in {shards!r}, which is no folder beside it")
        found: dict[str, Any] = meta
        return found

    def _pieces(self, meta: Mapping[str, Any]) -> dict[str, list[Piece]]:
        from safetensors import SafetensorError, safe_open

        pieces: dict[str, list[Piece]] = {}
        for file in sorted((self.folder / meta["shards"]).glob("rank-*.safetensors")):
            try:
                with safe_open(str(file), framework="pt") as stream:
                    places = json.loads((stream.metadata() or {})["places"])
                    for key in stream.keys():  # noqa: SIM118  no dictionary
                        shape = stream.get_slice(key).get_shape()
                        first, checksum = map(int, places[key])
                        piece = Piece(file, key, first, shape[0] if shape else 1, checksum)
                        pieces.setdefault(key, []).append(piece)
            except (SafetensorError, KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{file} is damaged: {error}") from error
        return pieces

    def _tensor(self, name: str, shape: Sequence[int], pieces: Sequence[Piece], like: object) -> Tensor:
        """A tensor, whole or this rank's shard of it."""
        rows = shape[0] if shape else 1
        wanted = range(rows)
        divided = like if isinstance(like, DTensor) and list(like.shape) == list(shape) else None
        if divided is not None:
            size = divided.to_local().shape[0]
            first = _local(divided)[1]
            wanted = range(first, first + size)
        parts = [
            part for piece in sorted(pieces, key=lambda piece: piece.first) for part in _rows(piece, wanted)
        ]
        whole = parts[0] if not shape and parts else torch.cat(parts) if parts else None
        if whole is None and (not len(wanted) or 0 in shape):
            whole = torch.empty(len(wanted), *shape[1:], dtype=_dtype(pieces, like))
        if whole is None or (shape and len(whole) != len(wanted)):
            self._check_rows(name, 0 if whole is None else len(whole), len(wanted))
        assert whole is not None
        if list(whole.shape[1:]) != list(shape[1:]):
            raise ValueError(f"{self.folder} has rows of {name} of another shape than it says")
        if divided is None:
            return whole
        return DTensor.from_local(
            whole.to(divided.device),
            divided.device_mesh,
            divided.placements,
            run_check=False,
            shape=divided.shape,
            stride=divided.stride(),
        )


def _dtype(pieces: Sequence[Piece], like: object) -> torch.dtype:
    """Of a tensor of which nothing is to be read."""
    from safetensors import safe_open

    if not pieces:
        return like.dtype if isinstance(like, Tensor) else torch.get_default_dtype()
    with safe_open(str(pieces[0].file), framework="pt") as stream:
        dtype: torch.dtype = stream.get_slice(pieces[0].key)[:0].dtype
    return dtype


def _rows(piece: Piece, wanted: range) -> list[Tensor]:
    """The wanted rows of a piece, a tensor or nothing."""
    from safetensors import safe_open

    start, stop = max(piece.first, wanted.start), min(piece.first + piece.rows, wanted.stop)
    if start >= stop:
        return []
    with safe_open(str(piece.file), framework="pt") as stream:
        tensor: Tensor = stream.get_tensor(piece.key)
    if _checksum(tensor) != piece.checksum:
        raise ValueError(
            f"{piece.file} is damaged: its {piece.key} is not as it was written (the checksum differs)"
        )
    return [tensor[start - piece.first : stop - piece.first] if tensor.ndim else tensor]


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a tensor of the CPU."""
    return zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data)


def consolidate(folder: str | Path, file: str | Path) -> None:
    """Make a checkpoint in shards one file, as other strategies write and everything reads it; needs one process.

    Args:
        folder: The checkpoint in shards.
        file: Where to.

    Raises:
        ValueError: If part of it is missing or damaged.
        FileNotFoundError: If there is none.
        FileExistsError: If the file is there.
    """
    if not is_sharded_checkpoint(folder):
        raise FileNotFoundError(f"{folder} is no checkpoint in shards: it has no {META}")
    if Path(file).exists():
        raise FileExistsError(f"{file} is there already")
    checkpoint = ShardedCheckpoint(folder).read()
    with written_whole(Path(file)) as stream:
        torch.save(checkpoint, stream)
