"""A reward model as a folder that plain transformers loads: files, what is known of them, and a check before they take their place."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pluralign import __version__
from pluralign.datamodules.checks import check_choices
from pluralign.models.exported import ExportedHead, exported_head
from pluralign.models.restored import checkpoint_content

from ..opening import OpenedModel
from ..scorer import Scorer
from .adapter import write_adapter
from .base import base_facts
from .body import Body, body_of, in_float32
from .choice import Choice
from .classification import Dtype, exported_config, labelled, why_not_plain, write_classification
from .examples import examples_of
from .notes import folder_notes
from .own_code import write_own_code
from .parity import Check, Parity, measure_parity
from .tokenizer_files import ExportedTokenizer, exported_tokenizer
from .training import told_format, told_settings
from .whole_folder import MARK, check_target, folder_written_whole

__all__ = ["ExportReport", "Form", "export_folder"]

Form = Literal["classification", "own_code", "adapter"]
"""A family's own classification class; a modelling file that ships with the weights; adapters and head over a base."""


class ExportReport(NamedTuple):
    """What was written."""

    folder: Path
    form: Form
    why: str
    """Why no classification class of transformers would do; nothing where one does."""
    outputs: tuple[str, ...]
    """Names of the logits' columns."""
    meaning: str
    """What a logit is."""
    choice: Choice
    dtype: Dtype
    family: str
    """The network's ``model_type``."""
    base: str | None
    """Of the network: a name on the hub, or the path of a folder; None for random weights."""
    base_revision: str | None
    """Branch, tag or commit of a base on the hub."""
    pad_token: str
    pad_added: bool
    end_token: str
    max_length: int | None
    parity: Parity | None
    """None where it was not measured."""
    size: int
    """Bytes of all files."""


Notes = Callable[[OpenedModel, ExportReport], str]
"""What writes README.md."""


def export_folder(
    opened: OpenedModel,
    folder: str | Path,
    *,
    choice: Choice | None = None,
    adapter: bool = False,
    dtype: Dtype = "float32",
    check: Check = "apart",
    allow_difference: bool = False,
    overwrite: bool = False,
    notes: Notes = folder_notes,
    before_placing: Callable[[Path, ExportReport], None] | None = None,
) -> ExportReport:
    """Write one of a reward model's rewards as a folder that plain transformers loads.

    Adapters are merged in float32. A folder is written beside and takes its place when plain transformers has loaded it and
    given the same rewards; until then what was there stays as it was.

    Args:
        opened: The model; it is as it was afterwards.
        folder: To be written.
        choice: Which of its rewards; None for the one that it gives when nobody is named.
        adapter: Write the adapter and the head alone, as PEFT loads them over the base.
        dtype: Of the network's weights. Loaded without a dtype a folder comes in this one, and so does the head of a family's
            own class: with ``float32`` a plain load is exact.
        check: Where plain transformers tries the folder, or ``none``.
        allow_difference: Write the folder although rewards or tokens differ; the report says by how much.
        overwrite: Replace a folder that an export wrote.
        notes: Writes README.md.
        before_placing: Called with the folder beside when all is written and checked; what it raises stops the export.

    Returns:
        What was written, and what plain transformers makes of it.

    Raises:
        FileExistsError: If there is something that is not to be replaced.
        OSError: If the disk is full, or the like.
        RuntimeError: If plain transformers cannot load the folder, or gives other rewards.
        TypeError: If the method is none whose reward is read from one state of a text.
        ValueError: If the model has no such reward, or settings do not go together.
    """
    check_choices(export_folder, dtype=dtype, check=check)
    choice, target = choice or Choice(), Path(folder)
    check_target(target, overwrite=overwrite, source=opened.place)
    module = opened.module
    head = exported_head(
        module,
        user=choice.user,
        users=choice.users or None,
        domain=choice.domain,
        output=choice.output,
        member=choice.member,
    )
    body = body_of(module, choice)
    scorer = Scorer(opened, device=None)
    with folder_written_whole(target) as part, in_float32(module):
        tokenizer = exported_tokenizer(scorer.tokenizer)
        form, why = _write(part, body, head, tokenizer, adapter=adapter, dtype=dtype)
        tokenizer.write(part)
        parity = None
        if check != "none":
            examples = examples_of(scorer, choice)
            config = body.backbone.config
            base = (str(config.name), config.revision or "main") if form == "adapter" else None
            parity = measure_parity(part, examples, base=base, own_code=form == "own_code", check=check)
            if (problem := parity.problem()) and not allow_difference:
                raise RuntimeError(
                    f"{target} was not written: {problem}. Export with --dtype float32, or add --allow_difference and the folder "
                    "says so"
                )
        report = _report(
            target, head, body, tokenizer, choice, form=form, why=why, dtype=dtype, parity=parity
        )
        told = base_facts(body.backbone.config) if form == "adapter" else None
        facts = json.dumps(
            _facts(opened, report, scorer, told), indent=2, ensure_ascii=False, allow_nan=False
        )
        (part / MARK).write_text(facts + "\n", encoding="utf-8")
        report = report._replace(size=_size(part))
        (part / "README.md").write_text(notes(opened, report), encoding="utf-8")
        if before_placing is not None:
            before_placing(part, report)
    return report


def _write(
    folder: Path, body: Body, head: ExportedHead, tokenizer: ExportedTokenizer, *, adapter: bool, dtype: Dtype
) -> tuple[Form, str]:
    """Write configuration and weights; in which form, and why it is not a family's own class."""
    config = exported_config(body, tokenizer, dtype)
    own = exported_config(body, tokenizer, dtype)
    labelled(config, head)
    why = why_not_plain(body, head, config)
    if adapter and why:
        raise ValueError(
            f"--adapter needs a classification class of transformers that computes the reward, and {why}: leave --adapter out"
        )
    if adapter:
        write_adapter(folder, body, head, config, tokenizer)
        return "adapter", ""
    if why:
        write_own_code(folder, body, head, own, dtype)
        return "own_code", why
    write_classification(folder, body, head, config, dtype)
    return "classification", ""


def _report(
    folder: Path,
    head: ExportedHead,
    body: Body,
    tokenizer: ExportedTokenizer,
    choice: Choice,
    *,
    form: Form,
    why: str,
    dtype: Dtype,
    parity: Parity | None,
) -> ExportReport:
    names = tokenizer.tokenizer.convert_ids_to_tokens([tokenizer.pad_id, tokenizer.end_id])
    limit = tokenizer.tokenizer.model_max_length
    return ExportReport(
        folder=folder,
        form=form,
        why=why,
        outputs=head.outputs,
        meaning=head.meaning,
        choice=choice,
        dtype=dtype,
        family=str(body.network.config.model_type),
        base=body.backbone.config.name,
        base_revision=body.backbone.config.revision,
        pad_token=names[0],
        pad_added=tokenizer.added,
        end_token=names[1],
        max_length=limit if limit < 10**9 else None,  # transformers has a huge number for no limit
        parity=parity,
        size=0,
    )


def _facts(
    opened: OpenedModel, report: ExportReport, scorer: Scorer, base: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """What an exported folder says of itself."""
    module = opened.module
    content = checkpoint_content(opened.place) if opened.kind == "checkpoint" else {}
    kind = type(module)
    settings = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    return {
        "version": __version__,
        "class_path": content.get("pluralign", {}).get("class_path")
        or f"{kind.__module__}.{kind.__qualname__}",
        # A folder is for others: no place on this machine stands in it.
        "settings": told_settings(json.loads(json.dumps(settings, default=str))),
        "form": report.form,
        "base": base,
        "why": report.why,
        "whose": report.choice.described(),
        "outputs": report.outputs,
        "meaning": report.meaning,
        "dtype": report.dtype,
        "text_format": told_format(scorer.tokenizer.fingerprint()),
        "pad_token": report.pad_token,
        "end_token": report.end_token,
        "parity": None if report.parity is None else report.parity.described(),
        "trained_on": {name: content[name] for name in ("epoch", "global_step") if name in content},
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
