"""`pretrain --print=sharding`: what each device holds of each array."""

import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh

from roberta_jax.pretraining.sharding_table import Row, shard_rows
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.partitioning import MESH_AXES
from roberta_jax.training.state import count_parameters
from tests.support import processes, texts


@pytest.fixture
def rows_on(small_config, monkeypatch):
    """(mesh sizes, config changes) -> `shard_rows`, for devices that do not exist."""

    def rows_on(sizes, **changes):
        monkeypatch.setattr(
            "roberta_jax.config_groups.create_mesh",
            lambda **_: AbstractMesh(sizes, MESH_AXES),
        )
        missing = {"data.files": "missing/*.txt"}  # no text is needed
        return shard_rows(read_spec(small_config(**{**missing, **changes})))

    return rows_on


TABLE = "roberta/embeddings/word_embeddings/embedding"


def test_rows(rows_on):
    params, opt_state = rows_on((2, 2, 2), **{"mesh.shard_optimizer_state": True})
    table = next(row for row in params if row.name == TABLE)
    assert table == Row(
        TABLE, (320, 32), ("vocab", "embedding"), ((), ("fsdp", "tensor")), 4, 320 * 32 * 4 // 4
    )
    mean = next(row for row in opt_state if row.name == f"0/mu/{TABLE}")
    assert (mean.shards, mean.bytes_per_chip) == (8, 320 * 32 * 4 // 8)
    assert ("data",) in mean.mesh_axes or ("fsdp", "tensor", "data") in mean.mesh_axes
    norm = next(row for row in params if row.name.endswith("LayerNorm/scale"))
    assert (norm.shards, set(norm.mesh_axes)) == (1, {()})
    count = next(row for row in opt_state if row.name == "0/count")
    assert (count.shape, count.axes, count.shards, count.bytes_per_chip) == ((), (), 1, 4)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2), (4, 2, 1)])
def test_the_parts_of_an_array_add_up_to_it(rows_on, sizes):
    params, opt_state = rows_on(sizes)
    for row in (*params, *opt_state):
        size = 4
        for length in row.shape:
            size *= length
        assert row.shards * row.bytes_per_chip == size
    assert len(opt_state) == 2 * len(params) + 2  # two moments; the counts of Adam and the schedule
    assert count_parameters(params) > 10_000


def test_the_vocabulary_of_a_named_tokenizer_is_used(rows_on, tmp_path):
    tokenizer = RobertaTokenizer.train(texts.documents(100), vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    params, _ = rows_on((1, 1, 1), tokenizer=str(tmp_path))
    table = next(row for row in params if row.name == TABLE)
    assert table.shape[0] == len(tokenizer) != 320


def test_the_command_prints_the_table_without_text_or_workdir(tmp_path):
    result = subprocess.run(
        [
            sys.executable, "-m", "roberta_jax.pretrain",
            f"--config={processes.ROOT}/configs/pretrain.py:tiny", "--print=sharding",
            "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.data.source=files",
            "--config.data.files=missing/*.txt",
        ],
        env=processes.environment(devices=8), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].endswith("(data 2, fsdp 2, tensor 2)")
    table = next(line for line in lines if line.startswith(TABLE)).split()
    assert table[-2:] == ["4", f"{4096 * 128:,}"]
    assert "fsdp*tensor" in table
    assert any(line.startswith(f"0/nu/{TABLE}") for line in lines)
    parameters, state, gradients, together = (
        int(line.split()[-3].replace(",", "")) for line in lines[-4:]
    )
    assert together == parameters + state + gradients
    assert list(tmp_path.iterdir()) == []
