"""The map of prototypes on real runs: coordinates, favourites, files, and what it refuses."""

import json
import struct
import warnings
from pathlib import Path

import pytest
import torch

from pluralign.callbacks import PrototypeMap
from pluralign.callbacks.pictures import draw_prototype_table, save_picture, shortened
from pluralign.callbacks.pictures.prototypes import stood_apart
from pluralign.datamodules import LoaderConfig, PersonaDataModule
from pluralign.metrics import PrototypeTable
from pluralign.models import PAL, BackboneConfig, BradleyTerryRM, StoredFeatures
from pluralign.tests.callbacks.conftest import HandMade

REAL = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "anthropic-evals"

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")


class OnFeatures(PAL):
    """PAL on two numbers per response that the batch brings along; prototypes at the unit vectors."""

    def __init__(self, **settings):
        given = {"projector": "identity", "num_prototypes": 2, "score": "squared_distance", **settings}
        super().__init__(BackboneConfig(config=TINY, frozen=True), optimizer=still, **given)

    def make_backbone(self):
        return StoredFeatures(2)

    def configure_model(self):
        new = self.backbone is None
        super().configure_model()
        if new:
            with torch.no_grad():
                if self.network.prototypes is not None:
                    self.network.prototypes.copy_(torch.eye(2)[: self.num_prototypes])
            if self.num_prototypes == 2:
                self.set_weights(self.users[:3], torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]))


class Diverged(OnFeatures):
    """Its rewards are no numbers."""

    def validation_step(self, batch, batch_idx):
        output = super().validation_step(batch, batch_idx)
        basis = output["basis"]
        return {**output, "basis": basis._replace(rewards=basis.rewards * torch.nan)}


class Silent(OnFeatures):
    """Its steps tell callbacks nothing."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def make_batches(sizes=(3, 1, 2), drop=()):
    """Prompts with two responses each, judged by three users in turn."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number, size in enumerate(sizes):
        responses = torch.arange(2 * size)
        batch = {
            "id": [f"prompt [{number}.{i}]" for i in range(size)],
            "features": 2 * torch.randn(2 * size, 2, generator=generator),
            "prompt_features": torch.randn(size, 2, generator=generator),
            "response_row": responses,
            "response_prompt": responses // 2,
            "response_index": 1 - responses % 2,
            "comparisons": responses.view(-1, 2),
            "preference": torch.ones(size),
            "user_id": torch.arange(size) % 3,
        }
        batches.append({name: value for name, value in batch.items() if name not in drop})
    return batches


class Data(HandMade):
    def __init__(self, batches=None, users=("ada", "ben", "cyd")):
        super().__init__(make_batches() if batches is None else batches, users)


class Grouped(Data):
    def user_groups(self):
        return {"ada": "north", "ben": "north", "cyd": 7, "nobody": "south"}


def read(folder, name="val_step000000"):
    return json.loads((folder / "prototype_map" / f"{name}.json").read_text(encoding="utf-8"))


def places(content):
    """Items, prototypes and users, as the file has them."""
    prototypes = [one["place"] for one in content["prototypes"]]
    rows = [*content["items"]["place"], *prototypes, *content["users"]["place"]]
    return torch.tensor(rows, dtype=torch.float64)


def assert_rotated(content, wanted):
    """Coordinates differ by a motion: every distance is the same; ideal points vary most along the first axis."""
    found, wanted = places(content), wanted.double()
    assert torch.allclose(torch.cdist(found, found), torch.cdist(wanted, wanted), atol=1e-5)
    assert torch.allclose(found.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    guides = found[len(content["items"]["id"]) :] if len(content["prototypes"]) > 1 else found
    guides = guides - guides.mean(0)
    assert float((guides.T @ guides)[0, 1]) == pytest.approx(0, abs=1e-4)
    assert guides[:, 0].var() >= guides[:, 1].var()


def picture_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 15_000, "not an empty page"
    return struct.unpack(">II", content[16:24])


def named(batches):
    return [
        (batch["id"][p], i)
        for batch in batches
        for p, i in zip(batch["response_prompt"].tolist(), batch["response_index"].tolist(), strict=True)
    ]


# Parts ---------------------------------------------------------------------------------------------------


def test_long_texts_are_shortened_to_one_line():
    assert shortened("two\n  lines", 20) == "two lines"
    assert shortened("exactly ten and more", 10) == "exactly..."
    assert len(shortened("abcdefghijklmnop", 10)) == 10


# Runs ----------------------------------------------------------------------------------------------------


def test_a_validation_is_mapped_as_by_hand(trainer, tmp_path, capsys):
    data, module = Data(), OnFeatures()
    trainer(PrototypeMap(num_examples=2)).validate(module, data, verbose=False)
    content = read(tmp_path)
    features = torch.cat([batch["features"] for batch in data.hand_made])
    weights = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    assert_rotated(content, torch.cat([features, torch.eye(2), weights]))
    names = named(data.hand_made)
    assert list(zip(content["items"]["id"], content["items"]["response"], strict=True)) == names
    assert (content["stage"], content["step"], content["ranks"], content["prompt"]) == ("val", 0, 1, None)
    assert (content["num_items"], content["num_responses"], content["num_users"]) == (12, 12, 3)
    assert content["users"]["user"] == ["ada", "ben", "cyd"]
    assert content["users"]["largest"] == [0, -1, 1]
    assert content["users"]["group"] is None
    assert content["groups"] == []
    assert torch.tensor(content["users"]["weights"]).allclose(weights, atol=1e-6)
    assert content["num_users_tied"] == 1
    assert content["effective_prototypes"] == pytest.approx(float(module.effective_prototypes()))
    for k, one in enumerate(content["prototypes"]):
        rewards = [-float((row - torch.eye(2)[k]).square().sum()) for row in features]
        ranked = sorted(range(12), key=lambda i: rewards[i])
        for key, numbers in (("top", ranked[::-1][:2]), ("bottom", ranked[:2])):
            assert [(e["id"], e["response"]) for e in one[key]] == [names[i] for i in numbers]
            assert [e["reward"] for e in one[key]] == pytest.approx([rewards[i] for i in numbers], abs=1e-5)
            assert all(e["text"] is None for e in one[key])
        assert one["num_users"] == 1
        assert one["mean_weight"] == pytest.approx(float(weights[:, k].mean()), abs=1e-6)
    assert picture_size(tmp_path / "prototype_map" / "val_step000000.png") == (1560, 912)
    printed = capsys.readouterr().out
    shown = " ".join(printed.split())
    assert "Validation at step 0: 2 prototypes (effectively" in shown
    assert "3 of 3 users" in shown
    assert "1 users have no largest weight" in shown
    first = content["prototypes"][0]["top"][0]
    assert f"+{first['reward']:10.3f}" in printed
    assert f"{first['id']} response {first['response']}"[:20] in printed, "the record stands for its text"
    path = tmp_path / "prototype_map" / "val_step000000"
    assert printed.rstrip().endswith(f"prototype map: {path}.json and .png")


def test_rewards_within_prompts(trainer, tmp_path):
    data = Data()
    trainer(PrototypeMap(num_examples=1, within_prompts=True)).validate(OnFeatures(), data, verbose=False)
    content = read(tmp_path)
    assert content["within_prompts"] is True
    features = torch.cat([batch["features"] for batch in data.hand_made]).view(6, 2, 2)
    for k, one in enumerate(content["prototypes"]):
        rewards = -(features - torch.eye(2)[k]).square().sum(-1)
        deviation = (rewards - rewards.mean(1, keepdim=True)).flatten()
        names = named(data.hand_made)
        assert one["top"][0]["reward"] == pytest.approx(float(deviation.max()), abs=1e-5)
        assert (one["top"][0]["id"], one["top"][0]["response"]) == names[int(deviation.argmax())]
        assert (one["bottom"][0]["id"], one["bottom"][0]["response"]) == names[int(deviation.argmin())]


def test_a_fit_writes_the_last_validation_only(trainer, tmp_path, capsys):
    trainer(PrototypeMap(), max_epochs=3, num_sanity_val_steps=-1).fit(OnFeatures(), Data())
    folder = tmp_path / "prototype_map"
    assert sorted(path.name for path in folder.iterdir()) == ["val_step000009.json", "val_step000009.png"]
    assert read(tmp_path, "val_step000009")["num_responses"] == 12
    assert capsys.readouterr().out.count("Validation at step 9: ") == 1


def test_a_sanity_check_alone_leaves_nothing(trainer, tmp_path, capsys):
    module = OnFeatures()
    run = trainer(PrototypeMap(), num_sanity_val_steps=2, max_epochs=2, check_val_every_n_epoch=9)
    run.fit(module, Data())
    assert not (tmp_path / "prototype_map").exists()
    assert "prototype map" not in capsys.readouterr().out
    assert not module.network._forward_hooks


def test_test_is_mapped_too_and_the_network_is_left_alone(trainer, tmp_path):
    module, callback = OnFeatures(), PrototypeMap()
    run = trainer(callback)
    run.test(module, Data(), verbose=False)
    assert read(tmp_path, "test_step000000")["stage"] == "test"
    assert picture_size(tmp_path / "prototype_map" / "test_step000000.png") == (1560, 912)
    assert not module.network._forward_hooks


def test_what_is_drawn_is_bounded_and_counted(trainer, tmp_path, capsys):
    found = []
    for seed in (0, 0, 1):
        callback = PrototypeMap(max_items=5, max_users=2, seed=seed)
        trainer(callback).validate(OnFeatures(), Data(), verbose=False)
        found.append(read(tmp_path))
    assert found[0] == found[1] != found[2]
    content = found[0]
    assert (
        len(content["items"]["place"])
        == len(set(zip(content["items"]["id"], content["items"]["response"], strict=True)))
        == 5
    )
    assert (content["num_items"], content["num_responses"]) == (12, 12)
    assert len(content["users"]["user"]) == 2
    assert sum(one["num_users"] for one in content["prototypes"]) + content["num_users_tied"] == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 users, 5 of 12 responses" in shown
    features = {
        name: row
        for batch in Data().hand_made
        for name, row in zip(named([batch]), batch["features"], strict=True)
    }
    rows = [features[name] for name in zip(content["items"]["id"], content["items"]["response"], strict=True)]
    found = places(content)[:5]
    assert torch.allclose(
        torch.cdist(found, found), torch.cdist(torch.stack(rows), torch.stack(rows)).double(), atol=1e-5
    )


def test_angles_are_drawn_on_the_circle(trainer, tmp_path):
    data = Data()
    trainer(PrototypeMap()).validate(OnFeatures(score="angle"), data, verbose=False)
    features = torch.cat([batch["features"] for batch in data.hand_made])
    weights = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    both = torch.nn.functional.normalize(torch.cat([features, torch.eye(2), weights]), dim=-1)
    assert_rotated(read(tmp_path), both)


@pytest.mark.parametrize("mix", ["Pw", "f(Pw)", "f(P)w"])
def test_ideal_points_are_the_networks(trainer, tmp_path, mix):
    module, data = OnFeatures(mix=mix, projector="mlp1-tanh-dropout0"), Data()
    trainer(PrototypeMap()).validate(module, data, verbose=False)
    network = module.network
    features = torch.cat([batch["features"] for batch in data.hand_made])
    with torch.no_grad():
        weights = torch.cat([torch.eye(2), module.weights_of(data.users)])
        if mix == "f(Pw)":
            ideal = network.project(weights @ network.prototypes)
        else:
            ideal = weights @ (network.prototypes if mix == "Pw" else network.project(network.prototypes))
        assert_rotated(read(tmp_path), torch.cat([network.project(features), ideal]))


def test_one_prototype_needs_no_users(trainer, tmp_path, capsys):
    data = Data(make_batches(drop=("user_id",)), users=())
    trainer(PrototypeMap()).validate(OnFeatures(num_prototypes=1), data, verbose=False)
    content = read(tmp_path)
    features = torch.cat([batch["features"] for batch in data.hand_made])
    assert_rotated(content, torch.cat([features, torch.eye(2)[:1]]))
    assert content["users"]["user"] == []
    (one,) = content["prototypes"]
    assert (one["mean_weight"], one["num_users"], content["num_users_tied"]) == (1.0, 1, 0)
    assert picture_size(tmp_path / "prototype_map" / "val_step000000.png") == (912, 912)
    assert "1 prototype, 12 of 12 responses" in capsys.readouterr().out


# Version B -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt_id", "number", "place"), [(None, 0, 0), ("prompt [2.1]", 2, 1)])
def test_prototypes_of_a_prompt(trainer, tmp_path, prompt_id, number, place, capsys):
    module, data = OnFeatures(version="B", projector="linear"), Data()
    trainer(PrototypeMap(prompt_id=prompt_id)).validate(module, data, verbose=False)
    content, batch = read(tmp_path), data.hand_made[number]
    assert content["prompt"] == batch["id"][place]
    assert content["items"] == {
        "id": [batch["id"][place]] * 2,
        "response": [1, 0],
        "place": content["items"]["place"],
    }
    assert (content["num_items"], content["num_responses"]) == (2, 12)
    with torch.no_grad():
        items = module.network.project(batch["features"][2 * place : 2 * place + 2])
        prototypes = module.network.prompt_projectors(batch["prompt_features"])[place]
        ideal = module.weights_of(data.users) @ prototypes
        rewards = torch.cat([module.basis_rewards(each) for each in data.hand_made])
    assert_rotated(content, torch.cat([items, prototypes, ideal]))
    assert content["within_prompts"] is True, "by default, since each prompt has prototypes of its own"
    pairs = rewards.view(6, 2, 2)
    largest = (pairs - pairs.mean(1, keepdim=True)).flatten(0, 1).amax(0)
    tops = [one["top"][0]["reward"] for one in content["prototypes"]]
    assert tops == pytest.approx(largest.tolist(), abs=1e-5)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"2 of 2 responses to the prompt {batch['id'][place]}" in shown


def test_a_prompt_that_does_not_come_is_replaced_with_a_warning(trainer, tmp_path):
    run = trainer(PrototypeMap(prompt_id="another"))
    with pytest.warns(
        UserWarning, match=r"no record 'another' in this validation; 'prompt \[0.0\]' is drawn"
    ):
        run.validate(OnFeatures(version="B", projector="linear"), Data(), verbose=False)
    assert read(tmp_path)["prompt"] == "prompt [0.0]"


def test_a_prompt_is_for_version_b(trainer):
    with pytest.raises(
        ValueError, match=r"prompt_id='q' .* those of OnFeatures are points: leave prompt_id null"
    ):
        trainer(PrototypeMap(prompt_id="q")).fit(OnFeatures(), Data())


# Groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "data", "groups"),
    [
        (PrototypeMap(), Grouped, ["north", "north", "7"]),
        (PrototypeMap(groups={"ada": "east", "cyd": "west"}), Grouped, ["east", None, "west"]),
        (PrototypeMap(), Data, None),
    ],
)
def test_groups_come_from_the_argument_or_the_data(trainer, tmp_path, callback, data, groups):
    trainer(callback).validate(OnFeatures(), data(), verbose=False)
    content = read(tmp_path)
    assert content["users"]["group"] == groups
    if groups == ["north", "north", "7"]:
        first, second = content["groups"]
        assert (first["group"], first["num_users"], second["group"], second["num_users"]) == (
            "7",
            1,
            "north",
            2,
        )
        assert second["mean_weights"] == pytest.approx([0.7, 0.3], abs=1e-6)
    elif groups:
        assert [one["group"] for one in content["groups"]] == ["east", "west", None]


def test_groups_of_other_users_are_refused(trainer):
    message = (
        r"groups must name users of the module, which has 3 users such as \['ada', 'ben', 'cyd'\]; got 1"
    )
    with pytest.raises(ValueError, match=message):
        trainer(PrototypeMap(groups={"eve": "east"})).fit(OnFeatures(), Data())


# Texts ---------------------------------------------------------------------------------------------------


def synthetic(data, version="A"):
    module = PAL(BackboneConfig(config=TINY), num_prototypes=3, version=version)
    return module, data(num_users=6, loader=LoaderConfig(batch_size=4, prompts=version == "B"))


@pytest.mark.parametrize(("version", "source"), [("A", "validation"), ("B", "test")])
def test_texts_are_those_of_the_data(trainer, tmp_path, data, version, source, capsys):
    module, texts = synthetic(data, version)
    run = trainer(PrototypeMap(num_examples=4), limit_train_batches=1)
    if source == "validation":
        run.fit(module, texts)
        content = read(tmp_path, "val_step000001")
    else:
        run.test(module, texts, verbose=False)
        content = read(tmp_path, "test_step000000")
    phrases = {row.fields["id"]: row.fields["responses"] for row in texts.load(source)}
    found = [one for prototype in content["prototypes"] for one in (*prototype["top"], *prototype["bottom"])]
    assert len(found) == 24
    assert [one["text"] for one in found] == [phrases[one["id"]][one["response"]] for one in found]
    assert found[0]["text"] in capsys.readouterr().out
    assert content["num_users"] == 6
    assert content["num_users_tied"] == (6 if source == "test" else 0), "untrained users have even weights"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not beside this checkout")
def test_real_statements_and_personas(trainer, tmp_path):
    personas = ("interest-in-art", "interest-in-math")
    data = PersonaDataModule(data_dir=str(REAL), personas=personas, num_users=6, queries_per_user=8,
                             loader=LoaderConfig(batch_size=4))  # fmt: skip
    module = PAL(BackboneConfig(config=TINY), num_prototypes=2, user_init="normal")
    trainer(PrototypeMap(), limit_train_batches=1, limit_val_batches=1).fit(module, data)
    content = read(tmp_path, "val_step000001")
    assert {one["group"] for one in content["groups"]} == set(personas)
    asked = {text for row in data.load("validation") for text in row.fields["statements"]}
    assert all(one["text"] in asked for prototype in content["prototypes"] for one in prototype["top"])


# What is refused -----------------------------------------------------------------------------------------


def test_a_module_without_prototypes_is_refused(trainer, module, data):
    with pytest.raises(
        ValueError, match="such as PAL; BradleyTerryRM has no built_network, no effective_prot"
    ):
        trainer(PrototypeMap()).fit(module(BradleyTerryRM), data())


def test_a_module_whose_steps_say_nothing_is_refused(trainer):
    message = r"PrototypeMap needs a basis, .* as PAL gives it; Silent gives \[\]"
    with pytest.raises(ValueError, match=message):
        trainer(PrototypeMap()).validate(module := Silent(), Data(), verbose=False)
    assert not module.network._forward_hooks, "an error leaves nothing behind"


def test_a_batch_without_names_is_refused(trainer):
    with pytest.raises(ValueError, match="needs id, response_index in the batch"):
        data = Data(make_batches(drop=("id", "response_index")))
        trainer(PrototypeMap()).validate(OnFeatures(), data, verbose=False)


def test_rewards_that_are_no_numbers_make_no_map(trainer, tmp_path):
    run = trainer(PrototypeMap())
    with pytest.warns(UserWarning, match="places or rewards of this validation are not finite"):
        run.validate(Diverged(), Data(), verbose=False)
    assert not (tmp_path / "prototype_map").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_examples": 0}, "num_examples must be finite and >= 1; got 0"),
        ({"max_items": 0}, "max_items must be finite and >= 1; got 0"),
        ({"max_users": 0}, "max_users must be finite and >= 1; got 0"),
        ({"seed": -1}, "seed must be finite and >= 0; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PrototypeMap(**settings)


# Pictures and processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_prototypes", "num_users", "num_items", "num_groups"),
    [(2, 3, 1, 0), (10, 600, 1600, 3), (12, 3000, 40, 8), (3, 60, 60, 20)],
)
def test_pictures_of_any_size(tmp_path, num_prototypes, num_users, num_items, num_groups):
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(num_prototypes, 8, generator=generator)
    weights = torch.randn(num_users, num_prototypes, generator=generator).softmax(1)
    groups = (
        [f"group ${i % num_groups}$ of a long name that is cut" for i in range(num_users)]
        if num_groups
        else []
    )
    table = PrototypeTable(
        stage="test",
        step=1,
        ranks=1,
        prompt="a $ and $" if num_items == 1 else None,
        within_prompts=False,
        items=torch.randn(num_items, 8, generator=generator),
        item_names=[("a", i) for i in range(num_items)],
        num_items=num_items,
        num_responses=num_items,
        prototypes=prototypes,
        ideal_points=weights @ prototypes,
        drawn=range(num_users),
        users=[str(i) for i in range(num_users)],
        weights=weights,
        effective=1.0,
        top=[[]] * num_prototypes,
        bottom=[[]] * num_prototypes,
        groups=[*groups[:-1], None] if groups else [],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_picture(draw_prototype_table(table, "a $ and $"), tmp_path / "picture", ["png"])
    assert picture_size(tmp_path / "picture.png") == (1560, 912)


def crowded(**settings):
    """Four prototypes, of which the first two are one point and the last two almost; items spread in other directions."""
    generator = torch.Generator().manual_seed(1)
    prototypes = torch.zeros(4, 6)
    prototypes[:2, 0], prototypes[2:, 1], prototypes[3, 1] = 1.0, 1.0, 1.01
    weights = (3 * torch.randn(30, 4, generator=generator)).softmax(1)
    items = torch.randn(50, 6, generator=generator) * torch.tensor([2, 2, 9, 9, 9, 9])
    known = {
        "stage": "val", "step": 3, "ranks": 1, "prompt": None, "within_prompts": False, "items": items,
        "item_names": [("a", i) for i in range(50)], "num_items": 50, "num_responses": 50, "prototypes": prototypes,
        "ideal_points": weights @ prototypes, "drawn": range(30), "users": [str(i) for i in range(30)],
        "weights": weights, "effective": 4.0, "top": [[]] * 4, "bottom": [[]] * 4,
    }  # fmt: skip
    return PrototypeTable(**{**known, **settings})


def maps(figure):
    """The map and its part around the ideal points, by title."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def stars(axes):
    """Where stars stand, in points of print."""
    from matplotlib.collections import PathCollection

    groups = [one for one in axes.collections if isinstance(one, PathCollection) and one.get_zorder() == 7]
    places = torch.tensor([one.get_offsets()[0].tolist() for one in groups])
    return torch.as_tensor(axes.transData.transform(places.numpy())) * 72 / axes.get_figure(root=True).dpi


def test_both_panels_are_one_projection():
    table = crowded()
    whole, part = maps(draw_prototype_table(table, "title")).values()
    users = table.plane[-30:]
    for axes in (whole, part):
        offsets = [one.get_offsets().tolist() for one in axes.collections if len(one.get_offsets()) == 30]
        assert torch.allclose(torch.tensor(offsets[0]).double(), users), "the same coordinates in both"
        scale = axes.transData.transform([(0, 0), (1, 0), (0, 1)])
        assert (scale[1] - scale[0])[0] > 0 and (scale[2] - scale[0])[1] > 0, "and the same orientation"
        assert (scale[1] - scale[0])[0] == pytest.approx((scale[2] - scale[0])[1], rel=0.01), (
            "distances stay equal"
        )
    (left, right), (low, high) = part.get_xlim(), part.get_ylim()
    (frame,) = whole.patches
    assert frame.get_bbox().extents.tolist() == pytest.approx([left, low, right, high])
    assert right - left < 0.5 * (whole.get_xlim()[1] - whole.get_xlim()[0]), "the part is enlarged"


def test_stars_do_not_hide_one_another_and_point_to_their_places():
    figure = draw_prototype_table(crowded(), "title")
    for axes in maps(figure).values():
        found = stars(axes)
        assert len(found) == 4
        assert float(torch.cdist(found, found).fill_diagonal_(99).min()) > 21, "the width of a star"
        lines = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 2]
        wanted = crowded().plane[50:54]
        ends = torch.tensor([line[0].tolist() for line in lines]).double()
        assert torch.allclose(ends, wanted), "each line begins where its prototype is"


def test_places_are_moved_no_more_than_they_must():
    far = torch.tensor([[0.0, 0], [30, 0], [0, 30]])
    assert torch.equal(stood_apart(far, 20), far.double())
    for number in (2, 9, 40):
        moved = stood_apart(torch.zeros(number, 2), 20)
        assert float(torch.cdist(moved, moved).fill_diagonal_(99).min()) > 19.5
        assert float(moved.norm(dim=1).max()) < 1.2 * 20 * number**0.5
        assert torch.equal(moved, stood_apart(torch.zeros(number, 2), 20))


def test_the_headline_says_how_well_the_module_does(trainer, tmp_path):
    data, module, callback = Data(), OnFeatures(), PrototypeMap(formats=["svg"])
    run = trainer(callback)
    run.validate(module, data, verbose=False)
    content = read(tmp_path)
    assert content["accuracy"] == pytest.approx(float(run.callback_metrics["val/accuracy"]))
    assert content["log_loss"] == pytest.approx(float(run.callback_metrics["val/log_loss"]), abs=1e-5)
    assert content["num_judgements"] == 6
    words = (tmp_path / "prototype_map" / "val_step000000.svg").read_text(encoding="utf-8")
    assert (
        f"accuracy {content['accuracy']:.3f}, log loss {content['log_loss']:.3f} nats on 6 judgements"
        in words
    )


@pytest.mark.slow
def test_two_processes_draw_what_the_first_saw(trainer, tmp_path, capfd, monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath)  # a spawned process imports this file by its name
    run = trainer(PrototypeMap(), strategy="ddp_spawn", devices=2, use_distributed_sampler=False)
    run.validate(OnFeatures(), Data(), verbose=False)
    content = read(tmp_path)
    assert content["ranks"] == 2
    assert set(content["items"]["id"]) == {
        "prompt [0.0]",
        "prompt [0.1]",
        "prompt [0.2]",
        "prompt [2.0]",
        "prompt [2.1]",
    }
    assert content["num_judgements"] == 6, "of both ranks"
    assert capfd.readouterr().out.count("only what rank 0 of 2 saw") == 1
