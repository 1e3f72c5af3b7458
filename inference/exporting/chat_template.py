"""A chat template that gives plain transformers the tokens which the model was trained on.

A tokenizer's own template may end without the end token, with a line break behind it, or with the day of today in it; the
plain format is no template at all. What is written here renders messages as :class:`RecordTokenizer` does.
"""

import json

from pluralign.datamodules.tokens import ChatRendering, PlainRendering, RecordTokenizer

__all__ = ["exported_template"]


def exported_template(tokenizer: RecordTokenizer) -> str:
    """Jinja that renders a conversation as the model reads it; a prompt given as text is one turn of the user.

    Args:
        tokenizer: What made tokens in training.
    """
    if isinstance(tokenizer.rendering, ChatRendering):
        text, start = tokenizer.rendering.template, ""
    else:
        text = _plain_template(tokenizer.rendering)
        names = tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.start_ids)
        start = "".join(names if isinstance(names, list) else [names])
    if tokenizer.config.end == "template" and not start:
        return text
    end = str(tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.end_id))
    ending = "" if tokenizer.config.end == "template" else _ending(end, plain=tokenizer.literal)
    # One line break of a template's end is not rendered, nor is white space before a tag that begins a line.
    body = f'{{% set conversation %}}\n{text.removesuffix(chr(10))}{{{{ "" }}}}{{% endset %}}'
    if start and tokenizer.literal:
        opening = f"{{{{ {_quoted(start)} }}}}"
    elif start:
        opening = (
            f"{{% if not conversation.startswith({_quoted(start)}) %}}{{{{ {_quoted(start)} }}}}{{% endif %}}"
        )
    else:
        opening = ""
    if not ending:
        return f"{body}{opening}{{{{ conversation }}}}"
    return f"{body}{opening}{{% if add_generation_prompt %}}{{{{ conversation }}}}{{% else %}}{ending}{{% endif %}}"


def _plain_template(rendering: PlainRendering) -> str:
    """The two strings of the plain format, around the turns of a conversation."""
    branches: list[str] = []
    for role, form in rendering.formats.items():
        before, _, behind = form.partition("{text}")
        parts = [_quoted(before)] * bool(before) + ["message['content']"] + [_quoted(behind)] * bool(behind)
        condition = "elif" if branches else "if"
        branches.append(
            f"{{% {condition} message['role'] == {_quoted(role)} %}}{{{{ {' ~ '.join(parts)} }}}}"
        )
    allowed = ", ".join(rendering.formats)
    refusal = f"{{{{ raise_exception('roles are {allowed}; got ' ~ message['role']) }}}}"
    return (
        f"{{% for message in messages %}}{''.join(branches)}{{% else %}}{refusal}{{% endif %}}{{% endfor %}}"
    )


def _ending(end: str, *, plain: bool) -> str:
    """The conversation with the end token exactly once."""
    if plain:  # the characters of an end token within a text are no end
        return f"{{{{ conversation }}}}{{{{ {_quoted(end)} }}}}"
    return (
        f"{{% set end = {_quoted(end)} %}}"
        "{% if conversation.rstrip().endswith(end) %}"
        "{% set ended = namespace(text=conversation.rstrip()) %}"
        "{% else %}{% set ended = namespace(text=conversation) %}{% endif %}"
        "{% for _ in conversation.split(end) %}"
        "{% if ended.text.endswith(end) %}{% set ended.text = ended.text[:-(end | length)] %}{% endif %}"
        "{% endfor %}{{ ended.text ~ end }}"
    )


def _quoted(text: str) -> str:
    """A text as Jinja's lexer reads it: escapes as Python has them."""
    return json.dumps(text, ensure_ascii=False)
