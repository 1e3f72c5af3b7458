"""Loggers that a command names have the settings of their own classes, and none of the one that there is by default."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["have_own_settings"]

OPTION = "trainer.logger"
Check = Callable[..., Any]


def have_own_settings(parser: LightningArgumentParser) -> None:
    """Let a logger that is named take over nothing from another class that was there before.

    jsonargparse keeps settings of the one for the other wherever they fit
    (``findings/jsonargparse_list_elements_inherit_a_default_object.sh``): a run of Weights & Biases would be called as the
    folder of the default logger is.

    Args:
        parser: With the trainer's options.
    """
    action: Any = next(
        each for each in parser._actions if each.dest == OPTION
    )  # of a class of jsonargparse's own
    action._check_type = _own(action._check_type)


def _own(check: Check) -> Check:
    """What checks the option's value, without what was there before where that is of another class."""

    def checked(value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:  # noqa: ANN401
        before: Any = cfg.get(OPTION) if cfg else None
        if not append and isinstance(before, Namespace) and _names_class(value):
            alone = check(deepcopy(value), append=append, cfg=None, mode=mode)
            if not isinstance(alone, Namespace):
                return alone
            if alone.class_path != before.class_path:
                before.pop("init_args", None)  # or what is named is laid over them
        return check(value, append=append, cfg=cfg, mode=mode)

    return checked


def _names_class(value: object) -> bool:
    """Whether a value says of which class it is, or is a list of such; and no setting of what is there."""
    if isinstance(value, str):
        return not value.lstrip().startswith("{") or "class_path" in value
    return isinstance(value, list) or (isinstance(value, Mapping | Namespace) and "class_path" in value)
