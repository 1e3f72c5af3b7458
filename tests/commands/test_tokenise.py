"""``pluralign tokenise``: the cache alone, by one job and by several."""

import json
from pathlib import Path

import pytest
import yaml

from pluralign.train import main


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": 259, "max_position_embeddings": 64, **small}
    Path("conf.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "class_path": "BradleyTerryRM",
                    "init_args": {"backbone": {"config": config, "tokenizer": "byte"}},
                },
                "data": {
                    "class_path": "LocalDataModule",
                    "init_args": {"train": "rows.jsonl", "test": "rows.jsonl", "cache_dir": "cache"},
                },
            }
        )
    )
    return ["tokenise", "--config", "conf.yaml"]


def test_several_jobs_write_the_cache_of_one(words, capsys):
    main([*words, "--data.cache_dir=one"])
    assert capsys.readouterr().out.startswith("local: token cache one/local-")
    main([*words, "--shard", "2/2"])
    assert (
        "local: shard 2 of 2 is done; still to be done: 1. The job that does the last of"
        in capsys.readouterr().out
    )
    main([*words, "--shard=1/2"])
    assert capsys.readouterr().out.startswith("local: token cache cache/local-")
    (one,), (two,) = (list(Path(name).iterdir()) for name in ("one", "cache"))
    assert one.name == two.name
    assert all((two / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())


@pytest.mark.parametrize("shard", ["3", "3/2"])
def test_a_part_that_is_none_is_refused(words, shard, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--shard", shard])
    assert stopped.value.code == 2
    assert f"--shard must be a part and their number, such as 3/16, got {shard}" in capsys.readouterr().err
