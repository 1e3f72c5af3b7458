"""``pluralign data treated``: a page that shows a person what the treatments do to the training labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.whole_files import written_whole

from .cli import PluralignCLI, option
from .treated_page import treated_page
from .treated_sample import drawn, sampled_comparisons, strata

__all__ = ["sample_page", "treated"]


@dataclass(frozen=True)
class TreatedOptions:
    """Where the page is written, and how many comparisons it shows."""

    output: str | None = option("file of the page, such as treated.html; replaced if it is there", None)
    num_per_rule: int = option(
        "comparisons shown of each rule, and of those that no rule covers, at random", 20
    )
    seed: int = option("other values show others", 0)

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the option, its value and what is allowed.
        """
        check_range("num_per_rule", self.num_per_rule, at_least=1)
        check_range("seed", self.seed, at_least=0)


def treated(words: Sequence[str]) -> None:
    """Write a page that shows a random sample of the training comparisons of each rule of loader.treatments.

    It has both answers side by side, the members' votes on a strength axis, the label before and after, and filters by rule and
    strength. The page is one file that loads nothing; no model is run.
    """
    cli = PluralignCLI("data treated", words, description=treated.__doc__, options=TreatedOptions)
    data, options = cli.datamodule, cli.options
    if options.output is None:
        cli.fail("name the page: --output treated.html")
    if data.loader.treatments is None:
        cli.fail("nothing is treated: set data.loader.treatments, whose rules the page is about")
    data.setup("fit")
    page, number = sample_page(data, num_per_rule=options.num_per_rule, seed=options.seed)
    path = Path(options.output)
    with written_whole(path, setting="--output") as stream:
        stream.write(page.encode())
    print(f"{number:,} comparisons are shown in {path}")


def sample_page(data: PreferenceDataModule, *, num_per_rule: int, seed: int) -> tuple[str, int]:
    """The page about a random sample of the comparisons of each rule, and how many it shows.

    Args:
        data: With treatments, set up to fit.
        num_per_rule: Comparisons shown of each rule, and of those that no rule covers, by reason.
        seed: Other values show others.

    Raises:
        ValueError: If nothing is treated.
    """
    if (decisions := data.decisions) is None:
        raise ValueError("nothing is treated: set loader.treatments, whose rules the page is about")
    groups = strata(decisions, data.table("train").comparison_values("preference"))
    places = drawn(groups, num_per_rule, seed)
    sample = sampled_comparisons(data, decisions, groups, places)
    return treated_page(f"{data.name} train", decisions.report, groups, sample), len(sample)
