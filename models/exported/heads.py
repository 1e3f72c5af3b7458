"""What rates a state, taken out of a reward module: plain values and weights that need nothing of the collection."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import Backbone, RewardHead, Several
from ..bradley_terry import BradleyTerryRM
from ..customized import CustomizedRM
from ..dprm import DPRM
from ..ensemble_vote import EnsembleVoteRM
from ..pal import PAL
from ..reward import RewardModule
from ..transformers_rm import TransformersRM
from .labels import label_parts
from .parts import HeadParts, Plain, Wish, linear_parts
from .points import point_parts

__all__ = ["ExportedHead", "exported_head"]

GENERAL = "general"
"""The reward of a customised model that is no domain's own."""


class ExportedHead(NamedTuple):
    """A head without its module."""

    linear: bool
    """Whether one linear layer without bias on the last token of a causal network is all of it, as in classification classes."""
    kind: str
    """``linear``, ``combined``, ``labels``, ``expected`` or ``ideal_points``, as :func:`rating_head` of the modelling file has it."""
    settings: dict[str, Plain]
    """Settings of the kind, without the kind; plain values that JSON holds."""
    weights: dict[str, Tensor]
    """Float32 on the CPU, by their names within the head: ``weight`` of a linear one."""
    outputs: tuple[str, ...]
    """Names of the logits' columns."""
    meaning: str
    """What a logit is, in a sentence."""


def exported_head(
    module: RewardModule,
    *,
    user: str | None = None,
    users: Sequence[str] | None = None,
    domain: str | None = None,
    output: str | None = None,
    member: str | None = None,
) -> ExportedHead:
    """The head of a reward module: what is needed to rate a state without the module.

    Args:
        module: Built, with its weights; any reward method.
        user: Of :class:`PAL`: whose reward it is; None for the mean of all users.
        users: Of :class:`PAL`: a group, whose mean weights are taken.
        domain: Of :class:`CustomizedRM`: of which domain the reward is; None for the general one.
        output: Which numbers: the one ``reward`` (None); ``labels`` of :class:`DPRM`; ``members`` of :class:`EnsembleVoteRM`;
            ``basis`` of :class:`PAL`, a reward for each prototype; ``domains`` of :class:`CustomizedRM`, the general reward
            and each domain's.
        member: Of :class:`EnsembleVoteRM`: the member whose reward it is, such as ``member_0``.

    Returns:
        The head. Its rewards are those that :class:`ModuleReward` gives, of states of the network that the choice names: with
        the adapter of the domain or member, where they have adapters, or the member's own network.

    Raises:
        TypeError: If the module is of a method that is not known here.
        ValueError: If the method has no such output, user, domain or member, needs more than one state of a text, or has no
            network; says what to do.
    """
    name = type(module).__name__
    choice = {"user": user, "users": users, "domain": domain, "member": member}
    wish = Wish(output or "reward", user, None if users is None else tuple(users), domain, member)
    with torch.no_grad():
        if isinstance(module, PAL):
            _check(name, wish, choice, ("reward", "basis"), ("user", "users"))
            parts = point_parts(module, wish)
        elif isinstance(module, DPRM):
            _check(name, wish, choice, ("reward", "labels"))
            parts = label_parts(module, wish)
        elif isinstance(module, EnsembleVoteRM):
            _check(name, wish, choice, ("reward", "members"), ("member",))
            parts = _of_ensemble(module, wish)
        elif isinstance(module, CustomizedRM):
            _check(name, wish, choice, ("reward", "domains"), ("domain",))
            parts = _of_domains(module, wish)
        elif isinstance(module, TransformersRM):
            _check(name, wish, choice, ("reward",))
            parts = _of_transformers(module)
        elif isinstance(module, BradleyTerryRM):
            _check(name, wish, choice, ("reward",))
            parts = linear_parts(_weight(module.head), ("reward",), "the reward, higher is better")
        else:
            raise TypeError(
                f"{name} has no head that rates one state of a text, so it cannot be written as a classification model"
                + ("; it is a language model, and can be exported as one" if _tells_tokens(module) else "")
            )
    network = _network(module)
    plain = parts.kind == "linear" and "bias" not in parts.weights
    return ExportedHead(
        linear=plain and network.causal and network.pooling == "last",
        kind=parts.kind,
        settings=parts.settings,
        weights={
            key: value.detach().to("cpu", torch.float32).clone() for key, value in parts.weights.items()
        },
        outputs=parts.outputs,
        meaning=parts.meaning,
    )


def _check(
    name: str, wish: Wish, choice: Mapping[str, object], outputs: tuple[str, ...], taken: tuple[str, ...] = ()
) -> None:
    """Refuse what the method does not have.

    Raises:
        ValueError: Says what it has.
    """
    for setting, value in choice.items():
        if value is not None and setting not in taken:
            raise ValueError(f"{setting}={value!r}: {name} has no rewards by {setting}: leave {setting} out")
    if wish.output not in outputs:
        raise ValueError(f"output={wish.output!r}: {name} has {' and '.join(outputs)}")
    several = wish.output != "reward"
    if several and (given := [setting for setting, value in choice.items() if value is not None]):
        raise ValueError(
            f"output={wish.output!r} and {given[0]}={choice[given[0]]!r}: {wish.output} are several rewards and {given[0]} names one: "
            "leave one of the two out"
        )


def _network(module: RewardModule) -> Backbone:
    """The network, or the first of several that are alike.

    Raises:
        ValueError: If there is none, for the module was built for stored features.
    """
    built = module.built_backbone()
    backbone = built.networks[0] if isinstance(built, Several) else built
    if not isinstance(backbone, Backbone):
        raise ValueError(  # noqa: TRY004  it is how the module was opened that is wrong
            f"{type(module).__name__} was built for stored features and has no network that could be exported: load its "
            "checkpoint without loader.features, and the network is loaded, too"
        )
    return backbone


def _tells_tokens(module: RewardModule) -> bool:
    """Whether the module is a language model."""
    backbone = module.backbone
    return isinstance(backbone, Backbone) and backbone.language_head is not None


def _weight(head: RewardHead | nn.Module | None) -> Tensor:
    assert isinstance(head, RewardHead)  # built together with the backbone
    return head.weight


# Ensembles ----------------------------------------------------------------------------------------------


def _of_ensemble(module: EnsembleVoteRM, wish: Wish) -> HeadParts:
    """One member's reward, all members', or what the ensemble makes of them."""
    weight, names = _weight(module.head), tuple(f"member_{column}" for column in module.columns)
    if wish.member is not None:
        if wish.member not in names:
            raise ValueError(f"member={wish.member!r}: the model has {', '.join(names)}")
        place = names.index(wish.member)
        return linear_parts(
            weight[place : place + 1], ("reward",), f"the reward of {wish.member}, higher is better"
        )
    if len(names) == 1:  # of a run of one full member
        return linear_parts(weight, ("reward",), f"the reward of {names[0]}, higher is better")
    if module.members != "head":
        own = "an adapter" if module.members == "lora" else "a network"
        raise ValueError(
            f"members={module.members!r}: each member has {own} of its own, so that {wish.output} would need {len(names)} passes "
            f"over a text, and a classification model makes one: export one folder for each member (member={names[0]}, ...) and "
            "combine their rewards, or train members='head'"
        )
    if wish.output == "members":
        return linear_parts(weight, names, "each member's reward, higher is better")
    said = f"the {module.combine} of {len(names)} members' rewards, higher is better"
    if module.combine == "mean":
        return linear_parts(weight.float().mean(0, keepdim=True), ("reward",), said)
    settings: dict[str, Plain] = {
        "numbers": len(names),
        "bias": False,
        "combine": module.combine,
        "deviations": float(module.deviations),
    }
    if module.combine == "lower_bound":
        said = f"the mean of {len(names)} members' rewards less {module.deviations} standard deviations, higher is better"
    return HeadParts("combined", settings, {"weight": weight}, ("reward",), said)


# Domains ------------------------------------------------------------------------------------------------


def _of_domains(module: CustomizedRM, wish: Wish) -> HeadParts:
    """The general reward, a domain's, or all of them."""
    domains = module.customized_domains if len(module.heads) else ()
    heads = {GENERAL: _weight(module.head), **dict(zip(domains, map(_weight, module.heads), strict=True))}
    if wish.output == "domains":
        if module.per_domain == "adapter":
            raise ValueError(
                "output='domains': with per_domain='adapter' each domain has a network of its own, so that all rewards would need "
                f"{len(heads)} passes over a text: export one folder for each domain ({', '.join(heads)})"
            )
        return linear_parts(
            torch.cat([*heads.values()]), tuple(heads), "each domain's reward, higher is better"
        )
    domain = wish.domain or GENERAL
    if domain not in heads:
        raise ValueError(
            f"domain={domain!r} has no reward of its own in this model, which has {', '.join(heads)}"
        )
    return linear_parts(heads[domain], ("reward",), f"the reward of domain {domain!r}, higher is better")


# Models of transformers ---------------------------------------------------------------------------------


def _of_transformers(module: TransformersRM) -> HeadParts:
    """The head that came with the network, as it is now.

    Raises:
        ValueError: If the whole class runs, or an exported folder would not read what the module reads.
    """
    module.built_backbone()
    copy = "copy the folder that it came from, or train BradleyTerryRM on the network and export that"
    settings, head = dict(module.head_settings), module.head
    if head is None or not settings:
        raise ValueError(
            f"{module.backbone_config.name!r} is of a class that computes more than a head on one state: {copy}"
        )
    if module.pads_with_end:
        raise ValueError(
            f"{module.backbone_config.name!r} pads with an end token, so that its reward is read before a text's last end token, "
            f"and an exported folder reads the last token: {copy}"
        )
    kind, weights = settings.pop("kind"), head.state_dict()
    name = module.outputs[module.column]
    if kind == "linear":
        row = slice(module.column, module.column + 1)
        bias = weights["bias"][row] if "bias" in weights else None
        return linear_parts(weights["weight"][row], ("reward",), f"{name}, higher is better", bias)
    if len(module.outputs) > 1:
        raise ValueError(
            f"{module.backbone_config.name!r} has several outputs ({', '.join(module.outputs)}) of one head of kind {kind!r}: {copy}"
        )
    return HeadParts(kind, settings, weights, ("reward",), f"{name}, higher is better")
