"""The command line tells the data how many positions the backbone has, whatever the verb."""

import json

import pytest

from pluralign.train import main

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_steps=1",
         "--trainer.enable_model_summary=false", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]  # fmt: skip
NETWORK = {"model_type": "bert", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
           "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"{i} " + "p" * 100 * (i == 3), "chosen": "good", "rejected": "bad"} for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "--model=BradleyTerryRM",
        f"--model.backbone.config={json.dumps(NETWORK)}",
        "--data=LocalDataModule",
        "--data.train=pairs.jsonl",
        *QUIET,
    ]


def test_texts_are_cut_to_the_positions_unless_a_limit_is_set(words, capsys):
    main(["fit", *words])
    main(["data", "inspect", *words])
    shown = capsys.readouterr().out
    assert "max_length=64" in shown and "1 prompts cut" in shown
    with pytest.raises(
        ValueError, match=r"up to 1\d\d tokens .* has 64 positions: set data\.text\.max_length"
    ):
        main(["fit", *words, "--data.text.max_length=1024"])
    main(["fit", *words, "--data.text.max_length=50"])
