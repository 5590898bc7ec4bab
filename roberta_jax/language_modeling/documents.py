"""The documents that a language model is scored on: text files, standard input or a token store."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.corpus import Corpus, FilesCorpus, Piece, open_corpus
from roberta_jax.data.text.encodings import check_encoding
from roberta_jax.data.text.sentences import check_splitting, split_sentences
from roberta_jax.data.text.source import TextSource
from roberta_jax.errors import UsageError

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

STANDARD_INPUT = "-"

# The messages about text name the config keys of pretraining; here they are options.
_OPTIONS = {
    "--config.data.files": "--text",
    "--config.data.text_field": "--text_field",
    "--config.data.sentences": "--sentences",
    "--config.data.language": "--language",
}


@dataclasses.dataclass(frozen=True)
class Document:
    """A document to score.

    Attributes:
      name: where it is: "FILE#N", the Nth document of a file, from 1.
      sentences: its sentences, stripped, without line breaks; at least one.
    """

    name: str
    sentences: tuple[str, ...]

    @property
    def num_words(self) -> int:
        """The number of words, which white space separates."""
        return sum(len(sentence.split()) for sentence in self.sentences)


class TextFiles:
    """The documents of text files, or of standard input; the forms are those of pretraining.

    Plain text has blank lines between documents. In a .jsonl, .json or .ndjson file each line is an
    object with the text of a document. Both may be compressed (.gz, .bz2, .xz, .zst).

    Args:
      text: comma-separated globs, or "-" for plain text on standard input.
      text_field: the field of the JSON objects that holds the text.
      sentences: "split", or "lines" if each line of a document is a sentence.
      language: the language code, for "split".
      stdin: the stream that "-" reads.

    Raises:
      UsageError: a glob matches no file, an option is wrong, or a file cannot be read or is not
        text (of many files, some are read).
    """

    def __init__(
        self,
        text: str,
        *,
        text_field: str = "text",
        sentences: str = "split",
        language: str = "en",
        stdin: BinaryIO | None = None,
    ):
        self._reads_stdin = text == STANDARD_INPUT
        self.description = "standard input" if self._reads_stdin else text
        self._source = TextSource("files", text, text_field, sentences, language)
        self._stdin = stdin
        with _options_named():
            check_splitting(sentences, language)
            self._corpus: Corpus = FilesCorpus([], text_field)
            if not self._reads_stdin:
                self._corpus = open_corpus(self._source)
                self._corpus.check()
            elif stdin is None:
                raise UsageError("--text=- reads standard input, which is closed: name a file")

    def read(self, max_documents: int | None = None) -> list[Document]:
        """The documents in the order of the text; those without a sentence are left out.

        Args:
          max_documents: read only so many; None reads all.

        Raises:
          UsageError: the text cannot be read, or holds no document.
        """
        counts: collections.Counter = collections.Counter()
        with _options_named():
            documents = list(itertools.islice(self._documents(counts), max_documents))
        if counts["invalid_utf8"]:
            logging.warning(
                "%d documents hold invalid UTF-8, each such byte replaced by U+FFFD",
                counts["invalid_utf8"],
            )
        if counts["empty"]:
            logging.warning("%d empty documents were left out", counts["empty"])
        if not documents:
            raise UsageError(
                f"{self.description} holds no text"
                + (f": all of its {counts['empty']} documents are empty" if counts["empty"] else "")
                + ". Name a file with text in --text=FILES"
            )
        return documents

    def _documents(self, counts: collections.Counter) -> Iterator[Document]:
        numbers: collections.Counter = collections.Counter()
        for piece in self._pieces():
            for text in self._corpus.documents(piece, counts):
                numbers[piece.source] += 1
                sentences = split_sentences(text, self._source.sentences, self._source.language)
                if sentences:
                    yield Document(f"{piece.source}#{numbers[piece.source]}", tuple(sentences))
                else:
                    counts["empty"] += 1

    def _pieces(self) -> Iterable[Piece]:
        if not self._reads_stdin or self._stdin is None:
            return self._corpus.pieces()
        try:
            data = self._stdin.read()
        except OSError as error:
            raise UsageError(f"cannot read standard input: {error.strerror or error}") from None
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UsageError("standard input is UTF-16: convert it to UTF-8 first")
        data = data.removeprefix(b"\xef\xbb\xbf")
        check_encoding(pathlib.Path("standard input"), data, warn=True)
        return [Piece("standard input", 1, data, len(data))] if data else []


def documents_of_store(
    store: TokenStore,
    tokenizer: "RobertaTokenizer",
    name: str,
    max_documents: int | None = None,
) -> list[Document]:
    """The documents of a token store as text.

    Args:
      store: the tokens.
      tokenizer: the one that the store was made with.
      name: of the store, in the names of the documents.
      max_documents: only the first so many; None takes all.
    """
    documents: list[Document] = []
    for shard in store.shards:
        ends, document_ends = shard.sentence_ends, shard.document_ends
        first = 0
        for end in document_ends:
            if len(documents) == max_documents:
                return documents
            # The last line of a document is a lone `</s>`; each sentence ends in one.
            last = int(ends.searchsorted(end))
            starts = [int(ends[line - 1]) if line else 0 for line in range(first, last)]
            stops = [int(stop) - 1 for stop in ends[first:last]]
            lines = [
                shard.tokens[i:j].tolist() for i, j in zip(starts, stops, strict=True) if j > i
            ]
            first = last + 1
            sentences = tokenizer.batch_decode(lines, clean_up_tokenization_spaces=False)
            documents.append(Document(f"{name}#{len(documents) + 1}", tuple(sentences)))
    return documents


def total_words(documents: Sequence[Document]) -> int:
    """The number of words of all documents."""
    return sum(document.num_words for document in documents)


@contextlib.contextmanager
def _options_named() -> Iterator[None]:
    """Names the options of the command in messages about config keys."""
    try:
        yield
    except UsageError as error:
        message = str(error)
        for key, option in _OPTIONS.items():
            message = message.replace(key, option)
        if message == str(error):
            raise
        raise type(error)(message) from error
