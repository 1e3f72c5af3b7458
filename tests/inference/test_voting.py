"""Votes are those of the module in evaluation mode, in the order of the split, whatever the batches."""

import json
import random

import numpy as np
import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, MixtureDataModule, TextConfig
from pluralign.datamodules.votes import VoteFolder, VoteSource, VoteTable, described_data
from pluralign.inference import cast_votes, check_votes, gather_votes, member_ballots
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM

TEXT = TextConfig(max_length=48)


def rows(path, number=30, prompts=12, name="q"):
    """Invented rows, of which several ask the same and share answers, with ties among them."""
    draw = random.Random(number)
    lines = [
        {
            "id": f"{name}{i}",
            "prompt": f"{name} question {i % prompts}",
            "responses": [
                f"answer {draw.randint(0, 3)} of {'many ' * (i % 5)}",
                f"no {i}",
                f"perhaps {i % 4}",
            ],
            "comparisons": [{"chosen": 0, "rejected": 1, "preference": draw.choice([0.5, 1.0])}, [2, 1]],
        }
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def data_of(tmp_path, *, number=30, merged_tokens=4096, **loader):
    data = LocalDataModule(
        train=rows(tmp_path / "train.jsonl", number),
        validation=rows(tmp_path / "validation.jsonl", 8, name="v"),
        text=TEXT,
        loader=LoaderConfig(**({"batch_size": 4} | loader)),
        merged_tokens=merged_tokens,
    )
    data.setup("fit")
    return data


@pytest.fixture
def ensemble(tiny):
    def build(*, frozen=False, **settings):
        own = {"num_members": 4, "members": "head", "resample": "none", "dropout": 0.5} | settings
        model = EnsembleVoteRM(BackboneConfig(config=tiny(attention_dropout=0.4), frozen=frozen), **own)
        model.configure_model()
        return model

    return build


def votes(model, data, path, *, splits=("train", "validation"), shard_records=5, resample=None, **settings):
    """The table of what a module votes."""
    folder = voted(
        model, data, path, splits=splits, shard_records=shard_records, resample=resample, **settings
    )
    folder.finish()
    return VoteTable.load(path)


def voted(model, data, path, *, splits=("train",), shard_records=5, resample=None, members="m", **settings):
    width = model.num_members if isinstance(model, EnsembleVoteRM) else 1
    said = resample or getattr(model, "resample", "none")
    source = VoteSource(described_data(data), members, width, said)
    records = {split: len(data.table(split)) for split in splits}
    folder = VoteFolder(path, source, records, shard_records=shard_records)
    for split in splits:
        for _ in cast_votes(model, data, folder, split, **settings):
            pass
    return folder


def alone(model, data, split="train"):
    """Differences of every comparison by key and place, from the data's own batches."""
    found = {}
    for batch in data.batches(split):
        with torch.no_grad():
            output = model.eval()(batch)
        prompts = batch["response_prompt"][batch["comparisons"][:, 0]]
        keys = batch.get("comparison_key", batch["record_key"][prompts])
        places = batch.get("comparison_place", batch["comparison_index"])
        first, second = batch["comparisons"].T
        rewards = output["basis"].rewards
        for key, place, row in zip(
            keys.tolist(), places.tolist(), rewards[first] - rewards[second], strict=True
        ):
            found[key, place] = row.numpy()
    return found


# What is said ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged_tokens", [0, 4096])
def test_every_comparison_has_the_differences_of_its_members(tmp_path, ensemble, merged_tokens):
    model, data = ensemble(), data_of(tmp_path, merged_tokens=merged_tokens)
    table = votes(model, data, tmp_path / "votes")
    for split, start, stop in (("train", 0, 60), ("validation", 60, 76)):
        expected = alone(model, data, split)
        assert len(expected) == stop - start == table.splits[split]
        keys, places = data.table(split).named_items("comparison")
        np.testing.assert_array_equal(table.record_key[start:stop], keys)  # in the order of the split
        np.testing.assert_array_equal(table.index[start:stop], places)
        wanted = np.stack([expected[item] for item in zip(keys.tolist(), places.tolist(), strict=True)])
        np.testing.assert_allclose(table.differences[start:stop], wanted, atol=1e-5)
    np.testing.assert_allclose(table.mean, table.differences.mean(1), atol=1e-6)
    np.testing.assert_allclose(table.std, table.differences.std(1, ddof=0), atol=1e-6)
    assert (table.num_votes == 4).all() and table.differences.std() > 1e-3


@pytest.mark.parametrize(
    ("loader", "shard_records"),
    [({"batch_size": 1}, 5), ({"batch_size": None, "max_tokens": 300}, 30), ({"num_workers": 1}, 7)],
)
def test_batches_and_shards_change_nothing(tmp_path, ensemble, loader, shard_records):
    model = ensemble()
    expected = votes(model, data_of(tmp_path), tmp_path / "a", shard_records=5)
    other = votes(model, data_of(tmp_path, **loader), tmp_path / "b", shard_records=shard_records)
    np.testing.assert_array_equal(other.record_key, expected.record_key)
    np.testing.assert_array_equal(other.index, expected.index)
    np.testing.assert_allclose(other.differences, expected.differences, atol=1e-5)


def test_dropout_is_off(tmp_path, ensemble):
    model, data = ensemble(), data_of(tmp_path)
    model.train()
    first = votes(model, data, tmp_path / "a")
    model.train()
    second = votes(model, data, tmp_path / "b")
    np.testing.assert_array_equal(first.differences, second.differences)
    model.train()
    batch = next(iter(data.batches("train")))
    noisy = [member_ballots(model, batch).differences for _ in range(2)]
    assert not torch.equal(*noisy), "in training it is on"


def test_who_has_seen_a_prompt_does_not_vote_on_it(tmp_path, ensemble):
    model, data = ensemble(num_members=9, resample="folds", num_folds=3, frozen=True), data_of(tmp_path)
    table = votes(model, data, tmp_path / "votes")
    train = slice(0, table.splits["train"])
    assert (table.num_votes[train] == 3).all() and (table.num_votes[train.stop :] == 9).all()
    seen = {}
    for batch in data.batches("train"):
        prompts = batch["response_prompt"][batch["comparisons"][:, 0]]
        keys = batch.get("comparison_key", batch["record_key"][prompts])
        seen |= dict(zip(keys.tolist(), model.seen(batch).numpy(), strict=True))
    wanted = np.stack([seen[key] for key in table.record_key[train].tolist()])
    np.testing.assert_array_equal(np.isnan(table.differences[train]), wanted)


def test_too_few_votes_are_refused(tmp_path, ensemble):
    model, data = ensemble(num_members=9, resample="folds", frozen=True), data_of(tmp_path)
    real, calls = model.seen, iter(range(100))
    model.seen = lambda batch: real(batch) | (next(calls) == 1)
    folder = voted(model, data, tmp_path / "votes")
    with pytest.raises(
        ValueError, match=r"have the votes of 0 members that have not seen.*need 3.*num_folds"
    ):
        check_votes(folder, "train")


def test_judgements_of_all_users_are_voted_on(tmp_path, ensemble):
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": f"r{i}", "prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}", "user": f"u{i % 4}"}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    from pluralign.datamodules.batches import UserProtocol

    loader = LoaderConfig(batch_size=3, users=UserProtocol(unseen=("u1",)))
    data = LocalDataModule(train=str(path), text=TEXT, loader=loader, validation_share=0.1)
    data.setup("fit")
    table = votes(ensemble(), data, tmp_path / "votes", splits=("train",))
    assert len(table) == len(data.table("train"))


def test_sources_of_a_mixture_are_voted_on(tmp_path, ensemble):
    parts = {
        name: LocalDataModule(train=rows(tmp_path / f"{name}.jsonl", 7, name=name), on_invalid="skip")
        for name in ("a", "b")
    }
    data = MixtureDataModule(sources=parts, text=TEXT, weights={"a": 1.0, "b": 0.5})
    data.setup("fit")
    model = ensemble()
    table = votes(model, data, tmp_path / "votes", shard_records=3)
    keys, places = (
        np.concatenate(each)
        for each in zip(*(data.table(split).named_items("comparison") for split in table.splits), strict=True)
    )
    np.testing.assert_array_equal(table.record_key, keys)
    alone_a = LocalDataModule(train=str(tmp_path / "a.jsonl"), text=TEXT)
    alone_a.setup("fit")
    assert (table.find(*alone_a.table("train").named_items("comparison")) >= 0).all()
    assert len(places) == 28


def test_members_one_after_the_other_are_those_side_by_side(tmp_path, tiny):
    data = data_of(tmp_path)
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(BradleyTerryRM(BackboneConfig(config=tiny())))
        models[-1].configure_model()
    parts = [voted(model, data, tmp_path / f"m{m}", members=str(m)) for m, model in enumerate(models)]
    source = VoteSource(described_data(data), "all", 3, "none")
    folder = VoteFolder(tmp_path / "votes", source, {"train": len(data.table("train"))}, shard_records=5)
    gather_votes(folder, parts, "train")
    folder.finish()
    table = VoteTable.load(tmp_path / "votes")
    for m, model in enumerate(models):
        batches = list(data.batches("train"))
        with torch.no_grad():
            outputs = [model.eval()(batch) for batch in batches]
        wanted = torch.cat([output["chosen"] - output["rejected"] for output in outputs]).sort().values
        np.testing.assert_allclose(np.sort(table.differences[:, m]), wanted.numpy(), atol=1e-5)


def test_rewards_that_are_not_finite_are_named(tmp_path, ensemble):
    model, data = ensemble(), data_of(tmp_path)
    with torch.no_grad():
        model.head.weight[2] = float("nan")
    with pytest.raises(ValueError, match=r"member 2 gives a response of record 0 of train, .* not finite"):
        voted(model, data, tmp_path / "votes")
    assert not list((tmp_path / "votes").glob("*.parquet"))


# Where a text is read ----------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    """A tokenizer of whole words, with padding, unknown words and an end by names of their own; pads are token 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["[PAD]", "[UNK]", "[END]", *(f"w{i}" for i in range(20))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "words"
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    ).save_pretrained(path)
    return str(path)


def judged(path, pairs, prompt="w1 w2"):
    lines = [{"id": f"r{i}", "prompt": prompt, "chosen": a, "rejected": b} for i, (a, b) in enumerate(pairs)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def scores(model, tokenizer, path, pairs, **loader):
    """Differences of pairs in one training split, (pairs, M)."""
    text = TextConfig(tokenizer=tokenizer, prompt_format="{text} ", response_format="{text}")
    data = LocalDataModule(
        train=judged(path, pairs),
        validation=judged(path.with_name("v.jsonl"), [("w3", "w4")], "w2"),
        text=text,
        loader=LoaderConfig(**loader),
        merged_tokens=0,
    )
    data.setup("fit")
    return votes(model, data, path.with_suffix(""), splits=("train",)).differences


def test_padding_and_unknown_words_are_not_taken_for_each_other(tmp_path, ensemble, words):
    model = ensemble()
    unknown = [("w5 nobody w6", "w7"), ("nobody", "w8 w9 nobody"), ("w4", "nobody nobody nobody")]
    long = ("w1 " * 30, "w2 " * 25)
    by_itself = scores(model, words, tmp_path / "a.jsonl", unknown, batch_size=1)
    padded = scores(model, words, tmp_path / "b.jsonl", [*unknown, long], batch_size=4, layout="separate")
    np.testing.assert_allclose(padded[:3], by_itself, atol=1e-5)
    left_out = scores(model, words, tmp_path / "c.jsonl", [("w5 w6", "w7")], batch_size=1)
    assert np.abs(left_out[0] - by_itself[0]).max() > 1e-4, "an unknown word is read, not masked"


def test_the_reward_is_read_at_the_last_token(tmp_path, ensemble, tiny, words):
    """Whatever stands to its right: the state of the end of each text run alone, times the heads."""
    from transformers import AutoConfig, AutoModel

    model = ensemble()
    network = AutoModel.from_config(AutoConfig.for_model(**tiny())).eval()
    network.load_state_dict(model.backbone.model.state_dict())
    pairs = [("w5 w6 w7", "w8"), ("w9 " * 12, "w3 w4")]
    found = scores(model, words, tmp_path / "a.jsonl", pairs, batch_size=4)

    def reward(text):
        ids = [int(word[1:]) + 3 for word in f"w1 w2 {text}".split()] + [2]
        with torch.no_grad():
            states = network(input_ids=torch.tensor([ids])).last_hidden_state
        return states[0, -1] @ model.head.weight.detach().T

    wanted = torch.stack([reward(a) - reward(b) for a, b in pairs])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


# Correlation -------------------------------------------------------------------------------------------


def test_what_votes_come_to(tmp_path, ensemble):
    model, data = ensemble(), data_of(tmp_path)
    folder = voted(model, data, tmp_path / "votes")
    folder.finish()
    table, found = VoteTable.load(tmp_path / "votes"), check_votes(folder, "train")
    assert found.comparisons == len(table) == 60 and found.fewest_votes == 4
    assert found.mean == pytest.approx(table.mean.mean(), abs=1e-6)
    assert found.std == pytest.approx(table.mean.std(), abs=1e-6)
    assert found.disagreement == pytest.approx(table.std.mean(), abs=1e-6)
    assert found.negative == pytest.approx((table.mean < 0).mean())
    np.testing.assert_allclose(found.deciles, np.quantile(table.mean, np.arange(11) / 10), atol=1e-6)
    expected = np.corrcoef(table.differences.T)[np.triu_indices(4, 1)].mean()
    assert found.correlation == pytest.approx(expected, abs=1e-5)
