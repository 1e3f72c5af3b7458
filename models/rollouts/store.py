"""Files of rollouts: a round that is there need not be written again."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.datamodules.untrusted import UNREADABLE, check_rows
from pluralign.datamodules.whole_files import written_whole

from .columns import (
    ReferenceAnswer,
    answers_of,
    are_of_items,
    reference_table,
    rollout_table,
    rollouts_of,
)
from .samples import Rollouts

__all__ = ["RolloutStore"]

VERSION = 1
"""Of the files; those of another version are written anew."""
KEY = b"pluralign"
"""Under which a file's metadata have what this module says of it."""


class RolloutStore:
    """A folder of rollouts, a Parquet file a round and process: rounds that are there need not be written again.

    ``round-000003-rank-0.parquet`` has a line a response: ``round``, ``item`` (its place in the round), ``id``, ``item_key``, ``prompt``
    (JSON where it is messages), ``preference``, ``sample``, ``response``, ``finished``, ``tokens``, ``log_prob``, ``reference_log_prob`` where it is
    known, ``reward``, ``reward.<name>`` and ``reference_reward.<name>`` of each reward, and each of the token values, flattened (the metadata have
    shapes). Numbers come back bit for bit. A file is there whole or not at all, and its pages have checksums.

    The reference's answers are kept once, in ``reference-000003-rank-0.parquet``: those that became known in that round.

    Attributes:
        folder: Where the files are.
        description: What rollouts depend on.
        refused: How many files were not taken, by reason.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, object]) -> None:
        """Name the folder.

        Args:
            folder: Made with the first file.
            description: What decides the rollouts besides the items: digests of experts and reference, text format, sampling,
                the names of the rewards; JSON.
        """
        self.folder = Path(folder)
        self.description: dict[str, object] = json.loads(json.dumps(dict(description)))
        self.refused: Counter[str] = Counter()
        self._references: dict[int, ReferenceAnswer] | None = None
        self._of_files: dict[Path, dict[int, ReferenceAnswer]] = {}

    def path(self, step: int, rank: int) -> Path:
        """File of a round and process."""
        return self.folder / f"round-{step:06d}-rank-{rank}.parquet"

    # Rollouts ------------------------------------------------------------------------------------------

    def write(self, step: int, rank: int, rollouts: Rollouts, *, weights: str = "") -> None:
        """Keep the rollouts of a round, in place of what was there of it.

        Args:
            step: Round.
            rank: Process.
            rollouts: Rated or not.
            weights: Digest of the policy's weights that wrote them, where they change from round to round.

        Raises:
            ValueError: If an item has no response, or padding differs.
            TypeError: If a token value is of a kind that float32 does not hold exactly.
            OSError: If it could not be written.
        """
        table, told = rollout_table(step, rollouts.to("cpu"))
        told["description"] = {**self.description, "weights": weights}
        self._save(self.path(step, rank), table, told)

    def read(self, step: int, rank: int, prompts: PromptBatch, *, weights: str = "") -> Rollouts | None:
        """The rollouts of a round, if they are there and are of these items, settings and weights; on the CPU.

        Args:
            step: Round.
            rank: Process.
            prompts: The items that they must be of, in this order.
            weights: Digest of the policy's weights now.

        Returns:
            None where there is no file, or one of something else: why is said, and it is to be written anew.

        Raises:
            ValueError: If the file is damaged.
        """
        from pyarrow import ArrowException

        path = self.path(step, rank)
        loaded = self._load(path, {**self.description, "weights": weights})
        if loaded is None:
            return None
        table, told = loaded
        try:
            if not are_of_items(table, prompts):
                self._refuse(path, "other items")
                return None
            return rollouts_of(table, told, prompts)
        except (ArrowException, *UNREADABLE) as error:
            raise _damaged(path, error) from error

    # The reference's answers ---------------------------------------------------------------------------

    def references(self) -> Mapping[int, ReferenceAnswer]:
        """The reference's answers that are known, of all rounds and processes, by the key of their item.

        Raises:
            ValueError: If a file is damaged.
        """
        from pyarrow import ArrowException

        if self._references is None:
            self._references = {}
            for path in sorted(self.folder.glob("reference-*.parquet")):
                loaded = self._load(path, self.description)
                if loaded is not None:
                    try:
                        self._of_files[path] = answers_of(loaded[0])
                    except (ArrowException, *UNREADABLE) as error:
                        raise _damaged(path, error) from error
                    self._references |= self._of_files[path]
        return self._references

    def add_references(self, step: int, rank: int, answers: Mapping[int, ReferenceAnswer]) -> None:
        """Keep further answers of the reference.

        Args:
            step: Round in which they became known.
            rank: Process.
            answers: By the key of their item; what the file of the round has already stays in it.

        Raises:
            OSError: If they could not be written.
        """
        known = self.references()
        path = self.folder / f"reference-{step:06d}-rank-{rank}.parquet"
        whole = {**self._of_files.get(path, {}), **answers}
        self._save(path, reference_table(whole), {"description": self.description})
        self._of_files[path] = whole
        self._references = {**known, **answers}

    # Files ---------------------------------------------------------------------------------------------

    def _save(self, path: Path, table: Any, told: Mapping[str, object]) -> None:  # noqa: ANN401  pyarrow has no types
        from pyarrow import parquet

        metadata = {KEY: json.dumps({"version": VERSION, **told}).encode()}
        with written_whole(path) as stream:
            parquet.write_table(table.replace_schema_metadata(metadata), stream, write_page_checksum=True)

    def _load(self, path: Path, description: Mapping[str, object]) -> tuple[Any, dict[str, Any]] | None:
        """Table and metadata of a file; None where there is none, or it is of something else."""
        from pyarrow import ArrowException, parquet

        if not path.is_file():
            return None
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                check_rows(file.metadata.num_rows, file.metadata.num_columns, path.stat().st_size)
                table: Any = file.read()
            told = json.loads((table.schema.metadata or {})[KEY])
            version, written = told["version"], told["description"]
            if not isinstance(written, dict):
                raise ValueError(f"its description must be settings by name, got {written!r:.80}")  # noqa: TRY004  the file is wrong
        except (ArrowException, SystemError, *UNREADABLE) as error:  # RuntimeError: nested too deeply
            raise _damaged(path, error) from error
        if version != VERSION:
            self._refuse(path, f"version {version} of the files, now {VERSION}")
            return None
        if written != description:
            names = sorted(
                name for name in {*written, *description} if written.get(name) != description.get(name)
            )
            told = (f"{name} {written.get(name)!r}, now {description.get(name)!r}" for name in names)
            self._refuse(path, f"other settings ({'; '.join(told)})")
            return None
        return table, told

    def _refuse(self, path: Path, reason: str) -> None:
        self.refused[reason] += 1
        rank_zero_info(
            f"{path} is of {reason}: it is not used and will be written anew ({self.refused.total():,} files so far)"
        )


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged ({' '.join(str(error).split()) or type(error).__name__}): remove it, and its round is written anew"
    )
