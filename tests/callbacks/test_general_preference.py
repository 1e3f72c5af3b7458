"""The callback on real runs: what it tells apart, by hand; starts, resumed runs, ranks, its file, table and picture."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from pluralign.callbacks import GeneralPreference, UserMetrics
from pluralign.callbacks.pictures import TradeOffCurve, trade_off_figure
from pluralign.datamodules.batch import Basis
from pluralign.metrics import Estimate
from pluralign.models import BackboneConfig, RewardModule
from pluralign.models.backbone import RewardHead
from pluralign.tests.callbacks.conftest import HandMade

pytestmark = [pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")]

DOMAINS = ["law", "food"]
SYSTEMS = ["law", "food", "normal"]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


class MovingRM(RewardModule):
    """A linear reward of two features whose weight on the second one grows by one a step, from (1, 0)."""

    requires = frozenset()
    customized_domains = ()

    def __init__(self):
        super().__init__(BackboneConfig(config={"model_type": "llama"}), optimizer=sgd)
        self.head = None

    def configure_model(self):
        if self.head is None:
            self.head = RewardHead(2)
            self.head.weight.data = torch.tensor([[1.0, 0.0]])

    def forward(self, batch):
        reward = self.head(batch["features"]).squeeze(-1)
        chosen, rejected = reward[batch["comparisons"]].unbind(dim=1)
        return {"reward": reward, "chosen": chosen, "rejected": rejected}

    def compute_loss(self, output, batch):
        return -self.head.weight[0, 1]


class DomainsRM(MovingRM):
    """A reward of its own for each domain: the first feature's opposite, and the second feature."""

    customized_domains = ("law", "food")

    def forward(self, batch):
        output = super().forward(batch)
        general = output["reward"]
        basis = torch.stack([general, -batch["features"][:, 0], batch["features"][:, 1]], 1)
        output["basis"] = Basis(basis, ("general", "law", "food"), "domain_rewards", linear=True)
        rows = basis[batch["comparisons"]]  # (P, 2, K)
        column = (batch["domain_id"] + 1).view(-1, 1, 1).expand(-1, 2, 1)
        output["chosen"], output["rejected"] = rows.gather(2, column).squeeze(2).unbind(1)
        return output


class HeadlessRM(MovingRM):
    def forward(self, batch):
        reward = batch["features"] @ self.head.weight[0]
        chosen, rejected = reward[batch["comparisons"]].unbind(dim=1)
        return {"chosen": chosen, "rejected": rejected}


class SilentRM(MovingRM):
    def forward(self, batch):
        return {"reward": self.head(batch["features"]).squeeze(-1)}


def judged(record, *rows, domain=None, losers=None, without=()):
    """A batch of one record per row of (gap in the first feature, gap in the second, lengths, share)."""
    number = torch.arange(len(rows))
    features = [x for row in rows for x in ((float(row[0]), float(row[1])), (0.0, 0.0))]
    batch = {
        "id": [str(record + i) for i in range(len(rows))],
        "record_key": number + record,
        "features": torch.tensor(features),
        "response_row": number.repeat_interleave(2),
        "response_prompt": number.repeat_interleave(2),
        "response_index": torch.tensor([0, 1] * len(rows)),
        "response_length": torch.tensor([x for row in rows for x in row[2]]),
        "comparisons": torch.stack([2 * number, 2 * number + 1], 1),
        "comparison_index": torch.zeros(len(rows), dtype=torch.int64),
        "domain_id": torch.full((len(rows),), -1 if domain is None else DOMAINS.index(domain)),
        "preference": torch.tensor([row[3] if len(row) > 3 else 1.0 for row in rows]),
    }
    if losers is not None:
        systems = [(-1, SYSTEMS.index(name)) for name in losers]
        lost_first = [len(row) > 3 and row[3] < 0.5 for row in rows]
        both = [pair[::-1] if flip else pair for pair, flip in zip(systems, lost_first, strict=True)]
        batch["system_id"] = torch.tensor(both).flatten()
    return {name: value for name, value in batch.items() if name not in without}


LONG, SHORT, SAME, NEAR = (30, 10), (10, 30), (20, 20), (20, 19)
# law: right at weights (1, 0): 2 of 4; the one of share 0 was won by the second; a tie that counts nowhere
LAW = judged(
    100, (1, 0, LONG), (-1, 3, LONG), (1, 0, SHORT, 0.0), (1, 0, NEAR), (1, 0, LONG, 0.5),
    domain="law", losers=["normal", "food", "normal", "food", "food"],
)  # fmt: skip
# food: an equal reward is not right
FOOD = judged(200, (0, 3, SAME), (1, 0, SHORT), domain="food", losers=["law", "normal"])
# general: all right at the start; the second one of web and the first of chat are lost once the second feature counts
WEB = judged(300, (1, 0, LONG), (1, -1.5, LONG), (1, 0, SHORT), (1, 0, NEAR))
CHAT = judged(400, (1, -1.5, SHORT), (1, 1, SAME))


class Mixture(HandMade):
    """Loaders of a list of batches each; those that have names are the sources of a mixture."""

    domains = tuple(DOMAINS)

    def __init__(self, loaders, named=True):
        super().__init__([LAW, LAW])
        self.loaders, self.named = loaders, named

    @property
    def names(self):
        sources = list(self.loaders)
        return {"user": [], "domain": DOMAINS, "system": SYSTEMS, "source": [] if self.named else sources}

    def loader_names(self, split):
        return tuple(self.loaders) if self.named and split != "train" else ()

    def val_dataloader(self):
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        shown = [batches[rank::ranks] for batches in self.loaders.values()]
        return [torch.utils.data.DataLoader(batches, batch_size=None) for batches in shown]

    test_dataloader = val_dataloader


FOUR = {"law": [LAW], "food": [FOOD], "web": [WEB], "chat": [CHAT]}
GENERAL = ("web", "chat")


class OneLoader(Mixture):
    """One loader without a name; records say which source they are of, or do not."""

    def __init__(self, batches, sources=()):
        super().__init__(dict.fromkeys(sources), named=False)
        self.batches_of_all = batches

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.batches_of_all, batch_size=None)

    test_dataloader = val_dataloader


def report(**settings):
    return GeneralPreference(**{"general": GENERAL, "num_resamples": 100, **settings})


def read(folder, name="val_step000000"):
    return json.loads((folder / "general_preference" / f"{name}.json").read_text(encoding="utf-8"))


def values(content):
    return {name: measure["value"] for name, measure in content["measures"].items()}


AT_START = {
    "customized_accuracy": 3 / 6,
    "customized_accuracy/law": 2 / 4,
    "customized_accuracy/food": 1 / 2,
    "customized_accuracy/against/normal": 2 / 3,
    "customized_accuracy/against/others": 1 / 3,
    "customized_accuracy/lengths_alike": 1 / 2,
    "general_accuracy": 1.0,
    "general_accuracy/web": 1.0,
    "general_accuracy/chat": 1.0,
    "general_accuracy/lengths_alike": 1.0,
}


def test_everything_is_told_apart_as_by_hand(trainer, tmp_path):
    run = trainer(callback := report())
    run.validate(MovingRM(), Mixture(FOUR), verbose=False)
    content = read(tmp_path)
    assert values(content) == pytest.approx(AT_START)
    numbers = {name: measure["comparisons"] for name, measure in content["measures"].items()}
    assert list(numbers.values()) == [6, 4, 2, 3, 3, 2, 6, 4, 2, 2]
    longer = {name: measure["longer_wins"]["value"] for name, measure in content["measures"].items()}
    # law: long, long, the long one that lost first and won as the second, nearly; food: same, short
    assert longer["customized_accuracy"] == pytest.approx((1 + 1 + 1 + 1 + 0.5 + 0) / 6)
    assert longer["customized_accuracy/lengths_alike"] == pytest.approx((1 + 0.5) / 2)
    assert longer["general_accuracy"] == pytest.approx((3 / 4 + 0.5 / 2) / 2), "each set counts equally"
    assert content["general_sets"] == ["web", "chat"] and content["num_tied"] == 1
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert {name: logged[f"val/{name}"] for name in AT_START} == pytest.approx(AT_START)
    assert callback.history == [{"step": 0.0, **AT_START}]
    assert content["history"] == callback.history


def test_random_heads_are_those_of_the_states_that_the_head_reads(trainer, tmp_path):
    trainer(report(num_random_heads=7, seed=3)).validate(MovingRM(), Mixture(FOUR), verbose=False)
    heads = torch.randn(2, 7, generator=torch.Generator().manual_seed(3))
    found = {name: read(tmp_path)["measures"][name]["random_head"]["value"] for name in AT_START}
    for name, batches in {"customized_accuracy/food": [FOOD], "general_accuracy": [WEB, CHAT]}.items():
        rights = [(batch["features"][::2] @ heads > 0).double().mean() for batch in batches]
        assert found[name] == pytest.approx(float(sum(rights) / len(rights))), name


def test_what_baselines_lack_is_said(trainer, tmp_path, capsys):
    bare = {
        name: [{key: value for key, value in batch.items() if key not in ("response_length", "system_id")}]
        for name, (batch,) in FOUR.items()
    }
    trainer(report()).validate(HeadlessRM(), Mixture(bare), verbose=False)
    content = read(tmp_path)
    assert not any("against" in name or "alike" in name for name in content["measures"])
    measures = content["measures"].values()
    assert {(one["longer_wins"], one["random_head"]) for one in measures} == {(None, None)}
    printed = capsys.readouterr().out
    assert "the module has no head that reads a state of every response" in printed
    assert "lengths of responses are not known" in printed
    assert (tmp_path / "general_preference" / "val_step000000.png").exists()


# Forgetting ----------------------------------------------------------------------------------------------


def fitted(trainer, model=MovingRM, data=None, callback=None, **settings):
    callback = callback or report()
    settings = {"max_epochs": 3, "num_sanity_val_steps": -1, "limit_train_batches": 1, **settings}
    run = trainer(callback, **settings)
    run.fit(model(), data or Mixture(FOUR), ckpt_path=settings.pop("ckpt_path", None))
    return callback


# By the second feature's weight w: law's second one is right from 3w > 1 on, food's first from w > 0; lost are -1.5w + 1 > 0.
LATER = AT_START | {
    "customized_accuracy": 5 / 6,
    "customized_accuracy/law": 3 / 4,
    "customized_accuracy/food": 1.0,
    "customized_accuracy/against/others": 1.0,
    "customized_accuracy/lengths_alike": 1.0,
    "general_accuracy": (3 / 4 + 1 / 2) / 2,
    "general_accuracy/web": 3 / 4,
    "general_accuracy/chat": 1 / 2,
    "forgetting": (1 / 4 + 1 / 2) / 2,
    "forgetting/web": 1 / 4,
    "forgetting/chat": 1 / 2,
}


def test_forgetting_is_counted_from_a_whole_sanity_check(trainer, tmp_path, capsys):
    callback = fitted(trainer)
    assert [entry["step"] for entry in callback.history] == [0, 1, 2, 3]
    assert callback.history[0] == pytest.approx({"step": 0, **AT_START})
    assert callback.history[1] == pytest.approx({"step": 1, **LATER})
    content = read(tmp_path, "val_step000003")
    assert values(content) == pytest.approx(LATER) and content["started"]
    assert content["history"] == callback.history
    forgetting = content["measures"]["forgetting"]
    assert forgetting["low"] <= forgetting["value"] <= forgetting["high"] and forgetting["comparisons"] == 6
    assert forgetting["longer_wins"] is None
    assert read(tmp_path)["notes"] == ["1 ties of the annotators left out"]
    printed = capsys.readouterr().out
    assert "Validation at step 3: 6 customised, 6 general comparisons" in " ".join(printed.split())
    assert "not known" not in printed
    assert printed.rstrip().endswith("general_preference/val_step000003.json and .png")


@pytest.mark.parametrize("sanity", [0, 1])
def test_without_a_start_the_report_says_so(trainer, tmp_path, capsys, sanity):
    many = {name: batches * 2 for name, batches in FOUR.items()}
    callback = fitted(trainer, data=Mixture(many), num_sanity_val_steps=sanity)
    assert [entry["step"] for entry in callback.history] == [1, 2, 3]
    assert not any("forgetting" in name for name in read(tmp_path, "val_step000003")["measures"])
    assert "trainer.num_sanity_val_steps=-1 does so" in capsys.readouterr().out


def test_pairs_that_the_start_did_not_have_are_left_out(trainer, tmp_path):
    """After the start chat has other comparisons, and web one more."""

    class Changed(Mixture):
        def val_dataloader(self):
            if self.trainer.global_step:
                more = judged(900, (-1, 0, SAME))
                self.loaders = FOUR | {"web": [WEB, more], "chat": [judged(950, (1, 0, SAME))]}
            return super().val_dataloader()

    fitted(trainer, data=Changed(FOUR), max_epochs=2, reload_dataloaders_every_n_epochs=1)
    content = read(tmp_path, "val_step000002")
    assert values(content)["general_accuracy/web"] == pytest.approx(3 / 5)
    assert values(content)["forgetting"] == pytest.approx(1 / 4), "of web's four"
    assert content["measures"]["forgetting"]["comparisons"] == 4


def test_what_each_domain_would_say_of_general_comparisons(trainer, tmp_path, capsys):
    """Routed by domain nothing is forgotten, which says nothing of the domains' own rewards."""
    fitted(trainer, DomainsRM, callback=report(general=()))
    found = values(read(tmp_path, "val_step000003"))
    assert found["general_accuracy/as/law"] == 0, "the opposite"
    assert found["general_accuracy/as/food"] == pytest.approx((0 / 4 + 1 / 2) / 2)
    assert found["forgetting/as/law"] == 1 and found["forgetting/as/food"] == pytest.approx(3 / 4)
    assert found["customized_accuracy/food"] == pytest.approx(1 / 2), "by its own reward"
    assert "as food" in capsys.readouterr().out


# Where sets come from ------------------------------------------------------------------------------------


def test_sources_of_records_do_as_loaders_do(trainer, tmp_path):
    names = list(FOUR)
    batches = [
        {**batch, "source_id": torch.full((len(batch["id"]),), names.index(name))}
        for name, (batch,) in FOUR.items()
    ]
    trainer(report()).validate(MovingRM(), OneLoader(batches, names), verbose=False)
    assert values(read(tmp_path)) == pytest.approx(AT_START)


def test_without_sources_the_modules_domains_are_customised(trainer, tmp_path):
    module = MovingRM()
    module.customized_domains = ("law",)
    trainer(report(general=())).validate(module, OneLoader([LAW, FOOD, WEB, CHAT]), verbose=False)
    found = values(read(tmp_path))
    assert found["customized_accuracy"] == found["customized_accuracy/law"] == 2 / 4
    assert found["general_accuracy"] == pytest.approx(7 / 8), "food is of none of its domains"
    assert read(tmp_path)["general_sets"] == ["general"]


def test_several_records_of_a_prompt_are_drawn_together(trainer, tmp_path):
    """Twenty comparisons of one record are one draw, twenty records are twenty."""
    rows = [(1 if i % 2 else -1, 0, SAME) for i in range(20)]
    apart = judged(500, *rows)
    together = {**apart, "record_key": torch.full((20,), 500), "comparison_index": torch.arange(20)}
    lengths = []
    for batch in (apart, together):
        data = Mixture(FOUR | {"web": [batch]})
        trainer(report()).validate(MovingRM(), data, verbose=False)
        web = read(tmp_path)["measures"]["general_accuracy/web"]
        assert web["value"] == 0.5
        lengths.append(web["high"] - web["low"])
    assert lengths[0] > 0.2 and lengths[1] == 0


def test_other_reports_still_refuse_several_loaders(trainer):
    with pytest.raises(ValueError, match="UserMetrics reports on one validation loader, and there are 4"):
        trainer(UserMetrics()).validate(MovingRM(), Mixture(FOUR), verbose=False)


def test_a_test_stands_alone(trainer, tmp_path, capsys):
    run = trainer(callback := report(), max_epochs=1, num_sanity_val_steps=-1, limit_train_batches=1)
    run.fit(module := MovingRM(), data := Mixture(FOUR))
    before = list(callback.history)
    run.test(module, data, verbose=False)
    content = read(tmp_path, "test_step000001")
    assert [entry["step"] for entry in content["history"]] == [1] and callback.history == before
    assert float(run.callback_metrics["test/general_accuracy"]) == pytest.approx(5 / 8)


# Runs that go on, ranks ----------------------------------------------------------------------------------


def test_a_continued_run_has_the_way_of_an_uninterrupted_one(trainer, tmp_path):
    whole = fitted(trainer, callback=report(folder="whole"), max_epochs=4)
    saving = ModelCheckpoint(tmp_path, filename="half", save_top_k=-1)
    run = trainer(
        report(),
        saving,
        max_epochs=2,
        num_sanity_val_steps=-1,
        limit_train_batches=1,
        enable_checkpointing=True,
    )
    run.fit(MovingRM(), Mixture(FOUR))
    continued = report()
    again = ModelCheckpoint(tmp_path / "again")
    run = trainer(
        continued,
        again,
        max_epochs=4,
        num_sanity_val_steps=-1,
        limit_train_batches=1,
        enable_checkpointing=True,
    )
    run.fit(MovingRM(), Mixture(FOUR), ckpt_path=saving.best_model_path)
    assert [entry["step"] for entry in whole.history] == [0, 1, 2, 3, 4]
    assert continued.history == whole.history
    assert read(tmp_path, "val_step000004") == json.loads(
        (tmp_path / "whole" / "val_step000004.json").read_text()
    )
    pictures = [tmp_path / folder / "val_step000004.png" for folder in ("whole", "general_preference")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_a_validation_of_a_checkpoint_knows_the_start(trainer, tmp_path):
    """It is one point, of the same comparisons."""
    saving = ModelCheckpoint(tmp_path, filename="last")
    run = trainer(report(), saving, num_sanity_val_steps=-1, limit_train_batches=1, enable_checkpointing=True)
    run.fit(MovingRM(), Mixture(FOUR))
    trainer(report(), saving, enable_checkpointing=True).validate(
        MovingRM(), Mixture(FOUR), ckpt_path=saving.best_model_path, verbose=False
    )
    content = read(tmp_path)
    assert values(content) == pytest.approx(LATER)
    assert len(content["history"]) == 1 and not content["started"]


def test_two_reports_on_one_run_keep_their_states_apart(trainer):
    keys = [report(folder=folder).state_key for folder in ("one", "two")]
    assert keys[0] != keys[1]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(trainer, tmp_path, capfd, monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath)  # a spawned process imports this file by its name
    later = {"law": "law", "food": "food", "web": None, "chat": None}
    data = Mixture(
        {
            name: [*FOUR[name], judged(1000 + i, (1, 0, LONG), (-1, 2, NEAR), domain=domain)]
            for i, (name, domain) in enumerate(later.items())
        }
    )
    trainer(report(general=())).validate(DomainsRM(), data, verbose=False)
    one = read(tmp_path)
    capfd.readouterr()
    run = trainer(
        report(folder="two", general=()), strategy="ddp_spawn", devices=2, use_distributed_sampler=False
    )
    logged = run.validate(DomainsRM(), data, verbose=False)
    two = json.loads((tmp_path / "two" / "val_step000000.json").read_text(encoding="utf-8"))
    assert two == one
    everything = {name: value for part in logged for name, value in part.items()}
    assert everything["val/general_accuracy"] == pytest.approx(one["measures"]["general_accuracy"]["value"])
    assert capfd.readouterr().out.count("Validation at step 0: ") == 1


# The picture ---------------------------------------------------------------------------------------------


def test_other_runs_stand_beside_it(trainer, tmp_path, capsys):
    fitted(trainer)
    path = tmp_path / "general_preference" / "val_step000003.json"
    fewer = json.loads(path.read_text())
    fewer["measures"]["general_accuracy"]["comparisons"] = 5
    (other := tmp_path / "fewer.json").write_text(json.dumps(fewer))
    capsys.readouterr()
    callback = report(folder="beside", beside={"plain": str(path), "fewer": str(other)}, formats=("svg",))
    fitted(trainer, callback=callback)
    printed = capsys.readouterr().out
    assert (
        "fewer is of other comparisons: 5 general and 6 customised ones of a validation, here 6 and 6"
        in printed
    )
    assert "plain is of other" not in printed
    drawing = (tmp_path / "beside" / "val_step000003.svg").read_text(encoding="utf-8")
    for name in ("this run, to step 3", "plain, to step 3", ">start<", "customised accuracy"):
        assert name in drawing, name
    assert "longer wins: 0.500 general, 0.750 customised" in drawing


@pytest.mark.parametrize("content", [None, "no json", "{}", '{"history": [], "measures": {}}'])
def test_a_file_that_is_no_report_is_named(trainer, tmp_path, content):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    error = FileNotFoundError if content is None else ValueError
    with pytest.raises(
        error, match=r"beside: .*other\.json.*(which is no file|that GeneralPreference wrote)"
    ):
        fitted(trainer, callback=report(beside={"other": str(path)}))


def test_a_curve_may_be_a_point():
    end = Estimate(0.7, 0.65, 0.75)
    point = TradeOffCurve("mixed weights", (0,), (0.7,), (0.7,), end, end)
    figure = trade_off_figure([point], baselines={"longer wins": (0.1, 0.68)})
    (axes,) = figure.axes
    assert axes.get_xlim()[0] > 0.5, "a baseline far away is told in the legend alone"
    assert axes.get_xlim()[0] < 0.65 and axes.get_xlim()[1] > 0.75
    names = [f"{'a long name of a strategy' * 2} {i}" for i in range(9)]
    figure = trade_off_figure(
        [TradeOffCurve(name, (0, 10_000), (0.7, 0.7), (0.7, 0.7), end, end, started=True) for name in names],
        baselines={"longer wins": (0.5, 0.6), "random head": (0.5, 0.5)},
    )
    figure.draw_without_rendering()
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert legend.x0 >= whole.x0 and legend.x1 <= whole.x1, "the legend is not cut off"
    with pytest.raises(ValueError, match="curves must be one or more, got none"):
        trade_off_figure([])


def test_the_table_fits_into_eighty_columns(trainer, tmp_path, capsys):
    fitted(trainer, DomainsRM, callback=report(general=()))
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if not line.startswith("general preference:")]
    assert max(map(len, table)) <= Console(width=80).width
    (row,) = (line for line in table if line.startswith("general, mean of 2"))
    assert row.split()[4:6] == ["1.000", "0.625"], "at the start and now"


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "general", "data", "message"),
    [
        (MovingRM, ["webs", "chat"], Mixture(FOUR), r"general names \['webs'\], .* they have \['law', 'food', 'web', 'chat'\]"),
        (MovingRM, list(FOUR), Mixture(FOUR), "general names every set of these data, .* nothing is customised"),
        (MovingRM, ["web"], OneLoader([LAW, WEB]), "come in one loader without a source: give a mixture"),
        (MovingRM, [], Mixture(FOUR), r"set general to .* \(\['law', .*\), or give the module domains"),
        (SilentRM, ["web"], Mixture(FOUR), r"needs chosen and rejected .* but SilentRM gives \['reward'\]"),
        (MovingRM, ["web"], Mixture({"law": [judged(1, (1, 0, SAME), without=("record_key",))], "web": [WEB]}),
         "needs batch keys that this data lacks: 'record_key'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_at_once(trainer, model, general, data, message):
    with pytest.raises(ValueError, match=message):
        fitted(trainer, model, data, report(general=general), num_sanity_val_steps=1)


def test_domains_that_the_data_lack_are_named(trainer):
    module = MovingRM()
    module.customized_domains = ("art",)
    with pytest.raises(
        ValueError, match=r"the module's domains are \['art'\], those of the data \['law', 'food'\]"
    ):
        trainer(report(general=())).validate(module, Mixture(FOUR), verbose=False)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([WEB], "of 4 comparisons, 0 of them ties, all are general"),
        ([LAW], "of 5 comparisons, 1 of them ties, all are customised"),
        ([judged(1, (1, 0, SAME, 0.5))], "of 1 comparisons, 1 of them ties, none is decided"),
    ],
)
def test_nothing_to_report_is_warned_about(trainer, tmp_path, batches, message):
    module = MovingRM()
    module.customized_domains = ("law",)
    run = trainer(callback := report(general=()))
    with pytest.warns(UserWarning, match=f"no report on this validation: {message}"):
        run.validate(module, OneLoader(batches), verbose=False)
    assert callback.history == [] and not (tmp_path / "general_preference").exists()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"general": "web"}, TypeError, "general must be a list of names, got 'web'"),
        ({"alike_lengths": 1.5}, ValueError, "alike_lengths must be >= 0 and <= 1; got 1.5"),
        ({"num_random_heads": -1}, ValueError, "num_random_heads must be finite and >= 0; got -1"),
        ({"num_resamples": 10}, ValueError, "num_resamples must be finite and >= 100; got 10"),
        ({"seed": -1}, ValueError, "seed must be finite and >= 0; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        report(**settings)


def test_the_head_is_let_go(trainer):
    """Also after a run that fails, and after a sanity check of a part."""

    class Fails(L.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            if not trainer.sanity_checking:
                assert pl_module.head._forward_pre_hooks
                raise KeyboardInterrupt

    many = {name: batches * 2 for name, batches in FOUR.items()}
    for steps in (-1, 1):
        run = trainer(report(), Fails(), num_sanity_val_steps=steps, limit_train_batches=1)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.fit(module := MovingRM(), Mixture(many))
        assert not module.head._forward_pre_hooks
