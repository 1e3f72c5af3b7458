"""PickAPicDataModule: two pictures for a prompt, chosen between by the person who wrote it, as stored CLIP vectors.

* Source: Pick-a-Pic (Kirstain et al., *Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation*,
  2023, https://arxiv.org/abs/2305.01569), in vectors of OpenCLIP ViT-H/14 that Chen et al. (PAL, ICLR 2025,
  https://arxiv.org/abs/2406.08469) released as https://huggingface.co/datasets/ramya-ml/pickapic-embeds; their
  semi-synthetic Pick-a-Filter as https://huggingface.co/datasets/ramya-ml/pick-a-filter-embeds.
* Licence: of ``pickapic-embeds`` MIT; none could be established for the other, nor for Pick-a-Pic itself.
* Revision: 2b57af3d16e543317103a362784c7566a4c4518c of ``pickapic-embeds``: what is said of it below.
* Columns read: those of your own files, below; the releases are not read.
* Split rule: one file per split; without one for validation, prompts of ``train`` are held out by a hash.

**The releases are not read directly.** ``pickapic-embeds`` holds zip archives of 3 to 21 GB
(``embeddings/pickapic_v1-openclip-h14_default.zip``, ``pickapic_v2-openclip-h14_default.zip``, a few of filtered or
PickScore vectors). What is in them could not be looked at; the authors' code reads one pickle per judgement,
``<ranking id>.joblib``, as ``((user, text, (left, right)), y), ranking id`` with three vectors and y = -1 if the left
picture was chosen, +1 if the right one was, and takes its splits from lists of ranking ids, which are not among those
archives. Neither pictures nor prompts have names there. What ``pick-a-filter-embeds`` holds (such as a configuration
for every share of altered pairs) could not be established at all. Loading a pickle runs whatever code it holds, so
write the files below from it in a process that may; ``digest``, of a vector's bytes, makes up for the missing names
(y = 3 in some old simulated files, says that code, stands for +1)::

    {"user_id": user, "prompt": digest(text), "text_embedding": text, "label": (1 - y) / 2,
     "image_0": digest(left), "image_0_embedding": left, "image_1": digest(right), "image_1_embedding": right}

Pick-a-Pic's own tables (https://huggingface.co/datasets/yuvalkirstain/pickapic_v2_no_images) have names: give
``columns={"prompt": "caption", "image_0": "image_0_uid", "image_1": "image_1_uid", "label": "label_0"}`` add three
columns of vectors, and leave out rows whose ``has_label`` is false. Whether its first picture is the left one of the
archives is not known.

A row is one judgement, in Parquet or JSON Lines:

=====================  ================================================================================================
``user_id``            who judged: text or a whole number
``prompt``             the prompt, or any name of it: text or a whole number
``text_embedding``     its vector: ``hidden_size`` finite numbers
``image_0``,           names of the two pictures: text or whole numbers. A picture that was altered, as in
``image_1``            Pick-a-Filter, is another picture and needs another name.
``image_0_embedding``  their vectors
``image_1_embedding``
``label``              1 if ``image_0`` was chosen, 0 if ``image_1`` was, 0.5 for a tie (any share in [0, 1])
=====================  ================================================================================================

A vector may be left out where its prompt or picture has occurred before, in this file or that of an earlier split
(train, validation, test, predict). Rows of ``predict`` may have one picture; their judgements are not read.

All judgements on a prompt are one record, whose responses are the pictures under their names; only in ``predict`` is
every row a record of its own. A record's id is its split and the name of its content, as
:class:`LocalDataModule` names rows: of its prompt, in ``predict`` of its prompt and pictures. Vectors go into a feature store
inside the token cache, each once; every module trains from it whose backbone is the frozen network they come from, and
no network is loaded.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import torch

from ...batches import FeatureDtype, FeatureWriter, prompt_key, response_keys
from ...checks import check_choices, check_range
from ...records import (
    Comparison,
    ContentNames,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    number_field,
    user_field,
)
from ...settings import SharedSettings
from ...tokens import BYTE, CacheReader, TextConfig, remove_left_overs, without_prompt
from ..own_files import OwnFilesDataModule
from .rows import Name, NamedVectors, read_rows

__all__ = ["PickAPicDataModule"]

WEIGHTS = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
IMAGES = ("image_0", "image_1")
VECTORS = ("text_embedding", "image_0_embedding", "image_1_embedding")
FIELDS = ("user_id", "prompt", *IMAGES, *VECTORS, "label")


@dataclass
class _Judged:
    """A prompt's images in order of appearance, with the judgements on them; read row by row."""

    row: SourceRow
    prompt: str
    images: dict[str, int] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)


class PickAPicDataModule(OwnFilesDataModule):
    """Pictures for a prompt, chosen between by many users, as stored CLIP vectors (Pick-a-Pic, Pick-a-Filter)."""

    name = "pick_a_pic"
    has_own_features = True
    suffixes = ".parquet or .jsonl"

    def __init__(
        self,
        *,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        columns: dict[str, str] | None = None,
        weights: str = WEIGHTS,
        hidden_size: int = 1024,
        dtype: FeatureDtype = "float16",
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Name the files; reads nothing. What a row looks like is in the module's description.

        Args:
            train: Rows of the training split: a ``.parquet`` or ``.jsonl`` file, a pattern, a folder of shards, or a list of
                such, as for :class:`LocalDataModule`.
            validation: Rows of the validation split; without any a share of ``train`` is held out.
            test: Rows of the test split.
            predict: Pictures to score; they need no judgement.
            columns: Your column for each of our fields, where the names differ, such as ``{"prompt": "caption"}``.
            weights: Network that the vectors come from, by its name on the hub; a model trains from them if its
                ``backbone`` has this name, is frozen, and is otherwise as by default.
            hidden_size: H, numbers of a vector, >= 1.
            dtype: In which vectors are stored: ``float16``, ``bfloat16`` or ``float32``.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`. Of ``text``, ``tokenizer``
                must be ``byte``; the rest has no effect, for names are never read or cut. Of ``loader``, ``features``
                must be null, for it is set here; ``items`` is ``response``, since a vector belongs to the picture
                alone; ``max_tokens`` bounds pictures. While caches are written, ``cache_dir`` holds the vectors once
                more, as float32.

        Raises:
            ValueError: If there is no file, ``columns`` names a field that does not exist, or a setting is outside its
                range.

        Example:
            >>> PickAPicDataModule(train="v2.parquet", columns={"prompt": "caption"}).splits
            ('train', 'validation')

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        if self.text.tokenizer != BYTE:
            raise ValueError(
                f"text.tokenizer must be {BYTE!r}, which tells any two names apart, got {self.text.tokenizer!r}: on the "
                f"command line set model.init_args.backbone.tokenizer to {BYTE}"
            )
        if self.loader.features is not None:
            raise ValueError(
                f"loader.features must be null, got {self.loader.features!r}: this data brings its own features, which "
                "prepare_data stores in the cache folder"
            )
        self.text, self.loader = TextConfig(max_length=None), replace(self.loader, items="response")
        self.name_files(train=train, validation=validation, test=test, predict=predict)
        self.name_columns(columns, FIELDS)
        check_range("hidden_size", hidden_size, at_least=1)
        check_choices(PickAPicDataModule.__init__, dtype=dtype)
        self.weights, self.hidden_size = weights, hidden_size
        self.dtype: FeatureDtype = dtype
        self._folder: Path | None = None
        self._vectors: NamedVectors | None = None

    # Rows ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, object]:
        """The column mapping, and what the feature store depends on."""
        return {"columns": self.columns, "backbone": self._description(), "hidden_size": self.hidden_size, "dtype": self.dtype}  # fmt: skip

    def _description(self) -> dict[str, object]:
        """The network that the vectors come from, as a frozen backbone of this name describes itself."""
        return {
            "weights": self.weights,
            "revision": None,
            "config": {},
            "dtype": "float32",
            "pooling": "auto",
            "quantization": None,
        }

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per prompt (of ``predict``: per row), after an error for each row of the file that is not valid."""
        if self._vectors is not None:
            yield from self._judged_rows(source, self._vectors)
            return
        vectors = self._new_vectors()
        try:
            yield from self._judged_rows(source, vectors)
        finally:
            vectors.close()

    def _judged_rows(self, source: str, vectors: NamedVectors) -> Iterator[SourceRow | RecordError]:
        prompts: dict[str, _Judged] = {}
        theirs = {field: self.columns.get(field, field) for field in FIELDS}
        wide = {theirs[field] for field in VECTORS}
        columns = set(theirs.values())
        for row in self.tables(source).rows(lambda path: read_rows(path, columns, wide)):
            if isinstance(row, RecordError):
                yield row
                continue
            try:
                self._read_row(source, row, vectors, prompts)
            except RecordError as error:
                yield error.at(row.file, row.line)
        names = ContentNames()
        for judged in prompts.values():
            content = {
                "prompt": judged.prompt,
                "images": list(judged.images) if source == "predict" else None,
            }
            name = f"{source}:{names.of(content)}"
            fields: dict[str, object] = {
                "id": name,
                "prompt": judged.prompt,
                "images": list(judged.images),
                "comparisons": judged.comparisons,
            }
            vectors.records[name] = judged.prompt, list(judged.images)
            yield judged.row._replace(fields=fields)

    def _read_row(
        self, source: str, row: SourceRow, vectors: NamedVectors, prompts: dict[str, _Judged]
    ) -> None:
        """Check a row and add it to those of its prompt."""
        row = row._replace(fields=self._fields(row))
        scored_only = source == "predict"
        prompt = _name("prompt", row.get("prompt"))
        vectors.add(("prompt", prompt), "text_embedding", row.fields.get("text_embedding"))
        images = []
        for side in IMAGES[:1] if scored_only and "image_1" not in row.fields else IMAGES:
            images.append(_name(side, row.get(side)))
            vectors.add(("image", images[-1]), f"{side}_embedding", row.fields.get(f"{side}_embedding"))
        if len(set(images)) < len(images):
            raise RecordError("image_1", images[1], "another image than image_0", reason="identical images")
        judgement = None if scored_only else _judgement(row)
        place = row._replace(fields={})  # what stays in memory for every prompt holds no vectors
        judged = prompts.setdefault(str(row.line) if scored_only else prompt, _Judged(place, prompt))
        places = [judged.images.setdefault(image, len(judged.images)) for image in images]
        if judgement is not None:
            label, user = judgement
            first, second = places if label >= 0.5 else reversed(places)
            judged.comparisons.append(Comparison(first, second, preference=max(label, 1 - label), user=user))

    def _fields(self, row: SourceRow) -> Mapping[str, object]:
        """The row under our names, without nulls."""
        values = {field: row.fields.get(self.columns.get(field, field)) for field in FIELDS}
        return {field: value for field, value in values.items() if value is not None}

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, the names of its images as responses, and every judgement on them."""
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("prompt"),
            responses=tuple(Response(name) for name in row.made("images", list)),
            comparisons=tuple(row.made("comparisons", list)),
        )

    # Vectors -------------------------------------------------------------------------------------------

    def max_positions(self) -> None:
        """No bound: what is tokenised are names of pictures, which no network reads."""

    def cache_folder(self) -> Path:
        """Where this content's cache stands or will stand; the files, which are large, are hashed once."""
        if self._folder is None:
            self._folder = super().cache_folder()
        return self._folder

    def store_folder(self) -> Path:
        """Where the feature store stands or will stand: in the cache's folder."""
        return self.cache_folder() / "features"

    def prepare_data(self) -> None:
        """Write the token cache and the feature store, unless they are there."""
        if self.cache_problem() is None and (self.store_folder() / "meta.json").is_file():
            return
        self._vectors = self._new_vectors()
        try:
            super().prepare_data()
            if not self._vectors.records:  # the tokens were there, the vectors were not
                for source in self.sources:
                    for _ in self.load(source):
                        pass
            self._write_store(self._vectors)
        finally:
            self._vectors.close()
            self._vectors = None

    def _new_vectors(self) -> NamedVectors:
        limit = torch.finfo(getattr(torch, self.dtype)).max
        return NamedVectors(self.cache_folder().parent, self.hidden_size, limit)

    def _write_store(self, vectors: NamedVectors) -> None:
        """Write the store under a temporary name; only a whole one is renamed."""
        folder = self.store_folder()
        remove_left_overs(folder)
        owner = f"{folder.name}.{socket.gethostname()}.{os.getpid()}."
        partial = Path(tempfile.mkdtemp(prefix=owner, suffix=".partial", dir=folder.parent))
        try:
            writer = FeatureWriter(
                partial,
                backbone=self._description(),
                text_format=self.text_format(),
                hidden_size=self.hidden_size,
                dtype=self.dtype,
                prompts=True,
            )
            reader = CacheReader(self.cache_folder())
            for split in self.splits:
                for row in reader.table(split).rows():
                    prompt, _ = vectors.records[row.id]
                    ids, _, places = row.items_of("response")
                    names: list[Name] = [
                        ("image", vectors.records[name][1][place])
                        for name, place in zip(ids, places.tolist(), strict=True)
                    ]
                    keys = response_keys(without_prompt(row)).tolist()
                    writer.add([*keys, prompt_key(row)], vectors.take([*names, ("prompt", prompt)]))
            writer.flush()
            try:
                os.replace(partial, folder)
            except OSError:
                if not (
                    folder / "meta.json"
                ).is_file():  # what stands there is no whole store: parts were deleted
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def setup(self, stage: str | None = None) -> None:
        """Prepare what is missing, then open the splits of ``stage`` and the feature store.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``; None for every split.

        Raises:
            ValueError: If nothing is left of a split.
        """
        self.prepare_data()
        self.loader = replace(self.loader, features=str(self.store_folder()))
        super().setup(stage)


def _judgement(row: SourceRow) -> tuple[float, str]:
    """Share that prefers the first image, and who judged."""
    return number_field("label", row.get("label"), 0.0, 1.0), _name("user_id", row.get("user_id"))


def _name(field: str, value: object) -> str:
    """A name that encodes as UTF-8."""
    name = user_field(field, value)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise RecordError(field, name, "text that encodes as UTF-8", reason="not UTF-8") from None
    return name
