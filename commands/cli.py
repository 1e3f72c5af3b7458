"""The parser of every verb that takes a model and data: the options of Lightning's command line and the verb's own."""

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, NoReturn, Protocol, TypeVar, get_type_hints

import torch
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import pluralign.callbacks
import pluralign.datamodules
import pluralign.models  # noqa: F401  naming a class without its module needs its module imported
from pluralign.callbacks import RunProgress, SaveOnSignal, Throughput
from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.text_data import TextData
from pluralign.datamodules.untrusted import UNREADABLE
from pluralign.models import BaseModule, RewardModule

from .checkpoints import (
    RunKeeper,
    check_writable,
    follow_root_folder,
    keep_whole,
    leave_runs_alone,
    recipe,
    settle_checkpoint,
)
from .failures import short_failure
from .loggers import have_own_settings
from .notices import Notices
from .parser import Parser
from .program import EPILOG
from .quiet import BITSANDBYTES, show_messages
from .run_recorder import RunRecorder
from .saved_settings import SettingsSaver
from .sources import check_sources

__all__ = ["ONE_DEVICE", "NoOptions", "PluralignCLI", "TextCLI", "option"]

ONE_DEVICE = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
"""Words that let a verb run on one device, whatever its configuration trains on."""

GIVEN_BY_TRAINER: set[str | int] = {
    "model",
    "datamodule",
    "dataloaders",
    "train_dataloaders",
    "val_dataloaders",
    "return_predictions",
}
"""Arguments of the trainer's methods that are no options."""


register_type(
    torch.device, str
)  # a default of callbacks; as an object it could not be written to a run's config.yaml


class Options(Protocol):
    """A frozen dataclass of a verb's own options, each made by :func:`option`; it checks itself."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


OptionsT = TypeVar("OptionsT", bound=Options)
ModelT = TypeVar("ModelT", bound=BaseModule)
DataT = TypeVar("DataT", bound=TextData)


@dataclass(frozen=True)
class NoOptions:
    """A verb has no options of its own."""


def option(help: str, default: str | float | None) -> Any:  # noqa: ANN401  as dataclasses.field
    """A field that is an option of the command line; a flag if it is a bool.

    Args:
        help: What it is, in a line.
        default: Its value where it is not given.
    """
    return field(default=default, metadata={"help": help})


class TextCLI(LightningCLI, Generic[OptionsT, ModelT, DataT]):
    """LightningCLI for one verb: short class names, the backbone's tokenizer passed on to the data, own options.

    Attributes:
        model_base: What the verb takes for a model.
        data_base: What it takes for data.
        kinds: What these are called.
        options: The verb's own options.
        config: Every option.
    """

    model_base: ClassVar[type[BaseModule]] = BaseModule
    data_base: ClassVar[type[TextData]] = TextData
    kinds: ClassVar[tuple[str, str]] = ("models", "data modules")
    options: OptionsT
    model: ModelT
    datamodule: DataT

    def __init__(
        self,
        verb: str,
        words: Sequence[str],
        *,
        description: str | None,
        options: type[OptionsT],
        method: Literal["fit", "validate", "test", "predict"] | None = None,
    ) -> None:
        """Read the words and make model, data and trainer of them.

        Args:
            verb: As it was called.
            words: Words after the verb.
            description: What it does, for ``--help``.
            options: What it takes besides what ``fit`` takes.
            method: The trainer's method whose arguments are options, too.

        Raises:
            SystemExit: With status 2 if an option is wrong, 0 after ``--help`` and ``--print_config``.
        """
        self.verb, self.method, self.options_class, self.words = verb, method, options, tuple(words)
        super().__init__(
            self.model_base,
            self.data_base,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SettingsSaver,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={
                "log_every_n_steps": 10,
                "enable_model_summary": False,  # Notices says it in a line
                "logger": {"class_path": "pluralign.callbacks.RunLogger"},
            },
            parser_class=Parser,
            parser_kwargs={
                "prog": f"pluralign {verb}",
                "usage": "%(prog)s [--config FILE] [options]",
                "description": description,
                "epilog": EPILOG,
                "allow_abbrev": False,
            },
            args=list(words),
            run=False,  # it would build a parser for each of Lightning's verbs
        )

    # Options -------------------------------------------------------------------------------------------

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the verb's own options before those it shares with ``fit``."""
        assert isinstance(parser, Parser)  # the class that was asked for
        model, data = self.kinds
        parser.kinds = {"model": (self.model_base, model), "data": (self.data_base, data)}
        hints = get_type_hints(self.options_class)
        group = parser.add_argument_group(f"Options of {self.verb}") if hints else parser
        for each in fields(self.options_class):
            hint, help = hints[each.name], each.metadata["help"]
            kind: dict[str, Any] = {"action": "store_true"} if hint is bool else {"type": hint}
            group.add_argument(f"--{each.name}", default=each.default, help=help, **kind)
        super().add_default_arguments_to_parser(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what would otherwise be written twice, and add the callback everyone wants."""
        have_own_settings(parser)
        backbone = "model.init_args.backbone"
        parser.link_arguments(
            (f"{backbone}.name", f"{backbone}.tokenizer"),
            "data.init_args.text.tokenizer",
            compute_fn=_tokenizer,
        )
        for shared in ("revision", "trust_remote_code"):
            parser.link_arguments(f"{backbone}.{shared}", f"data.init_args.text.{shared}")
        parser.add_lightning_class_args(Throughput, "throughput")
        if self.method is not None:
            self.method_options = parser.add_method_arguments(Trainer, self.method, skip=GIVEN_BY_TRAINER)
            return
        for name in ("ckpt_path", "weights_only"):
            if name not in {each.name for each in fields(self.options_class)}:
                parser.add_argument(f"--{name}", default=None, help="of a saved run; without effect here")

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str] | None) -> None:  # type: ignore[override]
        """Parse words only; the base class warns whenever a program calls it with words of its own."""
        try:
            self.config = parser.parse_args(args)
        except UNREADABLE as error:  # jsonargparse lets through what it does not expect
            if short_failure(error) is not None:
                raise
            files = [
                word
                for before, word in zip(("", *self.words), self.words, strict=False)
                if before == "--config"
            ]
            where = f"{' or '.join(files)}, or an option," if files else "an option"
            self.fail(
                f"{where} holds what cannot be read as settings ({type(error).__name__}: {error!s:.300})"
            )

    def instantiate_trainer(self, **settings: Any) -> Trainer:  # noqa: ANN401  as Lightning has it
        """Make a trainer whose checkpoints are whole and can be found again; what there is to say of a run comes last."""
        given = self.config_init["trainer"].get("callbacks") or []
        chosen = [*given] if isinstance(given, list) else [given]  # Lightning adds its own to the list itself
        trainer: Trainer = super().instantiate_trainer(**settings)
        for place, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
            if type(callback) is RichProgressBar and callback not in chosen:
                trainer.callbacks[place] = RunProgress()  # type: ignore[attr-defined]
        keep_whole(trainer, self.config_init["trainer"].get("plugins"))
        trainer.callbacks.insert(0, RunKeeper(self.recipe))  # type: ignore[attr-defined]
        if self.method == "fit":
            trainer.callbacks.append(RunRecorder([self.verb, *self.words]))  # type: ignore[attr-defined]
        trainer.callbacks.append(Notices())  # type: ignore[attr-defined]
        if self.method == "fit" and not any(isinstance(each, SaveOnSignal) for each in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks.append(SaveOnSignal())  # type: ignore[attr-defined]
        return trainer

    def before_instantiate_classes(self) -> None:
        """Choose the checkpoint, as plain values unless the user says otherwise; check the verb's own options."""
        if self.config.get("weights_only") is None:
            self.config.weights_only = True
        try:
            check_sources(self.config.get("config") or (), self.words)
        except ValueError as error:
            self.fail(str(error))
        follow_root_folder(self.config)
        if self.method not in (None, "fit"):
            leave_runs_alone(self.config)
        self.recipe = recipe(self.parser, self.config)
        given = self.config.clone()
        given.ckpt_path = None  # a run that goes on keeps what it would keep if it had never stopped
        chosen = self.config.ckpt_path in (
            "last",
            "best",
        )  # a path is looked at by the verbs that are no method
        if (
            self.config.ckpt_path
            and (chosen or self.method is not None)
            and settle_checkpoint(self.config, self.recipe, self.method == "fit")
        ):
            self.save_config_callback = _saving(given)
        values = {each.name: self.config[each.name] for each in fields(self.options_class)}
        try:
            self.options = self.options_class(**values)
        except ValueError as error:
            self.fail(str(error))
        if self.config.get("model.init_args.backbone.quantization"):
            show_messages(BITSANDBYTES)

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; whatever the verb, the data know the network that will read them."""
        super().instantiate_classes()
        self.datamodule.network = self.model

    # What a verb does with it --------------------------------------------------------------------------

    def run_method(self, **settings: object) -> None:
        """Run the trainer's method on model and data, with what the options say and these settings."""
        assert self.method is not None  # the caller named it
        settings |= {name: self.config_init[name] for name in self.method_options}
        if self.method == "fit":
            check_writable(self.trainer)
        getattr(self.trainer, self.method)(self.model, datamodule=self.datamodule, **settings)

    def connect(self) -> None:
        """Make trainer, model and data known to each other, as a run would, for what is no run."""
        self.trainer.strategy.connect(self.model)
        self.trainer.datamodule = self.datamodule  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        self.datamodule.trainer = self.model.trainer = self.trainer

    def fail(self, message: str) -> NoReturn:
        """Stop with status 2 and a message about the options."""
        self.parser.error(message)


class PluralignCLI(TextCLI[OptionsT, RewardModule, PreferenceDataModule]):
    """The same for a verb that needs judged responses, and a model that rewards them."""

    model_base = RewardModule
    data_base = PreferenceDataModule
    kinds = ("reward models", "data with responses")
    model: RewardModule
    datamodule: PreferenceDataModule


def _saving(given: Namespace) -> Any:  # noqa: ANN401  stands for a class in LightningCLI
    """What makes the callback that saves a configuration, of this one in place of the settled one."""
    return lambda parser, _, **settings: SettingsSaver(parser, given, **settings)


def _tokenizer(name: str | None, tokenizer: str | None) -> str:
    """Tokenizer of a backbone: its own choice, else the one of its weights, else the built-in one."""
    return tokenizer or name or "byte"
