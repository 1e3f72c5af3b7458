"""Sections of a model card that follow from the training and from an evaluation."""

import re
from collections.abc import Mapping
from inspect import cleandoc

from pluralign import __version__

from ..board import MEASURES, Board, Measured
from .training import UNKNOWN, TrainingRecord

__all__ = ["citation", "counts", "data_lines", "evaluation", "limits", "recipe", "validation"]

NOT_MEASURED = "not measured"
SHOWN = ("log_loss", "brier", "accuracy", "calibration_error", "loss", "worst_group", "user_accuracy")
"""Numbers of validation that every reader knows; the run's folder has all."""


def data_lines(training: TrainingRecord) -> str:
    """Which data, where they are from, and by which print they are known again."""
    lines = []
    for each in training.data:
        mark = training.fingerprints.get(each.name)
        known = f"fingerprint `{mark}`" if mark else "fingerprint not kept"
        lines.append(f"- `{each.name}`. Source: {each.source} Licence: {each.licence} ({known})")
    return "\n".join(lines) or f"Data: {UNKNOWN}."


def counts(training: TrainingRecord) -> str:
    """What each split held, and what was dropped of it, by reason."""
    if not training.splits:
        return f"How many rows were kept and dropped: {UNKNOWN} (the run kept no record of it)."
    keys = ("rows", "records", "responses", "comparisons", "cut_prompts")
    rows = []
    for split, report in training.splits.items():
        reasons = {**_reasons(report.get("invalid")), **_reasons(report.get("dropped"))}
        dropped = "; ".join(f"{reason}: {number}" for reason, number in reasons.items()) or "nothing"
        rows.append([split, *(str(report.get(key, UNKNOWN)) for key in keys), dropped])
    return table(
        ["split", "rows", "records", "responses", "comparisons", "prompts cut", "left out, by reason"], rows
    )


def recipe(training: TrainingRecord) -> str:
    """Settings, versions and the state of the code."""
    from huggingface_hub import CardData

    session, lines = training.session, []
    versions = ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items())
    lines.append(f"- Versions in training: {versions or UNKNOWN}; exported by pluralign {__version__}")
    git = session.get("git")
    if git is None:
        lines.append(f"- Code: {UNKNOWN} (no git state was kept)")
    else:
        changed = {True: ", with changes that were not committed", False: "", None: ", changes not known"}
        lines.append(
            f"- Code: git commit {git['commit'][:12]} of the folder of training{changed[git.get('changed')]}"
        )
    where = [f"{session[name]}" for name in ("device", "precision") if session.get(name)]
    processes = f", {session['processes']} process(es)" if session.get("processes") else ""
    lines.append(f"- Device and precision: {', '.join(where) + processes if where else UNKNOWN}")
    at = "steps and epochs " + UNKNOWN
    if training.step is not None:
        at = f"optimiser step {training.step}, epoch {UNKNOWN if training.epoch is None else training.epoch}"
    lines.append(f"- Checkpoint: {at}")
    text = "\n".join(lines)
    if not training.recipe:
        return f"{text}\n- Settings: {UNKNOWN}"
    settings = CardData(**training.recipe).to_yaml().strip()
    return f"{text}\n\n<details><summary>Settings that were set</summary>\n\n```yaml\n{settings}\n```\n\n</details>"


def validation(training: TrainingRecord) -> str:
    """What the run measured at the checkpoint's step."""
    if not training.numbers:
        last = (
            ""
            if training.validated is None
            else f"; the run's last validation was at step {training.validated}"
        )
        return f"Validation at the checkpoint's step: {NOT_MEASURED}{last}."
    known = [f"val/{name}" for name in SHOWN]
    rows = [[name, f"{training.numbers[name]:.4g}"] for name in known if name in training.numbers]
    rows = rows or [[name, f"{value:.4g}"] for name, value in sorted(training.numbers.items())]
    limit = training.recipe.get("trainer", {}).get("limit_val_batches", 1.0)
    part = "" if limit in (1.0, None) else f" (limit_val_batches: {limit})"
    return (
        f"Validation at step {training.step}, on the validation split above{part}; intervals were {NOT_MEASURED}:\n\n"
        + table(["number", "value"], rows)
    )


def evaluation(board: Board | None, model: str | None) -> str:
    """Numbers of an evaluation, with their intervals."""
    if board is None or model is None:
        return f"On other data: {NOT_MEASURED} (`pluralign export --board` takes the board of `pluralign evaluate`)."
    (described,) = [each for each in board.models if each.name == model]
    parts = [f"By `pluralign evaluate`, with 95 % intervals by prompt; rewards of: {described.whose}."]
    for data in board.data:
        cell = board.cell(model, data.name)
        rows = [
            [each.title, _measured(cell.measures.get(each.name), each.form), each.meaning]
            for each in MEASURES
        ]
        shown = table(["number", "value [interval]", "meaning"], rows)
        parts.append(
            f"`{data.name}`, split {data.split}: {data.comparisons} comparisons of {data.prompts} prompts (fingerprint "
            f"`{data.fingerprint}`)\n\n{shown}"
        )
        parts += [f"- {warning}" for warning in cell.warnings]
    return "\n\n".join(parts)


def limits(task: str, training: TrainingRecord, board: Board | None, model: str | None) -> str:
    """Whose opinions these are, and what nobody has looked at."""
    people = (
        f"{training.users} users of the training data"
        if training.users
        else "whoever judged the training data, who is not named there"
    )
    lines = [
        f"Opinions: of {people}. Whether they speak for anybody else: {NOT_MEASURED}.",
        "A higher score says what these people preferred; it says nothing of truth, harm or quality beyond that."
        if task == "text-classification"
        else "What it writes follows what its training rewarded; truth and harm of its text: not measured.",
        f"Languages, topics and lengths other than those of the training data: {NOT_MEASURED}.",
    ]
    cut = sum(int(report.get("cut_prompts") or 0) for report in training.splits.values())
    if cut:
        lines.append(f"{cut} prompts were longer than the text format takes, and were cut.")
    cells = [] if board is None else [each for each in board.cells if each.model == model]
    if not any(cell.groups for cell in cells):
        lines.append(f"How well it serves single groups of people: {NOT_MEASURED}.")
    if not any(_has(cell.measures.get("calibration_error")) for cell in cells):
        lines.append(f"Calibration on other data: {NOT_MEASURED}.")
    lines.append(f"What happens when a policy is optimised against it: {NOT_MEASURED}.")
    return "\n".join(f"- {line}" for line in lines)


def citation(method: type) -> str:
    """The software, and the paper of the method as its class names it."""
    software = (
        "@software{pluralign,\n  author = {{The pluralign contributors}},\n"
        "  title = {pluralign: Lightning modules for pluralistic reward modelling},\n"
        f"  version = {{{__version__}}},\n  license = {{Apache-2.0}}\n}}"
    )
    paper = _paper(method)
    told = f"The method's source: {paper}" if paper else "The method's source: none is named."
    return f"```bibtex\n{software}\n```\n\n{told}"


def _paper(method: type) -> str:
    """Source of a class without where it departs from it; of the nearest class above that names one."""
    for kind in method.__mro__:
        match = re.search(
            r"^Source:\n((?:    .*(?:\n|$)|\n(?=    ))+)",
            cleandoc(kind.__dict__.get("__doc__") or ""),
            re.MULTILINE,
        )
        if match:
            text = " ".join(match[1].split()).partition("Departures")[0].strip()
            return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return ""


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown.

    Args:
        columns: Their titles.
        rows: As many texts each.
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _reasons(told: object) -> dict[str, int]:
    return dict(told) if isinstance(told, Mapping) else {}


def _has(measured: Measured | None) -> bool:
    return measured is not None and measured.value is not None


def _measured(measured: Measured | None, form: str) -> str:
    if measured is None or measured.value is None:
        reason = f" ({measured.reason})" if measured is not None and measured.reason else ""
        return f"{NOT_MEASURED}{reason}"
    if measured.low is None or measured.high is None:
        return f"{measured.value:{form}} (no interval{': ' + measured.reason if measured.reason else ''})"
    return f"{measured.value:{form}} [{measured.low:{form}}, {measured.high:{form}}]"
