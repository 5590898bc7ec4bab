"""RobertaTokenizer: text to ids and back, called as Hugging Face's RobertaTokenizerFast is.

The class keeps one `tokenizers` pipeline. A call turns its arguments into a `Plan` (what to
truncate and pad to), sets the pipeline up for it, and reads the columns off the encodings. What it
knows of its vocabulary, of its special tokens, and of rows made from ids rather than text stands in
`vocabulary`, `special_tokens` and `assembly`; how it is made and kept in `making` and `keeping`.
"""

import contextlib
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Encoding

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer.assembly import Assembly
from roberta_jax.tokenizer.calls import NOTHING, Plan, Text, as_batch, checked
from roberta_jax.tokenizer.encoding import BatchEncoding, converter
from roberta_jax.tokenizer.keeping import Keeping
from roberta_jax.tokenizer.making import Making
from roberta_jax.tokenizer.special_tokens import SpecialTokens
from roberta_jax.tokenizer.vocabulary import Vocabulary

# What decode's clean_up_tokenization_spaces undoes, in HF's order.
_CLEAN_UPS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip

_log = logging.getLogger("roberta_jax.tokenizer")


class RobertaTokenizer(Making, Keeping, SpecialTokens, Vocabulary, Assembly):
    """Byte-level BPE with RoBERTa's special tokens, or the pipeline of a relative of RoBERTa.

    Made by `from_pretrained` or `train`, or from files as HF's class is. Pickles, and may be used
    from several threads.

    Attributes:
      backend: the `tokenizers` pipeline, also called `backend_tokenizer`.
      is_byte_level: whether it is RoBERTa's own kind; False for XLM-R, CamemBERT and the like.
      model_max_length: what truncation and padding to "max_length" mean without a `max_length`.
      clean_up_tokenization_spaces: the default of `decode`.
      padding_side, truncation_side: "right" or "left", where ids are added and taken off.
      split_special_tokens: the default of a call.
      model_input_names: the columns that a call returns unless told otherwise.
    """

    # Text to ids

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options
    ) -> list[str]:
        """The tokens of a text in the byte alphabet: "Hello world" is ["Hello", "Ġworld"].

        Takes the options of `__call__`. Tokens are as the vocabulary has them; where the text has
        spaces that belong to an added token, `__call__(...).tokens()` has them too (" <mask>").
        """
        encoded = self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options)
        return self.convert_ids_to_tokens(encoded["input_ids"])

    def encode(self, text: str, text_pair: str | None = None, **options) -> list[int]:
        """The ids of one text or pair; takes the options of `__call__`."""
        return self.encode_plus(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: str, text_pair: str | None = None, **options) -> BatchEncoding:
        """`__call__` for one text or pair, of which a list of two texts is one too."""
        split = options.get("is_split_into_words", False)
        if text is None:
            raise TypeError("there is nothing to encode: text is None")
        if not split and isinstance(text, list | tuple):
            if len(text) != 2 or text_pair is not None:
                raise TypeError("text must be one string: for a batch, call the tokenizer itself")
            text, text_pair = text
        return self(text, text_pair, **options)

    def batch_encode_plus(
        self, batch_text_or_text_pairs: Sequence[Text], **options
    ) -> BatchEncoding:
        """`__call__` for a list of texts or of pairs."""
        if not isinstance(batch_text_or_text_pairs, list | tuple):
            raise TypeError(f"a list is needed, not {type(batch_text_or_text_pairs).__name__}")
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
          text: a string; or a list of strings or of pairs, for a batch.
          text_pair: the second text, or a list of them as long as `text`. Beside one text, an empty
            one counts as none (as in HF); in a batch, it makes a pair.
          text_target, text_pair_target: texts whose ids become "labels"; without `text`, the same
            as `text`.
          add_special_tokens: `<s> A </s>`, or `<s> A </s></s> B </s>`.
          padding: True or "longest" pads to the batch's longest, "max_length" to `max_length`,
            False or "do_not_pad" not at all.
          truncation: True or "longest_first" cuts ids off the longer of a pair until both fit,
            "only_first" and "only_second" off that one, False or "do_not_truncate" not at all.
            None is False, unless `max_length` is given without padding (as in HF).
          max_length: in ids, special ones included; None is `model_max_length`.
          stride: how many ids a row of overflow has in common with the row before it.
          is_split_into_words: texts are lists of words, each encoded with a space before it; needs
            `add_prefix_space`. Offsets then count from each word's own start.
          pad_to_multiple_of: pads on to a multiple of this.
          padding_side: "right" or "left"; None is the attribute.
          return_tensors: "np" for int64 arrays [batch, length], "jax" for int32 ones, also for one
            text; None for lists.
          return_token_type_ids, return_attention_mask: whether to return these columns; None does
            if they are in `model_input_names`.
          return_overflowing_tokens: return what truncation cuts off as further rows, and
            "overflow_to_sample_mapping", the input that each row is from.
          return_special_tokens_mask: return 1 for special tokens and padding, 0 for the others.
          return_offsets_mapping: return "offset_mapping": (start, end) of each token in its text,
            in characters; (0, 0) for special tokens.
          return_length: return each row's number of ids.
          verbose: warn, once, of rows longer than the model takes and of options without effect.
          split_special_tokens: encode "<mask>" and the like, where a text spells them out, as plain
            text; None is the attribute.
          add_prefix_space: encode each text as if it began with a space; None as the tokenizer was
            made.

        Lone surrogates, which no UTF-8 text holds, are encoded as U+FFFD.

        Returns:
          "input_ids" and "attention_mask" (1 on tokens, 0 on padding), and the columns asked for:
          lists of ints, or arrays. Overflow makes a batch of one text, too.

        Raises:
          TypeError: a text is not a string.
          ValueError: an unknown option, rows of unequal length for arrays, or nothing left to cut.
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
            raise ValueError("there is nothing to encode: text is None")
        single, inputs = as_batch(text, text_pair, is_split_into_words)
        plan = self._plan(
            padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose
        )
        if plan.truncate:
            pairs = any(type(item) is tuple for item in inputs)
            specials = self.backend.num_special_tokens_to_add(pairs) * add_special_tokens
            plan.check_room(specials)
        convert = None if return_tensors is None else converter(return_tensors)
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        encodings = self._encodings(
            inputs, add_special_tokens, split_special_tokens, plan, is_split_into_words,
            add_prefix_space,
        )  # fmt: skip
        if return_overflowing_tokens:
            rows = [(i, row) for i, e in enumerate(encodings) for row in (e, *e.overflowing)]
            samples, encodings = [i for i, _ in rows], [row for _, row in rows]

        columns = {"input_ids": [row.ids for row in encodings]}
        if max_length is None and verbose:
            self._warn_if_too_long(columns["input_ids"])
        if self._wanted(return_token_type_ids, "token_type_ids"):
            columns["token_type_ids"] = [row.type_ids for row in encodings]
        if self._wanted(return_attention_mask, "attention_mask"):
            columns["attention_mask"] = [row.attention_mask for row in encodings]
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = [row.special_tokens_mask for row in encodings]
        if return_offsets_mapping:
            columns["offset_mapping"] = [row.offsets for row in encodings]
        if return_length:
            columns["length"] = [len(row) for row in encodings]
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = samples
        if convert is not None:
            columns = {name: convert(column) for name, column in columns.items()}
        elif single and not return_overflowing_tokens:
            columns = {k: v[0] if type(v[0]) is list else v for k, v in columns.items()}
        return BatchEncoding(columns, encodings)

    # Ids to text

    def decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **ignored,
    ) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
          token_ids: a list or array [length], or one id.
          skip_special_tokens: leave out `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>`.
          clean_up_tokenization_spaces: take out spaces before punctuation and English
            contractions; None follows the attribute, which is False unless the files say otherwise.
          **ignored: options of other kinds of tokenizers, without effect, as in HF.

        Raises:
          ValueError: an id that the tokenizer does not have (HF leaves those out silently), or more
            than one row.
        """
        ids = np.atleast_1d(np.asarray(token_ids, dtype=np.int64))
        if ids.ndim > 1:
            raise ValueError(f"decode takes one row, not {ids.shape}: use batch_decode")
        ids = ids.tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(self):
            unknown = [i for i in ids if i < 0 or self.backend.id_to_token(i) is None]
            if unknown:
                raise ValueError(
                    f"ids must be in 0 to {len(self) - 1} to be decoded, but there is {unknown[0]}"
                )
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def batch_decode(self, sequences: Iterable, *args, **options) -> list[str]:
        """`decode` of each row; takes its options."""
        return [self.decode(ids, *args, **options) for ids in sequences]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """A text without the spaces before punctuation and English contractions."""
        for spaced, tight in _CLEAN_UPS:
            out_string = out_string.replace(spaced, tight)
        return out_string

    # How a call is carried out

    def _plan(
        self, padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose
    ) -> Plan:
        plan = Plan.of(
            padding,
            truncation,
            max_length,
            pad_to_multiple_of,
            self.model_max_length,
            stride=stride,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            warn=self._warn if verbose else lambda message: None,
        )
        if plan.pad and self.pad_token is None:
            raise ValueError(
                "there is no padding token: set tokenizer.pad_token, or add one with "
                "tokenizer.add_special_tokens({'pad_token': '<pad>'})"
            )
        return plan

    def _wanted(self, answer: bool | None, column: str) -> bool:
        return column in self.model_input_names if answer is None else answer

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message)

    def _warn_if_too_long(self, rows: Sequence[Sequence[int]]) -> None:
        if max(map(len, rows), default=0) > self.model_max_length:
            self._warn(
                f"a row is longer than the {self.model_max_length} ids that the model takes "
                "(model_max_length): pass truncation=True, or cut the text"
            )

    def _encodings(
        self,
        inputs: Sequence,
        add_special_tokens: bool,
        split_special_tokens: bool,
        plan: Plan = NOTHING,
        is_split_into_words: bool = False,
        add_prefix_space: bool | None = None,
    ) -> list[Encoding]:
        options = {
            "add_special_tokens": add_special_tokens,
            "is_pretokenized": is_split_into_words,
        }
        with self._configured(plan, split_special_tokens, add_prefix_space):
            if is_split_into_words and self.is_byte_level and not self.add_prefix_space:
                raise ValueError(
                    "words can only be encoded with a space before each: load the tokenizer with "
                    "add_prefix_space=True, or pass it to the call"
                )
            try:
                return self._run(inputs, options)
            except TypeError:  # a lone surrogate, or something that is not text
                return self._run([checked(x, is_split_into_words) for x in inputs], options)

    def _run(self, inputs: Sequence, options: dict) -> list[Encoding]:
        try:
            return self.backend.encode_batch(inputs, **options)
        except TypeError:
            raise
        except Exception as error:  # the library raises no narrower class
            if "Truncation error" not in str(error):
                raise
            raise ValueError(
                "cannot truncate to max_length: the text that the chosen truncation may cut is too "
                "short for that. Raise max_length, or use truncation='longest_first'"
            ) from error
        except BaseException as error:  # its own failed assertions are no `Exception`
            if type(error).__name__ != "PanicException" or "stride" not in str(error):
                raise
            raise ValueError(
                "stride must be less than the ids that truncation leaves of the text it cuts: "
                "lower stride, or raise max_length"
            ) from error

    @contextlib.contextmanager
    def _configured(self, plan: Plan, split_special_tokens: bool, add_prefix_space: bool | None):
        """Sets the pipeline up for one call; the lock keeps other threads' calls out."""
        with self._lock:
            own_prefix = self.add_prefix_space
            switched = self.is_byte_level and add_prefix_space not in (None, own_prefix)
            try:
                self.backend.encode_special_tokens = split_special_tokens
                if switched:
                    backends.set_prefix_space(self.backend, add_prefix_space, self.trim_offsets)
                if plan.truncate:
                    self.backend.enable_truncation(
                        plan.max_length,
                        stride=plan.stride,
                        strategy=plan.truncate,
                        direction=plan.truncation_side,
                    )
                if plan.pad:
                    self.backend.enable_padding(
                        direction=plan.padding_side,
                        pad_id=self.pad_token_id,
                        pad_type_id=self.pad_token_type_id,
                        pad_token=self.pad_token,
                        length=plan.max_length if plan.pad == "max_length" else None,
                        pad_to_multiple_of=plan.pad_to_multiple_of,
                    )
                yield
            finally:
                self.backend.encode_special_tokens = False
                self.backend.no_truncation()
                self.backend.no_padding()
                if switched:
                    backends.set_prefix_space(self.backend, own_prefix, self.trim_offsets)


RobertaTokenizerFast = RobertaTokenizer

_NOT_OPTIONS = {"self", "text", "text_pair", "text_target", "text_pair_target"}
