"""PrototypeMap: where prototypes, users and items lie in the space of preferences, and what each prototype prefers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pluralign.datamodules.batch import DataSource, PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.metrics import PrototypeTable, log_loss, outcomes
from pluralign.models.base import data_of

from .base import STAGES, Finding, Report
from .pictures import PictureFormat, draw_prototype_table, shortened
from .prototype_sample import Collection, Points, prototypes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PrototypeMap", "headline"]

LEAST_SHOWN, MOST_SHOWN = 20, 100
"""Characters of a response in the printed table; the file has all of them."""
OTHER_COLUMNS = 47
"""Characters that the rest of the printed table takes."""


class PrototypeMap(Report[PrototypeTable]):
    r"""Show what the prototypes of PAL stand for: a map of the space of preferences, and their favourites.

    The map shows items (responses), prototypes and users' ideal points along the two directions in which prototypes and
    ideal points vary most (principal components; under the score ``angle`` of unit vectors, since lengths play no part
    there): where an item lies in other directions makes no difference between users under squared distances. A user has
    the colour of the prototype with the largest weight, and the marker of the group if groups are known. Beside it
    are the ideal points alone, an enlarged part of the same map, since items often spread much farther, and the
    mean weights of all users and of each group. Stars of prototypes that would hide one another stand apart, with a line
    to where they belong. With one prototype there is the map alone: all users are where it is, and the directions are
    the items'. Above it stand accuracy and log loss of the judgements.

    What a prototype prefers is told by its own reward (the module's ``basis``) of *every* response: the largest and
    the smallest, with the text if the data module has it. A constant per prompt cancels in every comparison, so that
    rewards of different prompts need not be comparable: ``within_prompts`` subtracts each prompt's mean.

    Where prototypes are functions of the prompt (version B) there is one map per prompt, and one prompt is drawn with
    its own responses; favourites are sought among all.

    At the end of ``fit`` (from the last validation), ``validate`` and ``test`` it writes ``<stage>_step<step>.png``,
    ``<stage>_step<step>.json`` with whole texts, coordinates and weights, and prints a table; the picture also goes to
    the loggers of TensorBoard and of Weights & Biases. Sanity checks are ignored. It reports on one loader, and refuses several. With
    several ranks all but accuracy and log loss is of what rank zero saw, and says so.

    .. versionadded:: 0.1
    """

    written_at_once = False

    def __init__(
        self,
        folder: str = "prototype_map",
        *,
        num_examples: int = 3,
        within_prompts: bool | None = None,
        prompt_id: str | None = None,
        groups: dict[str, str] | None = None,
        max_items: int = 2000,
        max_users: int = 2000,
        formats: Sequence[PictureFormat] = ("png",),
        seed: int = 0,
    ) -> None:
        """Name the folder and bound what is drawn.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            num_examples: Responses of largest, and of smallest, reward per prototype, >= 1.
            within_prompts: Rank responses by their reward less the mean of their prompt's; None does so in version B,
                where each prompt has prototypes of its own.
            prompt_id: Record whose map is drawn in version B; None for the first one that comes.
            groups: Group of each user, by the user's name; None for those that the data name, if any.
            max_items: Items drawn, a random sample of all, >= 1.
            max_users: Users drawn, a random sample of all, >= 1.
            formats: Formats of the picture: ``png``, ``pdf``, ``svg``, one or several.
            seed: Seed of both samples, >= 0.

        Raises:
            ValueError: If a number is below what is allowed, or a format is not known.
        """
        super().__init__(folder, formats=formats)
        check_range("num_examples", num_examples, at_least=1)
        check_range("max_items", max_items, at_least=1)
        check_range("max_users", max_users, at_least=1)
        check_range("seed", seed, at_least=0)
        self.num_examples, self.within_prompts = num_examples, within_prompts
        self.prompt_id, self.groups = prompt_id, groups
        self.max_items, self.max_users, self.seed = max_items, max_users, seed
        self._hook: RemovableHandle | None = None
        self._points: Points | None = None
        self._seen: Collection | None = None
        self._data: DataSource | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look at the module; forget another run.

        Raises:
            ValueError: If the module has no prototypes.
        """
        super().setup(trainer, pl_module, stage)
        self._data = data_of(trainer)
        if stage != "predict":
            prototypes_of(pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop looking at the network."""
        self._end()

    # Collecting ----------------------------------------------------------------------------------------

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin a new collection, unless it is a sanity check.

        Raises:
            ValueError: If ``prompt_id`` or ``groups`` do not fit the module.
        """
        pal = prototypes_of(module)
        network = pal.built_network()
        if self.prompt_id is not None and network.prompt_projectors is None:
            raise ValueError(
                f"prompt_id={self.prompt_id!r} chooses a map where prototypes are functions of the prompt, and those of "
                f"{type(module).__name__} are points: leave prompt_id null, or train with version B"
            )
        if self.groups is not None and not set(self.groups) & set(pal.users):
            raise ValueError(
                f"groups must name users of the module, which has {len(pal.users):,} users such as "
                f"{pal.users[:3]}; got {len(self.groups):,} others such as {list(self.groups)[:3]}"
            )
        self._end()
        if not trainer.sanity_checking:
            self._hook = network.register_forward_hook(self._see)
            self._seen = Collection(
                self.num_examples,
                within=self.within_prompts,
                prompt_id=self.prompt_id,
                max_items=self.max_items,
                seed=self.seed,
            )

    def _see(self, network: object, arguments: object, points: Any) -> None:  # noqa: ANN401  as torch has it
        self._points = points

    def _end(self) -> Collection | None:
        """Stop looking at the network; what was collected."""
        if self._hook is not None:
            self._hook.remove()
        seen, self._hook, self._points, self._seen = self._seen, None, None, None
        return seen

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Margins and shares of the judgements; a sample of places and the most extreme rewards stay on this rank.

        Raises:
            ValueError: If module or batch lack what is needed.
        """
        if self._seen is None:  # a sanity check
            return ()
        points, self._points = self._points, None
        basis = output.get("basis")
        if points is None or basis is None:
            raise ValueError(
                "PrototypeMap needs a basis, rewards of the prototypes, from the module's validation_step and test_step, "
                f"as PAL gives it; {type(module).__name__} gives {sorted(output)}"
            )
        if missing := sorted({"id", "response_prompt", "response_index"} - set(batch)):
            raise ValueError(
                f"PrototypeMap names responses and needs {', '.join(missing)} in the batch, as every data module of this "
                f"package gives; it has {sorted(batch)}"
            )
        self._seen.add(points, basis.rewards, batch)
        if "chosen" not in output:
            return self.empty(module)
        margin = (output["chosen"] - output["rejected"]).detach().float()
        return margin, batch.get("preference", torch.ones_like(margin)).float()

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No judgements."""
        return (torch.zeros(0, device=module.device),) * 2

    # The whole -----------------------------------------------------------------------------------------

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> PrototypeTable | None:
        """Find users and prototypes in the space, with the weights of this moment, and bring all to the host."""
        seen = self._end()
        if seen is None or seen.place is None:
            return None
        pal = prototypes_of(module)
        network, users = pal.built_network(), pal.users
        if self.prompt_id is not None and seen.prompt != self.prompt_id:
            rank_zero_warn(
                f"PrototypeMap: no record {self.prompt_id!r} in this {STAGES[stage]}; {seen.prompt!r} is drawn instead"
            )
        weights = pal.weights_of(users).float()
        generator = torch.Generator().manual_seed(self.seed)
        limit = self.max_users if pal.num_prototypes > 1 else 0  # else all are where the prototype is
        drawn = torch.randperm(len(users), generator=generator)[:limit].sort().values.tolist()
        pure = torch.eye(pal.num_prototypes, device=weights.device)
        ideal = network.ideal(
            seen.place,
            torch.cat([pure, weights[drawn]]),
            torch.zeros(len(pure) + len(drawn), dtype=torch.int64, device=weights.device),
        )
        items = seen.sample.rows
        if network.score == "angle":
            items, ideal = (torch.nn.functional.normalize(points, dim=-1) for points in (items, ideal))
        items, ideal = items.cpu().clone(), ideal.cpu().clone()
        names = seen.names()
        margin, share = columns
        right = outcomes(margin, share)[share != 0.5]
        table = PrototypeTable(
            stage=stage,
            step=trainer.global_step,
            ranks=trainer.world_size,
            prompt=seen.prompt,
            within_prompts=seen.within,
            items=items,
            item_names=[names[number] for number in seen.sample.numbers],
            num_items=seen.sample.seen,
            num_responses=seen.num_responses,
            prototypes=ideal[: len(pure)],
            ideal_points=ideal[len(pure) :],
            drawn=drawn,
            users=list(users),
            weights=weights.cpu().clone(),
            effective=float(pal.effective_prototypes()),
            top=seen.top.examples(names),
            bottom=seen.bottom.examples(names),
            accuracy=float(right.double().mean()) if len(right) else None,
            log_loss=float(log_loss(margin, share).double().mean()) if len(margin) else None,
            num_judgements=len(margin),
        )
        if table.finite:
            return table
        rank_zero_warn(f"PrototypeMap: places or rewards of this {STAGES[stage]} are not finite; no map")
        return None

    # Reporting -----------------------------------------------------------------------------------------

    def content(self, finding: Finding[PrototypeTable]) -> dict[str, object]:
        """Everything of the table, now with texts and groups."""
        table = finding.whole
        wanted = sorted({example.name for row in (*table.top, *table.bottom) for example in row})
        finding.whole = replace(
            table, texts=self._texts(STAGES[table.stage], wanted), groups=self._groups_of(table.users)
        )
        return finding.whole.as_json()

    def _texts(self, split: str, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Texts of responses; none where the data have none, or do not hold what the loader gave."""
        if self._data is None:
            return {}
        try:
            texts = self._data.texts(split, wanted)
        except (RuntimeError, ValueError):  # the loader's records are not of this split's table
            return {}
        return {name: text for name, (_, text) in zip(wanted, texts, strict=True) if text}

    def _groups_of(self, users: Sequence[str]) -> list[str | None]:
        """Group of each user, from the argument or the data; empty if neither has any."""
        groups = self.groups
        if groups is None:
            groups = {} if self._data is None else dict(self._data.user_groups())
        return [str(groups[user]) if user in groups else None for user in users] if groups else []

    def draw(self, finding: Finding[PrototypeTable]) -> "Figure":
        """The map, and the weights."""
        lines = [headline(finding.whole), reached(finding.whole)]
        return draw_prototype_table(finding.whole, "\n".join(line for line in lines if line))

    def show(
        self, finding: Finding[PrototypeTable], first: dict[str, float] | None, console: Console
    ) -> None:
        """Print what each prototype prefers."""
        table = finding.whole
        length = max(LEAST_SHOWN, min(MOST_SHOWN, console.width - OTHER_COLUMNS))
        rewards = "reward less its prompt's mean" if table.within_prompts else "reward"
        caption = (
            "weight: mean over users; users: those whose largest weight it is; responses: largest (+) and smallest (-) "
            f"{rewards} of the prototype alone, of {table.num_responses:,} responses"
        )
        if table.num_tied:
            caption += f"; {table.num_tied:,} users have no largest weight"
        if table.num_judgements:
            caption += f"; {reached(table)}"
        shown = Table(title=escape(headline(table)), caption=caption)
        for column in ("prototype", "weight", "users"):
            shown.add_column(column, justify="right", no_wrap=True)
        shown.add_column("rewards and responses", no_wrap=True)
        for k in range(table.num_prototypes):
            lines = [
                f"{sign}{one.reward:10.3f}  {shortened(table.text(one), length)}"
                for sign, examples in (("+", table.top[k]), ("-", table.bottom[k]))
                for one in examples
            ]
            examples = escape("\n".join(lines))
            number = f"{table.num_largest[k]:,}"
            shown.add_row(str(k), f"{table.mean_weights[k]:.3f}", number, examples, end_section=True)
        console.print(shown, emoji=False)
        finding.print_files(console, "prototype map")


def headline(table: PrototypeTable) -> str:
    """What is shown, in a line."""
    several = table.num_prototypes > 1
    parts = [f"{table.num_prototypes:,} prototype{'s' if several else ''}"]
    if several:
        parts[0] += f" (effectively {table.effective:.2f})"
        parts.append(f"{len(table.drawn):,} of {len(table.users):,} users")
    prompt = "" if table.prompt is None else f" to the prompt {shortened(table.prompt, 40)}"
    parts.append(f"{len(table.items):,} of {table.num_items:,} responses{prompt}")
    seen = f"; only what rank 0 of {table.ranks} saw" if table.ranks > 1 else ""
    stage = STAGES[table.stage]
    return f"{stage.capitalize()} at step {table.step:,}: {', '.join(parts)}{seen}"


def reached(table: PrototypeTable) -> str:
    """How well the module does, in a line; empty without judgements."""
    if not table.num_judgements:
        return ""
    right = "" if table.accuracy is None else f"accuracy {table.accuracy:.3f}, "
    return f"{right}log loss {table.log_loss:.3f} nats on {table.num_judgements:,} judgements"
