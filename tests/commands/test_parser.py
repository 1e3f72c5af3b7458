"""Values of the command line arrive as they were typed, at every depth, and a wrong one is told in a line."""

import dataclasses
import inspect
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import lightning as L
import pytest

import pluralign.callbacks
import pluralign.datamodules
import pluralign.models
from pluralign.commands.cli import NoOptions, TextCLI
from pluralign.commands.parser import Parser, short_message
from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.prompt_batch import RewardFunction
from pluralign.datamodules.text_data import TextData
from pluralign.models import BaseModule, RespondingModule, RewardModule
from pluralign.train import main


def classes(room, base):
    """The classes of a room's face that a configuration can name."""
    values = [getattr(room, name) for name in room.__all__]
    return [
        value
        for value in values
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    ]


CLASSES = [
    *(("model", each) for each in classes(pluralign.models, RewardModule)),
    *(("data", each) for each in classes(pluralign.datamodules, PreferenceDataModule)),
    *(("trainer.callbacks", each) for each in classes(pluralign.callbacks, L.Callback)),
]


def parser():
    built = Parser(exit_on_error=False)
    built.add_subclass_arguments(RewardModule, "model", required=False)
    built.add_subclass_arguments(PreferenceDataModule, "data", required=False)
    built.add_argument("--trainer.callbacks", type=list[L.Callback] | None, default=None)
    return built


def hints_of(cls):
    """Settings of a class with their types: of the constructor, its parents' where it passes them on, of a dataclass."""
    if dataclasses.is_dataclass(cls):
        return get_type_hints(cls)
    found = {}
    for each in reversed(cls.__mro__):
        if "__init__" in vars(each) and each.__module__.startswith("pluralign."):
            hints = get_type_hints(each.__init__)
            names = inspect.signature(each.__init__).parameters.values()
            found |= {name.name: hints[name.name] for name in names if name.kind == name.KEYWORD_ONLY}
            found |= {
                name.name: hints[name.name]
                for name in names
                if name.kind == name.POSITIONAL_OR_KEYWORD and name.name in hints
            }
    return found


def required(cls):
    """What has no default, with a value: of texts, and of the data modules that one is made of."""
    values = {
        str: "needed",
        dict[str, PreferenceDataModule]: '{"one": {"class_path": "SyntheticDataModule"}}',
        RewardFunction: "operator.length_hint",  # the import path of any function
    }
    parameters = inspect.signature(cls.__init__).parameters.values()
    needed = [each for each in parameters if each.default is each.empty and each.annotation in values]
    return {each.name: values[each.annotation] for each in needed}


def nullable(cls, prefix="", below=False):
    """Every setting that may be None, with whether one around it may be, too."""
    for name, hint in hints_of(cls).items():
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if NoneType in choices:
            yield f"{prefix}{name}", below
        for choice in choices:
            if dataclasses.is_dataclass(choice):
                yield from nullable(choice, f"{prefix}{name}.", below or NoneType in choices)


def at(values, key, path):
    found = values[key][-1] if key == "trainer.callbacks" else values[key]
    found = found["init_args"]
    for name in path.split("."):
        found = found[name]
    return found


@pytest.mark.parametrize(("key", "cls"), CLASSES, ids=lambda value: getattr(value, "__name__", value))
def test_null_is_none_for_every_setting_that_may_be(key, cls):
    for inner in (False, True):
        paths = [path for path, below in nullable(cls) if below == inner]
        words = [f"--{key}{'+' if key == 'trainer.callbacks' else ''}={cls.__name__}"]
        words += [f"--{key}.{name}={value}" for name, value in required(cls).items()]
        for path in paths:
            words += [f"--{key}.{path}", "null"]
        values = parser().parse_args(words)
        assert [at(values, key, path) for path in paths] == [None] * len(paths)


def test_the_walk_reaches_the_depths():
    models = dict(nullable(pluralign.models.DPRM))
    assert {
        "backbone.name": False,
        "backbone.lora": False,
        "backbone.lora.target_modules": True,
    }.items() <= models.items()
    data = dict(nullable(pluralign.datamodules.LocalDataModule))
    assert {"loader.features", "loader.max_tokens", "text.max_length"} & set(data)
    assert sum(len(list(nullable(cls))) for _, cls in CLASSES) > 150


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("None", "None"),
        ("null", None),
        ("'null'", "'null'"),
        ("a=b", "a=b"),
        ("1.0", "1.0"),
        ("{x", "{x"),
        ("", ""),
    ],
)
def test_text_arrives_as_it_was_typed(typed, value):
    words = ["--model=BradleyTerryRM", "--model.backbone.name=before", "--model.backbone.name", typed]
    assert parser().parse_args(words).model.init_args.backbone.name == value


def test_values_within_a_value_arrive_too():
    config = '{"rope_scaling": null, "attention_bias": true, "name": "None"}'
    values = parser().parse_args(["--model=BradleyTerryRM", "--model.backbone.config", config])
    wanted = {"rope_scaling": None, "attention_bias": True, "name": "None"}
    assert values.model.init_args.backbone.config == wanted


def test_null_takes_back_what_a_configuration_said():
    words = ["--model=BradleyTerryRM", "--model.backbone.lora.rank=2", "--model.backbone.lora.dropout=0.5"]
    assert parser().parse_args(words).model.init_args.backbone.lora.rank == 2
    assert parser().parse_args([*words, "--model.backbone.lora=null"]).model.init_args.backbone.lora is None
    assert parser().parse_args([*words, "--model.backbone.lora.target_modules", "null"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.backbone.lora.rank=many", "--model.backbone.lora.rank must be int; got many"),
        (
            "--model.backbone.dtype=half",
            "--model.backbone.dtype must be Literal['float32', 'bfloat16', 'float16']; got half",
        ),
        ("--data.loader.batch_size=few", "--data.loader.batch_size must be int; got few"),
    ],
)
def test_a_wrong_value_is_told_in_a_line(word, message, capsys):
    words = ["--model=BradleyTerryRM", "--data=SyntheticDataModule", word]
    speaking = parser()
    speaking.exit_on_error, speaking.prog = True, "pluralign fit"
    with pytest.raises(SystemExit) as stop:
        speaking.parse_args(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"pluralign fit: error: {message}\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--model=PolicyTuner",
            "--model: pluralign predict takes reward models, and PolicyTuner is not one of them; there are AutoregressiveRM,",
        ),
        ("--model=BradleyTeryRM", "--model: nothing is called BradleyTeryRM; did you mean BradleyTerryRM?"),
        ("--model=Xyz", "--model: nothing is called Xyz; there are AutoregressiveRM,"),
        (
            "--data=StyleGrammarDataModule",
            "--data: pluralign predict takes data with responses, and StyleGrammarDataModule is not one of them; there are ",
        ),
    ],
)
def test_a_class_that_the_verb_does_not_take_is_told_in_a_line(word, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", word, "--model.backbone.config", '{"model_type": "llama"}'])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pluralign predict: error: {message}")
    assert "RewardModule" not in line


class Reading(TextCLI[NoOptions, BaseModule, TextData]):
    """A command line that is read, and makes nothing."""

    def __init__(self, words):
        super().__init__("fit", words, description=None, options=NoOptions, method="fit")

    def instantiate_classes(self):
        """Nothing."""


@pytest.mark.parametrize(
    "cls",
    [cls for cls in classes(pluralign.models, BaseModule) if cls is not BaseModule],
    ids=lambda cls: cls.__name__,
)
def test_the_tokenizer_of_every_model_is_that_of_its_data(cls):
    data = "StyleGrammarDataModule" if issubclass(cls, RespondingModule) else "SyntheticDataModule"
    words = [
        f"--model={cls.__name__}",
        "--model.backbone.name=folder",
        "--model.backbone.revision=main",
        f"--data={data}",
    ]
    cli = Reading(words)
    assert (cli.config.data.init_args.text.tokenizer, cli.config.data.init_args.text.revision) == (
        "folder",
        "main",
    )


def test_a_reward_that_is_not_there_is_told_in_a_line():
    message = (
        'Parser key "model.rewards":\n  - Type collections.abc.Callable[[collections.abc.Sequence[str]], typing.Any] expects '
        "a function or a callable class: module 'mine' has no attribute 'brevty'"
    )
    assert short_message(message) == (
        "--model.rewards must be a function or a class whose objects are called: module 'mine' has no attribute 'brevty'"
    )


def test_another_message_stays_as_it_is():
    for message in ("something else", 'Parser key "a":\n  no\nParser key "b":\n  neither'):
        assert short_message(message) == message
