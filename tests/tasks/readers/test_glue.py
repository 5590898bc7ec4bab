"""GLUE's tab-separated files, and the same data as JSON lines."""

import logging

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.table import TASKS
from tests.support.messages import one_screen

MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
)


def read(tmp_path, task, text, name="train.tsv", split="train"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    task = TASKS[task]
    return list(task.reader(path, task, split))


def test_a_quote_is_a_character(tmp_path):
    text = MRPC + '1\t1\t2\tHe said "no .\t" Yes , " she said .\n0\t3\t4\t"a\tb"\n'
    first, second = read(tmp_path, "mrpc", "\ufeff" + text.replace("\n", "\r\n"))
    assert first.text_a == 'He said "no .'
    assert first.text_b == '" Yes , " she said .'
    assert (first.id, first.label) == ("0", "equivalent")
    assert (second.text_a, second.text_b) == ('"a', 'b"')
    assert (second.id, second.label) == ("1", "not_equivalent")


def test_cola_without_and_with_names_of_columns(tmp_path):
    first, second = read(tmp_path, "cola", "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThem rode.\n")
    assert (first.text_a, first.text_b, first.label) == ("The sailors rode.", None, "acceptable")
    assert (second.id, second.label) == ("1", "unacceptable")
    (test,) = read(tmp_path, "cola", "index\tsentence\n7\tBill whistled.\n", "test.tsv", "test")
    assert (test.id, test.text_a, test.label) == ("7", "Bill whistled.", None)


def test_mnli_takes_the_gold_label(tmp_path):
    row = "4\t1\t1e\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tA man.\tA person.\tneutral\tx\t"
    entailed, unknown = read(tmp_path, "mnli", MNLI + row + "entailment\n" + row + "-\n")
    assert (entailed.text_a, entailed.text_b) == ("A man.", "A person.")
    assert entailed.label == "entailment"
    assert unknown.label is None


def test_regression_reads_numbers(tmp_path):
    text = "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n1\tc\td\t-1\n"
    assert [each.label for each in read(tmp_path, "stsb", text)] == [3.8, None]
    for wrong in ("nan", "inf", "x", "1,5"):
        with pytest.raises(UsageError, match=r"train.tsv:2: the target .* is not a finite number"):
            read(tmp_path, "stsb", f"index\tsentence1\tsentence2\tscore\n0\ta\tb\t{wrong}\n")


@pytest.mark.parametrize("spelled", ["-1", "hidden", "", "HIDDEN"])
def test_hidden_labels(tmp_path, spelled):
    text = f"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t{spelled}\n"
    assert read(tmp_path, "rte", text)[0].label is None


def test_labels_in_another_case(tmp_path):
    text = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tNOT_ENTAILMENT\n"
    assert read(tmp_path, "rte", text)[0].label == "not_entailment"


def test_unknown_label_names_the_line(tmp_path):
    text = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tneutral\n"
    with pytest.raises(UsageError, match=r"train.tsv:3: 'neutral' is not a label of RTE") as error:
        read(tmp_path, "rte", text)
    assert "'entailment', 'not_entailment'" in one_screen(error.value)
    # A number says nothing where the files have names: which order would it be?
    with pytest.raises(UsageError, match=r"train.tsv:2: '0' is not a label of RTE"):
        read(tmp_path, "rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n")


def test_wrong_columns(tmp_path):
    with pytest.raises(UsageError, match=r"train.tsv:1: .*has no columns 'sentence1' and") as error:
        read(tmp_path, "rte", "id,premise,label\n1,a,b\n")
    assert "id,premise,label" in one_screen(error.value)
    with pytest.raises(UsageError, match="has no column 'sentence'"):
        read(tmp_path, "cola", "a\tb\tc\n")


def test_another_number_of_columns_names_the_line(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel\n"
    for row in ("0\ta\tb\n", "0\ta\tb\tentailment\textra\n"):
        with pytest.raises(UsageError, match=r"train.tsv:3: \d columns, and the first line has 4"):
            read(tmp_path, "rte", header + "0\ta\tb\tentailment\n" + row)


def test_malformed_lines_of_qqp_are_left_out_and_counted(tmp_path, caplog):
    text = QQP + "1\t1\t2\tA?\tB?\t0\n2\t3\t4\tC?\n\n3\t5\t6\tD?\tE?\t1\n4\tx\n"
    with caplog.at_level(logging.WARNING):
        examples = read(tmp_path, "qqp", text)
    assert [(each.id, each.label) for each in examples] == [
        ("1", "not_duplicate"),
        ("3", "duplicate"),
    ]
    assert "2 lines without the 6 columns of the first line, such as line 3" in caplog.text


def test_white_space_at_the_ends_and_empty_texts(tmp_path):
    examples = read(tmp_path, "qqp", QQP + "1\t1\t2\t  A? \t\t0\n")
    assert (examples[0].text_a, examples[0].text_b) == ("A?", "")


def test_empty_files(tmp_path):
    assert read(tmp_path, "rte", "") == []
    assert read(tmp_path, "rte", "index\tsentence1\tsentence2\tlabel\n") == []
    assert read(tmp_path, "cola", "\n\n") == []


def test_long_fields_and_line_separators_of_unicode(tmp_path):
    long = "word " * 20_000 + "\x0b\x85\u2028end"
    (example,) = read(tmp_path, "cola", f"gj04\t1\t\t{long}\n")
    assert example.text_a == long


def test_json_lines(tmp_path):
    text = '{"text_a": "A\\nb", "text_b": "B", "label": "neutral"}\n'
    (example,) = read(tmp_path, "mnli", text, "MNLI.train.jsonl")
    assert (example.text_a, example.text_b, example.label) == ("A\nb", "B", "neutral")
    text = '{"premise": "A", "hypothesis": "B", "idx": 5, "label": "entailment"}\n'
    (example,) = read(tmp_path, "rte", text, "train.jsonl")
    assert (example.id, example.text_b) == ("5", "B")
    text = '{"sentence": "A", "label": 1}\n'
    assert read(tmp_path, "sst2", text, "train.jsonl")[0].label == "positive"


def test_json_lines_of_another_form(tmp_path):
    with pytest.raises(UsageError, match=r"train.jsonl:1: no 'sentence1' and 'sentence2'"):
        read(tmp_path, "rte", '{"text": "A"}\n', "train.jsonl")
    with pytest.raises(UsageError, match=r"train.jsonl:1: 'sentence' must be a text"):
        read(tmp_path, "sst2", '{"sentence": null}\n', "train.jsonl")
