"""MergeTrace: which expert wrote which token, as a page and a picture, and what weights experts have on the whole."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import lightning as L
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.prompt_batch import Prompt, PromptBatch, PromptSource
from pluralign.datamodules.whole_files import written_whole
from pluralign.metrics import (
    ExpertWeights,
    TracedResponse,
    WeightShare,
    expert_weights_table,
    response_weights,
)

from .base import Finding, Report
from .merge_page import merge_page
from .pictures import PictureFormat, draw_merge_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MergeTrace"]

LAST = "last"
"""What stands in place of the step in the names of the files of the last validation."""


class TracedRollouts(Protocol):
    """What this callback reads of rollouts."""

    prompts: PromptBatch
    item: Tensor
    tokens: Tensor
    lengths: Tensor
    finished: Tensor
    token_values: dict[str, Tensor]


class NamedExperts(Protocol):
    """Experts by name."""

    names: tuple[str, ...]


@runtime_checkable
class MergesExperts(Protocol):
    """A module that mixes experts."""

    def pool(self) -> NamedExperts:
        """The experts."""
        ...


class HasPrompts(Protocol):
    """A module that writes responses to prompts."""

    @property
    def prompt_source(self) -> PromptSource:
        """What the data say of themselves."""
        ...


class MergeTrace(Report[ExpertWeights]):
    """Show how experts are mixed token by token, in the responses of each validation and test.

    A few responses are shown token by token: each in the colour of the expert with the largest weight, the stronger the larger
    it is, with the weights of all experts over time below. Beside them stand the mean weight of each expert and how often it
    leads, on the whole and for the items that ask for each dimension. These are over all responses of all processes; the
    responses that are shown are the first of the first process, of different preferences where there are some.

    It logs ``expert_weight/NAME`` of each expert and ``effective_experts``, and writes ``<stage>_step<step>.json`` with everything,
    a page ``.html`` that loads nothing, on which pointing at a token shows all weights, and the picture; those of the
    last one once more as ``<stage>_last``, for a browser to be left open on.
    """

    def __init__(
        self,
        folder: str = "merge_trace",
        *,
        num_responses: int = 4,
        formats: Sequence[PictureFormat] = ("png",),
    ) -> None:
        """Say what is shown.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            num_responses: Responses that are shown token by token, >= 1.
            formats: Formats of the picture: ``png``, ``pdf``, ``svg``, one or several.

        Raises:
            ValueError: If a setting is outside its range.
        """
        check_range("num_responses", num_responses, at_least=1)
        super().__init__(folder, formats=formats)
        self.num_responses = num_responses
        self._shown: list[tuple[tuple[str, ...], TracedResponse]] = []

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the responses of another validation.

        Raises:
            TypeError: If the module mixes no experts.
        """
        if not isinstance(module, MergesExperts):
            raise TypeError(
                f"MergeTrace shows the weights of experts, as PCM has them, and {type(module).__name__} has none: leave it out"
            )
        self._shown = []

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Sums of weights of each response, and the dimensions that its item asks for.

        Raises:
            ValueError: If the step returns no rollouts, or these have no weights.
        """
        rollouts = cast("dict[str, TracedRollouts]", output).get("rollouts")
        if rollouts is None or "weights" not in rollouts.token_values:
            raise ValueError(
                f"MergeTrace needs rollouts with the weights of experts, and those of {type(module).__name__} have "
                f"{sorted(rollouts.token_values) if rollouts else 'no rollouts'}: leave it out where nothing is mixed, as with one "
                "expert, prompting or a soup"
            )
        weights = rollouts.token_values["weights"]
        names = cast(MergesExperts, module).pool().names
        if weights.shape[2] != len(names):
            raise ValueError(
                f"rollouts have weights of {weights.shape[2]} experts, and there are {', '.join(names)}"
            )
        wanted = rollouts.prompts["wanted"].to(weights.device)[rollouts.item]
        if module.global_rank == 0:
            self._keep(cast(HasPrompts, module).prompt_source, rollouts)
        return response_weights(weights.detach(), rollouts.lengths), wanted

    def _keep(self, source: PromptSource, rollouts: TracedRollouts) -> None:
        """Keep responses to be shown: of preferences that were not there before, and others while there is room."""
        known = {preference for preference, _ in self._shown}
        preferences = rollouts.prompts.get("preference", [()] * len(rollouts.prompts["id"]))
        items = rollouts.item.tolist()
        seen: set[int] = set()
        for place, item in enumerate(items):
            preference = tuple(preferences[item])
            full = len(self._shown) >= self.num_responses
            if item in seen or (full and (preference in known or len(known) >= self.num_responses)):
                continue
            seen.add(item)
            known.add(preference)
            self._shown.append((preference, _traced(source, rollouts, place, item)))
        self._shown = _different_first(self._shown, self.num_responses)

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No responses."""
        number = 2 + 2 * len(cast(MergesExperts, module).pool().names)
        dimensions = len(cast(HasPrompts, module).prompt_source.dimensions)
        rows = torch.zeros(0, number, dtype=torch.float64, device=module.device)
        return rows, torch.zeros(0, dimensions, dtype=torch.bool, device=module.device)

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> ExpertWeights | None:
        """Weights on the whole and by dimension; None without responses."""
        rows, wanted = columns
        if not len(rows):
            return None
        names = cast(MergesExperts, module).pool().names
        dimensions = cast(HasPrompts, module).prompt_source.dimensions
        return expert_weights_table(rows, wanted, names, dimensions, [one for _, one in self._shown])

    def values(self, module: L.LightningModule, whole: ExpertWeights) -> dict[str, float]:
        """Mean weights, and how many experts take part."""
        weights = zip(whole.experts, whole.overall.mean, strict=True)
        return {
            **{f"expert_weight/{name}": mean for name, mean in weights},
            "effective_experts": whole.effective,
        }

    def content(self, finding: Finding[ExpertWeights]) -> dict[str, object]:
        """Everything, with the responses that are shown."""
        whole = finding.whole
        return {
            "step": finding.step,
            "experts": list(whole.experts),
            "responses": whole.responses,
            "effective_experts": whole.effective,
            "overall": whole.overall._asdict(),
            "by_dimension": {name: share._asdict() for name, share in whole.by_dimension.items()},
            "traced": [
                {**one._asdict(), "weights": [[round(weight, 6) for weight in row] for row in one.weights]}
                for one in whole.traced
            ],
        }

    def page(self, finding: Finding[ExpertWeights]) -> str:
        """The page."""
        return merge_page(f"{finding.title}: who wrote what", finding.whole)

    def draws_now(self, trainer: L.Trainer, stage: str) -> bool:
        """Every validation has its picture."""
        return True

    def draw(self, finding: Finding[ExpertWeights]) -> "Figure":
        """The picture."""
        return draw_merge_trace(finding.whole, f"{finding.title}: who wrote what")

    def finished(self, finding: Finding[ExpertWeights]) -> None:
        """Write page and pictures once more, under a name that stays."""
        for ending in ("html", *finding.drawn):
            path = finding.path.with_name(f"{finding.path.name}.{ending}")
            last = finding.path.with_name(f"{finding.stage}_{LAST}.{ending}")
            with written_whole(last) as stream:
                stream.write(path.read_bytes())

    def show(self, finding: Finding[ExpertWeights], first: dict[str, float] | None, console: Console) -> None:
        """Print mean weights by dimension."""
        whole = finding.whole
        table = Table(
            title=f"{finding.title}: mean weight of each expert (share of tokens that it leads)",
            caption=f"{whole.responses:,} responses; effectively {whole.effective:.2f} of {len(whole.experts)} experts take part in a token",
        )
        table.add_column("items that ask for", overflow="fold")
        table.add_column("tokens", justify="right", no_wrap=True)
        for name in whole.experts:
            table.add_column(escape(name), justify="right", overflow="fold")
        for name, share in {"any preference": whole.overall, **whole.by_dimension}.items():
            table.add_row(escape(name), f"{share.tokens:,}", *_cells(share))
        console.print(table)
        finding.print_files(console, "merge trace")


def _cells(share: WeightShare) -> list[str]:
    return [f"{mean:.3f} ({lead:.0%})" for mean, lead in zip(share.mean, share.leads, strict=True)]


def _traced(source: PromptSource, rollouts: TracedRollouts, place: int, item: int) -> TracedResponse:
    """One response token by token."""
    length = int(rollouts.lengths[place])
    weights = rollouts.token_values["weights"][place, :length].tolist()
    preferences = rollouts.prompts.get("preference")
    return TracedResponse(
        prompt=_prompt_text(rollouts.prompts["prompt"][item]),
        preference=() if preferences is None else tuple(preferences[item]),
        pieces=tuple(source.pieces(rollouts.tokens[place, :length].tolist())),
        weights=tuple(map(tuple, weights)),
        finished=bool(rollouts.finished[place]),
    )


def _prompt_text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _different_first(
    shown: Sequence[tuple[tuple[str, ...], TracedResponse]], number: int
) -> list[tuple[tuple[str, ...], TracedResponse]]:
    """So many responses: one of each preference as they came, then others."""
    first = {preference: place for place, (preference, _) in reversed([*enumerate(shown)])}
    firsts = sorted(first.values())
    others = [place for place in range(len(shown)) if place not in first.values()]
    return [shown[place] for place in sorted([*firsts, *others][:number])]
