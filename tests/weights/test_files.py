"""The modules that are imported to read and write weight files, and the format of a file."""

import re
import subprocess
import sys

import pytest

from roberta_jax import weights
from roberta_jax.weights import files
from tests.support.checkpoints import build

FOREIGN = "pickle|unpickl|fairseq|msgpack|torch|flax_|compat|export|serv"


def modules_after(*statements):
    """Runs the statements; returns, after each, this package's imported modules."""
    print_modules = "print(*[name for name in sys.modules if name.startswith('roberta_jax')])"
    lines = [f"{statement}\n{print_modules}" for statement in statements]
    program = "\n".join(["import sys", *lines])
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [set(line.split()) for line in run.stdout.splitlines()]


def foreign(modules):
    """The modules of formats other than safetensors, without the names of their packages."""
    return {name.rpartition(".")[2] for name in modules if re.search(FOREIGN, name)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A masked LM in a folder per format."""
    root = tmp_path_factory.mktemp("formats")
    for format in ("hf", "flax", "fairseq"):
        weights.save_pretrained(root / format, *build("RobertaForMaskedLM"), format=format)
    return root


def test_pretraining_imports_no_foreign_format():
    [modules] = modules_after("import roberta_jax.pretrain")
    assert not foreign(modules)


def test_a_format_is_imported_when_a_file_of_it_is_read(folders):
    read = "from roberta_jax import weights; weights.read_pretrained('{}/{}')"
    imported, hf, flax, fairseq = modules_after(
        "import roberta_jax.weights.load",
        *(read.format(folders, format) for format in ("hf", "flax", "fairseq")),
    )
    assert "roberta_jax.weights.save" not in fairseq
    assert not foreign(imported) | foreign(hf)
    assert foreign(flax) == {"msgpack"}
    assert foreign(fairseq) == {"msgpack", "fairseq", "pytorch", "unpickler"}


def test_a_format_is_imported_when_a_file_of_it_is_written(folders, tmp_path):
    write = f"weights.save_pretrained('{tmp_path}/{{0}}', model, params, format='{{0}}')"
    imported, hf, flax = modules_after(
        "from roberta_jax import weights\n"
        f"model, params = weights.read_pretrained('{folders}/hf'); weights.save_pretrained",
        write.format("hf"),
        write.format("flax"),
    )
    assert not foreign(imported) | foreign(hf)
    assert foreign(flax) == {"msgpack"}


def test_the_format_is_inferred_from_the_file_name():
    assert files.format_of("model.safetensors") == "safetensors"
    assert files.format_of("pytorch_model.bin.index.json") == "bin"
    assert files.format_of("flax_model.msgpack") == "msgpack"
    assert files.format_of("checkpoint_best.pt") == "fairseq"
    assert files.format_of("config.json") is None
    assert files.format_of("tf_model.h5") is None
    assert files.WEIGHT_FILE_GROUPS == (
        ("model.safetensors",),
        ("model.safetensors.index.json", "model-*-of-*.safetensors"),
        ("pytorch_model.bin",),
        ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
        ("flax_model.msgpack",),
        ("flax_model.msgpack.index.json", "flax_model-*-of-*.msgpack"),
        ("model.pt",),
        ("checkpoint_best.pt",),
        ("checkpoint_last.pt",),
    )
