"""Axes, poles, dimensions and the combinations of them."""

import pytest

from pluralign.datamodules.prompts import PreferenceSpace
from pluralign.datamodules.records import RecordError

AXES = {
    "tone": {"kind": "Be kind. ", "rude": "Be rude."},
    "length": {"short": "Be brief.", "long": "Say all."},
}
FULL = [(f"tone.{tone}", f"length.{length}") for tone in ("kind", "rude") for length in ("short", "long")]


def test_dimensions_stand_axis_after_axis():
    space = PreferenceSpace(AXES)
    assert space.dimensions == ("tone.kind", "tone.rude", "length.short", "length.long")
    assert space.axes == {"tone": ("kind", "rude"), "length": ("short", "long")}
    assert space.sentences == ("Be kind.", "Be rude.", "Be brief.", "Say all.")
    assert space.combinations == FULL and not space.drawn


def test_without_axes_there_is_one_preference_for_nothing():
    space = PreferenceSpace({})
    assert (space.dimensions, space.combinations, space.sentence(())) == ((), [()], "")


def test_a_preference_is_said_in_the_order_of_the_axes():
    space = PreferenceSpace(AXES, [["length.long", "tone.kind"], ["tone.rude"], []])
    assert space.combinations == [("tone.kind", "length.long"), ("tone.rude",), ()]
    assert [space.sentence(one) for one in space.combinations] == ["Be kind. Say all.", "Be rude.", ""]
    assert [space.places(one) for one in space.combinations] == [[0, 3], [1], []]


def test_what_is_held_out_is_for_test_alone():
    space = PreferenceSpace(AXES, held_out=[["length.short", "tone.kind"]])
    assert space.held_out == FULL[:1]
    for split, there in (
        ("train", FULL[1:]),
        ("validation", FULL[1:]),
        ("test", FULL[:1]),
        ("predict", FULL),
    ):
        assert space.of_split(split) == there
        assert [space.fits(one, split) for one in FULL] == [one in there for one in FULL]
    assert PreferenceSpace(AXES).of_split("test") == FULL


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combinations": [["tone.sweet"]]}, r"preferences: \['tone.sweet'\] is no preference: 'tone.sweet'; allowed: .*tone.kind, tone.rude"),
        ({"combinations": [["kind"]]}, "'kind'; allowed: a list of dimensions"),
        ({"combinations": [["mood.kind"]]}, "'mood.kind'; allowed"),
        ({"combinations": [["tone.kind", "tone.rude"]]}, "of one pole an axis at most"),
        ({"combinations": ["tone.kind"]}, "preferences: .* is no preference"),
        ({"combinations": [["tone.kind"], ["tone.kind"]]}, r"preferences has \['tone.kind'\] twice"),
        ({"combinations": []}, "preferences must list one combination at least"),
        ({"combinations": "some"}, "preferences must be all, draw or a list of lists of dimensions; got 'some'"),
        ({"held_out": [["tone.gruff", "length.short"]]}, "held_out: .* is no preference: 'tone.gruff'; allowed: .*length.long"),
        ({"held_out": [["tone.kind"]]}, "held_out names tone.kind, which no prompt asks for; there are tone.kind \\+ length.short"),
        ({"held_out": FULL}, "held_out holds out every combination"),
        ({"axes": {"tone": {}}}, "axes.tone has no pole"),
        ({"axes": {"to.ne": {"kind": "Be kind."}}}, "names of axes and poles must show something and have no dot; got 'to.ne'"),
        ({"axes": {"tone": {" ": "Be kind."}}}, "must show something"),
        ({"axes": {"tone": {"kind": " "}}}, "axes.tone.kind must be a sentence"),
        ({"axes": {"tone": {"kind": None}}}, "axes.tone.kind must be a sentence"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PreferenceSpace(**{"axes": AXES, **settings})


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("tone.kind", "wrong type"),
        (3, "wrong type"),
        ([3], "unknown dimension"),
        (["tone.sweet"], "unknown dimension"),
        (["tone.kind", "tone.kind"], "two poles of an axis"),
    ],
)
def test_a_rows_preference_that_is_wrong(names, reason):
    with pytest.raises(RecordError) as caught:
        PreferenceSpace(AXES).combination(names)
    assert (caught.value.field, caught.value.reason) == ("preference", reason)
    assert "tone.kind, tone.rude, length.short, length.long" in caught.value.allowed


def test_a_rows_preference_where_there_are_no_axes():
    with pytest.raises(RecordError, match="none, for there are no axes"):
        PreferenceSpace({}).combination(["tone.kind"])
