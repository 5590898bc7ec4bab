"""SQuAD's questions for tests: official files as examples, and a small set in several scripts."""

import json
import lzma
import pathlib

from roberta_jax.tasks.examples import QuestionExample
from roberta_jax.tasks.task import Formatting, Task

# Characters that byte-level BPE spreads over several tokens, or that Python and tokenizers may
# count differently.
PASSAGES = (
    "The Normans (Norman: Nourmands) gave their name to Normandy, a region in France.",
    "  Two  spaces\tand\n\nnew lines\u00a0and\u3000wide ones  ",
    "ولد ابن سينا في قرية أفشنة بالقرب من بخارى عام ٩٨٠ م.",
    "萬民福音部是羅馬教廷的部門，為天主教會的最高宣教機構。",
    "Emoji 👍🏽, flags 🇫🇷🇩🇪 and a family 👨\u200d👩\u200d👧\u200d👦 in one line.",
    "Cafe\u0301 and café, Å and A\u030a, 한국어 and 한국어.",
    "नमस्ते दुनिया 𝒳𝓎𝔷 ﬁn İstanbul x²+y³",
)


def task(answerable: bool = True) -> Task:
    """SQuAD 1.1, or 2.0 if not answerable, without files."""
    return Task(
        name="squad",
        title="SQuAD",
        kind="question_answering",
        reader=lambda *_: iter(()),
        answerable=answerable,
        metrics=("f1", "exact_match"),
    )


def formatting(**changes) -> Formatting:
    """Windows of 48 tokens, which make several of a short passage."""
    return Formatting(
        **{"max_length": 48, "doc_stride": 12, "max_query_length": 16, "n_best": 20} | changes
    )


def question(context: str, *answers: tuple[str, int], name: str = "q") -> QuestionExample:
    """A question with the answers (text, start)."""
    return QuestionExample(
        name,
        "Who is it?",
        context,
        tuple(text for text, _ in answers),
        tuple(start for _, start in answers),
    )


def read_squad(path: pathlib.Path) -> list[QuestionExample]:
    """The questions of a compressed file in SQuAD's format."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        QuestionExample(
            qa["id"],
            qa["question"],
            paragraph["context"],
            tuple(answer["text"] for answer in qa["answers"]),
            tuple(answer["answer_start"] for answer in qa["answers"]),
        )
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
