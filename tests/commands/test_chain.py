"""The file of a chain: what it may say, what a strategy changes, and what is said of mistakes."""

from pathlib import Path

import pytest
import yaml

from pluralign.commands.chain import merged, read_chain

STAGES = [
    {"name": "base", "config": "fit.yaml"},
    {"name": "general", "config": ["fit.yaml", "more.yaml"], "start_from": "base", "checkpoint": "best"},
    {
        "name": "customized",
        "config": "fit.yaml",
        "start_from": "general",
        "options": {"trainer": {"max_epochs": 2}},
    },
]
MIXED = {"verb": "interpolate", "config": "fit.yaml", "general": "general", "customized": "customized"}
STRATEGIES = {
    "none": None,
    "longer": {"customized": {"options": {"trainer": {"max_epochs": 3}, "seed_everything": 1}}},
    "at_once": {"general": None, "customized": {"start_from": "base"}},
    "between": {"mixed": MIXED},
}


@pytest.fixture
def write(tmp_path):
    """Write a chain's file, with configurations beside it."""
    for name in ("fit.yaml", "more.yaml"):
        (tmp_path / name).write_text("{}\n")

    def written(**changes):
        path = tmp_path / "chain.yaml"
        path.write_text(
            yaml.safe_dump(
                {"folder": "out", "stages": STAGES, "strategies": STRATEGIES} | changes, sort_keys=False
            )
        )
        return path

    return written


def with_stage(**settings):
    return [*STAGES, {"name": "more", "config": "fit.yaml", **settings}]


def test_stages_are_as_the_file_has_them(write):
    path = write()
    chain = read_chain(path)
    base, general, customized = chain.stages
    assert (chain.folder, chain.strategy, chain.strategies) == (Path("out"), None, tuple(STRATEGIES))
    assert base.config == (path.parent / "fit.yaml",) and base.predecessors == {}
    assert [each.name for each in general.config] == ["fit.yaml", "more.yaml"]
    assert (general.start_from, general.checkpoint, customized.checkpoint) == ("base", "best", "last")
    assert customized.options == {"trainer": {"max_epochs": 2}}
    assert read_chain(path, folder=Path("elsewhere")).folder == Path("elsewhere")


def test_a_strategy_lays_its_options_over_a_stage_and_may_add_or_leave_out_one(write):
    path = write()
    assert read_chain(path, strategy="none").stages == read_chain(path).stages
    longer = read_chain(path, strategy="longer").stage("customized")
    assert longer.options == {"trainer": {"max_epochs": 3}, "seed_everything": 1}
    assert longer.start_from == "general"
    at_once = read_chain(path, strategy="at_once")
    assert [(stage.name, stage.start_from) for stage in at_once.stages] == [
        ("base", None),
        ("customized", "base"),
    ]
    mixed = read_chain(path, strategy="between").stages[-1]
    assert mixed.predecessors == {"general": "general", "customized": "customized"}


def test_an_interpolation_without_a_config_has_the_settings_of_its_customised_stage(write):
    mixed = {key: value for key, value in MIXED.items() if key != "config"}
    mixed["options"] = {"alphas": "0,1", "trainer": {"precision": 32}}
    path = write(strategies={"between": {"mixed": mixed}, "own": {"mixed": MIXED}})
    stage = read_chain(path, strategy="between").stage("mixed")
    assert [each.name for each in stage.config] == ["fit.yaml"] and stage.settings_of == "customized"
    assert stage.options == {"trainer": {"max_epochs": 2, "precision": 32}, "alphas": "0,1"}
    own = read_chain(path, strategy="own").stage("mixed")
    assert own.settings_of is None and own.options == {}


def test_another_class_takes_none_of_the_settings_of_the_one_before():
    before = {"optimizer": {"class_path": "SGD", "init_args": {"lr": 1.0, "momentum": 0.9}}}
    other = {"optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.1}}}
    assert merged(before, other) == other
    assert merged(before, {"optimizer": {"init_args": {"lr": 0.5}}}) == {
        "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.5, "momentum": 0.9}}
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stagse": []}, r"chain\.yaml: the file has an unknown key 'stagse'; did you mean 'stages'\? There is folder, "),
        ({"stages": {}}, r"stages must be a list of stages, each with a name and a config; got \{\}"),
        ({"folder": None}, r"folder must name the folder of all stages, got None"),
        ({"stages": with_stage(strat_from="base")}, r"stage more has an unknown key 'strat_from'; did you mean 'start_from'"),
        ({"stages": with_stage(name="two words")}, r"stages\[3\]: name must be letters, digits and .*'two words'"),
        ({"stages": with_stage(name="trainer")}, r"no stage can be called 'trainer', as options of fit begin so"),
        ({"stages": with_stage(name="base")}, r"stages\[3\] is called 'base', and so is another one"),
        ({"stages": with_stage(start_from="genral")}, r"must be an earlier stage, got 'genral'; did you mean 'general'\? There is base, "),
        ({"stages": with_stage(start_from="more")}, r"start_from must be an earlier stage, got 'more'"),
        ({"stages": with_stage(checkpoint="first")}, r"checkpoint must be one of last, best, got 'first'"),
        ({"stages": with_stage(verb="test")}, r"verb must be one of fit, interpolate, got 'test'"),
        ({"stages": with_stage(verb="interpolate", general="base")}, r"needs the stages general and customized"),
        ({"stages": with_stage(general="base")}, r"general is no key of verb fit, which takes start_from"),
        ({"stages": with_stage(**MIXED, start_from="base")}, r"start_from is no key of verb interpolate"),
        ({"stages": with_stage(config=None)}, r"config must name a configuration, or a list of them; got None"),
        ({"strategies": {"x": {"genral": {"options": {}}}}}, r"strategies\.x\.genral is no stage; did you mean 'general'"),
        ({"strategies": {"x": {"genral": None}}}, r"strategies\.x\.genral leaves out a stage that is none"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named_with_what_is_allowed(write, changes, message):
    with pytest.raises(ValueError, match=message):
        read_chain(write(**changes), strategy="x" if "x" in changes.get("strategies", {}) else None)


def test_a_strategy_that_the_file_does_not_have_is_named_with_the_nearest(write):
    with pytest.raises(
        ValueError, match=r"no strategy 'longr'; did you mean 'longer'\? There is none, longer, at_once"
    ):
        read_chain(write(), strategy="longr")


def test_files_that_are_not_there_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config: there is no file .*missing\.yaml"):
        read_chain(tmp_path / "missing.yaml")
    with pytest.raises(
        FileNotFoundError, match=r"stage more: there is no configuration .*fitt\.yaml; did you mean fit\.yaml"
    ):
        read_chain(write(stages=with_stage(config="fitt.yaml")))


def test_a_configuration_of_one_run_is_no_chain(tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text("model: {class_path: BradleyTerryRM}\n")
    with pytest.raises(
        ValueError, match="is a configuration of one run and no chain: give it to `pluralign fit`"
    ):
        read_chain(path)
