"""Encodes whole corpora: the same ids as `RobertaTokenizer`, about ten times faster.

`BulkEncoder` encodes with tiktoken, which merges bytes much faster than `tokenizers`. But tiktoken
merges by another rule and has another regular expression engine, and each call costs much. It is
made fast and exact as follows.

**One call for many sentences.** Sentences are joined with line feeds, encoded as one text, and
separated again at the id of the line feed. There is no white space next to a line feed, so GPT-2's
regular expression always makes it a piece of its own, and no piece extends across it.

**The same merges.** `tokenizers` merges the pair (x, y) whose merge was learned first. tiktoken
merges the pair whose concatenation xy has the lowest rank. Both agree if tiktoken gets exactly the
tokens that `tokenizers` encodes as themselves, ranked by their merges. Proof: let x and y be
neighbours in some text, and xy such a token. Nothing has been merged across the outer ends of x and
y yet, so what was merged between these ends is what is merged when xy is encoded alone. Encoding xy
alone ends in the single token xy and has only one state with two parts. So these parts are x and y,
and their merge is that of xy. By the same argument, a token that is not encoded as itself never
occurs, so it can be left out. (If two merges make the same token, its rank may be wrong; such a
vocabulary is encoded with `tokenizers`.)

**A simpler regular expression.** GPT-2's has a lookahead for runs of white space, which tiktoken
cannot compile to an automaton. Sentences without two consecutive white-space characters, which are
nearly all, do not need the lookahead. Other sentences get the full expression. Sentences with a
character that the two libraries' versions of Unicode classify differently are encoded with
`tokenizers`.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np
import tiktoken
from tokenizers import Regex, Tokenizer, normalizers

from roberta_jax.tokenizer import pipeline, vocabulary
from roberta_jax.tokenizer.byte_alphabet import byte_alphabet
from roberta_jax.tokenizer.surrogates import replace_surrogates
from roberta_jax.tokenizer.tokenizer import RobertaTokenizer

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
_PATTERN = _WORDS + r"|\s+(?!\S)|\s+"  # GPT-2's
_PATTERN_FOR_SINGLE_SPACES = _WORDS + r"|\s"

# Python classifies a few more characters as white space than the two libraries, which is harmless.
_CONSECUTIVE_SPACES = re.compile(r"\s\s")

# A special token that never occurs, because no sentence ends in a space. (Without any special token
# tiktoken searches for the empty string at every character.)
_NEVER = " \n"

_PROBES = (
    "I'm you're HE'LL we've they'd it's don't 'tis O'Brien's ''s",
    "a  b   c\td \t e\u00a0f \u00a0 g\u3000h\r\x85i \u2028 j",
    "x\x1cy \x1d z\u200bw\ufeffv\u00adu 3.14159 12/31/1999 x²+y³=z⁴ ٠١٢٣",
    "café cafe\u0301 ﬁ İstanbul 日本語のテキスト 한국어 텍스트 مرحبا नमस्ते ᚠᛇᚻ 𝒳𝓎𝔷 👍🏽 🇫🇷 ☃︎",
    "<s></s> <mask> <pad><unk> madeupword0000 <|endoftext|>",
    "-" * 40 + "=" * 700 + "ab" * 300 + "aaa aaaa aaaaa",
)


class BulkEncoder:
    """Encodes documents of sentences to ids, without special tokens.

    The constructor takes about a second, because it checks that tiktoken gives the same ids. If
    not, `tokenizers` is used. An encoder can be pickled for other processes, which do not repeat
    the check.
    """

    def __init__(self, tokenizer: RobertaTokenizer):
        self._tokenizer = tokenizer
        self._model = _TiktokenModel.of(tokenizer.backend)
        if self._model is not None and not self._tiktoken_agrees():
            self._model = None

    @property
    def uses_tiktoken(self) -> bool:
        """Whether texts are encoded with tiktoken rather than with `tokenizers`."""
        return self._model is not None

    def encode_documents(
        self, documents: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encodes documents, each a sequence of sentences.

        White space at both ends of a sentence is removed, and an empty sentence has no ids. Special
        tokens that occur in a sentence are encoded as plain text. Lone surrogates become U+FFFD.

        Returns:
          The ids of all sentences, uint32 [T]; the number of ids of each sentence, int64 [S]; and
          the number of sentences of each document, int64 [D].

        Raises:
          ValueError: a sentence contains a line feed.
        """
        sentences = [sentence.strip() for document in documents for sentence in document]
        counts = np.fromiter(map(len, documents), np.int64, len(documents))
        return *self._encode(sentences), counts

    def __getstate__(self) -> dict:
        return {"_tokenizer": self._tokenizer, "_model": self._model}

    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes stripped lines to ids, uint32 [T], and each line's number of ids, int64 [S]."""
        if not lines:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        text = "\n".join(lines)
        if text.count("\n") != len(lines) - 1:
            raise ValueError("a sentence contains a line feed: split sentences at line feeds first")
        if self._model is None:
            return self._encode_with_tokenizers(lines)
        if not text.isascii():
            text = replace_surrogates(text)
            lines = text.split("\n")
        spaced = [match.start() for match in _CONSECUTIVE_SPACES.finditer(text)]
        ambiguous = self._ambiguous_positions(text)
        if not spaced and not len(ambiguous):
            return self._encode_joined(self._simple_encoding, lines)

        # Each line is encoded by one of three methods.
        lengths = np.fromiter(map(len, lines), np.int64, len(lines))
        ends = np.cumsum(lengths + 1)
        method_of_line = np.zeros(len(lines), np.int8)
        method_of_line[np.searchsorted(ends, spaced, side="right")] = 1
        method_of_line[np.searchsorted(ends, ambiguous, side="right")] = 2
        method_of_line[lengths == 0] = 0
        parts = []
        for method, encode in enumerate((
            functools.partial(self._encode_joined, self._simple_encoding),
            functools.partial(self._encode_joined, self._full_encoding),
            self._encode_with_tokenizers,
        )):  # fmt: skip
            indices = np.flatnonzero(method_of_line == method)
            if len(indices):
                parts.append((indices, *encode([lines[i] for i in indices])))
        return _in_order_of_lines(parts, len(lines))

    def _ambiguous_positions(self, text: str) -> np.ndarray:
        """Returns the positions of characters that the libraries classify differently."""
        if not len(self._model.ambiguous) or text.isascii():
            return np.zeros(0, np.int64)
        return np.flatnonzero(np.isin(_code_points(text), self._model.ambiguous, kind="table"))

    def _encode_joined(self, encoding: tiktoken.Encoding, lines: list[str]):
        if self._tokenizer.add_prefix_space:
            lines = [" " + line if line else line for line in lines]
        text = "\n".join(lines)
        if hasattr(encoding, "encode_to_numpy"):
            ranks = encoding.encode_to_numpy(text, disallowed_special=())
        else:  # tiktoken before 0.9
            ranks = np.array(encoding.encode_ordinary(text), np.uint32)
        ends = np.flatnonzero(ranks == ord("\n"))
        lengths = np.diff(ends, prepend=-1, append=len(ranks)) - 1
        return self._model.ids[np.delete(ranks, ends)], lengths

    def _encode_with_tokenizers(self, lines: list[str]):
        rows = self._tokenizer(
            lines, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum()))
        return tokens, lengths

    def _tiktoken_agrees(self) -> bool:
        """Whether both libraries encode each token's text and some difficult texts alike."""
        texts = [self._tokenizer.decode(i) for i in range(len(self._tokenizer))]
        lines = [" ".join(text.split("\n")).strip() for text in (*texts, *_PROBES)]
        with_tiktoken, expected = self._encode(lines), self._encode_with_tokenizers(lines)
        return all(map(np.array_equal, with_tiktoken, expected))

    @functools.cached_property
    def _simple_encoding(self) -> tiktoken.Encoding:
        return self._model.encoding(_PATTERN_FOR_SINGLE_SPACES)

    @functools.cached_property
    def _full_encoding(self) -> tiktoken.Encoding:
        return self._model.encoding(_PATTERN)


@dataclasses.dataclass(frozen=True)
class _TiktokenModel:
    """What tiktoken needs to encode like a `tokenizers` pipeline; can be pickled."""

    ranks: dict[bytes, int]  # the 256 bytes in order, then the merged tokens in order of merges
    ids: np.ndarray  # uint32 [len(ranks)], the id of each rank
    ambiguous: np.ndarray  # uint32, code points that the two libraries classify differently

    @classmethod
    def of(cls, backend: Tokenizer) -> "_TiktokenModel | None":
        """Returns None unless the pipeline is plain byte-level BPE with one merge per token."""
        if not pipeline.is_complete(backend):
            return None
        model = backend.model
        alphabet = byte_alphabet()
        vocab, merges = vocabulary.vocab_and_merges(backend)
        merged = [left + right for left, right in merges]
        is_plain = (
            backend.normalizer is None
            and all(token.special for token in backend.get_added_tokens_decoder().values())
            and not model.dropout
            and not model.continuing_subword_prefix
            and not model.end_of_word_suffix
            and not model.byte_fallback
            and not model.ignore_merges
        )
        if not is_plain or len(set(merged)) < len(merged) or not vocab.keys() >= set(alphabet):
            return None
        tokens = sorted(alphabet, key=alphabet.__getitem__)
        tokens += [t for t in merged if alphabet.keys() >= set(t) and len(model.tokenize(t)) == 1]
        return cls(
            ranks={bytes(alphabet[c] for c in token): r for r, token in enumerate(tokens)},
            ids=np.array([vocab[token] for token in tokens], np.uint32),
            ambiguous=_ambiguous_code_points(),
        )

    def encoding(self, pattern: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "roberta",
            pat_str=pattern,
            mergeable_ranks=self.ranks,
            special_tokens={_NEVER: len(self.ranks)},
        )


@functools.cache
def _ambiguous_code_points() -> np.ndarray:
    """Returns the code points that the two libraries classify differently, uint32.

    Only one of the libraries classifies them as letters, as numbers or as white space, because the
    libraries have different versions of Unicode. No version has any of these beyond plane 3.
    """
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    single_bytes = {bytes([i]): i for i in range(256)}
    differing = []
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        in_tokenizers = normalizers.Replace(Regex(f"[^{kind}]"), "").normalize_str(characters)
        finder = tiktoken.Encoding(
            "class", pat_str=kind, mergeable_ranks=single_bytes, special_tokens={}
        )  # it skips characters that the expression does not match
        in_tiktoken = bytes(finder.encode_ordinary(characters)).decode()
        differing.append(np.setxor1d(_code_points(in_tokenizers), _code_points(in_tiktoken)))
    return np.unique(np.concatenate(differing))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _in_order_of_lines(parts, num_lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Joins parts that were encoded separately.

    Args:
      parts: of each part, the indices of its lines, its ids, and its lines' numbers of ids.
      num_lines: the number of lines of all parts.

    Returns:
      The ids in the order of lines, and each line's number of ids.
    """
    lengths = np.zeros(num_lines, np.int64)
    for lines, _, part_lengths in parts:
        lengths[lines] = part_lengths
    line_of_token = np.repeat(np.arange(num_lines), lengths)
    tokens = np.zeros(len(line_of_token), np.uint32)
    for lines, part_tokens, _ in parts:
        is_in_part = np.zeros(num_lines, bool)
        is_in_part[lines] = True
        tokens[is_in_part[line_of_token]] = part_tokens
    return tokens, lengths
