"""`python -m roberta_jax.convert`: every format into every other, its report and its errors."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from roberta_jax import RobertaTokenizer, convert, weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import MODEL_CLASSES, RobertaForPreTraining
from roberta_jax.weights.formats import fairseq, pytorch
from roberta_jax.weights.parameters import parameter_shapes
from tests.support import object_store
from tests.support.checkpoints import assert_trees_equal

TEXTS = ["the cat sat on the mat, or so they say", "naïve 猫 🐈  <mask>"]
FILES = {"hf": "model.safetensors", "flax": "flax_model.msgpack", "fairseq": "model.pt"}


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train(["the cat sat on the mat, or so they say"] * 5, vocab_size=270)


def built(name, tokenizer, dtype=np.float32, **changes):
    config = RobertaConfig.base(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=42,
    ).replace(**changes)
    model = MODEL_CLASSES[name](config)
    draw = np.random.default_rng(0).normal
    shapes = parameter_shapes(model)
    return model, jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(dtype), shapes)


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
    """A masked LM without token types, so that no format loses anything."""
    model, params = built("RobertaForMaskedLM", tokenizer)
    params["roberta"]["embeddings"]["token_type_embeddings"]["embedding"][...] = 0
    folder = tmp_path_factory.mktemp("source") / "model"
    weights.save_pretrained(folder, model, params, tokenizer)
    return folder


def test_models_are_converted_from_and_to_a_bucket(source, tmp_path, monkeypatch):
    object_store.install(tmp_path / "objects", monkeypatch.setattr)
    expected = weights.read_pretrained(source)[1]
    at = source
    for to in ("hf", "flax", "fairseq", "hf"):
        target = f"gs://bucket/{to} of {pathlib.Path(at).name}"
        convert.convert(at, target, to)
        assert_trees_equal(weights.read_pretrained(target)[1], expected)
        at = target
    assert RobertaTokenizer.from_pretrained(at).encode(TEXTS[0]) == (
        RobertaTokenizer.from_pretrained(source).encode(TEXTS[0])
    )


def test_every_format_converts_to_every_other_and_back(source, tokenizer, tmp_path):
    expected = weights.read_pretrained(source)[1]
    at = source
    for to in ("flax", "fairseq", "hf", "fairseq", "flax", "hf"):
        target = tmp_path / f"{len(list(tmp_path.iterdir()))} {to}"
        report = convert.convert(at, target, to)
        assert report.difference == 0
        assert FILES[to] in report.files
        assert not report.notes
        assert not report.unused
        params = weights.read_pretrained(target)[1]
        assert_trees_equal(params, expected)
        again = RobertaTokenizer.from_pretrained(target)
        for text in TEXTS:
            assert again.encode(text) == tokenizer.encode(text)
        at = target
    first, last = load_file(source / FILES["hf"]), load_file(at / FILES["hf"])
    assert first.keys() == last.keys()
    for key, tensor in first.items():
        np.testing.assert_array_equal(last[key], tensor, strict=True, err_msg=key)


def test_the_report_counts_the_converted_tensors(source, tmp_path):
    report = convert.convert(source, tmp_path / "out", "flax")
    names = {name: (tensors, count) for name, tensors, count in report.parts}
    assert list(names) == ["embeddings", "encoder", "lm_head", "all"]
    params = weights.read_pretrained(source)[1]
    assert names["all"][1] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert names["encoder"][0] == 2 * 16
    text = convert.table(report)
    assert "RobertaForMaskedLM, read from safetensors (float32)" in text
    assert f"{names['all'][1]:,}" in text
    assert "before and after: 0 (of values up to" in text


@pytest.mark.parametrize("to", ["hf", "flax", "fairseq"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_type_of_the_parameters_can_be_chosen(dtype, to, source, tmp_path):
    report = convert.convert(source, tmp_path / "half", to, dtype=dtype)
    assert 0 <= report.difference < 0.1 * report.largest
    params = weights.read_pretrained(tmp_path / "half", param_dtype=None)[1]
    embeddings = params["roberta"]["embeddings"]
    assert embeddings["word_embeddings"]["embedding"].dtype == jnp.dtype(dtype)
    kept = convert.convert(tmp_path / "half", tmp_path / "kept", "hf")
    assert kept.difference == 0
    params = weights.read_pretrained(tmp_path / "kept", param_dtype=None)[1]
    assert params["lm_head"]["bias"].dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("name", sorted(MODEL_CLASSES))
def test_every_class_converts(name, tokenizer, tmp_path):
    weights.save_pretrained(tmp_path / "a", *built(name, tokenizer))
    report = convert.convert(tmp_path / "a", tmp_path / "b", "flax")
    assert (report.model, report.difference) == (name, 0)
    assert report.notes == ["no tokenizer: the source has none"]
    report = convert.convert(tmp_path / "b", tmp_path / "c", "hf")
    assert (tmp_path / "c" / "config.json").read_text() == (
        tmp_path / "a" / "config.json"
    ).read_text()


def test_token_types_are_added_to_the_positions_with_a_note(tokenizer, tmp_path):
    weights.save_pretrained(
        tmp_path / "a", *built("RobertaForMaskedLM", tokenizer, type_vocab_size=2)
    )
    report = convert.convert(tmp_path / "a", tmp_path / "b", "fairseq")
    assert "row 0 was added to each position's row" in report.notes[1]
    assert "rows 1 to 1 were left out" in report.notes[2]
    assert 0 < report.difference < 1e-4 * report.largest


@pytest.mark.parametrize("to", ["hf", "flax"])
def test_a_next_sentence_head_is_converted_too(to, tokenizer, tmp_path):
    masked_lm, _ = built("RobertaForMaskedLM", tokenizer)
    model = RobertaForPreTraining(masked_lm.config)
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(
        lambda x: draw(0, 0.2, x.shape).astype(np.float32), parameter_shapes(model)
    )
    weights.save_pretrained(tmp_path / "a", model, params)
    report = convert.convert(tmp_path / "a", tmp_path / "b", to)
    assert report.difference == 0
    assert report.parts[-2][:2] == ("next_sentence", 4)
    head = "nsp_head.safetensors"
    assert (tmp_path / "b" / head).read_bytes() == (tmp_path / "a" / head).read_bytes()
    assert type(weights.read_pretrained(tmp_path / "b")[0]) is type(masked_lm)
    convert.convert(tmp_path / "a", tmp_path / "encoder", to, model_class="RobertaModel")
    assert not (tmp_path / "encoder" / head).exists()


def test_a_class_can_be_chosen(source, tmp_path):
    report = convert.convert(source, tmp_path / "out", "hf", model_class="RobertaModel")
    assert [name for name, _, _ in report.parts] == ["embeddings", "encoder", "all"]
    assert "lm_head.bias" in report.unused
    assert "not used (5): lm_head." in convert.table(report)
    with pytest.raises(UsageError, match="no class 'Roberta': use one of RobertaModel"):
        convert.convert(source, tmp_path / "out", "hf", model_class="Roberta")


def test_a_converted_model_with_other_outputs_is_an_error(source, tmp_path, monkeypatch):
    real = weights.save_pretrained

    def spoiled(target, model, params, *rest, **options):
        params = jax.tree.map(lambda x: x.copy(), params)
        params["lm_head"]["bias"][0] += 1
        real(target, model, params, *rest, **options)

    monkeypatch.setattr(weights, "save_pretrained", spoiled)
    with pytest.raises(UsageError, match="does not compute what .* outputs differ by 1, "):
        convert.convert(source, tmp_path / "out", "flax")


def test_the_source_is_never_replaced(source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    for target in (tmp_path / "model", str(tmp_path / "x" / ".." / "model")):
        with pytest.raises(UsageError, match="is the source; write to another"):
            convert.convert(tmp_path / "model", target, "flax")
    shutil.copytree(source, tmp_path / "run" / "hf")
    with pytest.raises(UsageError, match="is the source; write to another"):
        convert.convert(tmp_path / "run", tmp_path / "run" / "hf", "flax")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        convert.convert(source, tmp_path / "thesis", "flax")


# The command


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "roberta_jax.convert", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_command_prints_the_report(source, tmp_path):
    done = run(source, tmp_path / "out", "--to=fairseq")
    assert done.returncode == 0, done.stderr
    assert "written: " in done.stdout
    written = done.stdout.partition("written: ")[2].splitlines()[0].split(", ")
    assert {"dict.txt", "encoder.json", "model.pt", "vocab.bpe"} <= set(written)
    assert "before and after: 0 " in done.stdout


def bad_config(change):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))

    return spoil


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def evil(folder):
    (folder / "model.safetensors").unlink()
    import zipfile

    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        file.writestr("x/data.pkl", f"cos\nsystem\n(S'touch {folder}/ran'\ntR.")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "cut short"),
        (evil, "it names os.system"),
        (bad_config({"hidden_act": "swoosh"}), "unknown hidden_act 'swoosh'"),
        (bad_config({"model_type": "bert"}), "'bert' model, not a RoBERTa"),
        (bad_config({"vocab_size": 300}), "vocab_size in config.json must be the rows"),
        (bad_config({"architectures": ["RobertaForQuestionAnswering"]}), "no qa_outputs"),
    ],
)
def test_a_bad_source_is_a_short_error_and_status_2(spoil, said, source, tmp_path, capsys):
    folder = shutil.copytree(source, tmp_path / "bad")
    spoil(folder)
    with pytest.raises(SystemExit) as exit:
        convert.main([str(folder), str(tmp_path / "out"), "--to", "flax"])
    assert exit.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) < 20
    assert not (tmp_path / "out").exists()
    assert not (folder / "ran").exists()


def test_wrong_arguments_are_status_2(source, tmp_path):
    done = run(source, tmp_path / "out", "--to=tf")
    assert done.returncode == 2
    assert "choose from" in done.stderr
    assert "--to" in run("--help").stdout


CONFIG_CHANGES = {
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.25,
    "initializer_range": 0.05,
    "use_cache": False,
    "id2label": {0: "no", 1: "yes", 2: "maybe"},
    "problem_type": "multi_label_classification",
}
TOKENIZER_OPTIONS = {
    "model_max_length": 40,
    "padding_side": "left",
    "truncation_side": "left",
    "add_prefix_space": True,
    "trim_offsets": False,
    "clean_up_tokenization_spaces": True,
    "my_own": "entry",
}


@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "RobertaForSequenceClassification"])
@pytest.mark.parametrize("through", ["fairseq", "flax"])
def test_every_field_survives_another_format(tokenizer, tmp_path, name, through):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    changed = RobertaTokenizer.from_pretrained(tmp_path / "tokenizer", **TOKENIZER_OPTIONS)
    model, params = built(name, tokenizer, **CONFIG_CHANGES)
    params["roberta"]["embeddings"]["token_type_embeddings"]["embedding"][...] = 0
    weights.save_pretrained(tmp_path / "first", model, params, changed)
    convert.convert(tmp_path / "first", tmp_path / "between", through)
    convert.convert(tmp_path / "between", tmp_path / "last", "hf")
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == files
    for file in files:
        first, last = ((tmp_path / folder / file).read_bytes() for folder in ("first", "last"))
        if file.endswith(".json"):
            assert json.loads(last) == json.loads(first), file
        assert file.endswith(".safetensors") or last == first, file
    config = json.loads((tmp_path / "last" / "config.json").read_text())
    assert config["initializer_range"] == 0.05


def test_arguments_that_fairseq_changed_win_over_the_stored_config(source, tmp_path):
    convert.convert(source, tmp_path / "fairseq", "fairseq")
    read = pytorch.read(tmp_path / "fairseq" / "model.pt", inert=True)
    config = fairseq.read_weights(tmp_path / "fairseq" / "model.pt").config
    assert config == read["hf_config"]
    arguments = {**read["cfg"]["model"], "dropout": 0.5}
    tensors = weights.load_pretrained(tmp_path / "fairseq").weights.tensors
    derived = fairseq._config(tmp_path, arguments, tensors)
    merged = fairseq._with_stored_fields(derived, read["hf_config"], arguments)
    assert merged == derived
    assert merged["hidden_dropout_prob"] == 0.5
