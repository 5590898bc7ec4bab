"""Tokens as Hugging Face's tokenizers present them: special tokens, added tokens, vocabulary, ids.

Each of the attributes `bos_token`, `mask_token`, ... is a token or None, and has an id. Assigning
to one changes which token it is. As in HF, this does not change the pipeline, so it does not
change which special tokens a call adds to a text. `add_special_tokens` assigns tokens, and adds
those to the vocabulary that it lacks.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tokenizers import AddedToken, Tokenizer

from roberta_jax.tokenizer import files
from roberta_jax.tokenizer.byte_alphabet import byte_alphabet
from roberta_jax.tokenizer.special_tokens import ADDITIONAL, ATTRIBUTES


class TokenError(ValueError, AssertionError):
    """An argument is not a token.

    HF's methods raise ValueError in some of these cases and AssertionError in others.
    """


class _SpecialToken:
    """The attribute `x_token`: a string or None."""

    def __set_name__(self, owner, name):
        self.attribute = name

    def __get__(self, tokenizer, owner=None):
        if tokenizer is None:
            return self
        token = tokenizer._special_tokens_map[self.attribute]
        return None if token is None else str(token)

    def __set__(self, tokenizer, token):
        if not isinstance(token, str | AddedToken | None):
            raise ValueError(f"{self.attribute} must be a string or an AddedToken, not {token!r}")
        tokenizer._special_tokens_map[self.attribute] = token


class _SpecialTokenId:
    """The attribute `x_token_id`: an id, or None if there is no token."""

    def __set_name__(self, owner, name):
        self.attribute = name.removesuffix("_id")

    def __get__(self, tokenizer, owner=None):
        if tokenizer is None:
            return self
        token = getattr(tokenizer, self.attribute)
        return None if token is None else tokenizer.convert_tokens_to_ids(token)

    def __set__(self, tokenizer, token_id):
        token = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
        setattr(tokenizer, self.attribute, token)


class TokensMixin:
    """Special tokens, added tokens, and the conversion of tokens to ids and back.

    It relies on these attributes of the tokenizer:

    Attributes:
      backend: the `tokenizers` pipeline, which has the vocabulary.
      is_byte_level: whether the pipeline is RoBERTa's own.
      _special_tokens_map: the special token, or None, of each attribute such as "bos_token".
      _additional: the additional special tokens, or None.
      _num_ids: the size of the vocabulary, updated when tokens are added.
      _lock: held while the pipeline changes.
    """

    backend: Tokenizer
    is_byte_level: bool
    _special_tokens_map: dict[str, str | AddedToken | None]
    _additional: list[str | AddedToken] | None
    _num_ids: int
    _lock: threading.Lock

    SPECIAL_TOKENS_ATTRIBUTES = (*ATTRIBUTES, ADDITIONAL)
    is_fast = True
    vocab_files_names = {  # noqa: RUF012 - HF's name and type
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }

    # Special tokens

    bos_token, bos_token_id = _SpecialToken(), _SpecialTokenId()
    eos_token, eos_token_id = _SpecialToken(), _SpecialTokenId()
    unk_token, unk_token_id = _SpecialToken(), _SpecialTokenId()
    sep_token, sep_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token, pad_token_id = _SpecialToken(), _SpecialTokenId()
    cls_token, cls_token_id = _SpecialToken(), _SpecialTokenId()
    mask_token, mask_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token_type_id = 0

    @property
    def additional_special_tokens(self) -> list[str] | None:
        """Special tokens beside the seven attributes; None if set to None."""
        return None if self._additional is None else [str(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Sequence[str | AddedToken] | None):
        self._additional = None if tokens is None else _checked(tokens)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Ids of `additional_special_tokens`."""
        return self.convert_tokens_to_ids(self.additional_special_tokens or ())

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Sequence[int]):
        self._additional = self.convert_ids_to_tokens(ids)

    @property
    def special_tokens_map_extended(self) -> dict:
        """`special_tokens_map`, with `AddedToken`s where such were given."""
        special_tokens = {
            attribute: token
            for attribute, token in self._special_tokens_map.items()
            if token is not None
        }
        return special_tokens | ({ADDITIONAL: list(self._additional)} if self._additional else {})

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Attribute ("bos_token", ...) to token, without attributes that are None."""
        return {
            attribute: [str(t) for t in token] if isinstance(token, list) else str(token)
            for attribute, token in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[str | AddedToken]:
        """`all_special_tokens`, with `AddedToken`s where such were given."""
        special_tokens = {}
        for token in [*self._special_tokens_map.values(), *(self._additional or ())]:
            if token is not None:
                special_tokens.setdefault(str(token), token)
        return list(special_tokens.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Each special token once, in HF's order: `<s>`, `</s>`, `<unk>`, `<pad>`, `<mask>`, ..."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    # Added tokens

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Sequence[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Adds tokens to the vocabulary; texts are split at them before BPE.

        Tokens that the vocabulary lacks get the next free ids. The model's embeddings then need
        `len(tokenizer)` rows.

        Args:
          new_tokens: one or more tokens; an `AddedToken` says whether it includes the white space
            beside it.
          special_tokens: add them as special tokens, which `skip_special_tokens` leaves out.

        Returns:
          The number of tokens that were added.

        Raises:
          TokenError: a token is neither a string nor an `AddedToken`.
        """
        if isinstance(new_tokens, str | AddedToken):
            new_tokens = [new_tokens]
        new_tokens = _checked(new_tokens or ())
        add = self.backend.add_special_tokens if special_tokens else self.backend.add_tokens
        with self._lock:
            num_added = add(new_tokens)
            self._num_ids = self.backend.get_vocab_size(with_added_tokens=True)
        return num_added

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, str | AddedToken | Sequence[str | AddedToken]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Assigns special tokens, and adds those to the vocabulary that it lacks.

        Args:
          special_tokens_dict: attribute ("pad_token", ..., "additional_special_tokens") to token,
            or to a list of tokens for the last one.
          replace_additional_special_tokens: replace the earlier additional special tokens, which
            stay in the vocabulary; False appends to them.

        Returns:
          The number of tokens that were added to the vocabulary.

        Raises:
          TokenError: an unknown attribute, or a value that is not a token.
        """
        new_tokens = []
        for attribute, value in special_tokens_dict.items():
            if attribute == ADDITIONAL:
                tokens = [_as_special(token) for token in _checked(value)]
                if replace_additional_special_tokens:
                    self._additional = list(tokens) or self._additional
                else:
                    present = self.additional_special_tokens or []
                    tokens = [token for token in tokens if str(token) not in present]
                    self._additional = [*(self._additional or ()), *tokens]
                new_tokens += tokens
            elif attribute in ATTRIBUTES:
                [token] = _checked([value])
                setattr(self, attribute, _as_special(token))
                new_tokens.append(_as_special(token))
            else:
                raise TokenError(
                    f"{attribute!r} is not a special token; use one of "
                    f"{', '.join(self.SPECIAL_TOKENS_ATTRIBUTES)}"
                )
        return self.add_tokens(new_tokens, special_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to token, for the special and the added tokens, at which texts are split."""
        return self.backend.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """`get_added_vocab()`."""
        return self.get_added_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Returns token to id, in the order of ids, for the special and the added tokens."""
        return {token.content: i for i, token in sorted(self.added_tokens_decoder.items())}

    # The whole vocabulary

    @property
    def vocab_size(self) -> int:
        """The number of ids of the pipeline's model, without tokens that were added later."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Returns token to id, including added tokens; tokens are in the byte alphabet ("Ġthe")."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab()`."""
        return self.get_vocab()

    @property
    def byte_encoder(self) -> dict[int, str]:
        """Byte to its character in the byte alphabet; 32 is "Ġ"."""
        return {byte: character for character, byte in byte_alphabet().items()}

    @property
    def byte_decoder(self) -> dict[str, int]:
        """Character of the byte alphabet to its byte; "Ġ" is 32."""
        return byte_alphabet()

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Returns the ids of tokens, or of one token; `unk_token_id` for unknown ones."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        i = self.backend.token_to_id(tokens)
        if i is None and self.unk_token is not None:
            return self.backend.token_to_id(self.unk_token)
        return i

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Returns the tokens of ids, or of one id."""
        if isinstance(ids, int | np.integer):
            return self.backend.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.backend.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens: ["Hello", "Ġworld"] is "Hello world"."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    # Its files

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether `save_pretrained` writes `vocab.json` and `merges.txt`, too."""
        return self.is_byte_level

    def save_vocabulary(
        self, save_directory, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes only `vocab.json` and `merges.txt`; returns their paths.

        Raises:
          ValueError: the tokenizer of a related model, whose vocabulary has another format.
        """
        check_has_vocabulary_files(self)
        return tuple(files.write_vocabulary(save_directory, self.backend, filename_prefix))


def check_has_vocabulary_files(tokenizer: TokensMixin) -> None:
    """Raises ValueError if a tokenizer cannot be saved as `vocab.json` and `merges.txt`."""
    if not tokenizer.can_save_slow_tokenizer:
        raise ValueError(
            "vocab.json and merges.txt hold byte-level BPE, and this tokenizer is of another kind: "
            "save_pretrained(folder) saves it as tokenizer.json"
        )


def _checked(tokens) -> list[str | AddedToken]:
    if not isinstance(tokens, list | tuple):
        raise TokenError(f"tokens must be a list, not {tokens!r}")
    for token in tokens:
        if not isinstance(token, str | AddedToken):
            raise TokenError(f"a token must be a string or an AddedToken, not {token!r}")
    return list(tokens)


def _as_special(token: str | AddedToken) -> AddedToken:
    return token if isinstance(token, AddedToken) else AddedToken(token, special=True)
