"""What form a table has, and how to read it: the settings that do, why, and what nobody can tell from the rows."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...records import listed
from ..local.fields import KINDS_OF_RECORD, READ, Shape, value_at
from ..local.likely import name_words
from .doubts import winner_named
from .form import SIDES, GivenSettings, TableGuess
from .judged import who_won
from .known import known_table
from .profile import ColumnProfile, TableProfile, is_messages, profile
from .readings import OpenQuestion, TableReading
from .roles import (
    ASSISTANT,
    Choice,
    choose_domain,
    choose_prompt,
    choose_users,
    turns_of,
    unnamed_prompt,
    whole_sides,
)
from .sides import ColumnPair, find_sides, several_sides

__all__ = ["guess_table"]

RESPONSES = ("responses", "completions", "generations", "answers", "outputs", "candidates", "replies")
"""Names of lists of answers."""
RESPONSE = (
    "response",
    "answer",
    "output",
    "completion",
    "reply",
    "generation",
    "summary",
    "text",
    "modelresponse",
)
"""Names of one answer."""
RATINGS = ("score", "rating", "reward", "grade", "stars", "overall")
WITHOUT = (
    "nothing in these columns looks like answers that somebody compared or rated: two columns whose names differ in one word "
    "(answer_a and answer_b, chosen and rejected), a list of responses, or a response"
)


def guess_table(
    rows: Iterable[Mapping[str, object]], *, text_cells: bool = False, given: GivenSettings | None = None
) -> TableGuess:
    """Guess how a table is to be read.

    Names of columns and what stands in them decide. Where they allow two readings that give other labels, the guess has a
    question in place of an answer.

    Args:
        rows: The first rows of the table; a few thousand are looked at.
        text_cells: Whether numbers are written as text, as in CSV.
        given: What the user says of it; the rest is guessed.

    Example:
        >>> rows = [{"question": "Name a fruit, please.", "answer_a": "An apple.", "answer_b": "A chair.", "winner": "A"}]
        >>> guess_table(rows).settings()["columns"]["first"]
        'answer_a'
    """
    given = given or GivenSettings()
    table = profile(rows, text_cells=text_cells)
    guess = _shaped(table, given)
    guess = replace(guess, known=known_table(table) if given == GivenSettings() else None)
    if guess.shape is None:
        return guess
    return _with_names(_with_roles(guess, given), given)


def _shaped(table: TableProfile, given: GivenSettings) -> TableGuess:
    """The form of the rows, and their sides or responses."""
    if not table.columns:
        return TableGuess(None, "there are no columns", table)
    if one_object := _rows_in_one_object(table):
        return TableGuess(None, one_object, table)
    for shape, (one, other) in SIDES.items():
        first, second = given.columns.get(one), given.columns.get(other)
        if first is not None and second is not None:
            pair = ColumnPair(first, second, ("a", "b"), (), shape == "pair")
            return _of_pair(table, pair, given)
    several = _list_of_responses(table)
    if several is not None and "comparisons" in table.top:
        return _of_list(table, several)
    sides = find_sides(table)
    if sides is not None:
        names = SIDES["pair" if sides.pair.is_judged else "neutral"]
        guess = _of_pair(table, sides.pair, given)
        if sides.others and guess.shape is not None:
            pairs = (sides.pair, *sides.others)
            readings = tuple(
                TableReading(f"{pair.first} and {pair.second}", dict(zip(names, pair.names, strict=True)))
                for pair in pairs
            )
            question = OpenQuestion("the sides", "several columns may be the two answers", readings)
            guess = replace(guess, questions=(question, *guess.questions))
        unjudged = any(question.about == "who won" and not question.readings for question in guess.questions)
        if several is not None and unjudged and sides.pair.first.startswith(f"{several.name}."):
            return _of_list(table, several)
        return guess
    if columns := several_sides(table):
        return TableGuess(
            None,
            f"{len(columns)} answers to each prompt, each in a column of its own ({listed(columns, 4)}): write one row for every "
            "pair that was compared, or a list of responses with comparisons",
            table,
        )
    return _of_responses(table, given)


def _rows_in_one_object(table: TableProfile) -> str:
    """Why a file of one object has no rows: it holds them under their names, or a column under each name."""
    if len(table.rows) != 1:
        return ""
    (row,) = table.rows
    inner = [
        list(value) if isinstance(value, Mapping) and not is_messages(value) else [] for value in row.values()
    ]
    if len(inner) < 2 or not inner[0] or any(keys != inner[0] for keys in inner):
        return ""
    if all(str(key).isdecimal() for key in inner[0]):
        return (
            f"one object with {len(inner)} columns of {len(inner[0])} cells each, as pandas writes without options: write rows "
            "instead, by to_json(path, orient='records', lines=True)"
        )
    return (
        f"one object that holds {len(inner)} objects under their names ({listed([str(key) for key in row], 3)}), as if it were one "
        "row: write them as a list, or one a line"
    )


def _rows_in_a_list(table: TableProfile) -> str:
    """Why a file of one object has no rows: they stand in a list in it."""
    lists = [column for column in table.columns.values() if column.kind == "objects" and len(table.rows) == 1]
    if not lists:
        return ""
    column = max(lists, key=lambda column: max(column.lengths))
    return (
        f"one object, as if it were one row, with {max(column.lengths)} objects in {column.name}: if these are the rows, write "
        "them as a list, or one a line"
    )


def _of_pair(table: TableProfile, pair: ColumnPair, given: GivenSettings) -> TableGuess:
    shape: Shape = "pair" if pair.is_judged else "neutral"
    sides = dict(zip(SIDES[shape], pair.names, strict=True))
    if several := _several_a_side(table, pair):
        return TableGuess(None, several, table)
    if pair.is_judged:
        form = f"pairs whose columns say who won: {pair.first} was preferred to {pair.second}"
    else:
        form = f"pairs of {pair.first} and {pair.second}, of which another column says who won"
    guess = TableGuess(shape, form, table, TableReading(form, sides))
    return who_won(guess, pair, given) if not pair.is_judged else winner_named(guess, pair, given)


def _several_a_side(table: TableProfile, pair: ColumnPair) -> str:
    """Why lists of texts are no conversations: they share no beginning, so that each text is an answer."""
    if not all(table.columns[name].kind == "texts" for name in pair.names if name in table.columns):
        return ""
    sides = [[value_at(row, name) for name in pair.names] for row in table.rows]
    lists = [side for side in sides if all(isinstance(value, list) and value for value in side)]
    begin = sum(
        one[0] == other[0] for one, other in lists if isinstance(one, list) and isinstance(other, list)
    )
    if begin >= 0.9 * len(lists):
        return ""
    return (
        f"{pair.first} and {pair.second} hold lists of texts that share no beginning: several answers a side, not the turns of "
        "one. Write one row for every pair, or a list of responses with comparisons"
    )


def _list_of_responses(table: TableProfile) -> ColumnProfile | None:
    """The column of a list of answers."""
    for name in table.top:
        column = table.columns.get(name)
        if (
            column is not None
            and "".join(name_words(name)) in RESPONSES
            and column.kind in ("texts", "objects")
        ):
            return column
    return None


def _of_responses(table: TableProfile, given: GivenSettings) -> TableGuess:
    """Rows of a list of responses, or of one."""
    if several := _list_of_responses(table):
        return _of_list(table, several)
    named = [
        column
        for name, column in table.columns.items()
        if "".join(name_words(name)) in RESPONSE
        and (column.is_prose or (column.kind == "text" and column.is_varied))
    ]
    if given.columns.get("response"):
        named = [column for column in table.columns.values() if column.name == given.columns["response"]]
    if not named:
        prompt = choose_prompt(table, ())
        if prompt.column:
            return TableGuess(None, f"prompts alone ({prompt.column}): there is no answer to score", table)
        return TableGuess(None, _rows_in_a_list(table) or WITHOUT, table)
    response = min(
        named,
        key=lambda column: (
            RESPONSE.index("".join(name_words(column.name))) if column.name in table.top else 99
        ),
    )
    rating, notes = _rating(table)
    form = f"one answer a row ({response.name})" + (
        f", rated by {rating}" if rating else ", rated by nothing"
    )
    columns: dict[str, str | None] = {"response": response.name}
    if rating:
        columns["score"] = rating
    return TableGuess("response", form, table, TableReading(form, columns), notes=notes)


def _of_list(table: TableProfile, column: ColumnProfile) -> TableGuess:
    objects = column.kind == "objects"
    if objects:
        keys = {str(key) for row in table.rows for entry in _entries(row, column.name) for key in entry}
        if unknown := sorted(keys - {"text", "score", "votes", "user", "domain", "prior"}):
            form = (
                f"a list of answers a row ({column.name}), each an object with {listed(unknown)}; only text, score, votes, user and "
                "domain are read of it: write it with these names"
            )
            return TableGuess(None, form, table)
    judged = "comparisons" in table.top
    form = f"a list of answers a row ({column.name})" + (", compared in comparisons" if judged else "")
    columns: dict[str, str | None] = {"responses": column.name}
    notes = []
    if not judged:
        notes.append(
            "there is no column comparisons, so that no answer is preferred to another: such rows train no reward on pairs"
        )
    ranks = [name for name in table.top if set(name_words(name)) & {"rank", "ranking", "ranks"}]
    if ranks and not judged:
        form += f"; {ranks[0]} is not read: write it as comparisons, [[i, j], ...], i preferred to j"
        return TableGuess(None, form, table)
    return TableGuess("responses", form, table, TableReading(form, columns), notes=tuple(notes))


def _entries(row: Mapping[str, object], name: str) -> Iterable[Mapping[str, object]]:
    value = row.get(name)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _rating(table: TableProfile) -> tuple[str | None, tuple[str, ...]]:
    """The column of one answer's rating; several are for the user to choose from."""
    names = [
        name
        for name, column in table.columns.items()
        if column.kind == "number" and set(name_words(name)) & set(RATINGS)
    ]
    if "score" in names or len(names) == 1:
        return ("score" if "score" in names else names[0]), ()
    return None, (
        f"{listed(names)} may rate the answer: columns: {{score: {names[0]}}} reads one of them",
    ) if names else ()


# The other fields ------------------------------------------------------------------------------------


def _with_roles(guess: TableGuess, given: GivenSettings) -> TableGuess:
    """Prompt, users and domain."""
    answers = [
        column
        for name, column in guess.reading.columns.items()
        if column and name in ("chosen", "rejected", "first", "second", "responses", "response")
    ]
    if "prompt" in given.columns:
        prompt = Choice(given.columns["prompt"])
    elif guess.shape in SIDES and whole_sides(guess.table, answers):
        prompt = Choice(notes=("the prompt is what both sides share",))
    else:
        prompt = choose_prompt(guess.table, answers)
        if prompt == Choice() and guess.shape in SIDES:
            prompt = unnamed_prompt(guess.table, answers)
    choices = {"prompt": prompt}
    if (
        guess.shape in SIDES or "comparisons" in guess.table.top
    ):  # of other rows they are whose reward is asked for
        for name, choose in (("user", choose_users), ("domain", choose_domain)):
            choices[name] = Choice(given.columns[name]) if name in given.columns else choose(guess.table)
    columns = dict(guess.reading.columns)
    for name, choice in choices.items():
        if choice.column:
            columns.setdefault(name, choice.column)
    evidence = (*guess.evidence, *(choice.evidence for choice in choices.values() if choice.evidence))
    if guess.shape in SIDES and "turn" not in given.columns and _judges_turns(guess.table, answers):
        columns["turn"] = "turn"
        said = "turn says which answer of a conversation was judged: some have more than it says"
        evidence = (*evidence, said)
    notes = (*guess.notes, *(note for choice in choices.values() for note in choice.notes))
    notes += tuple(
        f"{name} is not read: to have it before the prompt, write both as messages"
        for name in ("system", "system_prompt")
        if name in guess.table.top and name in guess.table.columns
    )
    questions = (*guess.questions, *(choice.question for choice in choices.values() if choice.question))
    return replace(
        guess,
        reading=replace(guess.reading, columns=columns),
        evidence=evidence,
        notes=notes,
        questions=questions,
    )


def _judges_turns(table: TableProfile, answers: list[str]) -> bool:
    """Whether a column ``turn`` counts the answers of a conversation up to the one that was judged."""
    column = table.columns.get("turn")
    if column is None or not column.is_whole or column.numbers[0] < 1:
        return False
    spoken = [
        (value_at(row, "turn"), sum(role in ASSISTANT for role, _ in turns_of(value_at(row, answers[0]))))
        for row in table.rows
    ]
    judged = [(int(turn), number) for turn, number in spoken if isinstance(turn, int | float)]
    return all(turn <= number for turn, number in judged) and any(turn < number for turn, number in judged)


def _with_names(guess: TableGuess, given: GivenSettings) -> TableGuess:
    """Fields switched off whose names columns have that hold something else; what the user says comes last."""
    columns = dict(guess.reading.columns)
    notes = list(guess.notes)
    for name in READ[guess.shape]:
        column = guess.table.columns.get(name)
        if name in columns or column is None or name not in guess.table.top:
            continue
        if why := _misfit(name, column):
            columns[name] = None
            notes.append(f"{name} {why}, and is not read")
    for name in _of_other_shapes(guess.shape, guess.table):
        columns.setdefault(name, None)
    columns |= given.columns
    evidence = () if given.codes else guess.evidence  # codes that are given are the user's word
    reading = replace(
        guess.reading,
        columns=columns,
        codes=given.codes or guess.reading.codes,
        options={**guess.reading.options, **given.options},
    )
    return replace(guess, reading=reading, evidence=evidence, notes=tuple(notes))


def _of_other_shapes(shape: Shape | None, table: TableProfile) -> list[str]:
    """Fields that rows of another shape have, and columns here: rows are told by them, whatever they hold."""
    others = {name for names in SIDES.values() for name in names} | {"response", "responses", "comparisons"}
    return sorted(name for name in others - set(READ[shape]) if name in table.top)


def _misfit(name: str, column: ColumnProfile) -> str:
    """Why a column cannot be what its name says; empty if it can."""
    if name == "id":
        return "" if column.is_unique else "repeats: rows are named by their content"
    if name in ("group", "user", "domain", *(n for n, kind in KINDS_OF_RECORD.items() if kind == "name")):
        fits = column.is_short or column.is_whole
        return "" if fits else f"holds {column.shown}: no names"
    if name in ("margin", "weight", "strength", "score", "record_weight"):
        fits = column.kind == "number" and (name not in ("weight", "record_weight") or column.numbers[0] >= 0)
        return "" if fits else f"holds {column.shown}: no such number"
    if name in ("votes", "prior"):
        return "" if column.kind == "numbers" else f"holds {column.kind}: no counts"
    if name == "messages":
        return "is a conversation beside the prompt"
    return ""
