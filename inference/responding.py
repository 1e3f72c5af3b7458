"""Responses of a policy to the prompts of a split, in a file of JSON Lines that goes on where it was stopped."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from lightning.fabric.utilities import move_data_to_device

from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.datamodules.records import shown
from pluralign.datamodules.whole_files import appended_whole
from pluralign.models.responding import RespondingModule
from pluralign.models.rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

__all__ = ["ResponseFile", "response_printer", "write_responses"]

FIELDS = ("id", "sample", "prompt", "preference", "response", "num_tokens", "finished", "source")
"""Fields of a line, besides the columns that the data have of its item."""

Line = dict[str, Any]


class ResponseFile:
    """Responses by item and sample, in a file that is only ever added to, whole lines at a time.

    Attributes:
        path: The file.
        source: What wrote the responses, in every line.
        removed: Bytes of a last line that was not whole, which are gone.
    """

    def __init__(self, path: str | Path, source: str, *, overwrite: bool = False) -> None:
        """See what is there.

        Args:
            path: The file; need not exist.
            source: Name of what writes, another one for whatever would write other responses.
            overwrite: Whether what is there goes.

        Raises:
            ValueError: If a line is no response, or of another source.
        """
        self.path, self.source, self.removed = Path(path), source, 0
        self._asked: dict[str, str] = {}
        self._samples: dict[str, set[int]] = {}
        if overwrite:
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        """Take what whole lines say, and cut off a last line that is not whole."""
        whole = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    self.removed = len(line)
                    break
                whole += len(line)
                self._take(line, number)
        if self.removed:
            os.truncate(self.path, whole)

    def _take(self, text: bytes, number: int) -> None:
        advice = "name another file with --output, or replace this one with --overwrite"
        try:
            line = json.loads(text)
            item, sample, source = line["id"], line["sample"], line["source"]
            asked = _asked(line["prompt"], line["preference"])
            if not isinstance(item, str) or type(sample) is not int:
                raise TypeError(
                    f"id must be text and sample a whole number, got {item!r:.80} and {sample!r:.80}"
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{self.path}:{number} is no line of responses ({shown(error)}): {advice}"
            ) from error
        if source != self.source:
            raise ValueError(
                f"{self.path}:{number} was written by {source!r}, and what is to write now is {self.source!r} (model, checkpoint, "
                f"sampling and lengths count): {advice}"
            )
        self._asked[item] = asked
        self._samples.setdefault(item, set()).add(sample)

    def __len__(self) -> int:
        """Number of responses."""
        return sum(map(len, self._samples.values()))

    def lacking(self, batch: PromptBatch, num_samples: int) -> int:
        """How many responses to the items of a batch are not there yet.

        Raises:
            ValueError: If there are responses to an item of the same name and another prompt.
        """
        lacking = 0
        for item, prompt, preference in zip(batch["id"], batch["prompt"], batch["preference"], strict=True):
            before = self._asked.get(item)
            if before is not None and before != _asked(prompt, list(preference)):
                raise ValueError(
                    f"{self.path} has responses to an item {item!r} with another prompt or preference: the data have changed; "
                    "name another file with --output, or replace this one with --overwrite"
                )
            lacking += len(set(range(num_samples)) - self._samples.get(item, set()))
        return lacking

    def add(self, lines: Iterable[Line]) -> None:
        """Write the lines of responses that are not there yet, all at once.

        Raises:
            OSError: If the disk does not take them; the file holds what it held before.
        """
        new = [line for line in lines if line["sample"] not in self._samples.get(line["id"], ())]
        with appended_whole(self.path, setting="--output") as stream:
            _write(stream, new)
        for line in new:
            self._asked[line["id"]] = _asked(line["prompt"], line["preference"])
            self._samples.setdefault(line["id"], set()).add(line["sample"])


def _write(stream: BinaryIO, lines: Iterable[Line]) -> None:
    stream.write("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())
    stream.flush()
    os.fsync(stream.fileno())


def _asked(prompt: object, preference: object) -> str:
    """Prompt and preference as one text: equal where both are."""
    return json.dumps([prompt, preference], sort_keys=True)


def write_responses(
    model: RespondingModule,
    batches: Iterable[PromptBatch],
    file: ResponseFile,
    *,
    num_samples: int = 1,
    sample: bool = False,
    seed: int = 0,
    streamer: "BaseStreamer | None" = None,
) -> Iterator[int]:
    """Have a policy answer items, and write every batch's responses as soon as they are there.

    A batch of which responses are lacking is written anew as a whole, with draws that depend on its number alone, so that a
    run that was stopped ends in the same file. Of an item whose responses are there nothing changes.

    Args:
        model: Built, on its device, and knows the data that give the prompts.
        batches: Of items, always in the same order.
        file: Where responses go.
        num_samples: Responses to an item, >= 1.
        sample: Whether tokens are drawn; the likeliest otherwise.
        seed: Of the draws, with the number of the batch.
        streamer: Told of tokens as they are chosen, where batches are of one item and one response.

    Yields:
        Items of each batch, once their responses are there.

    Raises:
        ValueError: If the file has responses to other prompts of the same names, or a column of the data is called as a field.
    """
    for number, batch in enumerate(batches):
        if file.lacking(batch, num_samples):
            digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
            generator = torch.Generator(model.device).manual_seed(int.from_bytes(digest[:7], "big"))
            on_device: PromptBatch = move_data_to_device(batch, model.device)
            rollouts = model.respond(
                on_device, num_samples=num_samples, sample=sample, generator=generator, streamer=streamer
            )
            file.add(_lines(rollouts, file.source))
        yield len(batch["id"])


def _lines(rollouts: Rollouts, source: str) -> Iterator[Line]:
    """A line for each response.

    Raises:
        ValueError: If a column of the data is called as a field of a line.
    """
    batch = rollouts.prompts
    columns: Mapping[str, list[object]] = batch.get("columns", {})
    if taken := sorted(columns.keys() & set(FIELDS)):
        raise ValueError(
            f"the data have a column {taken[0]!r}, which a line of responses has for something else: rename it there; taken are "
            f"{', '.join(FIELDS)}"
        )
    samples: dict[int, int] = {}
    lengths, finished = rollouts.lengths.tolist(), rollouts.finished.tolist()
    for place, item in enumerate(rollouts.item.tolist()):
        samples[item] = samples.get(item, -1) + 1
        yield {
            "id": batch["id"][item],
            "sample": samples[item],
            "prompt": batch["prompt"][item],
            "preference": list(batch["preference"][item]),
            "response": rollouts.texts[place],
            "num_tokens": lengths[place],
            "finished": finished[place],
            "source": source,
            **{name: values[item] for name, values in columns.items()},
        }


def response_printer(tokenizer: "PreTrainedTokenizerBase") -> "BaseStreamer":
    """What prints a response while it is written, without its prompt, and a line's end behind it."""
    from transformers import TextStreamer

    return TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
