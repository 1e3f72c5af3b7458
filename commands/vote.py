"""``pluralign vote``: how much each member of an ensemble prefers the first response of every comparison, in a folder."""

import math
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from pluralign.datamodules.treatments import check_names
from pluralign.datamodules.votes import (
    SHARD_RECORDS,
    VoteFolder,
    VoteSource,
    VoteTable,
    described_data,
    members_digest,
)
from pluralign.inference import SplitVotes, cast_votes, check_votes, gather_votes
from pluralign.inference.run_files import run_folder
from pluralign.models import EnsembleVoteRM, RewardModule

from .checkpoints import checkpoint_last
from .cli import ONE_DEVICE, PluralignCLI, option
from .embed import show_progress
from .members_file import read_members

__all__ = ["VoteOptions", "vote"]

SPLITS = ("train", "validation")
"""Splits that may be voted on: no treatment may look at the others."""
LARGEST_CORRELATION = 0.999
"""Mean correlation of two members' differences above which they are one model, where the model does not say."""
ONE_BY_ONE = "members"
"""Folder within that of the votes in which members that vote one after the other keep theirs until all have voted."""


@dataclass(frozen=True)
class VoteOptions:
    """Who votes on what, and where the votes go."""

    ckpt_path: str = option("checkpoint of an ensemble; path, last or best", "")
    members: str | None = option(
        "in place of it: folder that `pluralign members` wrote, or a checkpoint of each member, FILE,FILE,...",
        None,
    )
    output: str | None = option(
        "folder of the votes; votes in the folder of the run, or of the members, by default", None
    )
    splits: str = option("whose comparisons are voted on: train, validation or both", "train,validation")
    overwrite: bool = option("replace votes of other data or members", False)
    shard_records: int = option("records of a shard; a killed run loses one", SHARD_RECORDS)
    side_table: str | None = option("file to write the strengths to besides, for loader.joins", None)

    def __post_init__(self) -> None:
        """Check all that can be checked before anything is loaded."""
        if bool(self.ckpt_path) == bool(self.members):
            raise ValueError(
                "give --ckpt_path, the checkpoint of an ensemble, or --members, one of each member"
            )
        if not self.chosen or set(self.chosen) - set(SPLITS) or len(set(self.chosen)) < len(self.chosen):
            raise ValueError(f"--splits must be of {', '.join(SPLITS)}, each once; got {self.splits!r}")
        if self.shard_records < 1:
            raise ValueError(f"--shard_records must be at least 1, got {self.shard_records}")
        if len(self.files) == 1:
            if not self.files[0].exists():
                raise ValueError(f"--members names {self.members}, and neither a folder nor a file is there")
            raise ValueError(
                f"--members names one checkpoint, {self.members}: one model has nobody to disagree with; give at least two"
            )

    @property
    def chosen(self) -> list[str]:
        """Splits that are voted on."""
        return [word.strip() for word in self.splits.split(",") if word.strip()]

    @property
    def files(self) -> list[Path]:
        """Checkpoints of the members, where they vote one after the other."""
        if self.members is None:
            return []
        folder = Path(self.members)
        if folder.is_dir():
            return [folder / each.checkpoint for each in read_members(folder)]
        return [Path(word.strip()) for word in self.members.split(",") if word.strip()]

    def folder(self, checkpoint: str | None) -> Path | None:
        """Where the votes go; None if it has to be said.

        Args:
            checkpoint: Path of the ensemble's checkpoint, if it is one.
        """
        if self.output is not None:
            return Path(self.output)
        if self.members is not None:
            return Path(self.members) / "votes" if Path(self.members).is_dir() else None
        return run_folder(Path(checkpoint or "")) / "votes"


class _Voters(NamedTuple):
    """Who votes."""

    source: VoteSource
    files: list[Path]
    """A checkpoint of each, where they vote one after the other."""
    digests: list[str]
    """Of each of these."""


def vote(words: Sequence[str]) -> None:
    """Let the members of an ensemble vote on every comparison of the data, and write what they say to a folder.

    Members are those of one EnsembleVoteRM, or several checkpoints of any method that rewards responses, which are loaded
    one after the other. A vote is the reward of a comparison's first response minus that of the second, in evaluation mode.
    Where members were trained on folds, they vote on prompts of the training split that they have not seen. Finished shards
    are kept whatever happens, and a run that was stopped goes on where it was. It runs on one device.
    """
    cli = PluralignCLI(
        "vote", [*checkpoint_last(words), *ONE_DEVICE], description=vote.__doc__, options=VoteOptions
    )
    options, data = cli.options, cli.datamodule
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        cli.fail(
            "it runs in one process, and WORLD_SIZE says that there are several: start it without torchrun or srun"
        )
    if missing := [split for split in options.chosen if split not in data.splits]:
        cli.fail(f"{data.name} has no {missing[0]} split; it has {', '.join(data.splits)}: set --splits")
    path = options.folder(cli.config_init["ckpt_path"])
    if path is None:
        cli.fail("name the folder of the votes: --output")
    cli.connect()
    data.setup("fit")
    for split in options.chosen:
        if not data.table(split).comparison_counts().any():
            cli.fail(
                f"the {split} split of {data.name} has no comparisons to vote on: set --splits, or take other data"
            )
        check_names(f"{data.name} {split}", data.table(split))
    voters = _voters(cli)
    records = {split: len(data.rows(split)) for split in options.chosen}
    folder = VoteFolder(
        path, voters.source, records, shard_records=options.shard_records, overwrite=options.overwrite
    )
    for split in options.chosen:
        show_progress(_steps(cli, folder, voters, split))
    _finish(cli, folder)


def _voters(cli: PluralignCLI[VoteOptions]) -> _Voters:
    """Read the checkpoints that vote; the ensemble's is loaded into the model."""
    data, files = described_data(cli.datamodule), cli.options.files
    if not files:
        content = _load(cli, cli.model, Path(cli.config_init["ckpt_path"]))
        model = cli.model
        if not isinstance(model, EnsembleVoteRM) or len(model.columns) < 2:
            cli.fail(
                f"a checkpoint of {type(model).__name__} is one model, which has nobody to disagree with: train an "
                "EnsembleVoteRM, or give several checkpoints, --members FILE,FILE,..."
            )
        source = VoteSource(data, members_digest([content]), len(model.columns), model.resample)
        return _Voters(source, [], [])
    digests, resample = [], set()
    for file in files:
        content = _content(cli, file)
        digests.append(members_digest([content]))
        resample.add(str(content.get("hyper_parameters", {}).get("resample", "none")))
        if digests[-1] in digests[:-1]:
            other = files[digests.index(digests[-1])]
            cli.fail(
                f"--members: {other} and {file} have the same weights and settings, and would vote twice"
            )
    if len(resample) > 1:
        cli.fail(
            f"--members: checkpoints differ in resample ({', '.join(sorted(resample))}); they are no ensemble"
        )
    source = VoteSource(
        data, members_digest([{"state_dict": {}, "hyper_parameters": digests}]), len(files), resample.pop()
    )
    return _Voters(source, files, digests)


def _content(cli: PluralignCLI[VoteOptions], path: Path) -> dict[str, Any]:
    content: Mapping[str, Any] = cli.trainer.strategy.checkpoint_io.load_checkpoint(path, weights_only=True)
    return dict(content)


def _load(cli: PluralignCLI[VoteOptions], model: RewardModule, path: Path) -> dict[str, Any]:
    """Load a checkpoint into a module, ready to score; its content."""
    content = _content(cli, path)
    model.trainer = cli.trainer
    model.on_load_checkpoint(content)
    model.load_state_dict(content["state_dict"])
    model.to(cli.trainer.strategy.root_device)
    model.setup("validate")
    model.begin_evaluation()
    return content


def _steps(
    cli: PluralignCLI[VoteOptions], folder: VoteFolder, voters: _Voters, split: str
) -> Iterator[tuple[str, int, int]]:
    """Have everybody vote on a split; progress after every batch."""
    device, precision = cli.trainer.strategy.root_device, cli.trainer.precision_plugin.val_step_context
    if not voters.files:
        yield from cast_votes(cli.model, cli.datamodule, folder, split, device=device, precision=precision)
        return
    lacking = folder.pending(split)
    if not lacking:
        return
    parts = [_part(folder, voters, member) for member in range(len(voters.files))]
    for member, (part, file) in enumerate(zip(parts, voters.files, strict=True)):
        if set(part.pending(split)).isdisjoint(lacking):
            continue
        model = _member(cli, file)
        title = f"member {member} of {len(parts)}, {split}"
        yield from cast_votes(
            model,
            cli.datamodule,
            part,
            split,
            shards=lacking,
            device=device,
            precision=precision,
            title=title,
        )
    gather_votes(folder, parts, split)


def _part(folder: VoteFolder, voters: _Voters, member: int) -> VoteFolder:
    """Folder of one member's votes, which goes on where it was, or begins anew where it is another's."""
    source = VoteSource(voters.source.data, voters.digests[member], 1, voters.source.resample)
    path = folder.path / ONE_BY_ONE / f"{member:03d}"
    part = VoteFolder(path, source, folder.records, shard_records=folder.shard_records, overwrite=True)
    if part.shard_records == folder.shard_records:
        return part
    shutil.rmtree(path)  # left by a run whose shards were of another size
    return VoteFolder(path, source, folder.records, shard_records=folder.shard_records)


def _member(cli: PluralignCLI[VoteOptions], file: Path) -> RewardModule:
    """A module of the configuration's method with a member's settings and weights."""
    settings = _content(cli, file).get("hyper_parameters", {})
    model = type(cli.model)(**{name: value for name, value in settings.items() if not name.startswith("_")})
    _load(cli, model, file)
    if isinstance(model, EnsembleVoteRM) and len(model.columns) > 1:
        cli.fail(
            f"--members: {file} is a whole ensemble; give it as --ckpt_path, or a checkpoint of each member"
        )
    return model


# Results -------------------------------------------------------------------------------------------------


def _finish(cli: PluralignCLI[VoteOptions], folder: VoteFolder) -> None:
    """Look at the votes, refuse members that are one model, say that all is there, and what there is."""
    found = {split: check_votes(folder, split) for split in folder.records}
    correlation = found[next(iter(found))].correlation  # of the training split, if it was voted on
    largest = getattr(cli.model, "largest_correlation", LARGEST_CORRELATION)
    _print_table(cli.datamodule.name, folder, found)
    if correlation > largest:
        raise ValueError(
            f"the members' differences are correlated by {correlation:.6f} on the average, more than {largest}: they are one "
            f"model, and its votes say nothing of its doubts, so that {folder.path} stays incomplete. Train members of other "
            "seeds, on data of their own (resample: bootstrap or folds), with dropout, or with more weights of their own "
            "(members: lora or full)"
        )
    folder.finish(correlation=None if math.isnan(correlation) else correlation)
    shutil.rmtree(folder.path / ONE_BY_ONE, ignore_errors=True)
    if cli.options.side_table is not None:
        VoteTable.load(folder.path, cli.options.chosen).side_table().save(cli.options.side_table)
        print(f"strengths: {cli.options.side_table} (loader.joins)")
    print(f"votes: {folder.path} (data.loader.treatments.votes)")
    if "train" in folder.records:
        treatments = f"{{votes: {folder.path}, rules: [{{high: 0.1, label: flip}}]}}"
        print(
            f"for example: pluralign fit --config FINAL.yaml --data.loader.treatments {shlex.quote(treatments)}"
        )
        print("`pluralign data treated` with these options writes a page that shows what they change")


def _print_table(name: str, folder: VoteFolder, found: Mapping[str, SplitVotes]) -> None:
    """Print a column for each split."""
    members, resample = folder.source.num_members, folder.source.resample
    table = Table(title=f"{name}: votes of {members} members, resample {resample}")
    table.add_column("")
    for split in found:
        table.add_column(split, justify="right")
    rows: dict[str, list[str]] = {
        "comparisons": [f"{each.comparisons:,}" for each in found.values()],
        "votes on each, at least": [str(each.fewest_votes) for each in found.values()],
        "mean strength": [f"{each.mean:.3f}" for each in found.values()],
        "standard deviation": [f"{each.std:.3f}" for each in found.values()],
        "members' standard deviation, mean": [f"{each.disagreement:.3f}" for each in found.values()],
        "strength below 0": [f"{each.negative:.1%}" for each in found.values()],
        "correlation of two members": [f"{each.correlation:.4f}" for each in found.values()],
    }
    for title, cells in rows.items():
        table.add_row(title, *cells)
    table.add_section()
    for tenth in range(11):
        title = {0: "least", 5: "median", 10: "largest"}.get(tenth, f"{tenth * 10} % below")
        table.add_row(title, *(f"{each.deciles[tenth]:.3f}" for each in found.values()))
    Console().print(table)
    if folder.damaged:
        listed = ", ".join(sorted({path.name for path in folder.damaged}))
        print(f"made anew, for they were damaged: {listed}")
