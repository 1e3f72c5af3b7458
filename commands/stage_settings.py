"""What a stage of a chain is made of: its settled configuration, and what decides the weights that it will have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple

from jsonargparse import ArgumentParser, Namespace, get_loader

from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.content import NOT_TRAINED_ON, content_changes, plain_content, without
from pluralign.datamodules.records import hash_files
from pluralign.datamodules.votes import read_index
from pluralign.models import RewardModule
from pluralign.models.backbone import BackboneConfig

from .chain import Stage, merged
from .checkpoints import LOGGERS, TRAINING, loggers_of, plain_settings
from .cli import NoOptions, OptionsT, PluralignCLI
from .failures import short_failure
from .interpolate import InterpolateOptions

__all__ = ["Inputs", "Readable", "SettledStage", "changes", "settle", "unlike"]

Inputs = dict[str, Any]
"""What decides a stage's weights, as plain values; ``start`` has digests of the weights that it starts from, by stage."""

LENGTH = ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches")
"""Options of the trainer that decide how long is trained."""
MEASURING = ("check_val_every_n_epoch", "limit_val_batches", "val_check_interval")
"""Options of the trainer that decide what a validation measures and when, where something is chosen by it."""
PLACES = ("data_dir", "cache_dir", "num_workers", *NOT_TRAINED_ON)
"""Settings of data that no training sees: the bytes of what is read are compared by themselves."""
WATCHING = (
    "DeviceStatsMonitor",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
)
"""Callbacks of Lightning that change nothing of what is learned, as none of pluralign's does."""
NOT_OF_FORMAT = ("tokenizer", "revision", "trust_remote_code")
"""Entries of a text format that say where a tokenizer lies; its digest says which one it is."""
OWN_OPTIONS = ("alphas", "mode", "monitor")
"""Options of an interpolation that decide its weights."""
RUN = "run"
"""Folder of a stage's log and checkpoints, where its logger has such folders."""


class Readable(NamedTuple):
    """What must be alike of two stages, of which one starts from the other's weights.

    Attributes:
        text_format: Of the data.
        backbone: Settings that say which network it is.
    """

    text_format: Mapping[str, Any]
    backbone: Mapping[str, Any]


class _StageCLI(PluralignCLI[OptionsT], Generic[OptionsT]):
    """The options of a stage, its model and its data; no trainer, and no checkpoint is looked for."""

    def before_instantiate_classes(self) -> None:
        """Settle nothing that depends on where the stage runs."""

    def instantiate_classes(self) -> None:
        """Make model and data alone: nothing of this process is to touch a device."""
        config = self.config.clone()
        for name, value in (("callbacks", None), ("logger", False), ("plugins", None), ("profiler", None)):
            config.trainer[name] = value
        self.config_init = self.parser.instantiate_classes(config)
        self.model: RewardModule = self.config_init["model"]
        self.datamodule: PreferenceDataModule = self.config_init["data"]
        self.datamodule.network = self.model


class SettledStage:
    """A stage whose configuration was read and checked, before anything of it runs.

    Attributes:
        stage: As the chain has it.
        inputs: What decides its weights, but for where it starts.
        readable: What must be as in the stages that it starts from.
        init_from: Checkpoint of another run that it starts from, if no stage.
    """

    def __init__(
        self,
        stage: Stage,
        parser: ArgumentParser,
        config: Namespace,
        data: PreferenceDataModule,
        backbone: BackboneConfig,
    ) -> None:
        """Look at what was read.

        Args:
            stage: As the chain has it.
            parser: Of its verb.
            config: Every option.
            data: Made of it.
            backbone: Of the model made of it.

        Raises:
            ValueError: If something in the configuration is the chain's affair, or the chain could not go on from it.
        """
        self.stage, self.parser, self.config = stage, parser, config
        settings = plain_settings(parser, config)
        self._savers = [
            dict(each.get("init_args") or {})
            for each in _listed(settings["trainer"]["callbacks"])
            if each["class_path"].endswith("ModelCheckpoint")
        ]
        self._check(settings)
        self.readable = Readable(data.text_format(), settings["model"]["init_args"]["backbone"])
        self.init_from: str | None = settings["model"]["init_args"].get("init_from")
        self.inputs = self._inputs(settings, data, backbone)

    def _check(self, settings: Mapping[str, Any]) -> None:
        trainer = settings["trainer"]
        if settings.get("ckpt_path"):
            raise ValueError(
                "ckpt_path is set: leave it out, the chain goes on where a stage was interrupted"
            )
        if self.stage.predecessors and settings["model"]["init_args"].get("init_from"):
            key = next(iter(self.stage.predecessors))
            raise ValueError(f"model.init_from is set, and the chain sets it by {key}: leave one of them out")
        if self.stage.verb != "fit":
            return
        if trainer["fast_dev_run"]:
            raise ValueError(
                "trainer.fast_dev_run keeps no checkpoint, and the next stage needs one: leave it out"
            )
        if any(saver.get("dirpath") for saver in self._savers):
            raise ValueError(
                "a ModelCheckpoint has a dirpath: leave it out, the chain keeps every stage's checkpoints in its folder"
            )
        if not any(saver.get("save_last") is True for saver in self._savers):
            raise ValueError(
                "no ModelCheckpoint keeps the end of the stage: add {class_path: ModelCheckpoint, init_args: "
                "{every_n_train_steps: 100, save_top_k: 0, save_last: true}} to trainer.callbacks"
            )
        if self.stage.checkpoint == "best" and not self._monitor:
            raise ValueError(
                "checkpoint: best needs a ModelCheckpoint with a monitor, such as val/accuracy, and there is none"
            )

    @property
    def _monitor(self) -> list[object]:
        """What the best checkpoint is the best by."""
        monitored = (saver for saver in self._savers if saver.get("monitor"))
        return next(([saver["monitor"], saver.get("mode", "min")] for saver in monitored), [])

    def _inputs(
        self, settings: Mapping[str, Any], data: PreferenceDataModule, backbone: BackboneConfig
    ) -> Inputs:
        trainer = settings["trainer"]
        model = dict(settings["model"]["init_args"])
        start = model.pop("init_from", None)
        loader = data.loader
        files = [*map(Path, loader.joins), *([Path(loader.features, "meta.json")] if loader.features else [])]
        prior = loader.crowd.prior
        files += [Path(prior)] if isinstance(prior, str) and Path(prior).is_file() else []  # else a word
        inputs = {
            "verb": self.stage.verb,
            "seed_everything": settings["seed_everything"],
            "model": {"class_path": settings["model"]["class_path"], **model},
            "data": without(settings["data"], PLACES),
            "trainer": {name: trainer.get(name) for name in (*TRAINING, *LENGTH)},
            "callbacks": [each for each in _listed(trainer["callbacks"]) if _learns(each["class_path"])],
            "content": without(plain_content(data.content()), NOT_TRAINED_ON),
            "text": {
                key: value for key, value in self.readable.text_format.items() if key not in NOT_OF_FORMAT
            },
            "files": [list(each) for each in hash_files(files)],
            "init_from": None if start is None else hash_files([Path(start)])[0][1],
            "base": backbone.identity(),  # of a folder its content: the name may stay where the weights do not
        }
        if loader.treatments is not None and loader.treatments.votes is not None:
            votes = read_index(Path(loader.treatments.votes))
            inputs["votes"] = {name: votes[name] for name in ("data", "members")}
        if self.stage.verb == "interpolate":
            inputs["options"] = {name: settings[name] for name in OWN_OPTIONS}
            inputs["trainer"] = {"limit_val_batches": trainer["limit_val_batches"]}
            del inputs["callbacks"]
        elif self.stage.checkpoint == "best":
            inputs["best by"] = self._monitor
        if self.stage.verb == "fit" and (inputs["callbacks"] or self.stage.checkpoint == "best"):
            inputs["trainer"] |= {name: trainer[name] for name in MEASURING}
        whole: Inputs = json.loads(json.dumps(inputs))
        return whole

    def write(self, path: Path, folder: Path, **options: object) -> None:
        """Write the configuration that the stage's process reads.

        Args:
            path: The file.
            folder: Where the run's files go.
            **options: Options of the verb that depend on other stages; ``init_from`` is the model's.
        """
        config = self.config.clone()
        config.trainer.default_root_dir = str(folder)
        for logger in loggers_of(config):
            settings = logger.get("init_args")
            if settings is None or "save_dir" not in settings:
                continue
            settings.save_dir = str(folder)
            if logger.class_path.rpartition(".")[2] in LOGGERS:
                settings.version = RUN
                if logger.class_path.endswith("CSVLogger"):  # which would delete what was logged
                    logger.class_path = "pluralign.callbacks.RunLogger"
        if "init_from" in options:
            config.model.init_args.init_from = options.pop("init_from")
        for name, value in options.items():
            config[name] = value
        self.parser.save(config, str(path), skip_none=False, overwrite=True, multifile=False)


def settle(stage: Stage, words: Sequence[str]) -> SettledStage:
    """Read a stage's configuration as its verb would.

    Args:
        stage: As the chain has it.
        words: Options of the command line, which go before all others.

    Raises:
        SystemExit: With status 2 if an option is wrong; the parser says which one.
        ValueError: If it cannot be a stage; names the stage.
        OSError: If data that it reads are not there.
    """
    given = [word for path in stage.config for word in ("--config", str(path))]
    if stage.options:
        given += ["--config", json.dumps(_over_files(stage))]
    name = f"stages, stage {stage.name}"
    method: Literal["fit"] | None = "fit" if stage.verb == "fit" else None
    options = NoOptions if stage.verb == "fit" else InterpolateOptions
    try:
        cli = _StageCLI(name, [*given, *words], description=None, options=options, method=method)
        return SettledStage(stage, cli.parser, cli.config, cli.datamodule, cli.model.backbone_config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"stage {stage.name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"stage {stage.name}: {short_failure(error) or error}") from error


def _over_files(stage: Stage) -> dict[str, Any]:
    """A stage's options with what the files have around them: of a mapping of classes the parser keeps no other entry."""
    content: dict[str, Any] = {}
    for path in stage.config:
        content = merged(content, get_loader("yaml")(path.read_text(encoding="utf-8")) or {})
    parts = (
        (name, {name: content[name]} if isinstance(content.get(name), Mapping) else {})
        for name in stage.options
    )
    return {name: merged(_settings_alone(part), {name: stage.options[name]})[name] for name, part in parts}


def _settings_alone(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what it adds to lists (``callbacks+``), which would be added twice."""
    return {
        key: _settings_alone(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if not key.endswith("+")
    }


# Comparisons -----------------------------------------------------------------------------------------------


def changes(before: Inputs, now: Inputs) -> list[str]:
    """What differs between the inputs of two runs of a stage.

    Args:
        before: Of the one.
        now: Of the other.

    Returns:
        A short text for each difference, the data's content first; what an option of the data names is not named again as
        its content.
    """
    content = content_changes(before.get("content"), now.get("content"))
    starts = before.get("start") or {}, now.get("start") or {}
    started = [
        f"{name} has other weights"
        for name in starts[0].keys() & starts[1].keys()
        if starts[0][name] != starts[1][name]
    ]
    if starts[0].keys() != starts[1].keys():
        started.append(f"it started from {_names(starts[0])}, and starts from {_names(starts[1])} now")
    rest = [{key: each[key] for key in each if key not in ("content", "start")} for each in (before, now)]
    return _named_once([*content, *started, *_differences(rest[0], rest[1])])


def unlike(first: Readable, second: Readable) -> list[str]:
    """What keeps one run from starting with another one's weights: another network, or another text format."""
    names = sorted({*first.text_format, *second.text_format} - {*NOT_OF_FORMAT})
    texts = (
        (f"data.text: {name}", first.text_format.get(name), second.text_format.get(name)) for name in names
    )
    networks = (
        (f"model.backbone.{name}", *(_network(each.backbone)[name] for each in (first, second)))
        for name in ("name", "revision", "config")
    )
    return [f"{name} is {one!r} and {other!r}" for name, one, other in (*networks, *texts) if one != other]


def _network(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What says which network it is; how much of it is dropped out does not."""
    config = {key: value for key, value in (backbone.get("config") or {}).items() if "dropout" not in key}
    return {"name": backbone.get("name"), "revision": backbone.get("revision"), "config": config}


def _differences(before: object, now: object, name: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} was {before!r}, is {now!r}".replace(".init_args", "")


def _named_once(texts: Sequence[str]) -> list[str]:
    """Changes without those that the same option of the data has told, such as ``amounts.weights.x`` and ``text.format``."""
    named = [(text.partition(" was ")[0], text) for text in texts]
    options = [name for name, _ in named if name.startswith("data.")]

    def again(name: str) -> bool:
        setting = name.rpartition("amounts.")[2]  # of a mixture, whose options have no such level
        return name not in options and any(option.endswith(f".{setting}") for option in options)

    return [text for name, text in named if not again(name)]


def _names(start: Mapping[str, str]) -> str:
    return " and ".join(sorted(start)) or "no stage"


def _listed(callbacks: Any) -> list[dict[str, Any]]:  # noqa: ANN401  a list, one, or none
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _learns(class_path: str) -> bool:
    """Whether a callback may change what is learned."""
    return not class_path.startswith("pluralign.callbacks") and class_path.rpartition(".")[2] not in WATCHING
