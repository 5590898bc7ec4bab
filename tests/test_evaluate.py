"""The command `evaluate` on language models: tables, JSON files, and messages on wrong calls."""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import roberta_jax
from roberta_jax import evaluate as command
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.pretrain import pretrain
from roberta_jax.weights.parameters import parameter_shapes
from tests.support import checkpoints, finetuning, language_models, object_store, texts


def run(*arguments, stdin=b""):
    """Returns (exit status, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            command.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def save(folder, loaded):
    roberta_jax.save_pretrained(folder, loaded.model, loaded.params, loaded.tokenizer)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models a and b with one tokenizer, and c with another."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "a": language_models.language_model(0),
        "b": language_models.language_model(1),
        "c": language_models.language_model(2, vocab_size=300),
    }
    return {name: save(folder / name, loaded) for name, loaded in models.items()}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(texts.documents(12, seed=9)))
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished pretraining run of four steps, with its prepared text."""
    folder = tmp_path_factory.mktemp("pretraining")
    corpus = texts.write_corpus(folder / "corpus.jsonl")
    changes = {"train.steps": 4, "train.checkpoint_every": 4, "schedule.warmup_steps": 2}
    pretrain(texts.small_config(corpus, folder / "cache", **changes), folder / "run")
    return folder / "run"


def test_a_model_is_scored(folders, text, tmp_path):
    output = tmp_path / "scores.json"
    arguments = (folders["a"], f"--text={text}", "--masks=3", "--scores=masked,pseudo")
    status, out, err = run(*arguments, f"--output={output}")
    assert status == 0, err
    result = json.loads(output.read_text())
    [model], documents = result["models"], result["documents"]
    assert result["num_documents"] == len(documents) == 12
    metrics, sums = model["metrics"], model["sums"]
    for name, total in sums.items():
        assert total == pytest.approx(sum(each["models"][0][name] for each in documents))
    loss = sums["masked_loss"] / sums["masked_targets"]
    assert metrics["masked_loss"]["value"] == pytest.approx(loss)
    assert metrics["masked_perplexity"]["value"] == pytest.approx(math.exp(loss))
    assert metrics["accuracy_at_1"]["value"] == sums["masked_top1"] / sums["masked_targets"]
    assert metrics["accuracy_at_5"]["value"] == sums["masked_top5"] / sums["masked_targets"]
    assert sums["pseudo_targets"] == model["num_tokens"]
    assert sums["pseudo_words"] == result["num_words"] == len(text.read_text().split())
    per_word = math.exp(sums["pseudo_loss"] / sums["pseudo_words"])
    assert metrics["pseudo_perplexity_per_word"]["value"] == pytest.approx(per_word)
    assert result["options"]["max_length"] == 32
    assert documents[3]["name"] == f"{text}#4"

    assert out.startswith(f"{text}: 12 documents, ")
    assert "95% intervals of a bootstrap over the documents" in out
    assert re.search(rf"^  perplexity +{math.exp(loss):.2f} \[", out, re.MULTILINE)
    assert re.search(rf"^  pseudo-perplexity per word +{per_word:.2f} \[", out, re.MULTILINE)
    assert f"masks each of {sums['pseudo_targets']:,} tokens once" in err
    assert run(*arguments)[1] == out  # the same seed, the same scores


def test_two_models_are_compared(folders, text, tmp_path):
    output = tmp_path / "scores.json"
    arguments = (folders["a"], folders["b"], f"--text={text}")
    status, out, err = run(*arguments, "--scores=masked,pseudo", f"--output={output}")
    assert status == 0, err
    result = json.loads(output.read_text())
    assert result["same_tokenizer"]
    first, second = (model["metrics"] for model in result["models"])
    assert list(result["differences"]) == list(first)
    for name, difference in result["differences"].items():
        assert difference["value"] == pytest.approx(second[name]["value"] - first[name]["value"])
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert "second - first" in out
    assert "differ, so" not in out
    # Each model alone has the same scores: the same masks.
    assert run(folders["b"], f"--text={text}", f"--output={output}")[0] == 0
    [alone] = json.loads(output.read_text())["models"]
    assert alone["metrics"]["masked_loss"] == second["masked_loss"]


def test_models_with_other_tokenizers_are_compared_per_word_only(folders, text, tmp_path):
    output = tmp_path / "scores.json"
    arguments = (folders["a"], folders["c"], f"--text={text}", "--scores=masked,pseudo")
    status, out, err = run(*arguments, f"--output={output}")
    assert status == 0, err
    result = json.loads(output.read_text())
    assert not result["same_tokenizer"]
    assert list(result["differences"]) == ["pseudo_loss_per_word", "pseudo_perplexity_per_word"]
    first, second = result["models"]
    assert first["sums"]["pseudo_words"] == second["sums"]["pseudo_words"]
    assert first["num_tokens"] != second["num_tokens"]
    assert "values per token cannot be compared" in out


def test_a_sample_of_documents_has_pseudo_perplexities(folders, text, tmp_path):
    output = tmp_path / "scores.json"
    arguments = (folders["a"], f"--text={text}", "--scores=pseudo", "--max_tokens=200")
    status, out, _ = run(*arguments, f"--output={output}")
    assert status == 0
    documents = [each["models"][0] for each in json.loads(output.read_text())["documents"]]
    targets = [each["pseudo_targets"] for each in documents]
    tokens = [each["tokens"] for each in documents]
    assert sum(targets) <= 200
    assert 0 < sum(map(bool, targets)) < 12
    assert all(target in (0, size) for target, size in zip(targets, tokens, strict=True))
    assert "a random sample of" in out
    assert "Masked" not in out


def test_standard_input_and_the_first_documents(folders, text):
    status, out, _ = run(folders["a"], "--text=-", "--max_documents=5", stdin=text.read_bytes())
    assert status == 0
    assert out.startswith("standard input: 5 documents, ")
    of_file = run(folders["a"], f"--text={text}", "--max_documents=5")[1]
    assert out.splitlines()[1:] == of_file.splitlines()[1:]


def test_a_fairseq_checkpoint_has_the_same_scores(folders, text, tmp_path):
    loaded = language_models.language_model()
    folder = tmp_path / "fairseq"
    roberta_jax.save_pretrained(
        folder, loaded.model, loaded.params, loaded.tokenizer, format="fairseq"
    )
    status, out, err = run(folder, f"--text={text}", "--max_documents=3")
    assert status == 0, err
    of_folder = run(folders["a"], f"--text={text}", "--max_documents=3")[1]
    assert "With fewer than 20 documents" in out

    def numbers(shown):
        return [line.split()[1:] for line in shown.splitlines() if line.startswith("  ")][1:]

    assert numbers(out) == numbers(of_folder) != []


def test_a_single_document_has_no_interval(folders):
    status, out, _ = run(folders["a"], "--text=-", "--masks=9", stdin=b"The cat sees a dog.")
    assert status == 0
    assert "[" not in out.split("There are no intervals")[0]


def test_a_run_is_scored_on_its_held_out_documents(workdir, tmp_path):
    output = tmp_path / "scores.json"
    arguments = (workdir, "--masks=40", f"--output={output}")
    status, out, err = run(*arguments)
    assert status == 0, err
    result = json.loads(output.read_text())
    count = result["num_documents"]
    assert f"Scoring the {count} held-out documents of {workdir}" in err
    assert out.startswith(f"held-out documents of {workdir}: {count} documents, ")
    # The text and tokens are those of the run, without the line that ends a document.
    config = json.loads((workdir / "config.json").read_text())
    [folder] = pathlib.Path(config["data"]["cache_dir"], "tokens").glob("*/heldout")
    index = json.loads((folder / "index.json").read_text())
    assert count == index["num_documents"]
    sentences = sum(each["sentences"] for each in result["documents"])
    assert sentences == index["num_sentences"] - count
    assert result["models"][0]["num_tokens"] == index["num_tokens"] - sentences - count
    # FULL-SENTENCES rows hold nearly the same inputs, so their loss is nearly the same.
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    [final] = [each["eval_loss"] for each in metrics if each["step"] == 4 and "eval_loss" in each]
    assert result["models"][0]["metrics"]["masked_loss"]["value"] == pytest.approx(final, rel=0.03)
    # A second model, of any folder, is scored on the same documents.
    status, out, err = run(workdir, workdir / "hf", "--max_documents=3")
    assert status == 0, err
    assert "the first 3" in err
    assert "+0.0000 [+0.0000, +0.0000]" in out


def test_held_out_documents_that_are_gone_are_an_error(workdir, folders, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    moved = tmp_path / "run"
    shutil.copytree(workdir / "hf", moved / "hf")
    for changes, said in (
        ({"cache_dir": str(tmp_path / "none")}, "does not exist or is not complete"),
        ({"files": str(tmp_path / "gone.jsonl")}, "no file matches"),
        ({"validation_fraction": 2}, "validation_fraction"),
    ):
        (moved / "config.json").write_text(json.dumps(config | {"data": config["data"] | changes}))
        status, out, err = run(moved)
        assert (status, out) == (2, "")
        assert f"error: the held-out documents of {moved} cannot be found: " in err
        assert said in err
        assert "Name the text to score, such as --text=" in err
    status, _, err = run(folders["a"])
    assert status == 2
    assert "is not the workdir of a pretraining run" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--text=TEXT"], "no folder 'nowhere'"),
        (["A", "nowhere", "--text=TEXT"], "no folder 'nowhere'"),
        (["A", "B", "C", "--text=TEXT"], "3 models are given: name one model, or two"),
        (["A"], "no text: .* Name the text, such as --text="),
        (["A", "--text=nothing*"], "--text: no file matches 'nothing[*]'"),
        (["A", "--text="], "--text"),
        (["A", "--text=-"], "standard input holds no text"),
        (["A", "--text=TEXT", "--scores=perplexity"], "--scores=perplexity: name one or both of"),
        (["A", "--text=TEXT", "--scores="], "--scores=: name one or both of"),
        (["A", "--text=TEXT", "--masks=0"], "--masks=0 must be a number from 1 to 1000"),
        (["A", "--text=TEXT", f"--masks={10**20}"], "--masks=10+ must be a number from 1 to 1000"),
        (["A", "--text=TEXT", "--seed=-1"], "--seed=-1 must be a number from 0"),
        (["A", "--text=TEXT", "--max_documents=0"], "--max_documents=0 must be a number"),
        (["A", "--text=TEXT", "--max_tokens=9"], "--max_tokens=9 has no effect without"),
        (["A", "--text=TEXT", "--batch_tokens=0"], "--batch_tokens=0 must be a number"),
        (["A", "--text=TEXT", "--batch_tokens=-4"], "--batch_tokens=-4 must be a number"),
        (["A", "--language=de"], "--language has no effect without --text: add --text="),
        (["A", "--text=TEXT", "--task=rte"], "--text is for language models, and --task is for"),
        (["A", "--task=rte", "--masks=2"], "--masks is for language models, and --task is for"),
        (["A", "--split=test", "--seed=0"], "--seed is for language models, and --split is for"),
        (["A", "--split=test"], "has no head for a task"),
        (["A", "--text=TEXT", "--max_length=1"], "--max_length=1 leaves no room"),
        (["A", "--text=TEXT", "--max_length=33"], "is longer than the 32 tokens that .*a takes"),
        (["A", "--text=TEXT", "--language=English"], "--language is 'English'"),
        (["A", "--text=TEXT", "--output=nowhere/a.json"], "there is no folder nowhere"),
        (["A", "--text=TEXT", "--output=."], "--output=. is a folder"),
        (
            ["A", "--text=TEXT", f"--output={'x' * 300}"],
            "--output=x+.* cannot be written",
        ),
        (["A", "--text=TEXT", "--output=/proc/self/x"], "--output=/proc/self/x cannot be written"),
        (["A", "--text=TEXT", "--sentences=words"], "invalid choice: 'words'"),
        (["A", "--text=TEXT", "--dtype=int8"], "invalid choice: 'int8'"),
        (["A", "--txt=TEXT"], "unrecognized arguments: --txt="),
        ([], "the following arguments are required: PATH"),
    ],
)
def test_wrong_calls(folders, text, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    names = {"A": folders["a"], "B": folders["b"], "C": folders["c"]}
    call = [names.get(each, str(each).replace("TEXT", str(text))) for each in arguments]
    status, out, err = run(*call)
    assert (status, out) == (2, "")
    assert re.search(said, err), err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_no_regular_file_is_not_replaced(folders, text, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for path in (pipe, tmp_path / "link"):
        status, out, err = run(folders["a"], f"--text={text}", f"--output={path}")
        assert (status, out) == (2, "")
        assert f"--output={path} is not a regular file" in err
    assert pipe.is_fifo()


def head_of(name, loaded):
    """A model of another class with random parameters."""
    model = MODEL_CLASSES[name](loaded.model.config.replace(num_labels=2))
    draw = np.random.default_rng(0).normal
    shapes = parameter_shapes(model)
    params = jax.tree.map(lambda x: draw(0, 0.1, x.shape).astype(np.float32), shapes)
    return type(loaded)(model, params, loaded.tokenizer)


def test_models_that_cannot_be_scored(folders, text, tmp_path):
    loaded = language_models.language_model()
    classifier = save(tmp_path / "cls", head_of("RobertaForSequenceClassification", loaded))
    decoder = save(tmp_path / "decoder", language_models.language_model(is_decoder=True))
    no_tokenizer = tmp_path / "bare"
    roberta_jax.save_pretrained(no_tokenizer, loaded.model, loaded.params)
    broken = tmp_path / "broken"
    shutil.copytree(folders["a"], broken)
    checkpoints.edit_tensors(broken, lambda tensors: tensors["lm_head.bias"].fill(np.nan))
    finetuned = tmp_path / "finetuned"
    shutil.copytree(folders["a"], finetuned / "hf")
    (finetuned / "config.json").write_text('{"task": "rte"}')
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    other = tmp_path / "other"
    shutil.copytree(folders["c"], other)
    for path in folders["a"].iterdir():
        if "token" in path.name or path.name in ("vocab.json", "merges.txt"):
            shutil.copy(path, other)
    for folder, said in (
        (classifier, "has no masked-LM head"),
        (decoder, "is a decoder"),
        (no_tokenizer, "cannot load the model's tokenizer"),
        (broken, "the weights are not finite"),
        (finetuned, "is fine-tuned. Give --split"),
        (unfinished, "has not finished"),
        (other, "has 320 ids and the model 300"),
    ):
        status, out, err = run(folder, f"--text={text}")
        assert (status, out) == (2, ""), folder
        assert said in err


def write_run_config(workdir, dtype):
    config = {"task": "rte", "execution": {"dtype": dtype}}
    (workdir / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """(workdir of a fine-tuning run, with random parameters; the task's files)."""
    folder = tmp_path_factory.mktemp("finetuned")
    labels = {0: "entailment", 1: "not_entailment"}
    changes = {"num_labels": 2, "id2label": labels}
    changes["label2id"] = {name: number for number, name in labels.items()}
    loaded = language_models.language_model()
    loaded = type(loaded)(
        type(loaded.model)(loaded.model.config.replace(**changes)), loaded.params, loaded.tokenizer
    )
    save(folder / "run" / "hf", head_of("RobertaForSequenceClassification", loaded))
    finetuning.write_rte(folder / "RTE")
    write_run_config(folder / "run", "auto")
    return folder / "run", folder / "RTE"


@pytest.mark.parametrize(
    "option",
    [
        "--text_field=a",
        "--sentences=split",
        "--language=en",
        "--max_documents=1",
        "--scores=nonsense",
        "--masks=1",
        "--max_tokens=9",
        "--max_length=9",
        "--seed=0",
        "--batch_tokens=-4",
    ],
)
def test_options_of_language_models_are_refused_for_finetuned_ones(finetuned, option):
    workdir, data = finetuned
    status, out, err = run(workdir, "--task=rte", f"--folder={data}", option)
    assert (status, out) == (2, "")
    name = option.partition("=")[0]
    assert f"{name} is for language models, and {workdir} is fine-tuned. Leave it out." in err
    status, out, err = run(workdir, option, "--text=a.txt")
    assert (status, out) == (2, "")
    assert (
        f"--text, {name} are for language models, and {workdir} is fine-tuned. Give --split" in err
    )


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="jaxlib 0.7 lacks bfloat16 on CPUs")
def test_a_finetuned_model_is_computed_in_the_dtype_of_its_run(finetuned, tmp_path):
    workdir, data = finetuned
    in_bfloat16 = tmp_path / "run in bfloat16"
    shutil.copytree(workdir, in_bfloat16)
    write_run_config(in_bfloat16, "bfloat16")
    scores = {}
    for name, path, options in (
        ("of bfloat16", in_bfloat16, ()),
        ("to bfloat16", workdir, ("--dtype=bfloat16",)),
        ("to float32", in_bfloat16, ("--dtype=float32",)),
        ("of auto", workdir, ()),
        ("of no run", workdir / "hf", ()),
    ):
        output = f"--output={tmp_path / name}"
        status, out, err = run(path, "--task=rte", f"--folder={data}", *options, output)
        assert status == 0, err
        assert "RTE, validation, 20 examples" in out
        lines = (tmp_path / name / "predictions" / "validation.jsonl").read_text().splitlines()
        scores[name] = [json.loads(line)["scores"]["entailment"] for line in lines]
    assert scores["of bfloat16"] == scores["to bfloat16"] != scores["to float32"]
    assert scores["to float32"] == scores["of auto"] == scores["of no run"]
    assert scores["of bfloat16"] == pytest.approx(scores["to float32"], abs=0.05)


def test_a_workdir_on_an_object_store(finetuned, tmp_path, monkeypatch):
    workdir, data = finetuned
    object_store.install(tmp_path / "store", monkeypatch.setattr)
    shutil.copytree(workdir, tmp_path / "store" / "bucket" / "run")
    arguments = ("gs://bucket/run", "--task=rte", f"--folder={data}")
    status, out, err = run(*arguments, "--masks=2")
    assert (status, out) == (2, "")
    assert "--masks is for language models, and gs://bucket/run is fine-tuned" in err
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "RTE, validation, 20 examples" in out


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for action in command._parser()._actions:
        assert action.help
        assert all(name in shown for name in action.option_strings)
