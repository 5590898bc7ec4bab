"""Calling a tokenizer as Hugging Face's are called: `tokenizer(texts)`, `encode`, `decode`."""

import logging
import threading
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from roberta_jax.tokenizer import encoding
from roberta_jax.tokenizer.encoding import TruncationAndPadding
from roberta_jax.tokenizer.hf_api.batch_encoding import BatchEncoding, array_converter
from roberta_jax.tokenizer.hf_api.call_arguments import Text, as_batch, truncation_and_padding

_log = logging.getLogger("roberta_jax.tokenizer")


class CallMixin:
    """Encodes texts to ids and decodes ids to texts, with HF's methods and arguments.

    It relies on `len(self)`, the number of ids, and on these attributes of the tokenizer:

    Attributes:
      backend: the `tokenizers` pipeline.
      is_byte_level: whether the pipeline is RoBERTa's own.
      model_max_length, padding_side, truncation_side, split_special_tokens, model_input_names,
      clean_up_tokenization_spaces: defaults of arguments.
      trim_offsets: a setting of the pipeline.
      pad_token, pad_token_id, pad_token_type_id: what rows are padded with.
      convert_ids_to_tokens: a method of `TokensMixin`.
      _lock: held while the pipeline has the settings of a call.
      _warned: the warnings that were logged; each is logged once.
    """

    backend: Tokenizer
    _lock: threading.Lock
    _warned: set[str]

    # Text to ids

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options
    ) -> list[str]:
        """Returns a text's tokens, in the byte alphabet: "Hello world" is ["Hello", "Ġworld"].

        Takes the options of `__call__`. The tokens are those of the vocabulary. If an added token
        includes a space of the text, only `__call__(...).tokens()` shows it (" <mask>").
        """
        encoded = self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options)
        return self.convert_ids_to_tokens(encoded["input_ids"])

    def encode(self, text: str, text_pair: str | None = None, **options) -> list[int]:
        """Returns the ids of one text or pair; takes the options of `__call__`."""
        return self.encode_plus(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: str, text_pair: str | None = None, **options) -> BatchEncoding:
        """Calls the tokenizer for one text or pair; a list of two texts is a pair, too."""
        is_split_into_words = options.get("is_split_into_words", False)
        if text is None:
            raise TypeError("text is None: pass a string")
        if not is_split_into_words and isinstance(text, list | tuple):
            if len(text) != 2 or text_pair is not None:
                raise TypeError("text must be one string: for a batch, call the tokenizer itself")
            text, text_pair = text
        return self(text, text_pair, **options)

    def batch_encode_plus(
        self, batch_text_or_text_pairs: Sequence[Text], **options
    ) -> BatchEncoding:
        """Calls the tokenizer for a list of texts or of pairs."""
        if not isinstance(batch_text_or_text_pairs, list | tuple):
            kind = type(batch_text_or_text_pairs).__name__
            raise TypeError(f"batch_text_or_text_pairs must be a list, not {kind}")
        return self(batch_text_or_text_pairs, **options)

    def __call__(
        self,
        text: str | Sequence[Text] | None = None,
        text_pair: str | Sequence[str] | None = None,
        text_target: str | Sequence[Text] | None = None,
        text_pair_target: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        add_prefix_space: bool | None = None,
    ) -> BatchEncoding:
        """Encodes a text, a pair of texts, or a batch of either.

        Args:
          text: a string; for a batch, a list of strings or of pairs.
          text_pair: the second text, or a list of second texts as long as `text`. As in HF, an
            empty one counts as none beside a single text, but makes a pair in a batch.
          text_target, text_pair_target: texts whose ids are returned as "labels"; without `text`,
            they are encoded as `text` is.
          add_special_tokens: encode as `<s> A </s>`, or `<s> A </s></s> B </s>`.
          padding: True or "longest" pads to the longest row of the batch, "max_length" to
            `max_length`; False or "do_not_pad" does not pad.
          truncation: True or "longest_first" removes ids from the longer text of a pair until the
            row fits; "only_first" and "only_second" remove ids from that text; False or
            "do_not_truncate" does not truncate. As in HF, None means False, but True if
            `max_length` is given and `padding` is False.
          max_length: in ids, including special tokens; None means `model_max_length`.
          stride: how many ids an overflowing row shares with the row before it.
          is_split_into_words: texts are lists of words, each encoded with a space before it, which
            needs `add_prefix_space`. Offsets then count from the start of each word.
          pad_to_multiple_of: pad to the next multiple of this number.
          padding_side: "right" or "left"; None means the attribute.
          return_tensors: "np" returns int64 arrays [batch, length], "jax" int32 arrays, "pt" int64
            tensors of PyTorch and "tf" int32 tensors of TensorFlow, also for a single text; None
            returns lists.
          return_token_type_ids, return_attention_mask: return these columns; None returns those in
            `model_input_names`.
          return_overflowing_tokens: return the ids that truncation removes as further rows, and
            "overflow_to_sample_mapping", the index of each row's input.
          return_special_tokens_mask: return 1 for special tokens and padding, 0 for others.
          return_offsets_mapping: return "offset_mapping", the (start, end) characters of each token
            in its text; (0, 0) for special tokens.
          return_length: return the number of ids of each row.
          verbose: log a warning, once, about rows that are longer than `model_max_length` and about
            arguments that have no effect.
          split_special_tokens: encode special tokens that occur in a text, such as "<mask>", as
            plain text; None means the attribute.
          add_prefix_space: encode each text as if it started with a space; None means the
            tokenizer's own setting.

        Lone surrogates, which UTF-8 cannot encode, are encoded as U+FFFD.

        Returns:
          "input_ids", "attention_mask" (1 for tokens, 0 for padding) and the requested columns:
          lists of ints, or arrays. With `return_overflowing_tokens`, a single text is returned as a
          batch.

        Raises:
          TypeError: a text is not a string.
          ImportError: the library of `return_tensors` is not installed.
          ValueError: an argument has an unknown value, rows differ in length although arrays are
            requested, or a text cannot be truncated enough.
        """
        if text_target is not None:
            options = {k: v for k, v in locals().items() if k not in _NOT_OPTIONS}
            targets = self(text_target, text_pair_target, **options)
            if text is None:
                return targets
            encoded = self(text, text_pair, **options)
            encoded["labels"] = targets["input_ids"]
            return encoded
        if text is None:
            raise ValueError("text is None: pass a string or a list")
        is_single, inputs = as_batch(text, text_pair, is_split_into_words)
        how = self._truncation_and_padding(
            padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose
        )
        if how.truncation:
            has_pairs = any(type(item) is tuple for item in inputs)
            num_special_tokens = self.backend.num_special_tokens_to_add(has_pairs)
            how.check_max_length(num_special_tokens if add_special_tokens else 0)
        to_array = None if return_tensors is None else array_converter(return_tensors)
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        with self._lock:
            rows = encoding.encode_batch(
                self.backend,
                inputs,
                how,
                padding_token=(self.pad_token, self.pad_token_id, self.pad_token_type_id),
                add_special_tokens=add_special_tokens,
                split_special_tokens=split_special_tokens,
                is_split_into_words=is_split_into_words,
                add_prefix_space=add_prefix_space,
                trim_offsets=self.trim_offsets,
                is_byte_level=self.is_byte_level,
            )
        if return_overflowing_tokens:
            samples = [i for i, row in enumerate(rows) for _ in (row, *row.overflowing)]
            rows = [part for row in rows for part in (row, *row.overflowing)]

        columns = {"input_ids": [row.ids for row in rows]}
        if max_length is None and verbose:
            self._warn_if_too_long(columns["input_ids"])
        if self._returns(return_token_type_ids, "token_type_ids"):
            columns["token_type_ids"] = [row.type_ids for row in rows]
        if self._returns(return_attention_mask, "attention_mask"):
            columns["attention_mask"] = [row.attention_mask for row in rows]
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if return_offsets_mapping:
            columns["offset_mapping"] = [row.offsets for row in rows]
        if return_length:
            columns["length"] = [len(row) for row in rows]
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = samples
        if to_array is not None:
            columns = {name: to_array(column) for name, column in columns.items()}
        elif is_single and not return_overflowing_tokens:
            columns = {k: v[0] if type(v[0]) is list else v for k, v in columns.items()}
        return BatchEncoding(columns, rows)

    def _truncation_and_padding(
        self, padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose
    ) -> TruncationAndPadding:
        how = truncation_and_padding(
            padding,
            truncation,
            max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
            warn=self._warn if verbose else lambda message: None,
        )
        if how.padding and self.pad_token is None:
            raise ValueError(
                "cannot pad, because there is no padding token: set tokenizer.pad_token, or call "
                "tokenizer.add_special_tokens({'pad_token': '<pad>'})"
            )
        return how

    def _returns(self, argument: bool | None, column: str) -> bool:
        """Whether a column is returned: as the argument says, or by default."""
        return column in self.model_input_names if argument is None else argument

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message)

    def _warn_if_too_long(self, rows: Sequence[Sequence[int]]) -> None:
        if max(map(len, rows), default=0) > self.model_max_length:
            self._warn(
                f"a row is longer than the {self.model_max_length} ids that the model takes "
                "(model_max_length): pass truncation=True, or shorten the text"
            )

    # Ids to text

    def decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **ignored,
    ) -> str:
        """Returns the text of ids; bytes that are not valid UTF-8 become U+FFFD.

        Args:
          token_ids: a list or array [length], or one id.
          skip_special_tokens: leave out `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>`.
          clean_up_tokenization_spaces: remove spaces before punctuation and English contractions.
            None means the attribute, which is False unless the files say otherwise.
          **ignored: as in HF, options of other kinds of tokenizers have no effect.

        Raises:
          ValueError: an id is not in the vocabulary (HF silently skips it), or `token_ids` has more
            than one row.
        """
        text = encoding.decode(
            self.backend, token_ids, num_ids=len(self), skip_special_tokens=skip_special_tokens
        )
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def batch_decode(self, sequences: Iterable, *args, **options) -> list[str]:
        """Decodes each row; takes the options of `decode`."""
        return [self.decode(ids, *args, **options) for ids in sequences]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Returns a text without the spaces before punctuation and English contractions."""
        return encoding.clean_up(out_string)


_NOT_OPTIONS = {"self", "text", "text_pair", "text_target", "text_pair_target"}
