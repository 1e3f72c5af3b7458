"""Axes, poles and dimensions of style, and the combinations of them that prompts ask for."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Literal

from ..records import RecordError, is_blank, listed

__all__ = ["PreferenceSpace"]

Combination = tuple[str, ...]


class PreferenceSpace:
    """What a preference may ask for, and which preferences there are.

    An axis (tone) has poles (friendly, unfriendly); a dimension is ``axis.pole``, and a preference asks for one pole of an axis at
    most.

    Attributes:
        axes: Poles of each axis.
        dimensions: D names, axis after axis.
        sentences: What is said of each dimension, D.
        drawn: Whether an item has one of the combinations an epoch, in place of all.
        combinations: Those of the settings, of dimensions in their order; a single one without any where there is no axis.
        held_out: Those that are for the test split alone; some of them.
    """

    def __init__(
        self,
        axes: Mapping[str, Mapping[str, str]],
        combinations: Literal["all", "draw"] | Sequence[Sequence[str]] = "all",
        held_out: Sequence[Sequence[str]] = (),
    ) -> None:
        """Name everything.

        Args:
            axes: Sentence of each pole of each axis.
            combinations: ``all`` full ones, ``draw`` one of these an epoch, or a list.
            held_out: Some of them.

        Raises:
            ValueError: Naming the setting, what is allowed, and the value.
        """
        self.axes: dict[str, tuple[str, ...]] = {axis: tuple(poles) for axis, poles in axes.items()}
        for axis, poles in axes.items():
            if not poles:
                raise ValueError(
                    f"axes.{axis} has no pole: give at least one, such as {{friendly: Be friendly.}}"
                )
            for name in (axis, *poles):
                if "." in name or is_blank(name):
                    raise ValueError(
                        f"axes: names of axes and poles must show something and have no dot; got {name!r}"
                    )
            for pole, sentence in poles.items():
                if not isinstance(sentence, str) or is_blank(sentence):
                    raise ValueError(
                        f"axes.{axis}.{pole} must be a sentence that says it to the network; got {sentence!r}"
                    )
        self.dimensions = tuple(f"{axis}.{pole}" for axis, poles in axes.items() for pole in poles)
        self.sentences = tuple(sentence.strip() for poles in axes.values() for sentence in poles.values())
        self._place = {name: place for place, name in enumerate(self.dimensions)}
        self.drawn = combinations == "draw"
        every = list(product(*([f"{axis}.{pole}" for pole in poles] for axis, poles in axes.items())))
        if isinstance(combinations, str):
            if combinations not in ("all", "draw"):
                raise ValueError(
                    f"preferences must be all, draw or a list of lists of dimensions; got {combinations!r}"
                )
            self.combinations = every
        else:
            self.combinations = self._several("preferences", combinations)
            if not self.combinations:
                raise ValueError("preferences must list one combination at least; got []")
        self.held_out = self._several("held_out", held_out)
        for one in self.held_out:
            if one not in self.combinations:
                known = listed([" + ".join(each) for each in self.combinations])
                raise ValueError(
                    f"held_out names {' + '.join(one)}, which no prompt asks for; there are {known}"
                )
        if len(self.held_out) == len(self.combinations):
            raise ValueError(
                "held_out holds out every combination, and none is left for training: hold out fewer"
            )

    def _several(self, name: str, combinations: Iterable[Sequence[str]]) -> list[Combination]:
        several: list[Combination] = []
        for given in combinations:
            try:
                one = self.combination(given)
            except RecordError as error:
                raise ValueError(
                    f"{name}: {list(given)!r} is no preference: {error.value!r}; allowed: {error.allowed}"
                ) from None
            if one in several:
                raise ValueError(f"{name} has {list(one)} twice")
            several.append(one)
        return several

    def combination(self, names: object) -> Combination:
        """A preference with its dimensions in order.

        Args:
            names: What a row or a setting says.

        Raises:
            RecordError: If it is no list of names, one is unknown, or two are of the same axis.
        """
        allowed = f"a list of dimensions, of one pole an axis at most: {listed(self.dimensions) or 'none, for there are no axes'}"
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise RecordError("preference", names, allowed, reason="wrong type")
        taken: dict[str, str] = {}
        for name in names:
            if not isinstance(name, str) or name not in self._place:
                raise RecordError("preference", name, allowed, reason="unknown dimension")
            axis = name.partition(".")[0]
            if axis in taken:
                raise RecordError("preference", [taken[axis], name], allowed, reason="two poles of an axis")
            taken[axis] = name
        return tuple(sorted(taken.values(), key=self._place.__getitem__))

    def places(self, combination: Combination) -> list[int]:
        """Which dimensions a preference asks for, ascending."""
        return [self._place[name] for name in combination]

    def sentence(self, combination: Combination) -> str:
        """What is said of a preference: the sentences of its dimensions, one after another."""
        return " ".join(self.sentences[place] for place in self.places(combination))

    def of_split(self, split: str) -> list[Combination]:
        """Combinations that prompts of a split come with."""
        if split == "predict" or not self.held_out:
            return self.combinations
        if split == "test":
            return self.held_out
        return [one for one in self.combinations if one not in self.held_out]

    def fits(self, combination: Combination, split: str) -> bool:
        """Whether a preference that a row names is for its split."""
        if split == "predict" or not self.held_out:
            return True
        return (combination in self.held_out) == (split == "test")
