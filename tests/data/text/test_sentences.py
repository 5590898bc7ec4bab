"""Tests of sentence splitting: line breaks, robustness and linear time."""

import random
import time

import pytest
import sentencex

from roberta_jax.data.text import sentences
from roberta_jax.data.text.sentences import check_splitting, split_sentences
from roberta_jax.errors import UsageError


def split(text, mode="split", language="en"):
    return split_sentences(text, mode, language)


def test_wrapped_prose_is_joined():
    text = (
        "Return True if the file exists and is a regular file, which says\n"
        "that links are followed. Raise an error otherwise; nothing else is\n"
        "ever returned.\n"
    )
    assert split(text) == [
        "Return True if the file exists and is a regular file, which says that links are followed.",
        "Raise an error otherwise; nothing else is ever returned.",
    ]


def test_indented_wraps_are_joined_with_one_space():
    text = (
        "  * the first point, which goes on for so long that it needs a\n"
        "    second line\n"
        "  * the other\n"
    )
    assert split(text) == [
        "* the first point, which goes on for so long that it needs a second line",
        "* the other",
    ]


def test_short_lines_are_not_joined():
    code = ">>> x = 1\n>>> print(x)\n1\n"
    assert split(code) == [">>> x = 1", ">>> print(x)", "1"]


def test_a_paragraph_on_each_line():
    long = "The town was founded by people of whom little is known. " * 4
    assert split(f"History\n{long}\nGeography\n{long}\n") == [
        "History",
        *["The town was founded by people of whom little is known."] * 4,
        "Geography",
        *["The town was founded by people of whom little is known."] * 4,
    ]


def test_blank_lines_end_paragraphs():
    assert split("one\n\ntwo\n \t\n\r\nthree") == ["one", "two", "three"]


def test_crlf():
    assert split("One. Two.\r\n\r\nThree.\r\n") == ["One.", "Two.", "Three."]


def test_abbreviations():
    assert split("Dr. Smith went to the U.S. in May. He stayed.") == [
        "Dr. Smith went to the U.S. in May.",
        "He stayed.",
    ]


def test_lines():
    text = "One. Two.\n\n  three \r\n\t\nfour\rfive"
    assert split(text, "lines") == ["One. Two.", "three", "four", "five"]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t\r\n \u00a0"])
@pytest.mark.parametrize("mode", ["split", "lines"])
def test_nothing(text, mode):
    assert split(text, mode) == []


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u202f", "\u3000"])
def test_wide_spaces_do_not_crash_the_splitter(space):
    assert split(f"Henri I{space}. B. Il vint. Il vit.", language="fr")[-1] == "Il vit."


@pytest.mark.parametrize("language", ["en", "fr", "zh", "ar", "ko", "xx"])
def test_only_white_space_is_removed(language):
    rng = random.Random(0)
    alphabet = [
        *" .!?\"'()[]«»“”。！،؟\u00a0\u2009\u3000\u200b\u0085\u2028\x1c\t\n\raAéßİ中ア٣½😀\u0301",
        *("Dr.", " e.g. ", "J. ", "U.S.", "http://a.b/c?d", "word ", "Wort, "),
    ]
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 60)))
        split_text = split(text, language=language)
        assert "".join("".join(split_text).split()) == "".join(text.split())
        assert all(s and s == s.strip() and "\n" not in s and "\r" not in s for s in split_text)


def test_windows_do_not_change_the_sentences(monkeypatch):
    text = "Mr. Brown and Dr. Smith met e.g. in Rome. Did they? They did! " * 30
    whole = split(text)
    monkeypatch.setattr(sentences, "_WINDOW", 200)
    assert split(text) == whole


@pytest.mark.parametrize(
    "unit", ["Dr. Smith said so, and went. ", "word ", "(a. b! ", "x", "？！", "a\n", '"Yes. ']
)
def test_time_is_linear(unit):
    """4 MB in one paragraph, for which quadratic time, as sentencex takes, is over a minute."""
    start = time.monotonic()
    split(unit * (4_000_000 // len(unit)))
    assert time.monotonic() - start < 20


def test_a_panic_of_sentencex_affects_one_paragraph(monkeypatch):
    class PanicException(BaseException):
        pass

    def segment(language, text):
        if "bad" in text:
            raise PanicException
        return [text]

    monkeypatch.setattr(sentencex, "segment", segment)
    assert split("good\n\nbad. bad.\n\ngood") == ["good", "bad. bad.", "good"]


def test_other_errors_of_sentencex_are_raised(monkeypatch):
    def segment(language, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(sentencex, "segment", segment)
    with pytest.raises(KeyboardInterrupt):
        split("text")


@pytest.mark.parametrize("language", ["english", "", "EN", "e", "en us", "12"])
def test_malformed_language(language):
    with pytest.raises(UsageError, match=r"config\.data\.language"):
        check_splitting("split", language)


@pytest.mark.parametrize("language", ["en", "de", "pt-br", "zh_Hant", "yue"])
def test_wellformed_language(language):
    check_splitting("split", language)


def test_unknown_language_uses_the_default_rules():
    assert split("Eins. Zwei!", language="xyz") == ["Eins.", "Zwei!"]


def test_unknown_mode():
    with pytest.raises(UsageError, match=r"config\.data\.sentences is 'nltk'"):
        check_splitting("nltk", "en")
