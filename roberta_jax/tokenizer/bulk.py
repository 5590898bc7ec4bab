"""Encoding whole corpora: the ids of `RobertaTokenizer`, some ten times faster.

tiktoken merges bytes far faster than `tokenizers`, but by another rule, with another regular
expression engine, and one call at a time is dear. Three things make it fast and exact.

**One call for many sentences.** Sentences are joined with line ends, encoded as one text, and
parted again at the line end's id. Neither side of a line end is white space, so GPT-2's expression
always makes a piece of its own of it, and no piece reaches across.

**The same merges.** `tokenizers` merges the pair (x, y) whose rule was learned first; tiktoken the
pair whose concatenation xy has the lowest rank. Give tiktoken exactly the tokens that `tokenizers`
encodes as themselves, ranked by their rules, and both always agree. For let x, y be neighbours in
some text and xy such a token. Nothing has yet been merged across their outer ends, so what went on
between these was just what goes on when xy stands alone. That run has one state with two parts, and
ends as the one token xy: the two parts are x and y, and their rule is the one of xy. By the same
argument a token that is not encoded as itself never comes up at all, and can be left out. (Only if
two rules make the same token might its rank be in doubt; then `tokenizers` does the work.)

**A simpler expression.** GPT-2's looks ahead in runs of white space, which keeps tiktoken's engine
from using an automaton. Sentences without two white-space characters in a row, nearly all, need no
look-ahead. The others take the full expression; sentences with a character that the two libraries'
Unicode versions class differently go through `tokenizers`.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np
import tiktoken
from tokenizers import Regex, Tokenizer, normalizers

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer.roberta import RobertaTokenizer

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
_PATTERN = _WORDS + r"|\s+(?!\S)|\s+"  # GPT-2's
_PATTERN_FOR_SINGLE_SPACES = _WORDS + r"|\s"

# Python counts a few more characters as white space than the two libraries do: no harm.
_SPACED = re.compile(r"\s\s")

# A special token cannot be had in the joined text, since no sentence ends in a space. (Without any,
# tiktoken looks for the empty string at every character.)
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
    """Encodes documents of sentences to bare ids: no special token is added or recognised.

    Making one takes about a second, spent on making sure that tiktoken gives the same ids. Where it
    does not, `tokenizers` is used: `uses_tiktoken` says which. It pickles, for other processes,
    without the checks being done again.
    """

    def __init__(self, tokenizer: RobertaTokenizer):
        self._tokenizer = tokenizer
        self._merges = _Merges.of(tokenizer.backend)
        if self._merges is not None and not self._agrees():
            self._merges = None

    @property
    def uses_tiktoken(self) -> bool:
        return self._merges is not None

    def encode_documents(
        self, documents: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encodes documents, each a sequence of sentences.

        White space around a sentence is taken off, an empty sentence has no ids, special tokens
        that a text spells out are plain text, and lone surrogates become U+FFFD.

        Returns:
          The ids of all sentences, uint32 [T]; the number of ids of each sentence, int64 [S]; the
          number of sentences of each document, int64 [D].

        Raises:
          ValueError: a sentence contains a line end.
        """
        sentences = [sentence.strip() for document in documents for sentence in document]
        counts = np.fromiter(map(len, documents), np.int64, len(documents))
        return *self._encode(sentences), counts

    def __getstate__(self) -> dict:
        return {"_tokenizer": self._tokenizer, "_merges": self._merges}

    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids uint32 [T] and number of ids of each line int64 [S], of stripped lines."""
        if not lines:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        text = "\n".join(lines)
        if text.count("\n") != len(lines) - 1:
            raise ValueError("a sentence contains a line end: split sentences at line ends first")
        if self._merges is None:
            return self._encode_slowly(lines)
        if not text.isascii():
            text = backends.replace_surrogates(text)
            lines = text.split("\n")
        spaced = [match.start() for match in _SPACED.finditer(text)]
        foreign = self._foreign_positions(text)
        if not spaced and not len(foreign):
            return self._encode_joined(self._fast, lines)

        # Each line goes one of three ways.
        lengths = np.fromiter(map(len, lines), np.int64, len(lines))
        ends = np.cumsum(lengths + 1)
        ways = np.zeros(len(lines), np.int8)
        ways[np.searchsorted(ends, spaced, side="right")] = 1
        ways[np.searchsorted(ends, foreign, side="right")] = 2
        ways[lengths == 0] = 0
        parts = []
        for way, encode in enumerate((
            functools.partial(self._encode_joined, self._fast),
            functools.partial(self._encode_joined, self._full),
            self._encode_slowly,
        )):  # fmt: skip
            here = np.flatnonzero(ways == way)
            if len(here):
                parts.append((here, *encode([lines[i] for i in here])))
        return _interleave(parts, len(lines))

    def _foreign_positions(self, text: str) -> np.ndarray:
        if not len(self._merges.foreign) or text.isascii():
            return np.zeros(0, np.int64)
        return np.flatnonzero(np.isin(_code_points(text), self._merges.foreign, kind="table"))

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
        return self._merges.ids[np.delete(ranks, ends)], lengths

    def _encode_slowly(self, lines: list[str]):
        rows = self._tokenizer(
            lines, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum()))
        return tokens, lengths

    def _agrees(self) -> bool:
        """Whether both libraries encode every token's text, and some hard text, alike."""
        texts = [self._tokenizer.decode(i) for i in range(len(self._tokenizer))]
        lines = [" ".join(text.split("\n")).strip() for text in (*texts, *_PROBES)]
        fast, slow = self._encode(lines), self._encode_slowly(lines)
        return all(map(np.array_equal, fast, slow))

    @functools.cached_property
    def _fast(self) -> tiktoken.Encoding:
        return self._merges.encoding(_PATTERN_FOR_SINGLE_SPACES)

    @functools.cached_property
    def _full(self) -> tiktoken.Encoding:
        return self._merges.encoding(_PATTERN)


@dataclasses.dataclass(frozen=True)
class _Merges:
    """What tiktoken needs to know: the pickled part of the encoder."""

    ranks: dict[bytes, int]  # each byte's own value, then the merged tokens by rule
    ids: np.ndarray  # uint32 [len(ranks)], rank to id
    foreign: np.ndarray  # uint32, code points that the two libraries class differently

    @classmethod
    def of(cls, backend: Tokenizer) -> "_Merges | None":
        """None unless the pipeline is plain byte-level BPE, or if two rules make one token."""
        if not backends.is_robertas(backend):
            return None
        model = backend.model
        alphabet = backends.byte_alphabet()
        vocab, merges = backends.vocab_and_merges(backend)
        products = [left + right for left, right in merges]
        plain = (
            backend.normalizer is None
            and all(token.special for token in backend.get_added_tokens_decoder().values())
            and not model.dropout
            and not model.continuing_subword_prefix
            and not model.end_of_word_suffix
            and not model.byte_fallback
            and not model.ignore_merges
        )
        if not plain or len(set(products)) < len(products) or not vocab.keys() >= set(alphabet):
            return None
        tokens = sorted(alphabet, key=alphabet.__getitem__)
        tokens += [t for t in products if alphabet.keys() >= set(t) and len(model.tokenize(t)) == 1]
        return cls(
            ranks={bytes(alphabet[c] for c in token): r for r, token in enumerate(tokens)},
            ids=np.array([vocab[token] for token in tokens], np.uint32),
            foreign=_differently_classed(),
        )

    def encoding(self, pattern: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "roberta",
            pat_str=pattern,
            mergeable_ranks=self.ranks,
            special_tokens={_NEVER: len(self.ranks)},
        )


@functools.cache
def _differently_classed() -> np.ndarray:
    """Code points that only one of the two libraries takes for a letter, a number or white space.

    They follow different versions of Unicode, depending on their own versions. Past plane 3 no
    version of Unicode has letters, numbers or spaces.
    """
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    single_bytes = {bytes([i]): i for i in range(256)}
    differing = []
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        in_tokenizers = normalizers.Replace(Regex(f"[^{kind}]"), "").normalize_str(characters)
        finder = tiktoken.Encoding(
            "class", pat_str=kind, mergeable_ranks=single_bytes, special_tokens={}
        )  # leaves out what the expression does not match
        in_tiktoken = bytes(finder.encode_ordinary(characters)).decode()
        differing.append(np.setxor1d(_code_points(in_tokenizers), _code_points(in_tiktoken)))
    return np.unique(np.concatenate(differing))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _interleave(parts, num_lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts together what was encoded apart: parts of (line numbers, tokens, lengths)."""
    lengths = np.zeros(num_lines, np.int64)
    for lines, _, part_lengths in parts:
        lengths[lines] = part_lengths
    line_of_token = np.repeat(np.arange(num_lines), lengths)
    tokens = np.zeros(len(line_of_token), np.uint32)
    for lines, part_tokens, _ in parts:
        chosen = np.zeros(num_lines, bool)
        chosen[lines] = True
        tokens[chosen[line_of_token]] = part_tokens
    return tokens, lengths
