"""Draw the picture of docs/callbacks/merge_trace.md from invented weights: ``python docs/draw_merge_trace.py``.

With the name of a file it writes the page there, too.
"""

import sys
from pathlib import Path

import torch

from pluralign.callbacks.merge_page import merge_page
from pluralign.callbacks.pictures import draw_merge_trace, save_picture
from pluralign.metrics import ExpertWeights, TracedResponse, expert_weights_table, response_weights

IMAGE = Path(__file__).parent / "images" / "merge_trace"
TITLE = "Invented: who wrote what"
EXPERTS = ("tone.friendly", "tone.unfriendly", "length.short", "length.long")
WORDS = {
    "tone.friendly": {"dear", "friend", "glad", "lovely", "happy", "please", "enjoy"},
    "tone.unfriendly": {"nonsense", "obviously", "wrong", "stop", "asking"},
    "length.long": {"because", "moreover", "which", "besides", "since", "while"},
    "length.short": {"done", "that's", "all"},
}
"""Words at which an expert knows more than others do."""
TEXTS = (
    (
        "Why is the sky blue?",
        ("tone.friendly", "length.long"),
        (
            "I am glad that you ask, dear friend! Light of the sun has every colour, and air scatters short waves more than long "
            "ones, which is why blue comes from everywhere above. Besides, our eyes see violet less well, since fewer of their cells "
            "are made for it.\nPlease enjoy the next clear evening, because then the way through the air is longer: much of the blue "
            "is lost, while red and orange stay. A lovely sight!"
        ),
    ),
    (
        "Why is the sky blue?",
        ("tone.unfriendly", "length.short"),
        "Air scatters blue light most, obviously. Stop asking; that's all.",
    ),
    (
        "How do I boil an egg?",
        ("tone.friendly", "length.short"),
        "Happy to help, friend: seven minutes in boiling water, then cold water. Done!",
    ),
)


def pieces_of(text: str) -> list[str]:
    """Words with the space before them, long ones in two, as tokens often are."""
    pieces = []
    for number, word in enumerate(text.replace("\n", " \n").split(" ")):
        whole = word if not number or word.startswith("\n") else f" {word}"
        cut = len(whole) if len(whole) < 9 else 6
        pieces += [part for part in (whole[:cut], whole[cut:]) if part]
    return pieces


def weights_of(pieces: list[str], preference: tuple[str, ...], seed: int) -> torch.Tensor:
    """Weights that wander, and jump where an expert knows more; experts that are not asked for have none."""
    noise = torch.randn(len(pieces), len(EXPERTS), generator=torch.Generator().manual_seed(seed))
    wander = torch.stack([noise[max(0, i - 6) : i + 1].mean(0) for i in range(len(pieces))])
    logits = 1.1 * wander
    for place, piece in enumerate(pieces):
        for expert, words in WORDS.items():
            if any(word in piece.lower() for word in words):
                logits[place, EXPERTS.index(expert)] += 2.5
    asked = torch.tensor([name in preference for name in EXPERTS])
    return logits.masked_fill(~asked, -torch.inf).softmax(1)


def invented() -> ExpertWeights:
    """Three responses, and the table over them."""
    traced, rows, wanted = [], [], []
    for seed, (prompt, preference, text) in enumerate(TEXTS):
        pieces = pieces_of(text)
        weights = weights_of(pieces, preference, seed)
        rows.append(response_weights(weights.unsqueeze(0), torch.tensor([len(pieces)])))
        wanted.append([name in preference for name in EXPERTS])
        traced.append(
            TracedResponse(prompt, preference, tuple(pieces), tuple(map(tuple, weights.tolist())), True)
        )
    return expert_weights_table(torch.cat(rows), torch.tensor(wanted), EXPERTS, EXPERTS, traced)


def main() -> None:
    """Draw it."""
    found = invented()
    save_picture(draw_merge_trace(found, TITLE), IMAGE, ["png"])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(merge_page(TITLE, found), encoding="utf-8")


if __name__ == "__main__":
    main()
