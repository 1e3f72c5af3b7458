"""A chain of stages, as its file has it: what runs in which order, from which start, and what a strategy changes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_args

from jsonargparse import get_loader

__all__ = ["Chain", "Stage", "merged", "read_chain"]

ChainVerb = Literal["fit", "interpolate"]
Which = Literal["last", "best"]
Given = Mapping[str, Any]

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
OPTIONS_OF_FIT = ("config", "model", "data", "trainer", "throughput", "optimizer", "lr_scheduler")
"""Beginnings of options, which no stage may be called: ``--NAME.option`` is an option of the stage NAME."""
CHAIN_KEYS = ("folder", "stages", "strategies")
SETTLED = ("name", "settings_of")
"""Fields of a stage that are no keys of it in a file."""


@dataclass(frozen=True)
class Stage:
    """One stage: a run of ``fit`` or of ``interpolate``.

    Attributes:
        name: What other stages and the command line call it.
        config: Configurations of the verb, the later over the earlier; they also run alone.
        verb: What runs.
        options: Options, nested as in a configuration, that go before those of the files.
        start_from: Earlier stage whose weights this one starts from; None for a start of its own.
        checkpoint: Which of its checkpoints enters the stages after it.
        general: Of an interpolation, the stage at share 0.
        customized: Of an interpolation, the stage at share 1.
        settings_of: Earlier stage whose configurations and options these are, but for its own options over them, and whose
            options of the command line are its own, too: of an interpolation without a ``config``, the customised stage.
    """

    name: str
    config: tuple[Path, ...] = ()
    verb: ChainVerb = "fit"
    options: Given = field(default_factory=dict)
    start_from: str | None = None
    checkpoint: Which = "last"
    general: str | None = None
    customized: str | None = None
    settings_of: str | None = None

    @property
    def predecessors(self) -> dict[str, str]:
        """Stages that it needs, by the key that names them."""
        keys = ("start_from",) if self.verb == "fit" else ("general", "customized")
        named = {key: getattr(self, key) for key in keys}
        return {key: name for key, name in named.items() if name is not None}


@dataclass(frozen=True)
class Chain:
    """Stages in their order.

    Attributes:
        path: The file.
        folder: Where every stage has a folder.
        stages: With the strategy's changes.
        strategy: Which one; None for the stages as the file has them.
        strategies: All that the file has.
        others: Names of the file's stages that are none here, as a strategy leaves them out or only another one adds them.
    """

    path: Path
    folder: Path
    stages: tuple[Stage, ...]
    strategy: str | None = None
    strategies: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


def read_chain(path: Path, *, strategy: str | None = None, folder: Path | None = None) -> Chain:
    """Read and check a chain's file.

    Args:
        path: The file, YAML or JSON; the configurations that it names lie relative to it.
        strategy: One of its ``strategies``; None for the stages alone.
        folder: Of all stages, in place of the file's.

    Raises:
        FileNotFoundError: If the file, or a configuration that it names, is not there.
        ValueError: If something is missing in it, unknown or out of order; names the place and what is allowed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config: there is no file {path}; it names the chain, with a key stages")
    content = _mapping(path, "the file", get_loader("yaml")(path.read_text(encoding="utf-8")))
    if "stages" not in content and {"model", "data"} & content.keys():
        raise ValueError(
            f"{path} is a configuration of one run and no chain: give it to `pluralign fit`, or name it under stages"
        )
    _check_keys(path, "the file", content, CHAIN_KEYS)
    strategies = _mapping(path, "strategies", content.get("strategies") or {})
    given = listed = _listed(path, content.get("stages"))
    if strategy is not None:
        if strategy not in strategies:
            near = _nearest(strategy, strategies)
            raise ValueError(f"--strategy: {path} has no strategy {strategy!r}{near}")
        where = f"strategies.{strategy}"
        given = _changed(path, where, given, _mapping(path, where, strategies[strategy] or {}))
    if folder is None:
        if not isinstance(content.get("folder"), str):
            raise ValueError(
                f"{path}: folder must name the folder of all stages, got {content.get('folder')!r}"
            )
        folder = Path(content["folder"])
    listed_stages = tuple(_stage(path, name, settings) for name, settings in given.items())
    _check_order(path, listed_stages)
    stages = _with_settings(listed_stages)
    added = (name for each in strategies.values() if isinstance(each, Mapping) for name in each)
    others = dict.fromkeys(name for name in (*listed, *added) if name not in given)
    return Chain(path, folder, stages, strategy, tuple(strategies), tuple(others))


# The file's parts ----------------------------------------------------------------------------------------


def _mapping(path: Path, where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path}: {where} must be a mapping of names, got {value!r}")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    """What was meant, and what there is."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{meant} There is {', '.join(names) or 'none'}"


def _check_keys(path: Path, where: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{path}: {where} has an unknown key {key!r}{_nearest(key, known)}")


def _listed(path: Path, stages: object) -> dict[str, dict[str, Any]]:
    """Settings of each stage, by name."""
    if not isinstance(stages, list) or not stages:
        raise ValueError(
            f"{path}: stages must be a list of stages, each with a name and a config; got {stages!r}"
        )
    named: dict[str, dict[str, Any]] = {}
    for place, given in enumerate(stages):
        where = f"stages[{place}]"
        settings = dict(_mapping(path, where, given))
        name = settings.pop("name", None)
        _check_name(path, where, name)
        if name in named:
            raise ValueError(f"{path}: {where} is called {name!r}, and so is another one")
        named[name] = settings
    return named


def _check_name(path: Path, where: str, name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{path}: {where}: name must be letters, digits and underscores, the first a letter; got {name!r}"
        )
    if name in OPTIONS_OF_FIT:
        raise ValueError(
            f"{path}: {where}: no stage can be called {name!r}, as options of fit begin so; choose another"
        )


def _changed(
    path: Path, where: str, stages: Mapping[str, dict[str, Any]], changes: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Stages with what a strategy changes, adds at the end or (null) leaves out."""
    result = dict(stages)
    for name, given in changes.items():
        place = f"{where}.{name}"
        if given is None:
            if name not in result:
                raise ValueError(f"{path}: {place} leaves out a stage that is none{_nearest(name, stages)}")
            del result[name]
            continue
        change = _mapping(path, place, given)
        if name not in stages:
            _check_name(path, where, name)
            if "config" not in change and change.get("verb") != "interpolate":
                raise ValueError(
                    f"{path}: {place} is no stage{_nearest(name, stages)}; one that a strategy adds needs a config"
                )
        before = result.get(name, {})
        options = merged(before.get("options") or {}, _mapping(path, place, change.get("options") or {}))
        result[name] = {**before, **change, "options": options}
    return result


def merged(before: Given, over: Given) -> dict[str, Any]:
    """Nested options with others laid over them; another class takes none of the settings of the one before."""
    result = dict(before)
    for key, value in over.items():
        old = result.get(key)
        other_class = (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("class_path", old.get("class_path")) != old.get("class_path")
        )
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not other_class:
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _stage(path: Path, name: str, given: dict[str, Any]) -> Stage:
    """A stage of its settings."""
    where = f"stage {name}"
    _check_keys(path, where, given, [each.name for each in fields(Stage) if each.name not in SETTLED])
    for key, kind in (("verb", ChainVerb), ("checkpoint", Which)):
        if key in given and given[key] not in get_args(kind):
            raise ValueError(
                f"{path}: {where}: {key} must be one of {', '.join(get_args(kind))}, got {given[key]!r}"
            )
    inherits = given.get("verb") == "interpolate" and given.get("config") is None
    configs = () if inherits else _configs(path, where, given.get("config"))
    stage = replace(Stage(name), **{**given, "config": configs})
    wrong = ("general", "customized") if stage.verb == "fit" else ("start_from",)
    right = "start_from" if stage.verb == "fit" else "general and customized"
    if unfit := [key for key in wrong if key in given]:
        raise ValueError(f"{path}: {where}: {unfit[0]} is no key of verb {stage.verb}, which takes {right}")
    if stage.verb == "interpolate" and len(stage.predecessors) < 2:
        raise ValueError(f"{path}: {where}: verb interpolate needs the stages general and customized")
    options = _mapping(path, f"{where}: options", stage.options or {})
    return replace(stage, options=options, settings_of=stage.customized if inherits else None)


def _configs(path: Path, where: str, given: object) -> tuple[Path, ...]:
    listed = given if isinstance(given, list) else [given]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(
            f"{path}: {where}: config must name a configuration, or a list of them; got {given!r}"
        )
    paths = tuple(path.parent / name for name in cast(list[str], listed))
    for each in paths:
        if not each.is_file():
            near = get_close_matches(each.name, [other.name for other in each.parent.glob("*.yaml")], n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise FileNotFoundError(f"{path}: {where}: there is no configuration {each}{meant}")
    return paths


def _check_order(path: Path, stages: tuple[Stage, ...]) -> None:
    """Every stage starts from earlier ones."""
    earlier: list[str] = []
    for stage in stages:
        for key, name in stage.predecessors.items():
            if name not in earlier:
                raise ValueError(
                    f"{path}: stage {stage.name}: {key} must be an earlier stage, got {name!r}"
                    f"{_nearest(name, earlier)}"
                )
        earlier.append(stage.name)


def _with_settings(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Stages, each with the settings that it has of another one."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.settings_of is None:
            found[stage.name] = stage
        else:
            other = found[stage.settings_of]  # an earlier one, as the caller has checked
            found[stage.name] = replace(
                stage, config=other.config, options=merged(other.options, stage.options)
            )
    return tuple(found.values())
