"""Tokens and ids: the tokenizer's vocabulary, and which words its tokens begin."""

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import AddedToken

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer import siblings


class Vocabulary:
    """The part of the tokenizer that maps tokens to ids and back."""

    def __len__(self) -> int:
        """The number of ids, which is the model's `vocab_size`."""
        return self._num_ids

    @property
    def vocab_size(self) -> int:
        """The number of ids in the model itself, without tokens added to it later."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included. Tokens are written in the byte alphabet ("Ġthe")."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to token, of the tokens that texts are split at: the special and the added ones."""
        return self.backend.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """`get_added_vocab()`."""
        return self.get_added_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Token to id, by id, of the tokens that texts are split at: special and added ones."""
        return {token.content: i for i, token in sorted(self.added_tokens_decoder.items())}

    @property
    def byte_encoder(self) -> dict[int, str]:
        """Byte to the character that tokens are written with; 32 is "Ġ"."""
        return {byte: character for character, byte in backends.byte_alphabet().items()}

    @property
    def byte_decoder(self) -> dict[str, int]:
        """The other way round."""
        return backends.byte_alphabet()

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Ids of tokens as `tokenize` writes them; `unk_token_id` for unknown ones."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        i = self.backend.token_to_id(tokens)
        if i is None and self.unk_token is not None:
            return self.backend.token_to_id(self.unk_token)
        return i

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Tokens of ids, or the one token of one id."""
        if isinstance(ids, int | np.integer):
            return self.backend.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.backend.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens spell: ["Hello", "Ġworld"] is "Hello world"."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def fingerprint(self) -> str:
        """A hash, 64 hex digits, of everything that decides which ids a text gets.

        The same for every set of files that holds the same tokenizer, and for every version of the
        `tokenizers` library; it does not depend on `model_max_length`. (Of RoBERTa's relatives the
        whole `tokenizer.json` is hashed, and another version may write that otherwise.)
        """
        pipeline = json.loads(self.backend.to_str())
        if not self.is_byte_level:
            deciding = {k: v for k, v in pipeline.items() if k not in ("padding", "truncation")}
        else:
            vocab, merges = backends.vocab_and_merges(self.backend)
            # Versions of the library differ in which settings they write at their default.
            settings = {k: v for k, v in pipeline["model"].items() if v}
            deciding = {
                "model": settings | {"vocab": vocab, "merges": merges},
                "added_tokens": pipeline["added_tokens"],
                "normalizer": pipeline["normalizer"],
                "add_prefix_space": self.add_prefix_space,
            }
            if self.single_separator_pairs:
                deciding["single_separator_pairs"] = True
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def word_start_table(self) -> np.ndarray:
        """Which ids begin a word, for masking whole words after fairseq's rule: bool [len(self)].

        A token does if its text begins with a space; special tokens and fairseq's "madeupword"
        fillers count as words of their own. (A sentence's first word has no space; its position
        says that it begins one.) Unigram models write the space "▁", and BERT's word pieces begin
        a word unless they begin with "##".

        Raises:
          ValueError: the tokens of a relative that is none of these.
        """
        vocab = self.get_vocab()
        if self.is_byte_level:
            prefix, begins = "Ġ", True
        else:
            prefix, begins = siblings.word_start_prefixes(self.backend)
        table = np.zeros(max(len(self), max(vocab.values(), default=-1) + 1), bool)
        for token, i in vocab.items():
            filler = token.startswith(backends.FILLER_PREFIX)
            table[i] = filler or token.startswith(prefix) == begins
        table[list(self.backend.get_added_tokens_decoder())] = True
        return table
