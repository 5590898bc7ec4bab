"""How a tokenizer is described, copied and kept in files."""

import threading

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from roberta_jax.tokenizer import files, templates
from roberta_jax.tokenizer.making import INPUT_NAMES
from roberta_jax.tokenizer.special_tokens import ADDITIONAL


class Keeping:
    """The part of the tokenizer that says what it is and keeps it in files."""

    is_fast = True
    vocab_files_names = {  # noqa: RUF012 - HF's name and type
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }

    @property
    def backend_tokenizer(self) -> Tokenizer:
        return self.backend

    @property
    def init_kwargs(self) -> dict:
        """The options that would make this tokenizer of the same vocabulary."""
        return {
            "errors": "replace",
            "trim_offsets": self.trim_offsets,
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            **self._other_options,
            **self._special_tokens_map,
            ADDITIONAL: self._additional or [],
            "model_input_names": self.model_input_names,
            "split_special_tokens": self.split_special_tokens,
            "add_prefix_space": self.add_prefix_space,
        }

    @property
    def add_prefix_space(self) -> bool:
        """Whether a text's first word is encoded as if a space came before it."""
        if isinstance(self.backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            return self.backend.pre_tokenizer.add_prefix_space
        return bool(self._other_options.get("add_prefix_space", False))

    @property
    def single_separator_pairs(self) -> bool:
        """Whether pairs are `<s> A </s> B </s>`."""
        around = templates.cls_and_sep(self.backend)
        return around is not None and around[2]

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether `save_pretrained` writes `vocab.json` and `merges.txt`, too."""
        return self.is_byte_level

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} ids, name_or_path={self.name_or_path!r}, "
            f"model_max_length={self.model_max_length}, add_prefix_space={self.add_prefix_space}, "
            f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r}, "
            f"special_tokens={self.special_tokens_map})"
        )

    def __getstate__(self) -> dict:
        with self._lock:  # a call in another thread sets the pipeline up for itself
            return self.__dict__ | {"backend": self.backend.to_str(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self.backend = Tokenizer.from_str(state["backend"])
        self._lock = threading.Lock()

    # Keeping it

    def save_pretrained(
        self, folder, legacy_format: bool | None = None, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json` and
        `special_tokens_map.json`, which transformers loads too. Each file is replaced whole.

        Relatives of RoBERTa have no `vocab.json` and `merges.txt`.

        Args:
          folder: made if it does not exist.
          legacy_format: True leaves `tokenizer.json` out, False the two files of the vocabulary.
          filename_prefix: put before each name, with a hyphen.

        Returns:
          The files' paths.

        Raises:
          ValueError: `legacy_format` of a relative.
        """
        if legacy_format and not self.is_byte_level:
            raise ValueError(_NO_VOCABULARY_FILES)
        config = {
            **self._other_options,
            **self.special_tokens_map,
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "tokenizer_class": self._saved_class or "PreTrainedTokenizerFast",
        }
        if self.is_byte_level:
            config |= {
                "add_prefix_space": self.add_prefix_space,
                "errors": self._other_options.get("errors", "replace"),
                "tokenizer_class": "RobertaTokenizer",
                "trim_offsets": self.trim_offsets,
            }
        usual = {
            "padding_side": "right",
            "truncation_side": "right",
            "model_input_names": list(INPUT_NAMES),
            "split_special_tokens": False,
            "single_separator_pairs": False,
        }
        for name, value in usual.items():
            if getattr(self, name) != value:
                config[name] = getattr(self, name)
        flags = {t.content: t for t in self.added_tokens_decoder.values()}
        described = {
            role: token if isinstance(token, list) else _described(flags.get(token), token)
            for role, token in self.special_tokens_map.items()
        }
        with self._lock:
            written = files.save(
                folder,
                self.backend,
                config,
                described,
                vocabulary=self.is_byte_level and legacy_format is not False,
                pipeline=not legacy_format,
                prefix=filename_prefix,
            )
        return tuple(written)

    def save_vocabulary(
        self, save_directory, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `vocab.json` and `merges.txt` alone; returns their paths.

        Raises:
          ValueError: a relative of RoBERTa, whose vocabulary has another form.
        """
        if not self.is_byte_level:
            raise ValueError(_NO_VOCABULARY_FILES)
        return tuple(files.write_vocabulary(save_directory, self.backend, filename_prefix))


_NO_VOCABULARY_FILES = (
    "vocab.json and merges.txt hold byte-level BPE, and this tokenizer is of another kind: "
    "save_pretrained(folder) keeps it in tokenizer.json"
)


def _described(token: AddedToken | None, content: str) -> AddedToken | str:
    """The token, if more is to be said of it than its name."""
    return token if token and (token.lstrip or token.rstrip or token.single_word) else content
