"""PolicyTuner: a language model that learns to write what a reward prefers."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from torch import Tensor

from pluralign.datamodules.checks import check_choices, check_range
from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.losses import token_nll
from pluralign.metrics import response_diversity

from ._response_rows import response_rows
from ._start_weights import StartWeights
from .backbone import Backbone, BackboneConfig, without_dropout
from .generation import LanguageModelSource, evaluating, generate
from .relative import RolloutModule, RolloutSettings
from .responding import rated
from .rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

__all__ = ["PolicyTuner"]

START = "start."
"""What names of the weights begin with that training started from."""
OF_A_RUN = ("num_rounds", "spread")
"""State of a run of rounds, which another run does not go on with."""
SPREAD = ("unique", "overlap", "distinct_1", "distinct_2")
"""What is logged of how different responses are."""


class TemperedSource(LanguageModelSource):
    """A language model whose distribution has a temperature: what is drawn is the policy that is trained."""

    def __init__(
        self, model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, temperature: float
    ) -> None:
        """Read nothing yet.

        Args:
            model: As :class:`LanguageModelSource` has it, as are prompts and mask.
            input_ids: (B, L) int64.
            attention_mask: (B, L) int64.
            temperature: > 0.
        """
        super().__init__(model, input_ids, attention_mask)
        self.temperature = temperature

    def start(self) -> Tensor:
        """Log-probabilities of the first token, (B, V) float32."""
        return (super().start() / self.temperature).log_softmax(-1)

    def advance(self, tokens: Tensor) -> Tensor:
        """Log-probabilities, (B'', V) float32, after each live row's next token, (B'',) int64."""
        return (super().advance(tokens) / self.temperature).log_softmax(-1)


class PolicyTuner(RolloutModule):
    r"""A language model tuned on any reward by REBEL: rounds of its own responses, of which it learns which are preferred.

    The reward may be a DPRM's expected reward, PAL's reward for a user, the lower bound of an ensemble's vote, one domain's
    head, or any function. What an item asks for is said to the policy in the prompt. All of the network is trained, or
    ``backbone.lora`` on it; the policy that training starts from is the reference of log-ratios and of answers, for which a
    copy of the trained weights is kept: of adapters theirs, and of a network that is trained whole one more network.

    A policy that is tuned on an expected reward goes where most people's taste is, and its responses become alike:
    ``unique`` (different responses to an item over its responses), ``overlap`` (tokens that two of them share) and
    ``distinct_1``, ``distinct_2`` (different tokens and pairs over all, in a batch) are logged beside the reward.
    :class:`RewardWatch` has a second reward model watch.

    Attributes:
        start: The weights that training started from; None where nothing asks for them.
        baseline: What is in place of training.
        measures_kl: Whether log-ratios to where training started from are known.

    Source:
        Gao et al., *REBEL: Reinforcement Learning via Regressing Relative Rewards*, NeurIPS 2024,
        https://arxiv.org/abs/2404.16767, as :func:`rebel_loss` has it. Departures: eta follows the spread of the reward; rewards
        may be relative to an answer of the reference.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        baseline: Literal["none", "best_of_n"] = "none",
        num_candidates: int = 8,
        measure_kl: bool = True,
        **settings: Unpack[RolloutSettings],
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: The policy, in which state: with ``lora`` its adapters are trained, without all of it. It decodes and is
                trained without dropout, so that log-ratios are 0 before the first step.
            baseline: ``none``, or ``best_of_n``: nothing is trained, and a response is the one that the rewards like best of
                ``num_candidates`` that are drawn. It is written where responses are, by validation, test and
                `pluralign generate`.
            num_candidates: Of ``best_of_n``, for each response, >= 2.
            measure_kl: Whether the log-ratio to the policy that training started from is logged, which costs a pass of that one
                over the responses of each round and evaluation; ``kl_weight`` asks for it in any case.
            **settings: As :class:`RolloutModule` has them.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(backbone, **settings)
        check_choices(PolicyTuner.__init__, baseline=baseline)
        check_range("num_candidates", num_candidates, at_least=2)
        self.baseline: Literal["none", "best_of_n"] = baseline
        self.num_candidates = num_candidates
        self.measures_kl = self.kl_weight > 0 or (measure_kl and baseline == "none")
        self.start: StartWeights | None = None

    # Parts ---------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the policy, and keep the weights that it starts with, unless it is built."""
        if self.backbone is not None:
            return
        backbone = Backbone(without_dropout(self.backbone_config), language_head=True)
        self.backbone = backbone
        if self.measures_kl or self.reference == "greedy":
            self.start = StartWeights(backbone)
        self.load_initial_weights()
        if self.start is not None:
            self.start.take(backbone)

    def policy(self) -> Backbone:
        """The policy, once it is there.

        Raises:
            RuntimeError: If ``configure_model`` has not run.
        """
        backbone = self.built_backbone()
        assert isinstance(backbone, Backbone)  # as configure_model built it
        return backbone

    def initial_state(self, content: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
        """The other run's weights; what it started from, and how far it was, are its own."""
        state, new = super().initial_state(content)
        kept = {name for name in self.state_dict() if name.startswith(START)} | {*OF_A_RUN}
        state = {name: value for name, value in state.items() if not name.startswith((START, *OF_A_RUN))}
        return state, new | kept

    def saved_keys(self) -> set[str]:
        """All but a whole copy of weights that the backbone's own files hold."""
        keys, config = super().saved_keys(), self.backbone_config
        elsewhere = self._started or any(name.startswith(START) for name in self._loaded_keys)
        if config.name is None or config.lora is not None or elsewhere:
            return keys
        return {name for name in keys if not name.startswith(START)}

    def setup(self, stage: str) -> None:
        """Make sure, before anything is built, that a fit has something to tune.

        Raises:
            ValueError: If not.
        """
        super().setup(stage)
        if stage == "fit" and self.baseline != "none":
            raise ValueError(
                f"baseline={self.baseline!r} has nothing to learn: validate or test it, or write with `pluralign generate`"
            )
        if stage == "fit" and self.backbone_config.frozen:
            raise ValueError(
                "backbone.frozen=true leaves nothing to tune: set backbone.lora, or backbone.frozen=false"
            )

    def description(self) -> dict[str, object]:
        """What decides the responses of a round beside weights, items and seed."""
        start = None if self.start is None else self.start.digest()
        return {**super().description(), "start": start, "measures_kl": self.measures_kl}

    # Responses -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def respond(
        self,
        batch: PromptBatch,
        *,
        num_samples: int = 1,
        sample: bool = False,
        generator: torch.Generator | None = None,
        config: "GenerationConfig | None" = None,
        streamer: "BaseStreamer | None" = None,
    ) -> Rollouts:
        """Write responses; see the base class. Candidates of ``best_of_n`` are drawn in any case.

        Raises:
            ValueError: If a prompt and a response together are longer than the policy can read, or ``best_of_n`` has no
                rewards, or is to be streamed.
        """
        if self.baseline == "none":
            return self._written(batch, num_samples, sample, generator, config, streamer)
        if streamer is not None:
            raise ValueError(
                "baseline='best_of_n' chooses among whole responses, which cannot be streamed: leave the streamer out"
            )
        number = self.num_candidates
        candidates = self._written(batch, num_samples * number, True, generator, config, None)
        self.rate(candidates)
        best = rated(candidates).view(-1, number).argmax(1)
        return candidates.samples(best + torch.arange(0, len(candidates), number, device=best.device))

    def rate(self, rollouts: Rollouts) -> None:
        """Have the rewards rate responses that they did not choose already; see the base class."""
        if self.measures_kl and rollouts.reference_log_prob is None:
            rollouts.reference_log_prob = self.reference_log_probs(rollouts)
        if rollouts.reward is None:
            super().rate(rollouts)

    def reference_answers(self, batch: PromptBatch) -> Rollouts:
        """Likeliest answers of the policy that training started from."""
        with self._started_weights().acting(self.policy()):
            return self._written(batch, 1, False, None, None, None)

    def _started_weights(self) -> StartWeights:
        if self.start is None:
            raise RuntimeError("the weights that training started from were not kept: call configure_model()")
        return self.start

    def _written(
        self,
        batch: PromptBatch,
        num_samples: int,
        sample: bool,
        generator: torch.Generator | None,
        config: "GenerationConfig | None",
        streamer: "BaseStreamer | None",
    ) -> Rollouts:
        backbone = self.policy()
        chosen = config or self.decoding(sample)
        self._check_room(batch["input_ids"].shape[1], chosen.max_new_tokens or 0)
        self.check_tokens(batch, {"model.backbone": backbone.vocab_size})
        ids, mask = batch["input_ids"], batch["attention_mask"]
        item = torch.arange(len(ids), device=ids.device).repeat_interleave(num_samples)
        network = backbone.language_model()
        source = LanguageModelSource(network, ids[item], mask[item])
        if sample and config is None and self.temperature != 1.0:
            source = TemperedSource(network, ids[item], mask[item], self.temperature)
        with evaluating(backbone):
            made = generate(
                source, network, ids[item], mask[item], chosen, generator=generator, streamer=streamer
            )
        rollouts = Rollouts(
            prompts=batch,
            item=item,
            tokens=made.tokens,
            lengths=made.lengths,
            finished=made.finished,
            log_prob=made.log_prob,
            texts=self.texts_of(made.tokens, made.lengths),
        )
        if sample and (torch.is_autocast_enabled(ids.device.type) or network.dtype != torch.float32):
            # In 16 bits, decoding and a pass over whole rows round differently, by more than a step moves.
            rollouts.log_prob = self._over_parts(rollouts)
        return rollouts

    def _check_room(self, prompt: int, response: int) -> None:
        positions = self.policy().max_positions
        if positions is not None and prompt + response > positions:
            raise ValueError(
                f"a prompt of {prompt} tokens and a response of {response} (max_new_tokens) are longer than the policy can read "
                f"({positions}): lower model.max_new_tokens or data.text.max_length"
            )

    # Learning ------------------------------------------------------------------------------------------

    def log_probs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of every token at ``temperature``, (S, T) float32; prompts are read once for all their responses."""
        backbone, prompts = self.policy(), rollouts.prompts
        head = backbone.language_head
        assert head is not None  # configure_model asked for it
        rows = response_rows(
            prompts["input_ids"],
            prompts["attention_mask"],
            rollouts.tokens,
            rollouts.lengths,
            rollouts.item,
            layout=backbone.layout,
        )
        states = rows.predicting(backbone.read(rows.batch).tokens).flatten(0, 1)
        bias: Tensor | None = head.bias
        if self.temperature != 1.0:
            states = states.float() / self.temperature
            bias = None if bias is None else bias / self.temperature
        mask = rollouts.mask
        tokens = torch.where(mask, rollouts.tokens, 0).flatten()
        nll = token_nll(states, head.weight, tokens, bias=bias)
        return torch.where(mask, -nll.view(mask.shape), 0.0)

    def reference_log_probs(self, rollouts: Rollouts) -> Tensor:
        """The same under the policy that training started from, without gradients, on the rollouts' device."""
        with self._started_weights().acting(self.policy()):
            return self._over_parts(rollouts)

    @torch.no_grad()
    def _over_parts(self, rollouts: Rollouts) -> Tensor:
        """Log-probabilities of all, as many items at a time as an optimiser step takes."""
        found = torch.zeros_like(rollouts.log_prob)
        place = 0
        with evaluating(self.policy()):
            for start in range(0, rollouts.num_items, self.batch_size):
                items = range(start, min(start + self.batch_size, rollouts.num_items))
                part = rollouts.part(list(items)).to(self.device)
                log_prob = self.log_probs(part).to(found.device)
                found[place : place + len(part), : log_prob.shape[1]] = log_prob
                place += len(part)
        return found

    def measures(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """How different responses are; of ``best_of_n`` a bound on its divergence from the policy it draws from, in nats."""
        rows = zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)
        diversity = response_diversity([row[:length] for row, length in rows], rollouts.item.tolist())
        values = {name: torch.tensor(getattr(diversity, name)) for name in SPREAD}
        if self.baseline == "best_of_n":
            number = self.num_candidates
            values["kl_bound"] = torch.tensor(math.log(number) - (number - 1) / number)
        return values
