"""Mistakes in files, models and workdirs: one message each, before anything is written."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from configs.finetune import get_config
from configs.pretrain import get_config as pretraining_config
from roberta_jax import RobertaTokenizer, cli
from roberta_jax.data.row_lengths import choose_lengths
from roberta_jax.errors import UsageError
from roberta_jax.finetune import finetune, main
from roberta_jax.finetuning import prepare as preparation
from roberta_jax.finetuning.batches import TrainingRows
from roberta_jax.finetuning.config_values import VALUES
from roberta_jax.finetuning.prepare import prepare
from roberta_jax.finetuning.spec import read_spec
from roberta_jax.pretrain import pretrain
from roberta_jax.run_flags import define_run_flags
from roberta_jax.weights.save import save_pretrained
from tests.support import finetuning, small_tasks
from tests.support.checkpoints import build, edit_config
from tests.support.messages import one_screen

GOOD = [f"{text},{label}" for text, label in map(finetuning.sentence, range(30))]


@pytest.fixture
def refused(run_config, tmp_path):
    """(task, **changes) -> the message of a run that is refused and has written nothing."""

    def refused(task, /, **changes):
        workdir = tmp_path / "run"
        with pytest.raises(UsageError) as error:
            finetune(run_config(task, **changes), workdir)
        assert not workdir.exists()
        return one_screen(error.value)

    return refused


@pytest.fixture
def written(tmp_path):
    """(name, lines) -> the path of a file with these lines."""

    def written(name, lines):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return written


def own(file, validation="0.25", **changes):
    return {"data.train": file, "data.validation": validation, **changes}


# The user's own files


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        (["a,b", "1,2", "3,4"], {}, "label"),
        (["text,label", *GOOD], {"data.text_column": "review"}, r"review.*text, label"),
        (["text,label", *GOOD], {"data.labels": ("good", "fair")}, "none of good, fair: 'bad'"),
        (["text,label"], {}, "holds a header and no rows"),
        ([], {}, "is empty"),
        (["text,label", "one,good", "two,good", "three,good"], {}, "'good', so there is nothing"),
        (["text,label", "only one,good"], {}, "so there is nothing to learn"),
        (["text,label", "one,good", "two,bad"], {"data.validation": "0.01"}, "leaves no"),
        (["text,label", '"one,good', "two,bad"], {}, "line"),
        (["text,score", "one,1", "two,nan", "three,2"], {"data.kind": "regression"}, "line 3"),
        (["text,score", "one,1", "two,inf", "three,2"], {"data.kind": "regression"}, "line 3"),
        (["text,score", "one,1", "two,x", "three,2"], {"data.kind": "regression"}, "'x'.*line 3"),
        (["text,score", "one,1", "two,1", "three,1"], {"data.kind": "regression"}, "the target 1"),
    ],
)  # fmt: skip
def test_wrong_files_of_the_user(refused, written, lines, changes, message):
    text = refused("csv", **own(written("a.csv", lines), **changes))
    assert "a.csv" in text or "--config.data." in text
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("format.max_option_length", "of the kind classification. It is for choice, as in race"),
        ("format.doc_stride", "of the kind classification. It is for question_answering, as in"),
    ],
)
def test_keys_that_the_kind_of_a_file_does_not_read(refused, written, monkeypatch, key, message):
    """The kind is known when the file was read, and nothing has been encoded then."""
    file = written("a.csv", ["text,label", *GOOD])
    monkeypatch.setattr(preparation, "encoded", lambda *_: pytest.fail("examples are encoded"))
    text = refused("csv", **own(file, **{key: 64}))
    assert f"--config.{key}=64 has no effect on csv, whose examples are {message}" in text


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_files_that_do_not_exist(refused, written, split):
    file = written("a.csv", ["text,label", *GOOD])
    changes = own(file, file) | {f"data.{split}": "nowhere.csv"}
    assert f"--config.data.{split}: no file nowhere.csv" in refused("csv", **changes)


def test_mistakes_in_a_test_file_are_found_before_the_training(refused, written):
    good = written("a.csv", ["text,label", *GOOD])
    wrong = written("test.csv", ["text,label", "one,good", "two,fair"])
    text = refused("csv", **own(good, **{"data.test": wrong}))
    assert "test.csv" in text
    assert "'fair'" in text
    headless = written("other.csv", ["something,label", "one,good"])
    assert "other.csv" in refused("csv", **own(good, **{"data.test": headless}))


# Official files


RTE = ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment", "1\tc\td\tnot_entailment"]


@pytest.mark.parametrize(
    ("split", "lines", "message"),
    [
        (
            "train",
            ["index\tsentence1\tlabel", "0\ta\tentailment"],
            "no columns 'sentence1' and 'sentence2'",
        ),
        ("train", [*RTE, "2\ta\tb\tperhaps"], "'perhaps'"),
        ("train", RTE[:2], "so there is nothing to learn"),
        ("train", RTE[:1], "is empty"),
        ("dev", RTE[:1], "is empty"),
        ("dev", ["index\tsentence1\tsentence2", "0\ta\tb"], "has no labels"),
        ("test", ["index\tsentence1", "0\ta"], "no columns 'sentence1' and 'sentence2'"),
        ("test", ["index\tsentence1\tsentence2"], "is empty"),
    ],
)
def test_wrong_official_files(refused, written, rte, tmp_path, split, lines, message):
    shutil.copytree(rte, tmp_path / "RTE")
    written(f"RTE/{split}.tsv", lines)
    text = refused("rte", **{"data.folder": str(tmp_path / "RTE")})
    assert f"{split}.tsv" in text
    assert message in text


def test_a_folder_of_another_task(refused, rte):
    assert "has no file of DREAM's split 'train'" in refused("dream", **{"data.folder": str(rte)})
    text = refused("rte", **{"data.folder": str(rte), "data.test": "nowhere.tsv"})
    assert "--config.data.test=nowhere.tsv: there is no such file" in text


def test_questions_whose_answers_are_not_in_the_passage(refused, tmp_path):
    task, changes = small_tasks.squad(tmp_path)
    file = tmp_path / "train-v1.1.json"
    file.write_text(file.read_text().replace('"text": "', '"text": "un'))
    assert "the answer is not at its position in the passage" in refused(task, **changes)
    file.write_text(file.read_text().replace('"answers": [{', '"answers": [], "other": [{'))
    assert "Choose the task squad2" in refused(task, **changes)


# Configs


def test_the_config_of_another_command(tmp_path):
    message = "the config of another command: it has keys such as .*configs/{}.py does not"
    with pytest.raises(UsageError, match=message.format("finetune")):
        finetune(pretraining_config("tiny"), tmp_path / "run")
    with pytest.raises(UsageError, match=message.format("pretrain")):
        pretrain(get_config("rte"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_help_and_no_arguments(capsys):
    with pytest.raises(SystemExit) as error:
        cli.run_config_job(main, define_run_flags, ["finetune"], example="configs/finetune.py:rte")
    assert error.value.code == 2
    assert capsys.readouterr().err == (
        "error: no config: pass one, such as --config=configs/finetune.py:rte\n"
    )
    arguments = ["finetune", "--config=configs/finetune.py:rte", "--help"]
    cli.run_config_job(main, define_run_flags, arguments, example="configs/finetune.py:rte")
    help_text = capsys.readouterr().out
    for key in VALUES:
        assert re.search(rf"^  --config\.{re.escape(key)}\s", help_text, re.MULTILINE), key


# Models


@pytest.fixture
def changed_model(base_model, tmp_path):
    """A copy of the model; (name of a value in config.json, value) are changed."""

    def changed(**changes):
        folder = tmp_path / "changed model"
        shutil.copytree(base_model, folder)
        edit_config(folder, **changes)
        return folder

    return changed


def test_models_that_cannot_be_used(refused, written, rte, changed_model, tmp_path):
    data = {"data.folder": str(rte)}
    assert "holds no model" in refused("rte", **data, init_from=str(rte))
    assert "no folder" in refused("rte", **data, init_from=str(tmp_path / "nowhere"))
    deeper = changed_model(num_hidden_layers=5)
    assert "missing (32): encoder.layer.3" in refused("rte", **data, init_from=str(deeper))
    (deeper / "config.json").write_text("{")
    assert "config.json" in refused("rte", **data, init_from=str(deeper))


def test_a_model_without_its_tokenizer(refused, rte, changed_model):
    folder = changed_model()
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    text = refused("rte", **{"data.folder": str(rte)}, init_from=str(folder))
    assert "cannot load the model's tokenizer" in text


def test_a_tokenizer_of_another_model(run_config, rte, tmp_path, caplog):
    RobertaTokenizer.train(["some other text"] * 9, vocab_size=270).save_pretrained(tmp_path)
    data = {"data.folder": str(rte)}
    prepare(read_spec(run_config("rte", **data, tokenizer=str(tmp_path))))
    assert "Leave it unset to use that one" in caplog.text
    caplog.clear()
    own = run_config("rte", **data).init_from
    prepare(read_spec(run_config("rte", **data, tokenizer=own)))
    assert not caplog.text


def test_a_tokenizer_with_more_tokens_than_the_model(refused, rte, changed_model):
    folder = changed_model()
    tokenizer = RobertaTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["another", "token"])
    tokenizer.save_pretrained(folder)
    text = refused("rte", **{"data.folder": str(rte)}, init_from=str(folder))
    assert "the tokenizer has 1002 ids" in text


def test_a_decoder(refused, rte, tmp_path):
    model, params = build("RobertaForCausalLM", is_decoder=True)
    save_pretrained(tmp_path / "model", model, params)
    text = refused("rte", **{"data.folder": str(rte)}, init_from=str(tmp_path / "model"))
    assert "is a decoder" in text


# Workdirs


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 0, "data": {"files": "a.txt"}}, "holds a run of pretraining, and this is one of"),
        ({"seed": 0, "task": "mnli"}, "holds a run of fine-tuning on the task mnli"),
    ],
)
def test_the_workdir_of_another_run(run_config, rte, tmp_path, config, message):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config))
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UsageError, match=message) as error:
        finetune(run_config("rte", **{"data.folder": str(rte)}), workdir)
    one_screen(error.value)
    assert [each for each in sorted(workdir.rglob("*")) if each.name != ".lock"] == before


def test_a_workdir_that_is_a_file(run_config, rte, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="is a file. Choose another name"):
        finetune(run_config("rte", **{"data.folder": str(rte)}), tmp_path / "run")


# What is unusual, and no mistake


def test_fields_with_quotes_line_ends_and_100000_characters(run_config, tmp_path):
    texts = ['a "quoted" word', "two\nlines", "word " * 20_000, "x" * 100_000, "", "a,b;c\td"]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, ("no", "yes")[n % 2]) for n, text in enumerate(texts * 2))
    prepared = prepare(read_spec(run_config("csv", **own(str(tmp_path / "a.csv")))))
    assert {each.text_a for each in prepared.train.examples} <= set(texts)
    assert prepared.train.features.row_lengths.max() == 24
    assert "rows with an empty text, kept: 2" in prepared.notes[0]
    assert any("examples cut to 24 tokens" in note for note in prepared.notes)


def test_a_sample_of_one_label(run_config, rte):
    options = {"data.folder": str(rte), "data.max_train_examples": 1}
    with pytest.raises(UsageError, match=r"max_train_examples=1: 1 example, and all have the same"):
        prepare(read_spec(run_config("rte", **options)))


def test_a_batch_larger_than_the_data(run_config, rte):
    """An example occurs several times in a batch, and in the same number of all batches."""
    options = {"data.folder": str(rte), "data.max_train_examples": 3}
    spec = read_spec(run_config("rte", **options))
    features = prepare(spec).train.features
    assert spec.training(3).steps == 1
    rows_of = TrainingRows(features, choose_lengths(features.row_lengths, 2, 38), 8, seed=0)
    counts = np.bincount(np.concatenate([rows_of(step)[0] for step in range(3)]), minlength=3)
    assert (counts == 8).all()
