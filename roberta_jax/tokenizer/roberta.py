"""RobertaTokenizer: text to ids and back, called as Hugging Face's RobertaTokenizerFast is.

The class keeps one `tokenizers` pipeline. A call turns its arguments into a `Plan` (what to
truncate and pad to), sets the pipeline up for it, and reads ids and masks off the encodings.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer import files, training
from roberta_jax.tokenizer.backend import BOS, EOS, MASK, PAD, SPECIAL_TOKENS, UNK
from roberta_jax.tokenizer.calls import NOTHING, Plan, Text, as_array, as_batch, checked

DEFAULT_MAX_LENGTH = 512
# transformers writes int(1e30) for "not known"; its own threshold for that is 1e20.
_UNKNOWN_MAX_LENGTH = 10**20

# What decode's clean_up_tokenization_spaces undoes, in HF's order.
_CLEAN_UPS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class RobertaTokenizer:
    """Byte-level BPE with RoBERTa's special tokens.

    Made by `from_pretrained` or `train`. Pickles, and may be used from several threads.

    Attributes:
      model_max_length: what truncation and padding to "max_length" mean without a `max_length`.
      clean_up_tokenization_spaces: the default of `decode`.
    """

    bos_token = cls_token = BOS
    eos_token = sep_token = EOS
    pad_token, unk_token, mask_token = PAD, UNK, MASK

    def __init__(
        self,
        backend: Tokenizer,
        *,
        model_max_length: int = DEFAULT_MAX_LENGTH,
        clean_up_tokenization_spaces: bool = False,
    ):
        """Wraps a pipeline made by `roberta_jax.tokenizer.backend`, which must not change later."""
        self.backend = backend
        self.model_max_length = model_max_length
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._num_ids = backend.get_vocab_size(with_added_tokens=True)  # the library counts anew
        self._lock = threading.Lock()

    # Making and keeping

    @classmethod
    def from_pretrained(
        cls, path, *, add_prefix_space: bool | None = None, model_max_length: int | None = None
    ) -> "RobertaTokenizer":
        """Loads a folder.

        Args:
          path: a folder with `tokenizer.json`, or `vocab.json` + `merges.txt`, or fairseq's
            `encoder.json` + `vocab.bpe` + `dict.txt`; looked for in this order.
          add_prefix_space: whether a text's first word is encoded as if a space came before it;
            None follows the files, and is False where they say nothing.
          model_max_length: None follows `tokenizer_config.json`, and is 512 where it says nothing.

        Raises:
          FileNotFoundError: no such folder, or no complete set of files in it.
          ValueError: a file is corrupt, or holds another kind of tokenizer.
        """
        backend, options = files.load(path, add_prefix_space=add_prefix_space)
        if model_max_length is None:
            model_max_length = options.get("model_max_length") or DEFAULT_MAX_LENGTH
            if model_max_length > _UNKNOWN_MAX_LENGTH:
                model_max_length = DEFAULT_MAX_LENGTH
        return cls(
            backend,
            model_max_length=int(model_max_length),
            clean_up_tokenization_spaces=bool(options.get("clean_up_tokenization_spaces", False)),
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 50265,
        min_frequency: int = 2,
        progress: bool = False,
    ) -> "RobertaTokenizer":
        """Learns a vocabulary of exactly `vocab_size` ids from at most the first GB of `texts`.

        Special tokens get RoBERTa's ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last.
        The same texts give the same tokenizer.

        Raises:
          ValueError: fewer than 261 ids wanted, or the text cannot fill that many.
        """
        return cls(
            training.train(
                texts, vocab_size=vocab_size, min_frequency=min_frequency, progress=progress
            )
        )

    def save_pretrained(self, folder) -> None:
        """Writes `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json` and
        `special_tokens_map.json`, which transformers loads too. Each file is replaced whole."""
        options = {
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
        }
        files.save(folder, self.backend, options)

    def __reduce__(self):
        state = (self.backend.to_str(), self.model_max_length, self.clean_up_tokenization_spaces)
        return _unpickle, (type(self), *state)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} ids, model_max_length={self.model_max_length}, "
            f"add_prefix_space={self.add_prefix_space})"
        )

    # The vocabulary

    def __len__(self) -> int:
        """The number of ids, which is the model's `vocab_size`."""
        return self._num_ids

    @property
    def vocab_size(self) -> int:
        """The number of ids in the BPE model itself, without tokens added to it later."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included. Tokens are written in the byte alphabet ("Ġthe")."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def add_prefix_space(self) -> bool:
        return self.backend.pre_tokenizer.add_prefix_space

    @property
    def bos_token_id(self) -> int:
        return self.backend.token_to_id(BOS)

    @property
    def pad_token_id(self) -> int:
        return self.backend.token_to_id(PAD)

    @property
    def eos_token_id(self) -> int:
        return self.backend.token_to_id(EOS)

    @property
    def unk_token_id(self) -> int:
        return self.backend.token_to_id(UNK)

    @property
    def mask_token_id(self) -> int:
        return self.backend.token_to_id(MASK)

    cls_token_id = bos_token_id
    sep_token_id = eos_token_id

    @property
    def all_special_tokens(self) -> list[str]:
        return list(SPECIAL_TOKENS)

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`: `<s>`, `</s>`, `<unk>`, `<pad>`, `<mask>`, in HF's order."""
        return [self.backend.token_to_id(token) for token in SPECIAL_TOKENS]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Ids of tokens as `tokenize` writes them; `unk_token_id` for unknown ones."""
        if isinstance(tokens, str):
            i = self.backend.token_to_id(tokens)
            return self.unk_token_id if i is None else i
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Tokens of ids, or the one token of one id."""
        if isinstance(ids, int | np.integer):
            return self.backend.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.backend.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def fingerprint(self) -> str:
        """A hash, 64 hex digits, of everything that decides which ids a text gets.

        The same for every set of files that holds the same tokenizer, and for every version of the
        `tokenizers` library; it does not depend on `model_max_length`.
        """
        pipeline = json.loads(self.backend.to_str())
        vocab, merges = backends.vocab_and_merges(self.backend)
        # Versions of the library differ in which settings they write at their default.
        settings = {k: v for k, v in pipeline["model"].items() if v}
        deciding = {
            "model": settings | {"vocab": vocab, "merges": merges},
            "added_tokens": pipeline["added_tokens"],
            "normalizer": pipeline["normalizer"],
            "add_prefix_space": self.add_prefix_space,
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def word_start_table(self) -> np.ndarray:
        """Which ids begin a word, for masking whole words after fairseq's rule: bool [len(self)].

        A token does if its text begins with a space; special tokens and fairseq's "madeupword"
        fillers count as words of their own. (A sentence's first word has no space; its position
        says that it begins one.)
        """
        table = np.zeros(len(self), bool)
        for token, i in self.get_vocab().items():
            table[i] = token.startswith(("Ġ", backends.FILLER_PREFIX))
        table[list(self.backend.get_added_tokens_decoder())] = True
        return table

    # Text to ids

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        split_special_tokens: bool = False,
    ) -> list[str]:
        """The tokens of a text in the byte alphabet: "Hello world" is ["Hello", "Ġworld"]."""
        encoding = self._encodings(
            [text if pair is None else (text, pair)], add_special_tokens, split_special_tokens
        )[0]
        return self.convert_ids_to_tokens(encoding.ids)

    def encode(self, text: str, text_pair: str | None = None, **options) -> list[int]:
        """The ids of one text or pair; takes the options of `__call__` but `return_tensors`."""
        return self(text, text_pair, **options)["input_ids"]

    def __call__(
        self,
        text: str | Sequence[Text],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        split_special_tokens: bool = False,
        return_tensors: str | None = None,
    ) -> dict:
        """Encodes a text, a pair of texts, or a batch of either.

        Args:
          text: a string; or a list of strings or of pairs, for a batch.
          text_pair: the second text, or a list of them as long as `text`.
          add_special_tokens: `<s> A </s>`, or `<s> A </s></s> B </s>`.
          padding: True or "longest" pads on the right to the batch's longest, "max_length" to
            `max_length`, False not at all.
          truncation: True or "longest_first" cuts ids off the longer of a pair until both fit,
            "only_first" and "only_second" off that one, False not at all. None is False, unless
            `max_length` is given without padding (as in HF).
          max_length: in ids, special ones included; None is `model_max_length`.
          pad_to_multiple_of: pads on to a multiple of this.
          split_special_tokens: encode "<mask>" and the like, where a text spells them out, as plain
            text.
          return_tensors: "np" for int64 arrays [batch, length], also for one text; None for lists.

        Lone surrogates, which no UTF-8 text holds, are encoded as U+FFFD.

        Returns:
          "input_ids" and "attention_mask" (1 on tokens, 0 on padding), lists of ints or arrays.

        Raises:
          TypeError: a text is not a string.
          ValueError: an unknown option, rows of unequal length for "np", or nothing left to cut.
        """
        single, inputs = as_batch(text, text_pair)
        plan = Plan.of(padding, truncation, max_length, pad_to_multiple_of, self.model_max_length)
        if plan.truncate:
            specials = self.backend.num_special_tokens_to_add(any(type(t) is tuple for t in inputs))
            if plan.max_length < specials * add_special_tokens:  # the library would cut nothing
                raise ValueError(
                    f"max_length={plan.max_length} has no room for the {specials} special tokens"
                )
        if return_tensors not in (None, "np"):
            raise ValueError(f"return_tensors must be None or 'np', not {return_tensors!r}")
        encodings = self._encodings(inputs, add_special_tokens, split_special_tokens, plan)
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
        }
        if return_tensors == "np":
            return {name: as_array(rows) for name, rows in columns.items()}
        return {name: rows[0] for name, rows in columns.items()} if single else columns

    # Ids to text

    def decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
          token_ids: a list or array [length], or one id.
          skip_special_tokens: leave out `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>`.
          clean_up_tokenization_spaces: take out spaces before punctuation and English
            contractions; None follows the attribute, which is False unless the files say otherwise.

        Raises:
          ValueError: an id that the tokenizer does not have (HF leaves those out silently).
        """
        ids = np.atleast_1d(np.asarray(token_ids, dtype=np.int64)).tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(self):
            raise ValueError(
                f"ids must be in 0 to {len(self) - 1} to be decoded, but there is "
                f"{min(ids) if min(ids) < 0 else max(ids)}"
            )
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        if clean_up_tokenization_spaces:
            for spaced, tight in _CLEAN_UPS:
                text = text.replace(spaced, tight)
        return text

    def batch_decode(self, sequences: Iterable, **options) -> list[str]:
        """`decode` of each row; takes its options."""
        return [self.decode(ids, **options) for ids in sequences]

    # How a call is carried out

    def _encodings(
        self,
        inputs: Sequence[Text],
        add_special_tokens: bool,
        split_special_tokens: bool,
        plan: Plan = NOTHING,
    ) -> list[Encoding]:
        with self._configured(plan, split_special_tokens):
            try:
                return self._run(inputs, add_special_tokens)
            except TypeError:  # a lone surrogate, or something that is not text
                return self._run([checked(item) for item in inputs], add_special_tokens)

    def _run(self, inputs: Sequence[Text], add_special_tokens: bool) -> list[Encoding]:
        try:
            return self.backend.encode_batch_fast(inputs, add_special_tokens=add_special_tokens)
        except TypeError:
            raise
        except Exception as error:  # the library raises no narrower class
            if "Truncation error" not in str(error):
                raise
            raise ValueError(
                "cannot truncate to max_length: the text that the chosen truncation may cut is too "
                "short for that. Raise max_length, or use truncation='longest_first'"
            ) from error

    @contextlib.contextmanager
    def _configured(self, plan: Plan, split_special_tokens: bool):
        """Sets the pipeline up for one call; the lock keeps other threads' calls out."""
        with self._lock:
            try:
                self.backend.encode_special_tokens = split_special_tokens
                if plan.truncate:
                    self.backend.enable_truncation(plan.max_length, strategy=plan.truncate)
                if plan.pad:
                    self.backend.enable_padding(
                        pad_id=self.pad_token_id,
                        pad_token=PAD,
                        length=plan.max_length if plan.pad == "max_length" else None,
                        pad_to_multiple_of=plan.pad_to_multiple_of,
                    )
                yield
            finally:
                self.backend.encode_special_tokens = False
                self.backend.no_truncation()
                self.backend.no_padding()


def _unpickle(cls, serialized: str, model_max_length: int, clean_up: bool) -> RobertaTokenizer:
    return cls(
        Tokenizer.from_str(serialized),
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=clean_up,
    )
