"""Special tokens by what they are for: `bos_token`, `mask_token_id`, `all_special_tokens`, …

Each has a token, or none, and an id. Setting one says which token serves; the pipeline, and so what
a call puts around a text, is not changed by that, as in HF. `add_special_tokens` sets tokens and
puts those into the vocabulary that it lacks.
"""

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer

ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
ADDITIONAL = "additional_special_tokens"


class TokenError(ValueError, AssertionError):
    """What was given as a special token is none. (HF raises the one here and the other there.)"""


class _Token:
    """The attribute `x_token`: a string, or None."""

    def __set_name__(self, owner, name):
        self.role = name

    def __get__(self, tokenizer, owner=None):
        if tokenizer is None:
            return self
        token = tokenizer._special_tokens_map[self.role]
        return None if token is None else str(token)

    def __set__(self, tokenizer, token):
        if not isinstance(token, str | AddedToken | None):
            raise ValueError(f"{self.role} must be a string or an AddedToken, not {token!r}")
        tokenizer._special_tokens_map[self.role] = token


class _TokenId:
    """The attribute `x_token_id`: an id, or None without a token."""

    def __set_name__(self, owner, name):
        self.role = name.removesuffix("_id")

    def __get__(self, tokenizer, owner=None):
        if tokenizer is None:
            return self
        token = getattr(tokenizer, self.role)
        return None if token is None else tokenizer.convert_tokens_to_ids(token)

    def __set__(self, tokenizer, token_id):
        token = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
        setattr(tokenizer, self.role, token)


class SpecialTokens:
    """The part of the tokenizer that knows its special tokens.

    Attributes:
      backend: the `tokenizers` pipeline, which holds the vocabulary.
    """

    SPECIAL_TOKENS_ATTRIBUTES = (*ROLES, ADDITIONAL)

    backend: Tokenizer
    _special_tokens_map: dict[str, str | AddedToken | None]
    _additional: list[str | AddedToken] | None
    _num_ids: int

    bos_token, bos_token_id = _Token(), _TokenId()
    eos_token, eos_token_id = _Token(), _TokenId()
    unk_token, unk_token_id = _Token(), _TokenId()
    sep_token, sep_token_id = _Token(), _TokenId()
    pad_token, pad_token_id = _Token(), _TokenId()
    cls_token, cls_token_id = _Token(), _TokenId()
    mask_token, mask_token_id = _Token(), _TokenId()
    pad_token_type_id = 0

    @property
    def additional_special_tokens(self) -> list[str] | None:
        """Special tokens that serve none of the seven purposes; None if set to None."""
        return None if self._additional is None else [str(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Sequence[str | AddedToken] | None):
        self._additional = None if tokens is None else _checked(tokens)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.additional_special_tokens or ())

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Sequence[int]):
        self._additional = self.convert_ids_to_tokens(ids)

    @property
    def special_tokens_map_extended(self) -> dict:
        """Purpose to token, without purposes that have none; `AddedToken`s where such were set."""
        found = {
            role: token for role, token in self._special_tokens_map.items() if token is not None
        }
        return found | ({ADDITIONAL: list(self._additional)} if self._additional else {})

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Purpose ("bos_token", …) to token, without purposes that have none."""
        return {
            role: [str(t) for t in token] if isinstance(token, list) else str(token)
            for role, token in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[str | AddedToken]:
        """`all_special_tokens`, as `AddedToken`s where such were set."""
        found = {}
        for token in [*self._special_tokens_map.values(), *(self._additional or ())]:
            if token is not None:
                found.setdefault(str(token), token)
        return list(found.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Each once, in HF's order: `<s>`, `</s>`, `<unk>`, `<pad>`, `<mask>`, further ones."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    # Adding to the vocabulary

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Sequence[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Gives tokens that the vocabulary lacks the next free ids; texts are split at them first.

        The model's embeddings then need `len(tokenizer)` rows.

        Args:
          new_tokens: one or more; an `AddedToken` says whether white space beside it belongs to it.
          special_tokens: they are special: `skip_special_tokens` leaves them out.

        Returns:
          How many were added.
        """
        if isinstance(new_tokens, str | AddedToken):
            new_tokens = [new_tokens]
        new_tokens = _checked(new_tokens or ())
        add = self.backend.add_special_tokens if special_tokens else self.backend.add_tokens
        with self._lock:
            added = add(new_tokens)
            self._num_ids = self.backend.get_vocab_size(with_added_tokens=True)
        return added

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, str | AddedToken | Sequence[str | AddedToken]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Sets special tokens, and adds those to the vocabulary that it lacks.

        Args:
          special_tokens_dict: purpose ("pad_token", …, "additional_special_tokens") to token(s).
          replace_additional_special_tokens: put the given ones in place of the earlier additional
            ones, which stay in the vocabulary; otherwise behind them.

        Returns:
          How many were added to the vocabulary.

        Raises:
          TokenError: no such purpose, or not a token.
        """
        tokens = []
        for role, value in special_tokens_dict.items():
            if role == ADDITIONAL:
                given = [_special(token) for token in _checked(value)]
                if replace_additional_special_tokens:
                    self._additional = list(given) or self._additional
                else:
                    known = self.additional_special_tokens or []
                    given = [token for token in given if str(token) not in known]
                    self._additional = [*(self._additional or ()), *given]
                tokens += given
            elif role in ROLES:
                [token] = _checked([value])
                setattr(self, role, _special(token))
                tokens.append(_special(token))
            else:
                raise TokenError(
                    f"{role!r} is no special token: there are {', '.join((*ROLES, ADDITIONAL))}"
                )
        return self.add_tokens(tokens, special_tokens=True)


def _checked(tokens) -> list[str | AddedToken]:
    if not isinstance(tokens, list | tuple):
        raise TokenError(f"a list of tokens is needed, not {tokens!r}")
    for token in tokens:
        if not isinstance(token, str | AddedToken):
            raise TokenError(f"a token must be a string or an AddedToken, not {token!r}")
    return list(tokens)


def _special(token: str | AddedToken) -> AddedToken:
    return token if isinstance(token, AddedToken) else AddedToken(token, special=True)
