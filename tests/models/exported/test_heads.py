"""A head without its module, in plain transformers, rates as the module does: every method, padding on either side."""

import copy

import pytest
import torch

from pluralign.models import (
    DPRM,
    PAL,
    AutoregressiveRM,
    BackboneConfig,
    BradleyTerryRM,
    ContrastiveRM,
    CustomizedRM,
    EnsembleVoteRM,
    LoRAConfig,
    MetaRM,
    StoredFeatures,
    TransformersRM,
)
from pluralign.models.backbone import Several
from pluralign.models.exported import assembled, exported_head

PAD = 63
LABELS = {"labels": ["poor", "fair", "good"], "rewards": [-1.0, 0.5, 2.0]}


def built(module, seed=7):
    torch.manual_seed(seed)
    module.configure_model()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if (
                parameter.ndim == 1 and "backbone" not in name
            ):  # biases and batch norm, which start at nothing
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def texts_of(batch):
    """Token ids of every response with its prompt."""
    texts = []
    for row, end in zip(batch["response_row"].tolist(), batch["response_end"].tolist(), strict=True):
        segments = batch["segment_ids"][row]
        mine = (segments == 0) | (segments == segments[end])
        texts.append(batch["input_ids"][row][mine])
    return texts


def padded(texts, side, fill=PAD, extra=3):
    width = max(map(len, texts)) + extra
    ids, mask = torch.full((len(texts), width), fill), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def plain(module, head, network=None):
    backbone = network or module.backbone
    body = copy.deepcopy(backbone.model)
    body.set_attn_implementation("sdpa")  # packed attention needs rows of ours
    return assembled(body, head, pooling=backbone.pooling, pad_token_id=PAD)


def check_equal(module, batch, expected, *, network=None, **choice):
    """Logits of the head in plain transformers are ``expected(output)`` of the module, (R, outputs)."""
    with torch.no_grad():
        wanted = expected(module(batch))
        wanted = wanted.unsqueeze(1) if wanted.ndim == 1 else wanted
        head = exported_head(module, **choice)
        model = plain(module, head, network)
        for side in ("left", "right"):
            logits = model(**padded(texts_of(batch), side)).logits
            assert logits.shape == (len(wanted), len(head.outputs))
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
        alone = torch.cat([model(**padded([text], "right", extra=0)).logits for text in texts_of(batch)])
    torch.testing.assert_close(alone, wanted, atol=1e-5, rtol=1e-5)
    return head


def reward(output):
    return output["reward"]


@pytest.mark.parametrize("method", [BradleyTerryRM, MetaRM, ContrastiveRM])
def test_one_reward_for_everyone_is_a_plain_linear_head(llama, batch, method):
    module = built(method(llama()))
    head = check_equal(module, batch(), reward)
    assert head.linear and head.kind == "linear" and head.outputs == ("reward",)
    torch.testing.assert_close(head.weights["weight"], module.head.weight)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_states_than_the_last_are_no_plain_class(llama, batch, pooling):
    assert not check_equal(built(BradleyTerryRM(llama(pooling=pooling))), batch(), reward).linear


def test_domains_have_the_general_reward_their_own_and_all(llama, batch):
    module = built(CustomizedRM(llama(), domains=["law", "verse"], per_domain="head"))
    assert check_equal(module, batch(), reward).linear
    check_equal(module, batch(), lambda output: output["basis"].rewards[:, 2], domain="verse")
    head = check_equal(module, batch(), lambda output: output["basis"].rewards, output="domains")
    assert head.outputs == ("general", "law", "verse")
    with pytest.raises(
        ValueError, match="'prose' has no reward of its own in this model, which has general, law, verse"
    ):
        exported_head(module, domain="prose")
    with pytest.raises(ValueError, match="leave one of the two out"):
        exported_head(module, domain="law", output="domains")


def test_a_domain_with_an_adapter_has_its_own_head(llama):
    module = built(CustomizedRM(llama(), domains=["law"], per_domain="adapter", adapter=LoRAConfig(rank=2)))
    torch.testing.assert_close(exported_head(module, domain="law").weights["weight"], module.heads[0].weight)
    with pytest.raises(ValueError, match=r"one folder for each domain \(general, law\)"):
        exported_head(module, output="domains")


@pytest.mark.parametrize("risk_aversion", [0.0, 0.7])
def test_labels_give_a_reward_and_their_logits(llama, batch, risk_aversion):
    module = built(DPRM(llama(), **LABELS, cost="index", risk_aversion=risk_aversion))
    assert not check_equal(module, batch(), reward).linear
    head = exported_head(module, output="labels")
    assert head.outputs == ("poor", "fair", "good") and head.settings["rewards"] == [-1.0, 0.5, 2.0]
    logits = plain(module, head)(**padded(texts_of(batch()), "left")).logits
    torch.testing.assert_close(logits.softmax(-1), module(batch())["labels"].probs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_beta_labels_give_a_reward_and_shares(llama, batch, count):
    settings = {name: values[:count] for name, values in LABELS.items()}
    module = built(DPRM(llama(), **settings, head="beta", risk_aversion=0.5))
    check_equal(module, batch(), reward)
    check_equal(module, batch(), lambda output: output["labels"].probs.log(), output="labels")


@pytest.mark.parametrize("loss", ["cross_entropy", "bradley_terry"])
def test_labels_of_comparisons_give_a_linear_reward_alone(llama, batch, loss):
    settings = {"labels": ["first", "tie", "second"], "rewards": [1.0, 0.0, -1.0], "judged": "comparisons"}
    module = built(DPRM(llama(), **settings, loss=loss))
    assert check_equal(module, batch(), reward).linear
    with pytest.raises(ValueError, match="are of comparisons"):
        exported_head(module, output="labels")


def test_beta_labels_of_comparisons_give_a_linear_reward(llama, batch):
    settings = {"labels": ["first", "tie", "second"], "rewards": [1.0, 0.0, -1.0], "judged": "comparisons"}
    check_equal(built(DPRM(llama(), **settings, head="beta")), batch(), reward)


def test_one_number_for_all_labels_of_responses(llama, batch):
    check_equal(built(DPRM(llama(), **LABELS, loss="bradley_terry")), batch(), reward)


def test_the_same_labels_for_all_are_not_exported(llama):
    with pytest.raises(ValueError, match="nothing to export"):
        exported_head(built(DPRM(llama(), **LABELS, loss="constant")))


@pytest.mark.parametrize("combine", ["mean", "min", "lower_bound"])
def test_an_ensemble_of_heads_combines_as_the_module_does(llama, batch, combine):
    module = built(EnsembleVoteRM(llama(), num_members=3, combine=combine, deviations=0.5))
    assert check_equal(module, batch(), reward).linear == (combine == "mean")
    head = check_equal(module, batch(), lambda output: output["basis"].rewards, output="members")
    assert head.outputs == ("member_0", "member_1", "member_2")
    check_equal(module, batch(), lambda output: output["basis"].rewards[:, 1], member="member_1")
    with pytest.raises(ValueError, match="member='member_7': the model has member_0, member_1, member_2"):
        exported_head(module, member="member_7")


def test_members_with_networks_of_their_own_are_folders_of_their_own(llama, batch):
    module = built(EnsembleVoteRM(llama(), num_members=2, members="full", resample="none"))
    assert isinstance(module.backbone, Several)
    network = module.backbone.networks[1]
    check_equal(module, batch(), lambda out: out["basis"].rewards[:, 1], network=network, member="member_1")
    for choice in ({}, {"output": "members"}):
        with pytest.raises(ValueError, match=r"one folder for each member \(member=member_0"):
            exported_head(module, **choice)


def pal(config, **settings):
    module = PAL(config, num_users=4, num_prototypes=3, **settings)
    built(module)
    with torch.no_grad():
        logits = next(module.table.parameters())
        logits.copy_(torch.randn_like(logits))
    return module


@pytest.mark.parametrize("score", ["distance", "squared_distance", "angle"])
@pytest.mark.parametrize("mix", ["f(P)w", "f(Pw)", "Pw"])
def test_points_of_taste_of_everybody_a_user_a_group_and_each_prototype(llama, batch, score, mix):
    module = pal(llama(), score=score, mix=mix, projector="mlp2-gelu-dropout1-residual-batchnorm")
    with torch.no_grad():  # running values as training leaves them
        for norm in module.network.projector.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    check_equal(module, batch(), reward)
    check_equal(module, batch(), lambda output: output["basis"].rewards, output="basis")
    one, group = module.user_reward_module("2"), module.user_reward_module(["0", "3"])
    check_equal(module, batch(), lambda _: one(batch()), user="2")
    assert (
        "mean of 2 users" in check_equal(module, batch(), lambda _: group(batch()), users=["0", "3"]).meaning
    )


def test_modes_of_a_module_stay_as_they_are(llama):
    module = pal(llama(), projector="mlp2-relu-dropout5-batchnorm").train()
    exported_head(module)
    assert module.network.projector.training


@pytest.mark.parametrize("projector", ["identity", "linear", "mlp2-relu-dropout0-nobias"])
def test_projectors_of_few_layers(llama, batch, projector):
    check_equal(pal(llama(), projector=projector), batch(), reward)


def test_prototypes_made_of_the_prompt_are_not_exported(llama):
    with pytest.raises(ValueError, match=r"pluralign\.load"):
        exported_head(pal(llama(), version="B"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"user": "nobody"}, "'nobody' has no weights in this model, which knows 4 users"),
        ({"user": "1", "users": ["2"]}, "one user's or a group's"),
        ({"users": []}, "at least one"),
        ({"domain": "law"}, "PAL has no rewards by domain"),
        ({"output": "labels"}, "PAL has reward and basis"),
        ({"output": "basis", "user": "1"}, "leave one of the two out"),
    ],
)
def test_what_a_method_does_not_have_is_named(llama, choice, message):
    with pytest.raises(ValueError, match=message):
        exported_head(pal(llama()), **choice)


def test_a_model_of_transformers_keeps_its_head(llama, batch, tmp_path):
    config = llama().config
    module = built(TransformersRM(BackboneConfig(config={**config, "num_labels": 2}), output=1))
    assert check_equal(module, batch(), reward).linear
    ensemble = built(EnsembleVoteRM(llama(), num_members=3, combine="min"))
    plain(ensemble, exported_head(ensemble)).save_pretrained(tmp_path)
    module = built(TransformersRM(BackboneConfig(name=str(tmp_path))))
    assert check_equal(module, batch(), reward).kind == "combined"


@pytest.mark.filterwarnings("ignore:.*pads with an end token")
def test_a_model_of_transformers_that_a_folder_would_read_otherwise_is_refused(llama):
    config = llama().config
    module = built(TransformersRM(BackboneConfig(config={**config, "pad_token_id": 2, "eos_token_id": 2})))
    with pytest.raises(ValueError, match="pads with an end token"):
        exported_head(module)
    bert = TransformersRM(BackboneConfig(config={**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="computes more than a head on one state"):
        exported_head(built(bert))


def test_a_language_model_is_no_classifier(llama):
    with pytest.raises(TypeError, match="it is a language model"):
        exported_head(built(AutoregressiveRM(llama())))


def test_a_module_without_a_network_is_refused(llama):
    module = built(BradleyTerryRM(llama()))
    module.backbone = StoredFeatures(32)
    with pytest.raises(ValueError, match=r"without loader\.features"):
        exported_head(module)
