"""What a checkpoint keeps, what a module refuses to load, and runs that start from another one's weights."""

from pathlib import Path

import lightning as L
import pytest
import torch

from pluralign.datamodules import LoaderConfig, SyntheticDataModule, TextConfig
from pluralign.models import DPRM, PAL, BackboneConfig, BradleyTerryRM, LoRAConfig

TINY = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained network."""
    from transformers import AutoModel, LlamaConfig

    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    AutoModel.from_config(LlamaConfig(**TINY)).save_pretrained(path)
    return str(path)


def config(name, **settings):
    return BackboneConfig(name=name, tokenizer="byte", **settings)


def data(judgements="pairs", **settings):
    sizes = {"num_train": 16, "num_validation": 4, "num_test": 4, "num_predict": 4}
    kind = {} if judgements == "pairs" else {"judgements": judgements}
    return SyntheticDataModule(**sizes, **kind, **settings, loader=LoaderConfig(batch_size=4))


def trainer(tmp_path, **settings):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return L.Trainer(
        default_root_dir=tmp_path, **{**quiet, "max_steps": 2, "log_every_n_steps": 1, **settings}
    )


def fitted(tmp_path, module, source=None):
    """Train two steps, save, and say where."""
    run = trainer(tmp_path)
    run.fit(module, source or data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    return str(tmp_path / "model.ckpt")


def rewards(module, batch):
    with torch.no_grad():
        return module.eval()(batch)["reward"]


# What is kept ------------------------------------------------------------------------------------------


class TwoAdapters(BradleyTerryRM):
    """Two adapters on one base, of which the first is trained; the second also has a copy of the norm."""

    def configure_model(self):
        if self.backbone is None:
            super().configure_model()
            from peft import LoraConfig

            second = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"])
            self.backbone.model.add_adapter("second", second)
            with torch.no_grad():
                for name, parameter in self.backbone.model.named_parameters():
                    if "lora_B" in name:  # zeros: without effect
                        parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
            self.backbone.model.set_adapter("default")


def test_every_adapter_is_kept_whether_it_is_trained_or_not(folder, batch, tmp_path):
    model = TwoAdapters(config(folder, lora=LoRAConfig(rank=2)))
    path = fitted(tmp_path, model)
    content = torch.load(path, weights_only=True)
    adapters = {name for name in model.state_dict() if "lora_" in name or ".modules_to_save." in name}
    assert {name.split(".")[-2] for name in adapters if "lora_" in name} == {"default", "second"}
    assert set(content["state_dict"]) == adapters | {"head.weight"}
    torch.manual_seed(5)
    again = TwoAdapters.load_from_checkpoint(path, weights_only=True)
    found = []
    for name in ("default", "second"):
        for module in (model, again):
            module.backbone.model.set_adapter(name)
        found.append(rewards(again, batch()))
        assert torch.equal(found[-1], rewards(model, batch()))
    assert not torch.equal(*found)

    gone = min(name for name in adapters if ".second." in name)
    del content["state_dict"][gone]
    torch.save(content, path)
    with pytest.raises(RuntimeError, match=rf"does not fit TwoAdapters: missing \['{gone}'\]"):
        TwoAdapters.load_from_checkpoint(path, weights_only=True)


def test_a_checkpoint_of_one_adapter_loads_and_is_no_larger(folder, batch):
    """Names as they always were: the adapter's and the head's."""
    model = BradleyTerryRM(config(folder, lora=LoRAConfig(rank=2)))
    model.configure_model()
    layer = "backbone.model.base_model.model.layers.0"
    maps = [f"self_attn.{name}_proj" for name in "qkvo"] + [
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    names = [f"{layer}.{name}.lora_{side}.default.weight" for name in maps for side in "AB"]
    assert model.saved_keys() == {*names, "head.weight"}
    torch.manual_seed(3)
    state = {name: torch.randn_like(model.state_dict()[name]) for name in (*names, "head.weight")}
    before = rewards(model, batch())
    model.load_state_dict(state)
    assert not torch.equal(rewards(model, batch()), before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("head", ["categorical", "beta"])
def test_names_of_dprm_s_state_are_stable(folder, head):
    model = DPRM(config(folder, frozen=True), head=head)
    size = 12 if head == "beta" else 6
    model.load_state_dict({"head.weight": torch.ones(size, 16), "bias": torch.arange(float(size))})
    assert model.saved_keys() == {"head.weight", "bias"}
    assert torch.equal(model.head.weight, torch.ones(size, 16)) and float(model.bias[-1].detach()) == size - 1


# Where weights start -----------------------------------------------------------------------------------


@pytest.fixture
def start(folder, tmp_path):
    """A trained BradleyTerryRM, and its checkpoint."""
    torch.manual_seed(1)
    model = BradleyTerryRM(
        config(folder), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
    )
    return model, fitted(tmp_path, model)


def test_a_method_starts_from_the_body_of_another(folder, start, tmp_path):
    trained, path = start
    settings = {"init_from": path, "init_may_differ": ["head", "bias"], "loss": "cross_entropy"}
    labels = {"labels": list("abc"), "rewards": [1, 0, -1], "judged": "comparisons", "cost": "index"}
    model = DPRM(config(folder, frozen=True), **settings, **labels)
    model.configure_model()
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    assert model.head.weight.shape == (3, 16) and model.text_format == trained.text_format
    assert not {"init_from", "init_may_differ"} & set(model.hparams)

    kept = fitted(tmp_path / "next", DPRM(config(folder, frozen=True), **settings, **labels), data("crowd"))
    resumed = DPRM(config(folder, frozen=True), **settings, **labels)
    trainer(tmp_path, max_steps=2).fit(resumed, data("crowd"), ckpt_path=kept, weights_only=True)
    assert resumed.init_from is None, "a run that goes on has its own weights"
    (tmp_path / "model.ckpt").unlink()  # what the base's files lack is in the new checkpoint
    again = DPRM.load_from_checkpoint(kept, weights_only=True)
    everything = {"head.weight", "bias", *(f"backbone.{name}" for name in trained.backbone.state_dict())}
    for module in (resumed, again):
        for name, value in trained.backbone.state_dict().items():
            assert torch.equal(module.backbone.state_dict()[name], value), name
        assert module.saved_keys() == everything
        assert torch.equal(module.head.weight, again.head.weight)


def test_what_may_not_differ_must_fit(folder, start):
    _, path = start
    message = r"init_from='.*model\.ckpt' does not fit DPRM.*missing \['bias'\].*of another shape \['head\.weight'\]"
    with pytest.raises(RuntimeError, match=message):
        DPRM(config(folder), init_from=path).configure_model()
    with pytest.raises(RuntimeError, match=r"missing \['bias'\], unknown nothing, of another shape nothing$"):
        DPRM(config(folder), init_from=path, init_may_differ=["head"]).configure_model()
    with pytest.raises(RuntimeError, match=r"unknown \['head\.weight'\]"):
        PAL(
            config(folder), num_users=2, init_from=path, init_may_differ=["network", "table"]
        ).configure_model()


def test_names_that_may_differ_must_be_of_weights(folder, start):
    _, path = start
    with pytest.raises(ValueError, match=r"init_may_differ: 'haed' is the beginning of no weight's name"):
        BradleyTerryRM(config(folder), init_from=path, init_may_differ=["haed"]).configure_model()
    with pytest.raises(TypeError, match=r"init_may_differ must be a list of names, got 'head'"):
        BradleyTerryRM(config(folder), init_from=path, init_may_differ="head")


@pytest.mark.parametrize("content", [b"no checkpoint", {"weights": {}}, torch.zeros(2)])
def test_a_start_from_what_is_no_checkpoint(folder, tmp_path, content):
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"init_from='.*other\.ckpt' (is no checkpoint|holds no state_dict)"):
        BradleyTerryRM(config(folder), init_from=str(path)).configure_model()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_start_that_was_cut_off(folder, start, tmp_path, share):
    whole = Path(start[1]).read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match=r"init_from='.*cut\.ckpt' is no checkpoint .* or not all of one \([\d,]+ bytes\)"
    ):
        BradleyTerryRM(config(folder), init_from=str(path)).configure_model()


def test_a_start_that_is_gone_matters_to_new_runs_alone(folder, start, tmp_path):
    trained, path = start
    gone = str(tmp_path / "gone.ckpt")
    with pytest.raises(FileNotFoundError, match=r"init_from names '.*gone\.ckpt', which is no file"):
        BradleyTerryRM(config(folder), init_from=gone).configure_model()
    for verb in ("fit", "validate", "test", "predict"):
        with pytest.raises(FileNotFoundError, match=r"init_from names '.*gone\.ckpt'"):
            getattr(trainer(tmp_path), verb)(BradleyTerryRM(config(folder), init_from=gone), data())
    again = BradleyTerryRM(config(folder), init_from=gone)
    trainer(tmp_path).test(again, data(), ckpt_path=path, weights_only=True, verbose=False)
    assert torch.equal(again.head.weight, trained.head.weight)
    resumed = BradleyTerryRM(config(folder), init_from=gone)
    trainer(tmp_path, max_steps=3).fit(resumed, data(), ckpt_path=path, weights_only=True)
    assert resumed.trainer.global_step == 3


def test_a_start_from_text_of_another_format_is_an_error(folder, start, tmp_path):
    _, path = start
    model = BradleyTerryRM(config(folder), init_from=path)
    with pytest.raises(ValueError, match=r"the text format differs.*max_length: trained with"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(model, data(text=TextConfig(max_length=64)))


def test_a_method_that_forgets_to_start_is_told(folder, start, tmp_path):
    class Forgets(BradleyTerryRM):
        def load_initial_weights(self):
            pass

    with pytest.raises(RuntimeError, match=r"load_initial_weights\(\) at the end of configure_model"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(Forgets(config(folder), init_from=start[1]), data())


def test_users_of_another_run_come_with_their_weights(folder, tmp_path):
    path = fitted(tmp_path, PAL(config(folder, frozen=True), user_init="normal"), data("users"))
    trained = PAL.load_from_checkpoint(path, weights_only=True)
    model = PAL(config(folder, frozen=True), init_from=path)
    model.configure_model()
    assert model.users == trained.users
    assert torch.equal(model.table.logits.weight, trained.table.logits.weight)
