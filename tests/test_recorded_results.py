"""Tables in docs that come from a benchmark have the numbers that are recorded in benchmarks/results."""

import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COLUMNS = {
    "TV": "total_variation",
    "W index": "wasserstein_index",
    "W reward": "wasserstein_reward",
    "KL": "kl",
    "E[r] error": "expected_reward_error",
    "accuracy": "accuracy",
    "log loss": "log_loss",
}
HEADS = {"W on Betas": {"head": "beta", "loss": "wasserstein"}, "W index": {"loss": "wasserstein", "cost": "index"},
         "cross-entropy": {"loss": "cross_entropy"}}  # fmt: skip
TASKS = ("arena-like", "hh-rlhf")


def recorded(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(page, first):
    """Rows of the table whose first heading is this one, by method."""
    lines = (ROOT / "docs" / "methods" / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end])
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


def difference(row, other, metric):
    """Difference from another method over prompts and seeds, as pages write it; empty for the method itself."""
    if f"minus {other}" not in row:
        return ""
    return "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(
        **row[f"minus {other}"][metric]["over_prompts_and_seeds"]
    )


def marked(row, metric):
    """A mean, bold where surely better than cross-entropy, and with a minus where surely worse."""
    shown = f"{row[metric]['value']:.3f}"
    if "minus cross-entropy" not in row:
        return shown
    gap = row["minus cross-entropy"][metric]["over_prompts_and_seeds"]
    return f"**{shown}**" if gap["high"] < 0 else f"{shown} (\N{MINUS SIGN})" if gap["low"] > 0 else shown


@pytest.mark.parametrize("data", ["dices", "ukpconvarg1"])
def test_tables_of_dprm(data):
    methods = recorded("dprm")[data]["methods"]
    rows = table("dprm.md", data)
    assert set(rows) == set(methods)
    for title, cells in rows.items():
        for head, shown in cells.items():
            if head in COLUMNS:
                assert shown == marked(methods[title], COLUMNS[head]), (title, head)
            else:
                metric, other = re.fullmatch(r"(.+) minus (.+)", head).groups()
                assert shown == difference(methods[title], other, COLUMNS[metric]), (title, head)


@pytest.mark.parametrize("split", ["pairs", "debates"])
def test_tables_of_real_workers(split):
    methods = recorded("pal_workers")[split]["methods"]
    rows = table("pal.md", f"held-out {split}")
    assert set(rows) == set(methods)
    for title, cells in rows.items():
        for head, shown in cells.items():
            if head in COLUMNS:
                assert shown == f"{methods[title][COLUMNS[head]]['value']:.3f}", (title, head)
            else:
                other = head.removeprefix("accuracy minus ")
                assert shown == difference(methods[title], other, "accuracy"), (title, head)


def mean_and_half_width(value):
    return "{:.3f} ± {:.3f}".format(*value)


def test_tables_of_the_synthetic_crowd():
    found = recorded("pal")["synthetic"]
    for row, name in (("accuracy", "accuracy"), ("where groups disagree", "conflict")):
        for number, shown in table("pal.md", "K")[row].items():
            assert shown == mean_and_half_width(found[f"{name} K={number}"]), (row, number)
    for labels, shown in table("pal.md", "labels of an unseen user")["accuracy, mean over users"].items():
        assert shown == mean_and_half_width(found[f"users {labels.removesuffix(' users')}"]), labels


def test_table_of_personas():
    found = recorded("pal")["persona"]
    rows = table("pal.md", "K*")
    assert set(rows) == set(found)
    for personas, cells in rows.items():
        assert len(cells) == 12
        for head, shown in cells.items():
            of = found[personas]["accuracy" if head.startswith("K") else "users"]
            name = (
                head.replace("K*", personas).removeprefix("K = ").removeprefix("n = ").removesuffix(" users")
            )
            assert shown == f"{of[name][0]:.3f}", (personas, head)


CUSTOMIZED = {
    "all": "customized",
    "against normal": "customized/against/normal",
    "against other domains": "customized/against/others",
}


@pytest.mark.parametrize("part", ["features", "network"])
@pytest.mark.parametrize("measure", ["customized", "general"])
def test_tables_of_customising(part, measure):
    found = recorded("customized_rm")[part]
    values = {**found["baselines"], **found["strategies"]}
    rows = table("customized.md", f"{part}, {measure.replace('z', 's')}")
    assert set(rows) == set(values)
    for title, cells in rows.items():
        for head, shown in cells.items():
            assert shown == _of_customising(found, values[title], title, measure, head), (title, head)


def _of_customising(found, values, title, measure, head):
    """What a cell should hold."""
    if head == "forgetting" or " at " in head:
        gap = values.get("forgetting")
        if head != "forgetting":
            share = int(re.search(r"(\d+)%", head).group(1)) / 100
            reached = {} if title == "none" else found["matched"][f"{share:g}"].get(title, {})
            gap = reached.get("minus none")
            if reached and gap is None:
                return "not reached"
        return "" if gap is None else "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gap)
    key = {
        "alike lengths": f"{measure}/lengths_alike",
        "general reward kept": "routed",
        "general": "general",
    }.get(head)
    key = key or CUSTOMIZED.get(head, f"customized/{head}")
    return f"{values[key]['value']:.3f}" if key in values else ""


@pytest.mark.parametrize("data", ["dices", "ukpconvarg1"])
def test_recipes_have_the_method_that_is_best_on_validation(data):
    settings = yaml.safe_load((ROOT / "configs" / f"dprm_{data}.yaml").read_text())["model"]["init_args"]
    best = recorded("dprm")[data]["best_on_validation"]
    assert {name: settings.get(name) for name in HEADS[best]} == HEADS[best]


def test_results_are_of_the_real_data():
    assert recorded("dprm")["synthetic"] == []
    assert recorded("pal_workers")["synthetic"] is False
    assert recorded("customized_rm")["synthetic"] is False


def test_rewards_that_must_not_change_did_not():
    found = recorded("customized_rm")
    assert found["full"] and all(found[part]["untouched"] for part in ("features", "network"))


def test_speed_and_memory_of_preparing_data():
    found = recorded("data_path")
    peaks = {rows: size / 2**20 for rows, size in found["memory"]["memory_bytes"].items()}
    page = (ROOT / "docs" / "concepts" / "text_and_token_cache.md").read_text(encoding="utf-8")
    said = f"{peaks['10000']:.0f} MiB with 10,000 and at {peaks['1000000']:.0f} MiB with a million"
    assert f"{said} ({found['memory']['memory_bytes_per_row']:.0f} bytes a row" in page
    said = re.sub(r"\s+", " ", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    chat, plain = (found["one_core"][name]["ratios"]["pluralign over datasets.map"] for name in TASKS)
    assert f"{chat:.1f} times the rows a second of `datasets.map` on one core for the conversations" in said
    assert f"and {plain:.1f} times for HH-RLHF" in said
    first = found["first_batch"]
    seconds = statistics.median(first["seconds"]["pluralign"])
    assert f"{seconds:.1f} seconds, {first['ratio']:.1f} times as fast as transformers" in said
    assert first["plans_an_epoch"] == 1 and found["agree"] and found["passes"]


def test_costs_of_imitation_and_of_domains():
    page = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    small, large = (recorded("imitation")["results"][f"{size} vocabulary"] for size in ("small", "large"))
    assert (
        f"Recorded: {large['time_ratio']:.2f} times the time with 32,000 tokens of vocabulary and {large['memory_ratio']:.2f} of "
        f"the memory, {small['time_ratio']:.2f} times with 4,096" in page
    )
    costs = recorded("customized_rm_cost")["costs"]
    last = [costs[f"adapters in the last {n}"]["ratio"] for n in (1, 2, 4)]
    assert "16 layers: {:.2f} for the last layer, {:.2f} for two, {:.2f} for four".format(*last) in page
    assert (
        f"({costs['adapters in all layers']['ratio']:.2f}), and heads {costs['heads']['ratio']:.2f} times one domain"
        in page
    )
    assert all(costs[name]["difference"] == 0 for name in costs)


def test_epochs_on_stored_features():
    found = recorded("stored_features")
    page = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    for title, name in (
        ("ours over by hand", "over_by_hand"),
        ("the bare LightningModule over by hand", "lightning_over_by_hand"),
    ):
        assert f"{title} {', '.join(f'{row[name]:.2f}' for row in found['works'])}" in page
    times = {size: row["times_as_fast"] for size, row in found["peer"]["by_batch_size"].items()}
    said = f"it takes {times['256']:.2f} times our time with 256 pairs a batch and {times['16']:.2f} times with 16"
    assert said in page and found["equal"]


def test_strategies_came_to_the_same_losses():
    found = recorded("cluster")
    ddp, fsdp2 = found["rows"]
    assert (ddp["strategy"], fsdp2["strategy"]) == ("ddp", "fsdp2") and ddp["processes"] == fsdp2[
        "processes"
    ] == 2
    assert ddp["losses"] == fsdp2["losses"] and found["passes"]
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"`fsdp2` made {fsdp2['pairs_per_second'] / ddp['pairs_per_second']:.2f} of the pairs" in page


def _estimates(found):
    """Every estimate of a recorded result, however deep."""
    if isinstance(found, dict):
        if {"value", "low", "high"} <= found.keys():
            yield found
        for each in found.values():
            yield from _estimates(each)
    elif isinstance(found, list):
        for each in found:
            yield from _estimates(each)


def test_what_is_said_of_customising_is_recorded():
    results = recorded("customized_rm")
    page = (ROOT / "docs" / "methods" / "customized.md").read_text(encoding="utf-8")
    part = page[page.index("## What was measured") : page.index("## Limits")]
    prose = " ".join(" ".join(line for line in part.splitlines() if not line.startswith("|")).split())
    estimates = [*_estimates(results)]
    differences = {"{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**each) for each in estimates}
    said = re.findall(r"[+-]\d\.\d{3} \[[^]]+\]", prose)
    assert len(said) >= 8 and set(said) <= differences
    numbers = set(re.findall(r"(?<![\d.+-])\d\.\d{3}", re.sub(r"\[[^]]+\]", "", prose)))
    bounds = {"0.003", "0.008"}  # of the features' matched differences and of their intervals
    assert len(numbers - bounds) >= 8 and numbers - bounds <= {f"{each['value']:.3f}" for each in estimates}
    matched = [
        row["minus none"]["general"] if "general" in row["minus none"] else row["minus none"]
        for place in results["features"]["matched"].values()
        for name, row in place.items()
        if name not in ("customized", "none") and row["reached"] > 0.5
    ]
    assert f"within {max(abs(each['value']) for each in matched):.3f} of it" in prose
    assert f"at most {max(max(-each['low'], each['high']) for each in matched):.3f} to either side" in prose
    perplexities = {
        name: sum(values) / len(values) for name, values in results["network"]["perplexity"].items()
    }
    one, without, beside = perplexities.values()
    assert (
        f"is {one:.0f} after stage 1, {without:.0f} after stage 2 with $\\lambda = 0$ and {beside:.0f} with 0.1"
        in prose
    )
    assert f"{results['features']['comparisons']['customized']:,} customised test pairs" in prose
    assert f"({results['network']['comparisons']['customized']:,} of excerpts" in prose


# Votes on labels -----------------------------------------------------------------------------------------


def of_votes():
    """What writes the tables of voting, from its file: benchmarks are no package."""
    path = ROOT / "benchmarks" / "ensemble_vote_rm_markdown.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_votes():
    page = (ROOT / "docs" / "methods" / "ensemble_vote.md").read_text(encoding="utf-8")
    assert page == of_votes().page_with(page, recorded("ensemble_vote_rm"))


def test_votes_are_recorded_of_all_data():
    found = recorded("ensemble_vote_rm")
    assert found["skipped"] == {}
    assert found["seeds"] == {"synthetic": 5, "arguments": 2, "dialogues": 2, "shift": 5}


def test_a_meta_rate_of_zero_was_plain_training_to_the_bit():
    goals = recorded("ensemble_vote_rm")["shift"]["goals"]
    assert goals["a rate of 0 is plain training to the bit"]


def test_weak_labels_taught_the_wrong_and_the_right_once_flipped():
    learned = recorded("ensemble_vote_rm")["synthetic"]["learned"]
    assert learned["bottom 10 % alone"]["accuracy"]["high"] < 0.5
    assert learned["bottom 10 % flipped alone"]["accuracy"]["low"] > 0.5


def test_what_members_cost_is_recorded():
    found = recorded("ensemble_vote_cost")
    assert found["agree"] and all(found["reached"].values())
    page = (ROOT / "docs" / "methods" / "ensemble_vote.md").read_text(encoding="utf-8")
    said = page.partition("* **Measured**")[2].partition("* **Every member")[0]
    costs = found["costs"]
    ratios = [cost["ratio"] for cost in costs.values()] + [
        costs["adapters in the last 2"]["ratio_to_one_alike"]
    ]
    ratios += [case["ratio"] for case in recorded("voting")["cases"]]
    assert all(f"{ratio:.2f}" in said for ratio in ratios)


def test_what_is_said_of_votes_is_recorded():
    found = recorded("ensemble_vote_rm")
    page = (ROOT / "docs" / "methods" / "ensemble_vote.md").read_text(encoding="utf-8")
    said = page.partition("## What was measured")[2].partition("<!-- recorded")[0]
    crowd, bootstrap = found["synthetic"]["voters"], "head, bootstrap"
    recalls = [crowd[name]["recall"]["value"] for name in (bootstrap, "lora, bootstrap", "full, bootstrap")]
    people = [found[name]["features"]["voters"] for name in ("arguments", "dialogues")]
    recalls += [voters[bootstrap]["recall"]["value"] for voters in people]
    folds = people[0]["head, folds"]
    recalls += [folds["recall"]["value"], found["arguments"]["workers"]["auroc"]["low strength"]["value"]]
    assert all(f"{value:.3f}" in said for value in recalls)
    assert folds["recall minus head, bootstrap"]["high"] < 0
    learned = [found["synthetic"]["learned"]]
    learned += [
        found[name][way]["learned"] for name in ("arguments", "dialogues") for way in ("features", "network")
    ]
    for each in learned:
        assert (
            each["bottom 10 % alone"]["accuracy"]["high"]
            < 0.5
            < each["bottom 10 % flipped alone"]["accuracy"]["low"]
        )
        assert all(row["minus none"]["low"] <= 0 for row in each.values() if "minus none" in row)
        assert round(each["smoothing of 15 %"]["minus none"]["value"], 3) >= -0.004
    rises = found["shift"]["least_rise"]
    assert (
        rises["MetaRM, rate 5e-6 as published"] < 0 < min(rises[name] for name in rises if "length" in name)
    )
    for rows in found["shift"]["test"].values():
        assert all(
            row["minus plain"]["low"] <= 0 <= row["minus plain"]["high"]
            for row in rows.values()
            if "minus plain" in row
        )


# Experts, mixed token by token ---------------------------------------------------------------------------


def test_what_a_mixture_of_experts_costs_is_recorded():
    found = recorded("decoding")
    assert all(case["differing"] == [] for case in found["cases"])
    one = next(case for case in found["cases"] if case["batch"] == 1)
    goals = found["goals"]
    assert one["over_one_expert"]["stacked"] <= goals["over_one_expert"]
    assert one["over_stacked"]["sequential"] >= goals["sequential_over_stacked"]
    page = (ROOT / "docs" / "methods" / "pcm.md").read_text(encoding="utf-8")
    said = page.partition("**What it costs**")[2].partition("\n\n")[0]
    ratios = [one["over_one_expert"][way] for way in ("stacked", "head", "mixed", "sequential")]
    ratios.append(next(case for case in found["cases"] if case["batch"] == 8)["over_one_expert"]["stacked"])
    assert all(f"{ratio:.2f} times" in said for ratio in ratios)


def test_what_learned_weights_are_worth_is_recorded():
    found = recorded("pcm")
    methods, rows = found["methods"], table("pcm.md", "held-out combinations")
    assert set(rows) == set(methods) and found["seeds"] == 5
    for title, row in rows.items():
        for heading, cell in row.items():
            estimate = methods[title].get(heading.replace("entropy", "weight_entropy"))
            shape = "{value:+.3f} [{low:+.3f}, {high:+.3f}]" if "minus" in heading else "{value:.3f}"
            assert cell == (shape.format(**estimate) if estimate else ""), (title, heading)
    for title, row in table("pcm.md", "by dimension").items():
        assert row == {
            name: f"{value['value']:.3f}" for name, value in methods[title]["by_dimension"].items()
        }
    beaten = ("uniform", "static weights", "product soup", "factor soup", "geometric (MOD)")
    assert all(methods[title]["PCM minus this"]["low"] > 0 for title in beaten)
    bit, ratio = found["learnability"], found["stored_rollouts"]["ratio"]
    assert bit["weight"] > 0.95 and ratio >= 20
    page = (ROOT / "docs" / "methods" / "pcm.md").read_text(encoding="utf-8")
    said = page.partition("An epoch on stored rollouts")[2].partition("\n\n")[0]
    numbers = (f"1/{ratio:.0f}", f"{bit['weight']:.3f}", f"{bit['static_reward']:.2f}")
    assert all(number in said for number in numbers)


def test_tables_of_policies():
    found = recorded("policy")
    assert all(found["claims"].values()) and found["seeds"] == 5
    headings = {"own policy": "own", "other's policy": "other's"}
    for first, part in (("policy", "dprm"), ("judge", "pal")):
        rows = table("policy.md", first)
        assert set(rows) == set(found[part])
        for name, row in rows.items():
            for heading, cell in row.items():
                estimate = found[part][name][headings.get(heading, heading)]
                assert cell == "{value:.3f} [{low:.3f}, {high:.3f}]".format(**estimate)


def test_scoring_beside_plain_transformers():
    found = recorded("scoring")
    assert found["equal"] is True
    page = (ROOT / "docs" / "concepts" / "scoring.md").read_text(encoding="utf-8")
    for result in found["results"]:
        fast, tokens = result["times_as_fast"], result["times_as_many_tokens"]
        numbers = [of[name] for of in (fast, tokens) for name in ("8 pairs at a time", "one pair at a time")]
        cells = [result["work"], f"{result['pairs']:,}", *(f"{number:.2f}" for number in numbers)]
        assert f"| {' | '.join(cells)} |" in page


# Pages that tell what others measured ---------------------------------------------------------------------


def test_numbers_of_choosing_a_method():
    page = " ".join((ROOT / "docs" / "choosing_a_method.md").read_text(encoding="utf-8").split())
    crowd = recorded("pal")["synthetic"]
    votes = {row["num_votes"]: row for row in recorded("dprm_votes")["votes_per_item"]}
    gaps = {
        (data, method): recorded("dprm")[data]["methods"][method]["minus cross-entropy"]["expected_reward_error"][
            "over_prompts_and_seeds"
        ]["value"]
        for data, method in (("dices", "W on Betas"), ("dices", "constant"), ("ukpconvarg1", "W index"), ("ukpconvarg1", "constant"))
    }  # fmt: skip
    found = recorded("ensemble_vote_rm")
    recalls = [
        voters["head, bootstrap"]["recall"]["value"]
        for voters in (found["synthetic"]["voters"], *(found[name]["features"]["voters"] for name in ("arguments", "dialogues")))
    ]  # fmt: skip
    lost = recorded("customized_rm")["network"]["strategies"]["none"]["forgetting"]
    utility = {name: row["utility"]["value"] for name, row in recorded("policy")["dprm"].items()}
    for said in (
        (
            f"one reward for all reaches {crowd['accuracy K=1'][0]:.3f} and three prototypes {crowd['accuracy K=3'][0]:.3f}; five "
            f"labels of a new user give {crowd['users 5'][0]:.3f}"
        ),
        (
            f"({votes[1]['prediction']:.3f}, total variation) than five votes on the reply itself ({votes[5]['votes']:.3f}), and "
            f"about as near as ten ({votes[10]['votes']:.3f})"
        ),
        (
            f"by {-gaps['dices', 'W on Betas']:.3f} in the error of the expected reward, on UKPConvArg1 transport by index, by "
            f"{-gaps['ukpconvarg1', 'W index']:.3f}."
        ),
        f"loses, {gaps['dices', 'constant']:.3f} and {gaps['ukpconvarg1', 'constant']:.3f} (",
        "the weakest 15 % hold {:.3f} in a synthetic crowd, {:.3f} in UKPConvArg1 and {:.3f} in HH-RLHF".format(
            *recalls
        ),
        "costs general ability: {value:.3f} [{low:.3f}, {high:.3f}] of accuracy".format(**lost),
        (
            f"the true utility from {utility['start']:.3f} to {utility['REBEL']:.3f}, best of eight without training to "
            f"{utility['best of 8']:.3f}"
        ),
    ):
        assert said in page, said
    debates = recorded("pal_workers")["debates"]["methods"]
    gains = [
        row["minus longer wins"]["accuracy"]["over_prompts_and_seeds"]
        for name, row in debates.items()
        if name.startswith("K=")
    ]
    assert len(gains) > 1 and all(gain["low"] <= 0 for gain in gains)


def test_speed_of_training_is_recorded():
    found = recorded("reward_training")
    assert found["agree"] and "HH-RLHF" in found["parts"]["pairs"]["data"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    pairs, grouped = found["parts"]["pairs"]["times_as_fast_as"], "TRL, grouped by length"
    fast = {name: part["times_as_fast_as"] for name, part in found["parts"].items()}
    peaks = found["memory_bytes"]
    for what, shown in (
        ("HH-RLHF pairs, against TRL's `RewardTrainer`", f"{pairs['TRL']:.1f}"),
        ("TRL with gradient checkpointing, its default", f"{pairs['TRL, gradient checkpointing']:.1f}"),
        ("TRL grouping by length as on much data", f"{fast['grouped'][grouped]:.1f}"),
        ("30M parameters in place of 7M", f"{fast['30M'][grouped]:.1f}"),
        ("likewise, long responses", f"{fast['long'][grouped]:.1f}"),
        ("nine answers a prompt and every pair among them, likewise", f"{fast['nine'][grouped]:.0f}"),
        ("five responses a query and every pair among them, against TRL", f"{fast['five']['TRL']:.0f}"),
        ("peak memory of a step, ours over TRL's", f"{peaks['pluralign'] / peaks['TRL']:.2f} of it"),
    ):
        assert f"{what} | {shown} |" in page


def test_what_is_said_of_a_step_is_recorded():
    found = recorded("reward_training")
    page = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    for target in found["targets"]:
        if target["applies"]:
            assert f"{target['what']} {target['reached']:.2f} ({target['target']:g})" in page
    part, peak = found["parts"]["grouped"], found["gemm_peak"]
    profile, share = part["profile"], part["profile"]["share"]
    assert (
        f"{share['linear layers']:.0%} of our step, at {profile['linear_rate'] / peak:.0%} of the peak"
        in page
    )
    assert f"attention {share['attention']:.0%}, at {profile['attention_rate'] / peak:.0%} of it" in page
    assert f"elementwise operations {share['elementwise']:.0%}," in page
    grouped = "TRL, grouped by length"
    assert f"the ratio would be {part['times_as_fast_as'][grouped] / (1 - share['attention']):.1f}" in page
    assert f"TRL computes {part['times_as_many_tokens'][grouped]:.1f} times" in page


def test_bad_inputs():
    result = recorded("bad_inputs")
    totals = {
        kind: sum(found[kind] for found in result["outcomes"].values())
        for kind in ("unnamed", "lost", "slow", "crashed")
    }
    assert not any(totals.values())
    for page in ("docs/concepts/security.md", "benchmarks/README.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert f"{result['cases']:,} files of {result['readers']} readers, 0 faults" in text, page


def test_tables_of_memory():
    found = recorded("memory_plan")
    page = (ROOT / "docs" / "concepts" / "memory.md").read_text(encoding="utf-8")
    for name, row in found["measured"].items():
        predicted, measured = row["predicted"], row["measured"]
        assert all(predicted[part] == measured[part] for part in ("weights", "gradients", "state"))
        seen, said = (each["activations"] / 1e6 for each in (measured, predicted))
        assert f"| {name} | {seen:.1f} | {said:.1f} | {said / seen:.3f} |" in page
    for name, by_gpus in found["planned"].items():
        for gpus, row in by_gpus.items():
            strategy = f"`{row['strategy']}`" if row["strategy"] else "none fits"
            assert (
                f"| {name} | {gpus} | {strategy} | {row['gigabytes']:.1f} | {row['most_tokens']:,} |" in page
            )
