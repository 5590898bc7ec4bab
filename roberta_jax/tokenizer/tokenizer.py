"""RobertaTokenizer: constructed from files or trained on text, and saved.

The class holds one pipeline of the `tokenizers` library. Its methods pass that pipeline to the
functions of this package's other modules: `files` reads and writes it, `setup` completes it as
`options` say, `training` trains it, `encoding` encodes and decodes with it, and `vocabulary`
computes its fingerprint. The methods that Hugging Face's tokenizers have are mixins in `hf_api`.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from etils import epath
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from roberta_jax.storage import hub
from roberta_jax.tokenizer import files, pipeline, templates, training, vocabulary
from roberta_jax.tokenizer.hf_api.call import CallMixin
from roberta_jax.tokenizer.hf_api.model_inputs import ModelInputsMixin
from roberta_jax.tokenizer.hf_api.tokens import TokensMixin, check_has_vocabulary_files
from roberta_jax.tokenizer.options import (
    TokenizerOptions,
    config_contents,
    pop_model_max_length,
    special_tokens_map_contents,
)
from roberta_jax.tokenizer.setup import set_up
from roberta_jax.tokenizer.special_tokens import ADDITIONAL, ATTRIBUTES


class RobertaTokenizer(CallMixin, ModelInputsMixin, TokensMixin):
    """Byte-level BPE with RoBERTa's special tokens, or the pipeline of a related model.

    Construct it with `from_pretrained` or `train`, or from files as HF's class. It can be pickled
    and used from several threads.

    Attributes:
      backend: the `tokenizers` pipeline, also available as `backend_tokenizer`.
      is_byte_level: True for RoBERTa's own pipeline; False for XLM-R, CamemBERT and others.
      name_or_path: the folder or hub id that it was loaded from.
      model_max_length: the default `max_length` of truncation and of padding to "max_length".
      clean_up_tokenization_spaces: the default of `decode`.
      padding_side, truncation_side: "right" or "left", where ids are added and removed.
      split_special_tokens: the default of a call.
      trim_offsets: whether offsets exclude the space before a word.
      model_input_names: the columns that a call returns by default.
    """

    def __init__(
        self,
        vocab_file=None,
        merges_file=None,
        tokenizer_file=None,
        errors: str = "replace",
        bos_token: str | AddedToken | None = None,
        eos_token: str | AddedToken | None = None,
        sep_token: str | AddedToken | None = None,
        cls_token: str | AddedToken | None = None,
        unk_token: str | AddedToken | None = None,
        pad_token: str | AddedToken | None = None,
        mask_token: str | AddedToken | None = None,
        add_prefix_space: bool | None = None,
        trim_offsets: bool = True,
        **options,
    ):
        """Constructs a tokenizer from files or from a pipeline.

        Args:
          vocab_file, merges_file: `vocab.json` and `merges.txt`. The first argument may also be a
            pipeline from `roberta_jax.tokenizer.pipeline`, which must not be changed afterwards.
          tokenizer_file: `tokenizer.json`, instead of those two.
          errors: what HF's slow class does with invalid UTF-8. It is saved, but has no effect:
            `decode` always replaces invalid bytes.
          bos_token, eos_token, sep_token, cls_token, unk_token, pad_token, mask_token,
          add_prefix_space, trim_offsets: see `from_pretrained`.
          **options: `tokenizer_object`, a pipeline that is copied, instead of files; further
            options of `from_pretrained`; and `added_tokens_decoder`. As in HF, unknown options are
            accepted and saved by `save_pretrained`.

        Raises:
          TypeError: neither files nor a pipeline are given.
          ValueError: the files hold a tokenizer that is not supported, or an option is wrong.
        """
        options |= {
            "errors": errors,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "sep_token": sep_token,
            "cls_token": cls_token,
            "unk_token": unk_token,
            "pad_token": pad_token,
            "mask_token": mask_token,
            "add_prefix_space": add_prefix_space,
            "trim_offsets": trim_offsets,
        }
        tokenizer_object = options.pop("tokenizer_object", None)
        if isinstance(vocab_file, Tokenizer):
            backend = vocab_file
        elif tokenizer_object is not None:
            backend = Tokenizer.from_str(tokenizer_object.to_str())
        elif tokenizer_file is not None:
            backend = files.read_pipeline(epath.Path(tokenizer_file))
        elif vocab_file is not None and merges_file is not None:
            vocab = files.read_vocab(epath.Path(vocab_file))
            backend = pipeline.bpe(vocab, files.read_merges(epath.Path(merges_file)))
        else:
            raise TypeError(
                "pass vocab_file and merges_file, or tokenizer_file, or tokenizer_object; or use "
                "from_pretrained(folder), which finds the files"
            )
        self._initialize(backend, options)

    @classmethod
    def from_pretrained(cls, path, *, subfolder: str = "", **options) -> Self:
        """Loads a tokenizer from a folder or from the hub.

        Args:
          path: a hub id such as "roberta-base"; the workdir of a finished training run, whose
            `hf/` is read; or a folder with `tokenizer.json`, or with `vocab.json` and `merges.txt`,
            or with fairseq's `encoder.json`, `vocab.bpe` and `dict.txt`. The first of these that is
            complete is read.
          subfolder: a folder inside the folder or the repository, to read instead of it.
          revision, token, cache_dir, local_files_only, force_download: how to fetch a hub id's
            files; see `storage.hub.HubOptions`, also for those of transformers' options that have
            no effect. They are not saved.
          add_prefix_space: encode the first word of a text as if a space came before it. None uses
            the setting in the files, or False.
          model_max_length: None uses the value in `tokenizer_config.json`, or 512.
          trim_offsets: exclude the space before a word from the word's offsets. Default: True.
          single_separator_pairs: encode pairs as `<s> A </s> B </s>`, as fairseq does with
            `no_separator=True`, instead of `<s> A </s></s> B </s>`. Default: False.
          bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token,
          additional_special_tokens: strings or `AddedToken`s. Tokens that are not in the vocabulary
            are added to it.
          padding_side, truncation_side, clean_up_tokenization_spaces, split_special_tokens,
          model_input_names: see the attributes of the class.

        Raises:
          FileNotFoundError: the folder does not exist or has no complete set of files.
          ValueError: a file is corrupt or holds a tokenizer that is not supported, or the hub does
            not have the tokenizer.
        """
        fetch_arguments = hub.HubOptions.pop_from(options, path).fetch_arguments()
        folder = epath.Path(path) / subfolder
        if hub.is_hub_id(path):
            folder = hub.tokenizer_folder(path, subfolder=subfolder, **fetch_arguments)
        elif not subfolder:
            folder = hub.tokenizer_folder(path)
        backend, file_options, source = files.load(folder)
        file_options["model_max_length"] = pop_model_max_length(file_options, str(folder))
        file_options |= {name: value for name, value in options.items() if value is not None}
        tokenizer = cls.__new__(cls)
        try:
            tokenizer._initialize(backend, {"name_or_path": str(path), **file_options})
        except pipeline.PipelineError as error:
            raise ValueError(f"{str(source)!r} cannot be used: {error}") from error
        except (TypeError, AttributeError) as error:
            if options:
                raise
            raise ValueError(f"{folder / files.CONFIG_FILE}: {error}") from error
        return tokenizer

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 50265,
        min_frequency: int = 2,
        progress: bool = False,
    ) -> Self:
        """Learns a byte-level BPE vocabulary from at most the first GB of `texts`.

        The special tokens get RoBERTa's ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>`
        last. The same texts give the same tokenizer.

        Args:
          texts: documents or sentences; read once, and only as far as needed.
          vocab_size: the number of ids, including special tokens.
          min_frequency: pairs that occur less often are not merged.
          progress: show progress bars.

        Raises:
          ValueError: `vocab_size` is below 261, or the text is too small for it.
        """
        return cls(
            training.train(
                texts, vocab_size=vocab_size, min_frequency=min_frequency, progress=progress
            )
        )

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: list[str | AddedToken] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **options,
    ) -> Self:
        """Returns a tokenizer like this one with a vocabulary learned from other texts.

        As in HF, the special tokens get the first ids. Use `train` for a tokenizer with RoBERTa's
        layout, in which `<mask>` is last.

        Args:
          text_iterator: texts, or lists of texts.
          vocab_size: the number of ids; special tokens and bytes are included even if they are
            more.
          length: the number of texts, for the progress bar.
          new_special_tokens: additional special tokens.
          special_tokens_map: new names of special tokens, by old name.
          **options: of the trainer in `tokenizers`, such as `min_frequency`, `show_progress`.
        """
        renamed, new_tokens = dict(special_tokens_map or {}), list(new_special_tokens or ())
        with self._lock:
            backend = training.train_like(
                self.backend,
                text_iterator,
                vocab_size=vocab_size,
                length=length,
                new_special_tokens=new_tokens,
                renamed=renamed,
                trainer_options=options,
            )
        special_tokens = {
            attribute: renamed.get(token, token)
            for attribute, token in self.special_tokens_map.items()
            if attribute in ATTRIBUTES
        }
        special_tokens[ADDITIONAL] = [*(self.additional_special_tokens or ()), *new_tokens]
        tokenizer = type(self).__new__(type(self))
        tokenizer._initialize(backend, self.init_kwargs | special_tokens)
        return tokenizer

    def _initialize(self, backend: Tokenizer, options: Mapping[str, Any]) -> None:
        """Completes the pipeline, in place, and sets every attribute of the tokenizer."""
        options = TokenizerOptions.parse(options, backend)
        self.name_or_path = options.name_or_path
        self.model_max_length = options.model_max_length
        self.padding_side = options.padding_side
        self.truncation_side = options.truncation_side
        self.model_input_names = options.model_input_names
        self.clean_up_tokenization_spaces = options.clean_up_tokenization_spaces
        self.split_special_tokens = options.split_special_tokens
        self.trim_offsets = options.trim_offsets
        self.init_inputs = ()
        self._file_tokenizer_class = options.tokenizer_class

        setup = set_up(backend, options)
        self.is_byte_level = setup.is_byte_level
        self._special_tokens_map = setup.special_tokens
        self._additional = setup.additional_special_tokens
        for name in options.other:
            if callable(getattr(type(self), name, None)):
                raise AttributeError(f"the option {name!r} conflicts with the method {name}")
        self._other_options = options.other
        self.backend = backend
        self._num_ids = backend.get_vocab_size(with_added_tokens=True)  # slow to count
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    # Saving and pickling

    def save_pretrained(
        self,
        folder,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **upload_options,
    ) -> tuple[str, ...]:
        """Writes the tokenizer's files, which transformers can load, too.

        They are `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json` and
        `special_tokens_map.json`. Tokenizers of related models have no `vocab.json` and
        `merges.txt`. Each file is replaced as a whole.

        Args:
          folder: created if it does not exist.
          legacy_format: True omits `tokenizer.json`; False omits `vocab.json` and `merges.txt`.
          filename_prefix: put before each file name, with a hyphen.
          push_to_hub: not supported; use `hf upload`.
          **upload_options: `repo_id`, `commit_message`, ..., and `save_jinja_files`, which have no
            effect.

        Returns:
          The paths of the files.

        Raises:
          ValueError: `legacy_format=True` for a related model, or an upload is asked for.
        """
        upload_options.pop("save_jinja_files", None)  # of chat templates, which RoBERTa lacks
        hub.check_no_upload(folder, push_to_hub, upload_options, "save_pretrained")
        if legacy_format:
            check_has_vocabulary_files(self)
        config, special_tokens = config_contents(self), special_tokens_map_contents(self)
        with self._lock:
            paths = files.save(
                folder,
                self.backend,
                config,
                special_tokens,
                vocabulary_files=self.is_byte_level and legacy_format is not False,
                pipeline_file=not legacy_format,
                prefix=filename_prefix,
            )
        return tuple(paths)

    def push_to_hub(self, *args, **kwargs) -> None:
        """Raises UsageError: nothing is uploaded; use `hf upload`."""
        hub.check_no_upload("FOLDER", True, (), "push_to_hub")

    def __getstate__(self) -> dict:
        with self._lock:  # during a call the pipeline has that call's settings
            return self.__dict__ | {"backend": self.backend.to_str(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self.backend = Tokenizer.from_str(state["backend"])
        self._lock = threading.Lock()

    # What it is

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """`backend`, under HF's name."""
        return self.backend

    @property
    def init_kwargs(self) -> dict:
        """The options that construct this tokenizer from the same vocabulary."""
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
        """Whether the first word of a text is encoded as if a space came before it."""
        if isinstance(self.backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            return self.backend.pre_tokenizer.add_prefix_space
        return bool(self._other_options.get("add_prefix_space", False))

    @property
    def single_separator_pairs(self) -> bool:
        """Whether pairs are encoded as `<s> A </s> B </s>`."""
        return templates.has_single_separator(self.backend)

    def __len__(self) -> int:
        """The number of ids, including added tokens; the model's `vocab_size`."""
        return self._num_ids

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} ids, name_or_path={self.name_or_path!r}, "
            f"model_max_length={self.model_max_length}, add_prefix_space={self.add_prefix_space}, "
            f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r}, "
            f"special_tokens={self.special_tokens_map})"
        )

    def fingerprint(self) -> str:
        """A hash, as 64 hexadecimal digits, of everything that determines the ids of a text.

        It does not depend on the set of files that the tokenizer was read from, on the version of
        the `tokenizers` library, or on `model_max_length`. For related models it may change with
        the version of the library, because the whole `tokenizer.json` is hashed.
        """
        return vocabulary.fingerprint(self.backend, is_byte_level=self.is_byte_level)

    def word_start_table(self) -> np.ndarray:
        """Which ids begin a word, for whole-word masking: bool [len(self)].

        A token begins a word if its text starts with a space, as in fairseq. Special and added
        tokens and fairseq's "madeupword" entries are words of their own. The first word of a
        sentence has no space; it is known by its position.

        Raises:
          ValueError: tokens of this type of model do not show where words begin.
        """
        return vocabulary.word_start_table(self.backend, is_byte_level=self.is_byte_level)


RobertaTokenizerFast = RobertaTokenizer
