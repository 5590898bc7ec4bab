"""Files with a word and its tag on each line."""

import dataclasses

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.readers.conll import iob1_to_bio
from roberta_jax.tasks.table import TASKS


def read(tmp_path, text, task="conll2003"):
    path = tmp_path / "eng.train"
    path.write_bytes(text.encode())
    task = TASKS[task] if isinstance(task, str) else task
    return list(task.reader(path, task, "train"))


def test_columns_documents_and_blank_lines(tmp_path):
    text = (
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n\n"
        "-DOCSTART- -X- -X- O\n \n. . O O"
    )
    first, second = read(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))
    assert (first.words, first.tags) == (("EU", "rejects"), ("B-ORG", "O"))  # BIO
    assert (second.words, second.tags) == ((".",), ("O",))
    assert (first.id, second.id) == ("0", "1")


def test_tabs_and_lines_with_only_a_tab(tmp_path):
    text = "@paulwalk\tO\nNew York\tB-location\n\t\nIt\tO\n"
    first, second = read(tmp_path, text, "wnut17")
    assert (first.words, first.tags) == (("@paulwalk", "New York"), ("O", "B-location"))
    assert second.words == ("It",)


def test_words_keep_the_spaces_of_unicode(tmp_path):
    (example,) = read(tmp_path, "a\u00a0b NN I-NP O\n\u2028 NN I-NP O\n")
    assert example.words == ("a\u00a0b", "\u2028")


def test_languages_before_words(tmp_path):
    text = "en:R.H.\tB-PER\nen::\tO\nen:12:30\tO\n"
    (example,) = read(tmp_path, text, "wikiann")
    assert example.words == ("R.H.", ":", "12:30")
    (example,) = read(tmp_path, "en:a NN I-NP O\n")  # only where the task has them
    assert example.words == ("en:a",)


def test_files_without_tags(tmp_path):
    first, second = read(tmp_path, "EU\nrejects\n\nIt\n")
    assert (first.words, first.tags) == (("EU", "rejects"), None)
    assert second.tags is None


def test_another_number_of_columns_names_the_line(tmp_path):
    with pytest.raises(UsageError, match=r"eng.train:2: 3 columns, and the line before it has 4"):
        read(tmp_path, "EU NNP I-NP I-ORG\nrejects VBZ O\n")


def test_unknown_tags_name_the_line(tmp_path):
    with pytest.raises(UsageError, match=r"eng.train:2: the tag 'B-GPE' is not one of CoNLL-2003"):
        read(tmp_path, "EU NNP I-NP I-ORG\nParis NNP I-NP B-GPE\n")
    any_tag = dataclasses.replace(TASKS["conll2003"], labels=())
    (example,) = read(tmp_path, "Paris NNP I-NP B-GPE\n", any_tag)
    assert example.tags == ("B-GPE",)


def test_empty_files_and_long_words(tmp_path):
    assert read(tmp_path, "") == read(tmp_path, "\n\n \n") == []
    (example,) = read(tmp_path, "x" * 100_000 + " NN I-NP O\n")
    assert len(example.words[0]) == 100_000


def test_iob1_to_bio():
    tags = ["I-ORG", "I-ORG", "O", "I-PER", "B-PER", "I-PER", "I-LOC", "O", "B-MISC"]
    expected = ["B-ORG", "I-ORG", "O", "B-PER", "B-PER", "I-PER", "B-LOC", "O", "B-MISC"]
    assert list(iob1_to_bio(tags)) == expected
    assert list(iob1_to_bio(expected)) == expected  # tags that begin with "B-" stay
    assert iob1_to_bio([]) == ()
