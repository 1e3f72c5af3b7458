"""A trained reward model in three lines: open it, ask for rewards, labels or members, and tell it of a new user."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pluralign.datamodules import Comparison, PreferenceRecord, Response
from pluralign.datamodules.batch import Basis, Labels, RewardOutput
from pluralign.datamodules.prompt_batch import Prompt
from pluralign.datamodules.records import RecordError, listed, parse_messages
from pluralign.datamodules.tokens import TokenRow
from pluralign.datamodules.whole_files import written_whole
from pluralign.models import PAL
from pluralign.models.restored import checkpoint_content

from .opening import OpenedModel, Which, open_model
from .response_rows import AskedResponse
from .rewards import ModuleReward

__all__ = ["Judgement", "Scorer", "load"]

ROWS = 32
"""Judgements of a batch."""
OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops")
"""Parts of a checkpoint from which a run goes on."""


class Judgement(NamedTuple):
    """What a user said of two responses."""

    prompt: Prompt
    """Text, or messages."""
    chosen: str
    rejected: str
    preference: float = 1.0
    """How much the first is preferred, in [0, 1]; 0.5 is a tie."""


class Scorer(ModuleReward):
    """A reward model with the text format that it was trained with, to be asked for rewards.

    Attributes:
        opened: What was opened: its place, its kind, its text format.

    Example:
        >>> import pluralign
        >>> scorer = pluralign.load("runs/lightning_logs/version_0")  # doctest: +SKIP
        >>> scorer.score("Name a fruit.", ["A fig.", "A chair."])  # doctest: +SKIP
        tensor([ 0.3715, -1.2042])
    """

    def __init__(
        self,
        opened: OpenedModel,
        *,
        label: str | None = None,
        user: str | None = None,
        domain: str | None = None,
        unknown_users: Literal["error", "mean"] = "error",
        unscored: float | None = None,
        device: str | None = "auto",
        max_tokens: int = 16_384,
    ) -> None:
        """Settle whose rewards are asked for.

        Args:
            opened: The model, as :func:`open_model` gives it.
            label: As :class:`ModuleReward` has it, and so are the others.
            user: Whose reward it is, whoever is named beside an item.
            domain: Of which domain it is, whatever is named beside an item.
            unknown_users: What somebody gets of whom the model knows nothing.
            unscored: Reward of a response that cannot be read; None refuses it.
            device: Where the model runs: ``auto`` for an accelerator if there is one.
            max_tokens: Bound on rows x padded length of a batch, >= 1.

        Raises:
            ValueError: If the text format cannot be had any more, or the model has no such label, user or domain.
        """
        super().__init__(
            opened.module,
            text=opened.text,
            label=label,
            user=user,
            domain=domain,
            unknown_users=unknown_users,
            unscored=unscored,
            device=device,
            max_tokens=max_tokens,
            name=f"{type(opened.module).__name__} of {opened.place}",
        )
        self.opened = opened

    @property
    def users(self) -> list[str]:
        """Users who have a reward of their own; none of a method that has one for all."""
        return sorted(self.known("user"))

    @property
    def domains(self) -> list[str]:
        """Domains that have a reward of their own."""
        return sorted(self.known("domain"))

    # Asking ----------------------------------------------------------------------------------------------

    def score(
        self,
        prompt: Prompt,
        responses: str | Sequence[str],
        user: str | None = None,
        domain: str | None = None,
    ) -> Tensor:
        """Rewards of responses to a prompt, which is read once for all of them.

        For many prompts at once call the scorer itself, ``scorer(prompts, responses, columns)``: a prompt, a response and
        whatever is in ``columns`` (``user``, ``domain``) for each item.

        Args:
            prompt: Text, or messages with ``role`` and ``content``.
            responses: One, or several.
            user: As whom they are rated; None for the user that the scorer was made for, or the mean of all users.
            domain: In which domain; None for the one that the scorer was made for, or the general reward.

        Returns:
            (k,) float32, higher is better; only differences mean something, and only of responses to one prompt.

        Raises:
            ValueError: If a text cannot be read, or the user or domain is unknown; says what to change.
        """
        texts = [responses] if isinstance(responses, str) else list(responses)
        return self([prompt] * len(texts), texts, self._columns(len(texts), user, domain))

    def labels(self, prompt: Prompt, responses: str | Sequence[str]) -> Labels:
        """How the crowd would label responses, of a method that predicts this (:class:`DPRM`).

        Args:
            prompt: Text, or messages.
            responses: One, or several.

        Returns:
            Distributions (k, K), in the responses' order, on the CPU.

        Raises:
            ValueError: If the model predicts no labels of responses, or a text cannot be read.
        """
        found = self._asked_for(prompt, responses, "labels")
        return Labels(**{name: _joined([part[name] for part in found]) for name in found[0]})

    def members(self, prompt: Prompt, responses: str | Sequence[str]) -> Basis:
        """Each reward of a model that has several: of an ensemble's members, of prototypes, of domains.

        Args:
            prompt: Text, or messages.
            responses: One, or several.

        Returns:
            Rewards (k, K) with the names of their columns, on the CPU.

        Raises:
            ValueError: If the model has one reward alone, or a text cannot be read.
        """
        found = self._asked_for(prompt, responses, "basis")
        return Basis(**{name: _joined([part[name] for part in found]) for name in found[0]})

    def _asked_for(
        self, prompt: Prompt, responses: str | Sequence[str], entry: Literal["labels", "basis"]
    ) -> list[dict[str, Any]]:
        """One entry of what the module says of each response, in the responses' order; parts of it by name."""
        texts = [responses] if isinstance(responses, str) else list(responses)
        read = self.read([AskedResponse(f"response {i}", prompt, text) for i, text in enumerate(texts)])
        if read.unread:
            place, reason = next(iter(sorted(read.unread.items())))
            raise ValueError(f"{self.name}: response {place} is {reason}: nothing can be said of it")
        parts: dict[int, dict[str, Any]] = {}
        for places, batch, output in self.outputs(read):
            said = self.said(output, entry)
            for place, row in zip(places, batch["request_response"].tolist(), strict=True):
                parts[place] = {
                    name: value[row : row + 1].cpu() if isinstance(value, Tensor) else value
                    for name, value in said._asdict().items()
                }
        return [parts[place] for place in range(len(texts))]

    def said(self, output: RewardOutput, entry: Literal["labels", "basis"]) -> Labels | Basis:
        """What a module says of responses besides their reward.

        Raises:
            ValueError: If it does not.
        """
        found = output.get(entry)
        if isinstance(found, Labels) and found.on == "responses":
            return found
        if isinstance(found, Basis):
            return found
        if entry == "labels":
            what = "labels comparisons" if isinstance(found, Labels) else "predicts no labels"
            raise ValueError(
                f"{self.name} {what}: labels of responses are there of a DPRM that judges responses"
            )
        raise ValueError(f"{self.name} has one reward alone, and no members, prototypes or domains")

    # A new user ------------------------------------------------------------------------------------------

    def adapt(
        self,
        user: str,
        judgements: Sequence[Judgement | Mapping[str, Any] | Sequence[Any]],
        *,
        prior_strength: float = 1.0,
        peers: bool = True,
    ) -> Tensor:
        """Give a user weights from a few judgements, of a method whose users have weights (:class:`PAL`).

        From then on ``user`` can be asked for; :meth:`save` keeps it. Nothing else of the model changes.

        Args:
            user: A new user's name, or one whose weights are to be fitted anew.
            judgements: Each a :class:`Judgement`, a mapping of its fields, or (prompt, chosen, rejected).
            prior_strength: How strongly the mean of all users holds against the judgements, >= 0.
            peers: Whether those who judge alike have a say.

        Returns:
            Weights over the prototypes, (K,), summing to 1.

        Raises:
            TypeError: If the model has no users.
            ValueError: If a judgement cannot be read; names it.
        """
        module = self.module
        if not isinstance(module, PAL):
            raise TypeError(f"{self.name} has one reward for all users: adapt is for PAL")
        rows = [self._row(place, judgement) for place, judgement in enumerate(judgements)]
        if not rows:
            raise ValueError("adapt needs judgements; got none")
        collate = self.collator()
        self.place_module()
        batches = (collate(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS))
        return module.adapt(batches, [user], prior_strength=prior_strength, peers=peers)[0].cpu()

    def _row(self, place: int, judgement: Judgement | Mapping[str, Any] | Sequence[Any]) -> TokenRow:
        """A judgement as a row of tokens.

        Raises:
            ValueError: If it is none, or its texts do not fit the text format.
        """
        try:
            given = (
                Judgement(**judgement)
                if isinstance(judgement, Mapping)
                else Judgement(*cast(Sequence[Any], judgement))
            )
            prompt = given.prompt
            record = PreferenceRecord(
                id=f"judgement {place}",
                prompt=prompt if isinstance(prompt, str) else parse_messages("prompt", prompt),
                responses=(Response(given.chosen), Response(given.rejected)),
                comparisons=(Comparison(0, 1, preference=given.preference),),
            )
            (tokens,) = self.tokenizer([record])
            if isinstance(tokens, RecordError):
                raise tokens
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"judgement {place} must be (prompt, chosen, rejected[, preference]): {error}"
            ) from error
        if not tokens.comparisons:
            raise ValueError(
                f"judgement {place} compares nothing: {listed(tokens.dropped) or 'no responses'}"
            )
        return TokenRow(
            id=record.id,
            tokens=tokens.tokens,
            lengths=tokens.lengths,
            response_index=np.arange(2, dtype=np.int32),
            comparisons=np.asarray([[0, 1]], np.int32),
            comparison_index=np.zeros(1, np.int32),
            preference=np.asarray([given.preference], np.float32),
            columns={},
            prompt_length=tokens.prompt_length,
        )

    def save(self, path: str | Path) -> None:
        """Write a checkpoint of the model as it is now, with the users that were added; whole, or not at all.

        Args:
            path: A new file, ``*.ckpt``.

        Raises:
            FileExistsError: If it is there.
            ValueError: If the model was not opened from a checkpoint.
        """
        if self.opened.kind != "checkpoint":
            raise ValueError(
                f"{self.opened.place} is no checkpoint: only what came from one is written as one"
            )
        target = Path(path)
        if target.exists():
            raise FileExistsError(f"{target} is there already: name another file")
        content = checkpoint_content(self.opened.place)
        state = self.module.state_dict()  # of which a checkpoint leaves out what the base's own files have
        content["state_dict"] = {name: state[name].cpu() for name in content["state_dict"]}
        for name in OF_TRAINING:
            content.pop(name, None)
        with written_whole(target) as stream:
            torch.save(content, stream)

    def _columns(self, number: int, user: str | None, domain: str | None) -> dict[str, Sequence[object]]:
        for column, value in (("user", user), ("domain", domain)):
            fixed = self.user if column == "user" else self.domain
            if value is not None and fixed not in (None, value):
                raise ValueError(
                    f"{self.name} was opened for {column} {fixed!r} alone, and {value!r} is asked for: open it without {column}"
                )
            if value is not None:
                self.check_asked(column, value)
        return {"user": [user] * number, "domain": [domain] * number}


def load(
    source: str | Path,
    *,
    class_path: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    checkpoint: Which = "best",
    revision: str | None = None,
    trust_remote_code: bool = False,
    label: str | None = None,
    user: str | None = None,
    domain: str | None = None,
    unknown_users: Literal["error", "mean"] = "error",
    unscored: float | None = None,
    device: str | None = "auto",
    max_tokens: int = 16_384,
) -> Scorer:
    """Open a reward model, to be asked for rewards.

    Args:
        source: A checkpoint, a run's folder, a folder that ``pluralign export`` wrote, or a reward model of transformers (a
            folder, or a name on the hub); :func:`open_model` says more of it, and of the next seven.
        class_path: Of a checkpoint: its class, where it is not the collection's.
        settings: Of a checkpoint: settings that are to differ.
        tokenizer: Where the tokenizer lies now.
        base: Of an adapter's folder: where its base lies now.
        checkpoint: Which one of a run's folder, ``best`` or ``last``.
        revision: Of a name on the hub.
        trust_remote_code: Whether code that ships with weights or tokenizer may run; no file decides that.
        label: Whose rewards, on what device, and in what batches: :class:`Scorer` says more of this and the others.
        user: Whose reward it is, whoever is named beside an item.
        domain: Of which domain it is, whatever is named beside an item.
        unknown_users: ``error``, or ``mean`` for the mean of all users.
        unscored: Reward of a response that cannot be read; None refuses it.
        device: ``auto`` for an accelerator if there is one.
        max_tokens: Bound on a batch.

    Raises:
        FileNotFoundError: If there is nothing there.
        TypeError: If it is a model that rates nothing.
        ValueError: If it cannot be read, or has no such label, user or domain.
    """
    opened = open_model(
        source,
        class_path=class_path,
        settings=settings,
        tokenizer=tokenizer,
        base=base,
        checkpoint=checkpoint,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    return Scorer(
        opened,
        label=label,
        user=user,
        domain=domain,
        unknown_users=unknown_users,
        unscored=unscored,
        device=device,
        max_tokens=max_tokens,
    )


def _joined(values: Sequence[Any]) -> Any:  # noqa: ANN401  tensors become one, anything else is the same in all
    first = values[0]
    return torch.cat(list(values)) if isinstance(first, Tensor) else first
