"""Domains: rewards of their own over one pass, who is moved by what, starts from other runs, what is asked for."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pluralign.callbacks import RewardWriter
from pluralign.datamodules import LoaderConfig, LocalDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM, CustomizedRM

HEADS = {"domains": ("art", "trade"), "per_domain": "head"}


@pytest.fixture
def heads(model):
    """A module with a head for each of two domains, all different."""

    def build(**settings):
        module = model(**{**HEADS, **settings})
        if "init_from" not in settings:
            for head in (module.head, *module.heads):
                head.reset_parameters()
        return module

    return build


def rows_of(path, domains, count=8):
    """Rows of comparisons whose better answer depends on the domain."""
    lines = []
    for number in range(count):
        domain = domains[number % len(domains)]
        row = {
            "id": f"q{number}",
            "prompt": f"say {path.stem} {number}",
            "chosen": f"{domain or 'plain'} {number}",
            "rejected": "no",
        }
        lines.append(row | ({} if domain is None else {"domain": domain}))
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def data(tmp_path):
    """Local data of some domains in every split; rows to predict ask for any."""

    def build(domains=("art", "trade", None), asked=None, **settings):
        splits = ("train", "validation", "test") if domains else ()
        files = {split: rows_of(tmp_path / f"{split}.jsonl", domains) for split in splits}
        if asked is not None:
            lines = [
                {
                    "id": f"p{i}",
                    "prompt": "say it",
                    "responses": ["yes", "no"],
                    **({"domain": name} if name else {}),
                }
                for i, name in enumerate(asked)
            ]
            (tmp_path / "predict.jsonl").write_text("\n".join(map(json.dumps, lines)))
            files["predict"] = str(tmp_path / "predict.jsonl")
        return LocalDataModule(**files, loader=LoaderConfig(batch_size=3), **settings)

    return build


@pytest.fixture
def byte_model(tiny):
    """A module that reads bytes, not built yet."""

    def build(**settings):
        rate = partial(torch.optim.AdamW, lr=1e-2)
        return CustomizedRM(BackboneConfig(config=tiny()), **{"optimizer": rate, **HEADS, **settings})

    return build


# One pass ------------------------------------------------------------------------------------------------


def test_each_comparison_is_judged_by_its_domain(heads, batch, domains_of):
    module, data = heads().eval(), domains_of(batch((3, 3)), -1, 0, 1)
    output = module(data)
    basis = output["basis"]
    assert basis.names == ("general", "art", "trade") and basis.title == "domain_rewards" and basis.linear
    states = module.backbone(data)
    wanted = torch.cat([head(states) for head in (module.head, *module.heads)], dim=1)
    torch.testing.assert_close(basis.rewards, wanted)
    assert torch.equal(output["reward"], basis.rewards[:, 0])
    column = torch.tensor([0, 1, 2, 0])
    first, second = data["comparisons"].unbind(1)
    assert torch.equal(output["chosen"], basis.rewards[first, column])
    assert torch.equal(output["rejected"], basis.rewards[second, column])
    # Any domain's rewards are the basis with weights: a mean of two, too.
    weights = torch.tensor([0.0, 0.5, 0.5])
    torch.testing.assert_close(basis.rewards @ weights, (wanted[:, 1] + wanted[:, 2]) / 2)


def test_all_domains_cost_one_pass(heads, batch, domains_of):
    module, calls = heads(), []
    module.backbone.model.register_forward_hook(lambda *_: calls.append(1))
    module(domains_of(batch(), 0, 1))
    assert len(calls) == 1


def test_training_rewards_are_those_of_evaluation(heads, batch, domains_of):
    module, data = heads(), domains_of(batch((3, 3)), -1, 1)
    training = module(data)
    assert "basis" not in training
    judged = module.eval()(data)
    for name in ("reward", "chosen", "rejected"):
        torch.testing.assert_close(training[name], judged[name])


@pytest.mark.parametrize("known", [True, False])
def test_a_domain_that_is_absent_does_not_move(heads, batch, domains_of, known):
    """AdamW moves what has a gradient of zeros: by its momentum, and by weight decay."""
    module, data = heads(), domains_of(batch((2, 2)), 0)
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2, weight_decay=0.1)

    def step(data):
        before = [head.weight.detach().clone() for head in (module.head, *module.heads)]
        optimizer.zero_grad()
        sum(module.compute_loss(module(data), data).values()).backward()
        optimizer.step()
        after = (module.head, *module.heads)
        return [not torch.equal(old, head.weight) for old, head in zip(before, after, strict=True)]

    step(domains_of(batch((3, 3)), -1, 0, 1))  # now all have momentum
    if not known:
        del data["domains_present"]
    assert step(data) == ([False, True, False] if known else [True, True, True])
    if known:
        assert step(domains_of(batch((2, 2)), -1)) == [True, False, False]
        del data["domain_id"]
        assert step(data) == [True, False, False]


def test_an_index_beyond_the_names_is_refused(heads, batch, domains_of):
    module = heads()
    with pytest.raises(ValueError, match="domain_id points at domain number 2, and there are 2"):
        module(domains_of(batch(), 2))


def test_domains_are_found_by_name_in_other_data(heads, byte_model, data, trainer):
    """Evaluation on data whose domains come in another order and have others among them."""
    module = byte_model(domains=("trade", "art"))
    module.configure_model()
    for head in module.heads:
        head.reset_parameters()
    source = data(("art", "food", "trade", None))
    trainer().test(module, source, verbose=False)
    assert source.domains == ["art", "food", "trade"]
    found, rewards = module.columns, torch.tensor([-1, 0, 1, 2])
    assert found.of(rewards, source.domains).tolist() == [0, 2, 0, 1]
    assert found.present([-1, 1, 2], source.domains) == [0, 1]


# Fits ----------------------------------------------------------------------------------------------------


def test_each_domain_learns_its_own(byte_model, data, trainer):
    module = byte_model()
    run = trainer(max_epochs=2)
    run.fit(module, data())
    values = run.callback_metrics
    assert {"val/loss", "val/ranking", "train/ranking"} <= set(values)
    assert not torch.equal(module.heads[0].weight, module.heads[1].weight)


def test_a_run_with_heads_goes_on_bit_for_bit(byte_model, data, trainer, tmp_path):
    """Also where the optimiser knows nothing yet of a head whose domain came in no batch."""

    def fit(folder, checkpoint=None):
        torch.manual_seed(0)
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        module = byte_model()
        source = data()
        source.loader = LoaderConfig(batch_size=1)
        trainer(saver, max_epochs=1, enable_checkpointing=True).fit(
            module, source, ckpt_path=checkpoint, weights_only=True
        )
        return module

    whole = fit("whole")
    states = torch.load(tmp_path / "whole" / "step=1.ckpt", weights_only=True)["optimizer_states"][0]
    assert len(states["state"]) < len(states["param_groups"][0]["params"])
    for step in (1, 4):
        again = fit(f"again-{step}", str(tmp_path / "whole" / f"step={step}.ckpt"))
        for name, value in whole.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


def test_a_domain_that_the_data_lack_is_refused(byte_model, data, trainer):
    with pytest.raises(ValueError, match=r"no comparison of 'music'; they have 'art', 'trade'"):
        trainer().fit(byte_model(domains=("art", "music")), data())
    with pytest.raises(ValueError, match=r"no comparison of 'art', 'trade'; they have no domains"):
        trainer().fit(byte_model(), data((None,)))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_loaders_without_domains_are_refused(heads, batch, trainer, domains_of):
    loader = torch.utils.data.DataLoader([batch((2, 2))], batch_size=None)
    with pytest.raises(ValueError, match=r"per_domain='head' needs comparisons that name their domain"):
        trainer().fit(heads(), loader)
    judged = torch.utils.data.DataLoader([domains_of(batch((2, 2)), 0)], batch_size=None)
    with pytest.raises(ValueError, match=r"per_domain='head' needs comparisons that name their domain"):
        trainer().fit(heads(), loader, judged)
    assert trainer().test(heads(), loader, verbose=False)  # all of them general ones


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"domains": "art"}, TypeError, "list of names"),
        ({"domains": ("art", "art")}, ValueError, "different names.*'art'"),
        ({"domains": ("general",)}, ValueError, "none of them 'general'"),
        ({"domains": ()}, ValueError, "per_domain='head' needs domains"),
        ({"ranking": 0.0}, ValueError, "nothing to learn"),
        ({"imitation": -1.0}, ValueError, "imitation"),
        ({"imitation_threshold": 1.0}, ValueError, "imitation_threshold"),
        ({"per_domain": "adapter"}, ValueError, "go together"),
    ],
)
def test_settings_that_do_not_go_together(byte_model, settings, error, message):
    with pytest.raises(error, match=message):
        byte_model(**settings)


# Requests ------------------------------------------------------------------------------------------------


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_by_the_domain_that_is_asked_for(byte_model, data, trainer, tmp_path):
    module = byte_model()
    module.configure_model()
    for head in module.heads:
        head.reset_parameters()
    writer = RewardWriter(str(tmp_path / "rewards.jsonl"))
    trainer(writer).predict(module, data(asked=["trade", None, "art", "general"]), return_predictions=False)
    lines = lines_of(tmp_path / "rewards.jsonl")
    assert [line["domain"] for line in lines[::2]] == ["trade", None, "art", "general"]
    column = {"trade": 2, None: 0, "art": 1, "general": 0}
    for line in lines:
        assert line["reward"] == pytest.approx(line["domain_rewards"][column[line["domain"]]], abs=1e-6)
        assert len(line["domain_rewards"]) == 3
    assert len({round(line["reward"], 6) for line in lines[::2]}) == 3


def test_rows_to_predict_alone_name_their_domains(byte_model, data, trainer):
    """Without the data that the model was trained on, and in the order of the alphabet."""
    module = byte_model(domains=("trade", "art"))
    module.configure_model()
    for head in module.heads:
        head.reset_parameters()
    (found,) = trainer().predict(module, data((), asked=["trade", "art", "general"]))
    rewards = found["basis"].rewards[found["request_response"]]
    assert torch.equal(found["requested"], rewards[torch.arange(6), torch.tensor([1, 1, 2, 2, 0, 0])])


def test_a_request_for_an_unknown_domain_is_refused(byte_model, data, trainer):
    module = byte_model()
    with pytest.raises(
        ValueError, match=r"predict\.jsonl.*domain 'music' has no reward of its own.*general, art, trade"
    ):
        trainer().predict(module, data(asked=["art", "music"]))


def test_one_reward_for_all_reads_no_domain(byte_model, data, trainer, tmp_path):
    module = byte_model(per_domain="nothing", domains=())
    writer = RewardWriter(str(tmp_path / "rewards.jsonl"))
    with pytest.warns(UserWarning, match=r"have domain, which CustomizedRM does not read"):
        trainer(writer).predict(module, data(asked=["music"]), return_predictions=False)
    assert "domain_rewards" not in lines_of(tmp_path / "rewards.jsonl")[0]


# Starts --------------------------------------------------------------------------------------------------


def test_heads_start_as_the_general_one(model, saved, batch):
    data = batch((3, 2))
    for other in (model(), BradleyTerryRM(model().backbone_config)):
        other.configure_model()
        path = _saved_any(other, saved)
        module = model(**HEADS, init_from=path).eval()
        rewards = module(data)["basis"].rewards
        assert torch.equal(rewards, other.eval()(data)["reward"].unsqueeze(1).expand(-1, 3))


def _saved_any(module, saved):
    module._left_head = getattr(module, "_left_head", False)
    return saved(module)


def test_heads_go_with_their_names(heads, saved, batch):
    data, old = batch((3, 2)), heads()
    wanted = old.eval()(data)["basis"].rewards
    more = heads(domains=("food", "trade", "art"), init_from=saved(old)).eval()
    found = more(data)["basis"]
    assert found.names == ("general", "food", "trade", "art")
    assert torch.equal(found.rewards, wanted[:, [0, 0, 2, 1]])


@pytest.mark.parametrize(
    "settings", [{"per_domain": "nothing", "domains": ()}, {"per_domain": "nothing"}, {"domains": ("art",)}]
)
def test_domains_are_not_lost_in_silence(heads, saved, settings):
    path = saved(heads())
    with pytest.raises(
        ValueError, match=r"would lose those of \[.*'trade'\]: set per_domain and domains as they were"
    ):
        heads(**settings, init_from=path)


@pytest.mark.parametrize("domains", [("trade", "art"), ("art", "music")])
def test_a_checkpoint_of_other_domains_is_refused(heads, saved, domains):
    content = torch.load(saved(heads()), weights_only=True)
    heads().on_load_checkpoint(content)
    message = rf"domains are art, trade, in this order, and those of the configuration {', '.join(domains)}: set domains"
    with pytest.raises(ValueError, match=message):
        heads(domains=domains).on_load_checkpoint(content)
    heads(domains=domains, per_domain="nothing").on_load_checkpoint(
        content
    )  # its weights are refused by name


def test_another_head_than_the_general_one_starts_nothing(heads, saved):
    """From another method, whose head is of another shape: heads of domains are copies of the new general one."""
    from pluralign.models import DPRM

    labels = {"labels": ["bad", "fair", "good"], "rewards": [-1.0, 0.0, 1.0], "judged": "responses"}
    other = DPRM(heads().backbone_config, **labels)
    other.configure_model()
    path = _saved_any(other, saved)
    with pytest.raises(RuntimeError, match="does not fit"):
        heads(init_from=path)
    module = heads(init_from=path, init_may_differ=["head", "bias"])
    for head in module.heads:
        assert torch.equal(head.weight, module.head.weight)
    name = next(iter(dict(module.backbone.model.named_parameters())))
    assert torch.equal(module.backbone.model.get_parameter(name), other.backbone.model.get_parameter(name))
