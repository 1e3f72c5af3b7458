"""Whole networks as members of one model: what each of them says, what it learns, and what cannot be joined."""

import lightning as L
import pytest
import torch

from pluralign.models import BradleyTerryRM, CustomizedRM, EnsembleVoteRM, LoRAConfig
from pluralign.models.ensemble_vote import joined_members


@pytest.fixture
def member(llama):
    """Build a member, or with None the model of all, with weights of its own."""

    def build(number, *, kind=EnsembleVoteRM, lora=None, **settings):
        torch.manual_seed(0 if number is None else 10 + number)
        own = {"num_members": 3, "members": "full", "member": number} if kind is EnsembleVoteRM else {}
        module = kind(llama(lora=lora), **own, **settings)
        module.configure_model()
        return module.eval()

    return build


def content_of(module, **about):
    """What a checkpoint of it holds, but for the run."""
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    checkpoint["pluralign"] |= {"recipe": {}, **about}
    return {**checkpoint, "callbacks": {}, "pytorch-lightning_version": L.__version__}


def loaded(content, tmp_path):
    """The model of a checkpoint, as anybody would load it."""
    torch.save(content, tmp_path / "ensemble.ckpt")
    return EnsembleVoteRM.load_from_checkpoint(tmp_path / "ensemble.ckpt", weights_only=True).eval()


@pytest.mark.parametrize("kind", [EnsembleVoteRM, BradleyTerryRM])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["whole", "adapted"])
def test_the_rewards_of_each_member_stay_what_they_were(member, batch, tmp_path, kind, lora):
    alone = [member(number, kind=kind, lora=lora) for number in range(3)]
    content = joined_members({f"{number}.ckpt": content_of(each) for number, each in enumerate(alone)})
    assert "callbacks" not in content and "recipe" not in content["pluralign"]
    ensemble, data = loaded(content, tmp_path), batch()
    assert (ensemble.members, ensemble.member, ensemble.num_members) == ("full", None, 3)
    assert ensemble.resample == ("bootstrap" if kind is EnsembleVoteRM else "none")
    output = ensemble(data)
    expected = torch.stack([each(data)["reward"] for each in alone], dim=1)
    torch.testing.assert_close(output["basis"].rewards, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output["reward"], expected.mean(dim=1), rtol=1e-6, atol=1e-6)
    assert output["basis"].names == ("member_0", "member_1", "member_2")
    differences = ensemble.member_differences(output, data)
    assert torch.corrcoef(differences.T)[~torch.eye(3, dtype=torch.bool)].max() < 0.999


def test_a_joined_model_of_a_named_base_leaves_its_weights_out(member, llama, batch, tmp_path):
    from transformers import AutoModel, LlamaConfig

    config = member(0).backbone_config.config
    AutoModel.from_config(LlamaConfig(**config)).save_pretrained(tmp_path / "base")
    alone = []
    for number in range(2):
        torch.manual_seed(number)
        backbone = llama(config={}, name=str(tmp_path / "base"), tokenizer="byte", lora=LoRAConfig(rank=2))
        module = EnsembleVoteRM(backbone, num_members=2, members="full", member=number)
        module.configure_model()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        alone.append(module.eval())
    content = joined_members({f"{number}.ckpt": content_of(each) for number, each in enumerate(alone)})
    assert all("lora" in name or name == "head.weight" for name in content["state_dict"])
    assert content["pluralign"]["base"]["digest"]
    ensemble, data = loaded(content, tmp_path), batch()
    expected = torch.stack([each(data)["reward"] for each in alone], dim=1)
    torch.testing.assert_close(ensemble(data)["basis"].rewards, expected, rtol=1e-6, atol=1e-6)
    assert content_of(ensemble)["state_dict"].keys() == content["state_dict"].keys()


@pytest.mark.parametrize("resample", ["none", "bootstrap"])
def test_trained_at_once_every_member_gets_the_gradient_of_a_run_of_its_own(member, batch, resample):
    alone = [member(number, resample=resample) for number in range(3)]
    ensemble, data = member(None, resample=resample), batch((2, 3, 2, 4))
    content = joined_members({f"{number}.ckpt": content_of(each) for number, each in enumerate(alone)})
    ensemble.load_state_dict(content["state_dict"])
    ensemble.train().compute_loss(ensemble(data), data).backward()
    for number, each in enumerate(alone):
        each.train().compute_loss(each(data), data).backward()
        torch.testing.assert_close(ensemble.head.weight.grad[number], each.head.weight.grad[0])
        network = ensemble.backbone.networks[number]
        for (name, one), two in zip(network.named_parameters(), each.backbone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_all_members_may_start_from_one_run(member, batch, tmp_path):
    before = member(0, kind=BradleyTerryRM)
    torch.save(content_of(before), tmp_path / "start.ckpt")
    ensemble = member(None, init_from=str(tmp_path / "start.ckpt"), init_may_differ=["head"])
    states, expected = ensemble.backbone(batch()), before.backbone(batch())
    assert len(states) == 3 and all(torch.equal(each, expected) for each in states)


# What is refused -----------------------------------------------------------------------------------------


def contents(member, **settings):
    return {f"{number}.ckpt": content_of(member(number, **settings)) for number in range(3)}


def test_members_must_be_all_of_one_ensemble(member):
    given = contents(member)
    with pytest.raises(ValueError, match="give members 0 to 2 in order, each once; got 0, 2"):
        joined_members({name: each for name, each in given.items() if name != "1.ckpt"})
    with pytest.raises(ValueError, match="each once; got 2, 1, 0"):
        joined_members(dict(reversed(given.items())))
    with pytest.raises(ValueError, match="at least two members, and there is 1"):
        joined_members({"0.ckpt": given["0.ckpt"]})


def test_equal_weights_are_refused(member):
    given = contents(member, kind=BradleyTerryRM)
    given["2.ckpt"] = given["0.ckpt"]
    with pytest.raises(ValueError, match=r"0\.ckpt and 2\.ckpt have equal weights"):
        joined_members(given)


def test_what_members_do_not_share_is_named(member):
    given = contents(member)
    for changed, message in [
        (content_of(member(2, seed=7)), r"0\.ckpt and 2\.ckpt cannot be joined: seed differs \(0, 7\)"),
        (
            content_of(member(2), base={"name": "x", "revision": None, "digest": "1"}),
            "the base that they were",
        ),
        (content_of(member(2, lora=LoRAConfig(rank=2))), r"backbone\.lora differs"),
    ]:
        others = {name: each for name, each in given.items() if name != "2.ckpt"}
        with pytest.raises(ValueError, match=message):
            joined_members({**others, "2.ckpt": changed})


def test_other_kinds_are_refused(member, llama):
    heads = EnsembleVoteRM(llama(), num_members=3)
    heads.configure_model()
    for wrong in (heads, member(0, kind=CustomizedRM)):
        with pytest.raises(ValueError, match=r"wrong\.ckpt is no member of an ensemble of whole networks"):
            joined_members({"wrong.ckpt": content_of(wrong), **contents(member)})
