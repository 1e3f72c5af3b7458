"""What the released package ``rewardbench`` computes on random scores with many ties: what our arithmetic is compared with.

Run by an interpreter that has ``rewardbench`` 0.1.4, which wants transformers 4.51: an environment of its own, without pluralign.
"""

import argparse
import importlib.metadata
import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROUNDS = 60


def section_rounds(
    numbers: random.Random,
    counts: Mapping[str, int],
    sections: Mapping[str, Sequence[str]],
    function: Callable[..., dict[str, float]],
) -> list[dict[str, object]]:
    """Accuracies of some of the subsets, and the score of each section."""
    rounds = []
    for _ in range(ROUNDS):
        run = [subset for subset in counts if numbers.random() < 0.8]
        values = {subset: numbers.randrange(101) / 100 for subset in run}
        rounds.append({"values": values, "scores": function(counts, sections, values)})
    return rounds


def best_of_n_rounds(
    numbers: random.Random, function: Callable[..., Mapping[str, Sequence[float]]]
) -> list[dict[str, object]]:
    """Scores of prompts whose first completion is right, and what each counts."""
    from datasets import Dataset

    scores = [[numbers.randrange(4) / 4 for _ in range(numbers.choice((2, 4, 4, 9)))] for _ in range(ROUNDS)]
    rows = [
        {"text": "", "scores": score, "id": str(number), "subset": "Math"}
        for number, prompt in enumerate(scores)
        for score in prompt
    ]
    results = function(Dataset.from_list(rows), [len(prompt) for prompt in scores])["results"]
    return [{"rewards": prompt, "score": score} for prompt, score in zip(scores, results, strict=True)]


def ties_rounds(
    numbers: random.Random, function: Callable[..., tuple[object, float]]
) -> list[dict[str, object]]:
    """Scores of prompts of Ties with their twins, some of which are missing, and the score of all."""
    from datasets import Dataset

    rounds = []
    for number in range(ROUNDS):
        levels = numbers.choice((2, 3, 8, 40))
        prompts = []
        for twin in range(numbers.choice((1, 3, 8))):
            for kind in ("ref", "tied"):
                if twin and numbers.random() < 0.1:
                    continue
                right = 1 if kind == "ref" else numbers.randrange(2, 5)
                lead = numbers.randrange(levels) if number % 2 else 0
                scores = [(numbers.randrange(levels) + lead) / 8 for _ in range(right)]
                scores += [numbers.randrange(levels) / 8 for _ in range(numbers.randrange(1, 5))]
                prompts.append({"id": f"{kind}:{twin}", "scores": scores, "num_correct": right})
        rounds.append({"prompts": prompts, "score": float(function(Dataset.from_list(prompts))[1])})
    return rounds


def main() -> None:
    """Compute, and print or write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="file to write, too")
    output = parser.parse_args().output
    warnings.simplefilter("ignore")
    from rewardbench import constants, utils

    numbers = random.Random(0)
    counts, sections = constants.EXAMPLE_COUNTS, constants.SUBSET_MAPPING
    content = {
        "versions": {name: importlib.metadata.version(name) for name in ("rewardbench", "transformers")},
        "counts": counts,
        "sections": sections,
        "section_rounds": section_rounds(numbers, counts, sections, utils.calculate_scores_per_section),
        "best_of_n_rounds": best_of_n_rounds(numbers, utils.reroll_and_score_dataset),
        "ties_rounds": ties_rounds(numbers, utils.process_single_model),
    }
    line = json.dumps(content)
    if output is not None:
        output.write_text(f"{line}\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
