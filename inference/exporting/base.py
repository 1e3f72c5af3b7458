"""The base of what is exported, as others are told of it: its name on the hub, or that it lay on somebody's machine."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.models import BackboneConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "base_facts",
    "base_lines",
    "hub_name",
    "leave_out_path",
    "refuse_own_class",
    "shown_base",
    "where_base",
]


def hub_name(base: str | None) -> str | None:
    """A base's name, if it can be one on the hub.

    Args:
        base: Name, or path; None without a base.
    """
    if base is None or Path(base).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base, re.ASCII):
        return None
    return base


def shown_base(base: str) -> str:
    """What a base is called where others read it: a folder by its last name alone.

    Args:
        base: Name, or path.
    """
    return base if hub_name(base) else Path(base).absolute().name


def base_facts(config: BackboneConfig) -> dict[str, Any] | None:
    """How the base of an exported adapter is known again: a folder by its content, since nobody else has its path.

    Args:
        config: Of the network; None is told of one without a base.
    """
    identity = config.identity()
    if identity is None:
        return None
    return {**identity, "name": shown_base(str(config.name))}


def base_lines(base: str | None, revision: str | None) -> list[str]:
    """Python that says what an adapter is put on.

    Args:
        base: Name, or path.
        revision: Of a base on the hub.
    """
    if (name := hub_name(base)) is not None:
        return [f'base, revision = "{name}", "{revision or "main"}"']
    return [
        f'base, revision = "{shown_base(str(base))}", "main"  # a folder of whoever trained: where your copy of it lies'
    ]


def where_base(base: str | None) -> str:
    """What to say of a base that others cannot have by its name; nothing of one on the hub.

    Args:
        base: Name, or path.
    """
    if hub_name(base) is not None:
        return ""
    return f"; the base, `{shown_base(str(base))}`, lay in a folder of whoever trained, and the adapter's files do not say where"


def leave_out_path(folder: Path) -> None:
    """Take the path of a base that lies on this machine out of an adapter's folder: it is nobody else's.

    Args:
        folder: With the files of PEFT.
    """
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = hub_name(settings["base_model_name_or_path"])
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def refuse_own_class(config: "PretrainedConfig") -> None:
    """Refuse a network whose class is no class of transformers: a folder cannot hold it.

    Args:
        config: Of the network.

    Raises:
        ValueError: If its class ships with its weights.
    """
    if getattr(config, "auto_map", None):
        raise ValueError(
            f"{type(config).__name__} is code that ships with the base's weights, and an exported folder is of networks of "
            "transformers alone: this model cannot be exported"
        )
