"""``pluralign domains join`` and ``split``: several checkpoints become one and back, and score alike to the bit."""

import lightning as L
import pytest
import torch

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM, CustomizedRM, LoRAConfig
from pluralign.train import main

SIZES = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SHAPE = {"rank": 2, "last_layers": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a pretrained network."""
    from transformers import AutoModel, LlamaConfig

    def build(seed=0):
        folder = tmp_path_factory.mktemp("base")
        torch.manual_seed(seed)
        AutoModel.from_config(LlamaConfig(**SIZES)).save_pretrained(folder)
        return str(folder)

    return build


@pytest.fixture
def data():
    sizes = {"num_train": 8, "num_validation": 4, "num_test": 4, "num_predict": 4}
    source = SyntheticDataModule(**sizes, loader=LoaderConfig(batch_size=4))
    source.setup()
    return source


@pytest.fixture
def save(tmp_path, data):
    """Checkpoint of a module whose adapters and heads have an effect, as a trainer writes it."""

    def write(name, folder, domains, *, seed=0, head=1.0, cls=CustomizedRM, **settings):
        given = {"domains": domains, "per_domain": "adapter", "adapter": SHAPE, **settings}
        module = cls(
            BackboneConfig(name=folder, tokenizer="byte", **given.pop("backbone", {})),
            **(given if cls is CustomizedRM else {}),
        )
        module.configure_model()
        module.text_format = data.text_format()
        with torch.no_grad():
            module.head.weight.fill_(head)
            for parameter in module.parameters():
                if parameter.requires_grad and parameter is not module.head.weight:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed := seed + 1))
        run = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
        run.strategy.connect(module)
        module.trainer = run
        run.save_checkpoint(tmp_path / name)
        return str(tmp_path / name)

    return write


def scores(path, data):
    module = CustomizedRM.load_from_checkpoint(path, weights_only=True).eval()
    with torch.no_grad():
        output = module(next(iter(data.batches("test"))))
    return dict(zip(output["basis"].names, output["basis"].rewards.unbind(1), strict=True))


def join(paths, output):
    main(["domains", "join", *paths, "--output", str(output)])
    return str(output)


@pytest.mark.parametrize(
    "settings", [{}, {"per_domain": "head", "adapter": None, "backbone": {"frozen": True}}]
)
def test_domains_that_were_trained_alone_score_alike_in_one(settings, base, save, data, tmp_path, capsys):
    folder = base()
    paths = [
        save("a.ckpt", folder, ["law"], seed=10, **settings),
        save("b.ckpt", folder, ["verse", "art & trade"], seed=20, **settings),
    ]
    alone = [scores(path, data) for path in paths]
    joined = join(paths, tmp_path / "all.ckpt")
    assert capsys.readouterr().out.endswith("all.ckpt: general, law, verse, art & trade\n")
    together = scores(joined, data)
    assert list(together) == ["general", "law", "verse", "art & trade"]
    for each in alone:
        for name, rewards in each.items():
            assert torch.equal(together[name], rewards), name
    assert len({float(rewards.sum()) for rewards in together.values()}) == 4
    main(["domains", "split", joined, "--output", str(tmp_path / "parts")])
    parts = {path.name: scores(str(path), data) for path in (tmp_path / "parts").iterdir()}
    assert set(parts) == {"law.ckpt", "verse.ckpt", "art_trade.ckpt"}
    for part in parts.values():
        assert next(iter(part)) == "general" and len(part) == 2
        assert all(torch.equal(rewards, together[name]) for name, rewards in part.items())
    first = torch.load(paths[0], weights_only=True)["state_dict"]
    again = torch.load(tmp_path / "parts" / "law.ckpt", weights_only=True)["state_dict"]
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu", "logger": False}
    module = CustomizedRM.load_from_checkpoint(joined, weights_only=True)
    found = L.Trainer(default_root_dir=tmp_path, **quiet).test(
        module, data, ckpt_path=joined, weights_only=True, verbose=False
    )
    assert "test/accuracy" in found[0], "a checkpoint that a trainer takes"


def test_what_does_not_belong_together_is_not_joined(base, save, tmp_path):
    folder, other = base(), base(seed=5)
    law = save("law.ckpt", folder, ["law"])
    plain = save("plain.ckpt", folder, [], cls=BradleyTerryRM)
    cases = {
        (law, save("again.ckpt", folder, ["law"])): "domain 'law' is in .*law.ckpt and in .*again.ckpt",
        (law, save("head.ckpt", folder, ["verse"], per_domain="head", adapter=None)): "per_domain differs",
        (law, save("wide.ckpt", folder, ["verse"], adapter={"rank": 3, "last_layers": 1})): "adapter differs",
        (law, save("other.ckpt", other, ["verse"])): "the base that they were trained on differs",
        (law, save("half.ckpt", folder, ["verse"], backbone={"dtype": "bfloat16"})): "backbone.dtype differs",
        (law, save("moved.ckpt", folder, ["verse"], head=2.0)): r"general models differ in head\.weight",
        (law, plain): "plain.ckpt has nothing of any domain's own",
    }
    for paths, message in cases.items():
        with pytest.raises(ValueError, match=message):
            join(paths, tmp_path / "all.ckpt")
    assert not (tmp_path / "all.ckpt").exists()
    with pytest.raises(ValueError, match="nothing of any domain's own"):
        main(["domains", "split", plain, "--output", str(tmp_path / "parts")])
    with pytest.raises(ValueError, match=r"law\.ckpt exists: give --output another name"):
        join([law, law], law)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*lwa\.ckpt; did you mean .*law\.ckpt"):
        join([law, str(tmp_path / "lwa.ckpt")], tmp_path / "all.ckpt")
    with pytest.raises(SystemExit) as stop:
        join([law], tmp_path / "all.ckpt")
    assert stop.value.code == 2
    same = save("same.ckpt", folder, ["a/b", "a b"])
    with pytest.raises(ValueError, match="domains a/b, a b would have files of the same name"):
        main(["domains", "split", same, "--output", str(tmp_path / "parts")])


def test_a_base_that_moved_is_the_same_base(base, save, data, tmp_path):
    import shutil

    folder = base()
    first = save("law.ckpt", folder, ["law"], seed=3)
    moved = shutil.copytree(folder, tmp_path / "moved")
    second = save("verse.ckpt", str(moved), ["verse"], seed=4)
    together = scores(join([first, second], tmp_path / "all.ckpt"), data)
    assert torch.equal(together["verse"], scores(second, data)["verse"])


# Another base ------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused(base, save, tmp_path):
    folder, other = base(), base(seed=5)
    path = save("law.ckpt", folder, ["law"])
    kept = torch.load(path, weights_only=True)
    assert kept["pluralign"]["base"]["name"] == folder and len(kept["pluralign"]["base"]["digest"]) == 16
    assert all("lora_" in name or "head" in name for name in kept["state_dict"])
    elsewhere = BackboneConfig(name=other, tokenizer="byte")
    message = rf"belongs to another base: it was trained on the folder '{folder}' .*is the folder '{other}' "
    with pytest.raises(ValueError, match=message):
        CustomizedRM.load_from_checkpoint(path, weights_only=True, backbone=elsewhere)
    settings = {"domains": ["law"], "per_domain": "adapter", "adapter": LoRAConfig(**SHAPE)}
    with pytest.raises(ValueError, match=rf"init_from='{path}' {message}"):
        CustomizedRM(elsewhere, init_from=path, **settings).configure_model()
    with pytest.raises(ValueError, match=r"is made from backbone.config alone \(backbone.name is null\)"):
        config = BackboneConfig(config={"model_type": "llama", **SIZES})
        CustomizedRM(config, init_from=path, **settings).configure_model()
    kept["pluralign"]["base"] = {"name": "someone/network", "revision": "main", "digest": None}
    torch.save(kept, tmp_path / "hub.ckpt")
    with pytest.warns(UserWarning, match="whether they are the same cannot be told from a name and a folder"):
        CustomizedRM.load_from_checkpoint(tmp_path / "hub.ckpt", weights_only=True)
    del kept["pluralign"]["base"]
    torch.save(kept, tmp_path / "old.ckpt")
    CustomizedRM.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True, backbone=elsewhere)


def test_a_checkpoint_that_holds_the_whole_network_relies_on_no_base(base, save):
    path = save("whole.ckpt", base(), [], cls=BradleyTerryRM)
    assert "base" not in torch.load(path, weights_only=True)["pluralign"]
