"""Any reward module as a function of prompts and responses: what tunes a policy, judges it, or watches over it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pluralign.datamodules import PreferenceBatch, TextConfig
from pluralign.datamodules.batch import RewardOutput
from pluralign.datamodules.batches import PreferenceCollator, TokenBudgetBatchSampler
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.datamodules.content import WHERE
from pluralign.datamodules.prompt_batch import Prompt
from pluralign.datamodules.records import listed, shown
from pluralign.datamodules.tokens import RecordTokenizer
from pluralign.models import DPRM, PAL, AutoregressiveRM, CustomizedRM, RewardModule
from pluralign.models.pal import UserModule

from .response_rows import BEYOND, TOO_LONG, AskedResponse, ResponseReader, ResponseRows
from .reward_identity import module_identity

__all__ = ["ModuleReward", "evaluating"]

GENERAL = "general"
"""The reward of a customised model that is no domain's own."""
ASKS = {"user": "request_user_id", "domain": "request_domain_id"}
"""Columns by which somebody's own reward is asked for, and what a module that has such rewards reads."""


class ModuleReward:
    """A reward module as a callable: (prompts, responses, columns) to a reward for each response.

    Prompt and response become tokens exactly as in training: the text format is the one that the module was trained with, or
    there is an error. Responses of equal prompts share a row; batches are bounded in tokens and sorted by length. The module
    runs in evaluation mode, without gradients and outside of autocast. The same response has the same reward whatever
    stands beside it.

    What a reward is depends on the module: of :class:`DPRM` the reward it expects (less ``risk_aversion`` standard
    deviations), or the probability of a ``label``; of :class:`PAL` that of a user, or of the mean of all users; of
    :class:`CustomizedRM` that of a domain, or the general one; of :class:`EnsembleVoteRM` what ``combine`` makes of its
    members; of any other module its one reward.

    Attributes:
        module: The reward module.
        name: What messages call it.
        counts: What happened to texts so far, by reason; each reason is warned of once.
    """

    def __init__(
        self,
        module: RewardModule,
        *,
        text: TextConfig | None = None,
        label: str | None = None,
        user: str | None = None,
        domain: str | None = None,
        unknown_users: Literal["error", "mean"] = "error",
        unscored: float | None = None,
        device: str | None = None,
        max_tokens: int = 16_384,
        name: str | None = None,
    ) -> None:
        """Settle the text format and whose reward it is.

        Args:
            module: Built, with its weights.
            text: Tokenizer and format; None for those that the module was trained with.
            label: Of a :class:`DPRM` that judges responses: a label, or one of ``label_sets``, whose probability is the reward.
            user: Of :class:`PAL`: whose reward it is; None for whom the column ``user`` of each item names, and for the mean
                of all users where it names nobody or there is no such column.
            domain: Of :class:`CustomizedRM`: of which domain it is; None for that of the column ``domain`` of each item,
                and for the general one where it names none or there is no such column.
            unknown_users: What an item gets that names a user of whom the module knows nothing.
            unscored: Reward of a response that cannot be read: that has no text, or does not fit the format's
                ``max_length``; None refuses it.
            device: Where the module runs, ``auto`` for an accelerator if there is one; None leaves it where it is.
            max_tokens: Bound on rows x padded length of a batch, >= 1.
            name: What messages call it; its class's name by default.

        Raises:
            ValueError: If the text format is not known or another one now, or the module has no such label, user or domain.
        """
        check_choices(ModuleReward.__init__, unknown_users=unknown_users)
        check_range("max_tokens", max_tokens, at_least=1)
        self.module, self.name = module, name or type(module).__name__
        self.user, self.domain, self.unknown_users = user, domain, unknown_users
        self.unscored, self.device, self.max_tokens = unscored, device, max_tokens
        module.built_backbone()
        self._label = None if label is None else _label_place(module, label)
        self._asks = [column for column, key in ASKS.items() if key in module.reads_requests]
        for column, value in (("user", user), ("domain", domain)):
            if value is not None:
                self.check_asked(column, value)
        tokenizer = _tokenizer(module, text, self.name)
        apart = isinstance(module, AutoregressiveRM)
        self._reader = ResponseReader(
            tokenizer, max_tokens=max_tokens, apart=apart, positions=module.max_positions
        )
        self.counts: Counter[str] = Counter()

    @property
    def tokenizer(self) -> RecordTokenizer:
        """What makes tokens of texts, as in training."""
        return self._reader.tokenizer

    def known(self, column: Literal["user", "domain"]) -> frozenset[str]:
        """Users, or domains, who have a reward of their own."""
        return _known(self.module, column) if column in self._asks else frozenset()

    @property
    def identity(self) -> str:
        """What tells this reward from others: module, settings, text format, whose it is, and samples of all weights."""
        format_ = {name: value for name, value in self.tokenizer.fingerprint().items() if name not in WHERE}
        asked = [self._label, self.user, self.domain, self.unknown_users, self.unscored, format_]
        return module_identity(self.module, asked)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[object]] | None = None,
    ) -> Tensor:
        """Rate responses.

        Args:
            prompts: Text, or messages, of each response, S of them; without what a preference adds.
            responses: S texts.
            columns: S values each; ``user`` and ``domain`` are read where the module has such rewards, ``id`` for messages.

        Returns:
            Rewards in the order given, (S,) float32, finite, on the CPU.

        Raises:
            ValueError: If numbers do not agree, a text cannot be read, a user or domain is unknown, or a reward is not finite;
                names the item and what to change.
        """
        asked = self.asked(prompts, responses, columns or {})
        read = self.read(asked)
        rewards = torch.empty(len(asked))
        rewards[[*read.unread]] = self.unscored if self.unscored is not None else float("nan")
        if read.rows:
            found = [(places, self.requested(output, batch)) for places, batch, output in self.outputs(read)]
            rewards[[place for places, _ in found for place in places]] = torch.cat(
                [values for _, values in found]
            ).cpu()  # all at once, so that the device is waited for once
        return self.finite(rewards, asked)

    def finite(self, rewards: Tensor, asked: Sequence[AskedResponse]) -> Tensor:
        """Rewards, (S,), unless one of them is not finite.

        Raises:
            ValueError: Naming the first such response.
        """
        finite = torch.isfinite(rewards)
        if not bool(finite.all()):
            place = int((~finite).nonzero()[0])
            raise ValueError(
                f"{self.name} gives {asked[place].name} a reward of {float(rewards[place])}: its weights are not finite, or "
                "backbone.dtype does not hold what it computes"
            )
        return rewards

    # What is asked -------------------------------------------------------------------------------------

    def read(self, asked: Sequence[AskedResponse]) -> ResponseRows:
        """Responses as rows of tokens; what cannot be read is counted, or refused where nothing stands for it.

        Raises:
            ValueError: If a text cannot be read; names the item and what to change.
        """
        read = self._reader(asked)
        self._report(read, asked)
        return read

    def asked(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Mapping[str, Sequence[object]]
    ) -> list[AskedResponse]:
        """Responses with their names, and as whom each is rated; arguments are those of a call.

        Raises:
            ValueError: If numbers do not agree, or a user or domain is unknown.
        """
        number = len(responses)
        read = {name: columns[name] for name in ("id", *self._asks) if name in columns}
        lengths = {"prompts": len(prompts), **{name: len(values) for name, values in read.items()}}
        for name, length in lengths.items():
            if length != number:
                raise ValueError(f"{self.name}: {name} must be as many as responses, {number}; got {length}")
        known = {column: _known(self.module, column) for column in self._asks}
        asked = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            name = f"response {i}" + (f" (item {read['id'][i]})" if "id" in read else "")
            whose = {
                column: self._whose(column, read[column][i] if column in read else None, known[column], name)
                for column in self._asks
            }
            asked.append(
                AskedResponse(name, prompt, response, user=whose.get("user"), domain=whose.get("domain"))
            )
        return asked

    def _whose(self, column: str, value: object, known: frozenset[str], name: str) -> str | None:
        """User or domain of a response; None for everybody's reward."""
        fixed = self.user if column == "user" else self.domain
        value = value if fixed is None else fixed
        if value is None or (column == "domain" and value == GENERAL):
            return None
        if str(value) in known:
            return str(value)
        if column == "user" and self.unknown_users == "mean":
            return None
        raise ValueError(f"{self.name}: {name}: {_unknown(self.module, column, value)}")

    def check_asked(self, column: str, value: str) -> None:
        """Refuse a user or domain that the module has no reward of.

        Raises:
            ValueError: Says which there are.
        """
        if column not in self._asks:
            raise ValueError(
                f"{column}={value!r}: {type(self.module).__name__} as it is set has one reward whatever the {column}: leave "
                f"{column} out"
            )
        general = column == "domain" and value == GENERAL
        mean = column == "user" and self.unknown_users == "mean"
        if not (general or mean or value in _known(self.module, column)):
            raise ValueError(f"{self.name}: {_unknown(self.module, column, value)}")

    def _report(self, read: ResponseRows, asked: Sequence[AskedResponse]) -> None:
        """Count what happened to the texts, and warn of each kind once; refuse what cannot be read unless it has a reward."""
        if read.unread and self.unscored is None:
            place, reason = next(iter(sorted(read.unread.items())))
            limits = {TOO_LONG: self._reader.tokenizer.config.max_length, BEYOND: self._reader.positions}
            raise ValueError(
                f"{self.name}: {asked[place].name} is {reason}"
                + (f" ({limits[reason]} tokens with its prompt)" if reason in limits else "")
                + "; the model has no reward for it: "
                + ("shorten it" if reason in limits else "give it a text")
                + f" ({'lower max_new_tokens' if reason in limits else 'set min_new_tokens'} of what writes responses), or set "
                "unscored, the reward that such a response gets (--unread null of `pluralign score`)"
            )
        counts = read.counts + Counter(f"responses {reason}" for reason in read.unread.values())
        for reason, number in counts.items():
            if reason not in self.counts:
                rank_zero_warn(
                    f"{self.name}: {reason}: {number:,} of {len(asked):,} that were to be rated; counted in counts from here on"
                )
        self.counts += counts

    # What is scored ------------------------------------------------------------------------------------

    @property
    def _layout(self) -> Literal["shared", "separate"]:
        return "separate" if self.module.layout == "separate" else "shared"

    def collator(self, present: Sequence[str] = (), *, requests: bool = False) -> PreferenceCollator:
        """What makes batches of rows as the module takes them.

        Args:
            present: Optional columns that rows have.
            requests: Whether batches say whose reward of each response is asked for.
        """
        module = self.module
        return PreferenceCollator(
            layout=self._layout,
            present=present,
            names={column: _names(module, column) for column in self._asks},
            items=str((module.text_format or {}).get("items", "conversation")),
            prompts=isinstance(module, PAL) and module.version == "B",
            requests=requests,
        )

    @torch.no_grad()
    def outputs(self, read: ResponseRows) -> Iterator[tuple[list[int], PreferenceBatch, RewardOutput]]:
        """Batch by batch: places of the responses, the batch that asks for them, and what the module says of it."""
        module, device = self.module, self.place_module()
        sizes = [
            (len(own), prefix, sum(own), max(own)) for prefix, *own in (r.lengths.tolist() for r in read.rows)
        ]
        sampler = TokenBudgetBatchSampler(
            np.asarray(sizes, dtype=np.int32), layout=self._layout, max_tokens=self.max_tokens, shuffle=False
        )
        collate = self.collator([f"request_{column}" for column in self._asks], requests=True)
        with evaluating(module), torch.autocast(device.type, enabled=False):
            for numbers in sampler:
                batch = collate([read.rows[i] for i in numbers])
                module.check_network(batch)
                batch = move_data_to_device(batch, device)
                yield [place for i in numbers for place in read.places[i]], batch, module(batch)

    def requested(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Reward of each request of a batch, (Q,) float32."""
        if "requested" in output:
            return output["requested"].float()
        reward = output["reward"]
        if self._label is not None:
            kind, column = self._label
            reward = getattr(output["labels"], kind)[:, column]
        return reward[batch["request_response"]].float()

    def place_module(self) -> torch.device:
        """Move the module to where it runs."""
        device = self.device
        if device == "auto":
            accelerator = (
                torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            )
            device = "cpu" if accelerator is None else accelerator.type
        if device is not None:
            self.module.to(device)
        return self.module.device


def _tokenizer(module: RewardModule, text: TextConfig | None, name: str) -> RecordTokenizer:
    """What makes tokens under the format that a module was trained with.

    Raises:
        ValueError: If the format is not known, or another one now.
    """
    stored = module.text_format
    if text is None and not stored:
        raise ValueError(f"{name} knows no text format: give text, the settings that it was trained with")
    config = text or TextConfig.of_format(stored or {})
    try:
        tokenizer = RecordTokenizer(config)
    except ValueError as error:
        raise ValueError(
            f"{name} was trained on text of tokenizer {config.tokenizer!r}, which cannot be had any more: set tokenizer (or "
            f"text) to where it lies now. {error}"
        ) from error
    current = tokenizer.fingerprint() | (
        {"items": (stored or {})["items"]} if "items" in (stored or {}) else {}
    )
    if changes := module.format_changes(current):
        raise ValueError(
            f"{name} was trained on another text format than {config.tokenizer!r} gives now ({changes}): set tokenizer (or text) "
            "to what it was trained with; a tokenizer of the hub that has changed can be had by its revision of then"
        )
    return tokenizer


def _label_place(module: RewardModule, label: str) -> tuple[Literal["probs", "sets"], int]:
    """Where the probability of a label, or of a set of labels, stands in what a module says of responses.

    Raises:
        ValueError: If there is no such label.
    """
    if not isinstance(module, DPRM) or module.judged != "responses":
        what = "judges comparisons" if isinstance(module, DPRM) else f"is {type(module).__name__}"
        raise ValueError(
            f"label={label!r} needs a DPRM whose labels are of responses, and this module {what}: leave label out"
        )
    sets = module.label_head.set_names
    if label in sets:
        return "sets", sets.index(label)
    if label in module.labels:
        return "probs", module.labels.index(label)
    raise ValueError(
        f"label={label!r}: the module has the labels {listed(module.labels)} and the sets {listed(sets)}"
    )


def _names(module: RewardModule, column: str) -> Sequence[str]:
    """Users or domains that a module has a reward of, in the order of their indices in a batch."""
    if column == "user" and isinstance(module, UserModule):
        return module.table.matched or module.users
    if column == "domain" and isinstance(module, CustomizedRM):
        return module.domain_names or module.customized_domains
    return ()


def _known(module: RewardModule, column: str) -> frozenset[str]:
    """Users or domains that can be asked for; a trainer's data may have users without weights."""
    names = frozenset(_names(module, column))
    return names & frozenset(module.users) if isinstance(module, UserModule) else names


def _unknown(module: RewardModule, column: str, value: object) -> str:
    """What to say of a user or domain that a module has no reward of."""
    names = _names(module, column)
    if column == "user":
        return (
            f"user {shown(value)} has no weights in this model, which knows {len(names):,} users ({listed(names, 3)}): fit "
            "judgements of theirs with `pluralign adapt`, or take the mean of all users with unknown_users=mean"
        )
    return (
        f"domain {shown(value)} has no reward of its own in this model, which has {listed((GENERAL, *names))}: name one of "
        "these, or none for the general one"
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; every part has its own mode back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
