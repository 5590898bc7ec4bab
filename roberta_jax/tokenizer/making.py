"""How a tokenizer is made: of files, of a pipeline, of text."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from roberta_jax.storage import hub
from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer import files, retraining, siblings, training
from roberta_jax.tokenizer.calls import SIDES, UNKNOWN_LENGTH
from roberta_jax.tokenizer.special_tokens import ADDITIONAL, ROLES

DEFAULT_MAX_LENGTH = 512
INPUT_NAMES = ("input_ids", "attention_mask")
# Said of where the files are or of how to get them, not of the tokenizer: never written again.
_NOT_KEPT = (
    "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "use_fast",
    "cache_dir", "force_download", "local_files_only", "proxies", "resume_download", "revision",
    "token", "trust_remote_code", "use_auth_token",
)  # fmt: skip


class Making:
    """The part of the tokenizer that makes one: of files, of a pipeline, of text."""

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
        """Makes a tokenizer of files, or of a pipeline.

        Args:
          vocab_file, merges_file: `vocab.json` and `merges.txt`. (Or, as the first argument, a
            pipeline made by `roberta_jax.tokenizer.backend`, which must not change later.)
          tokenizer_file: `tokenizer.json`, instead of the two.
          errors: what to do with bytes that are not UTF-8: kept for HF's slower class, as `decode`
            always replaces them.
          bos_token, eos_token, sep_token, cls_token, unk_token, pad_token, mask_token,
          add_prefix_space, trim_offsets: see `from_pretrained`.
          **options: `tokenizer_object`, a pipeline instead of files, of which a copy is made; what
            else `from_pretrained` lists; and `added_tokens_decoder`. Others are kept, and written
            by `save_pretrained`, as in HF.

        Raises:
          TypeError: no files and no pipeline.
          ValueError: they hold another kind of tokenizer, or an option is wrong.
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
            backend = files.read_pipeline(files.epath.Path(tokenizer_file))
        elif vocab_file is not None and merges_file is not None:
            paths = files.epath.Path(vocab_file), files.epath.Path(merges_file)
            backend = backends.bpe(files.read_vocab(paths[0]), files.read_merges(paths[1]))
        else:
            raise TypeError(
                "a tokenizer is made of vocab_file and merges_file, or of tokenizer_file, or of "
                "tokenizer_object; from_pretrained(folder) finds the files itself"
            )
        self._set_up(backend, options)

    @classmethod
    def from_pretrained(
        cls,
        path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | bool | None = None,
        **options,
    ) -> Self:
        """Loads a folder, or a hub id's files.

        Args:
          path: a hub id such as "roberta-base", or a folder with `tokenizer.json`, or `vocab.json`
            + `merges.txt`, or fairseq's `encoder.json` + `vocab.bpe` + `dict.txt`; looked for in
            this order.
          subfolder: the folder in that folder to read; of local folders alone.
          revision: a branch, a tag or a commit of a hub id.
          token: of the hub; None takes `HF_TOKEN` or the stored one, False none.
          add_prefix_space: whether a text's first word is encoded as if a space came before it;
            None follows the files, and is False where they say nothing.
          model_max_length: None follows `tokenizer_config.json`, and is 512 where it says nothing.
          trim_offsets: leave the space before a word out of its token's offsets; True.
          single_separator_pairs: write pairs `<s> A </s> B </s>`, as fairseq does with
            `no_separator=True`, instead of `<s> A </s></s> B </s>`; False.
          bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token,
          additional_special_tokens: strings or `AddedToken`s; those that the vocabulary lacks are
            added to it.
          padding_side, truncation_side, clean_up_tokenization_spaces, split_special_tokens,
          model_input_names: see the attributes.

        What transformers takes besides to download files (`cache_dir`, …) has no effect here.

        Raises:
          FileNotFoundError: no such folder, or no complete set of files in it.
          ValueError: a file is corrupt, or holds another kind of tokenizer; or the hub does not
            give that of a hub id.
        """
        if hub.is_hub_id(path):
            path = hub.tokenizer_folder(path, revision=revision, token=token)
        backend, found, source = files.load(files.epath.Path(path) / subfolder)
        length = found.pop("model_max_length", found.pop("max_len", None))
        if not isinstance(length, int | float | None):
            raise ValueError(f"{str(path)!r}: model_max_length must be a number, not {length!r}")
        found["model_max_length"] = None if not length or length > UNKNOWN_LENGTH else int(length)
        found |= {name: value for name, value in options.items() if value is not None}
        tokenizer = cls.__new__(cls)
        try:
            tokenizer._set_up(backend, {"name_or_path": str(path), **found})
        except backends.BackendError as error:
            raise ValueError(f"{str(source)!r} cannot be used: {error}") from error
        return tokenizer

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 50265,
        min_frequency: int = 2,
        progress: bool = False,
    ) -> Self:
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

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: list[str | AddedToken] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **options,
    ) -> Self:
        """A tokenizer with the steps and options of this one and a vocabulary of other text.

        For a tokenizer laid out as RoBERTa's, with `<mask>` last, use `train`: here the special
        tokens get the first ids, as in HF.

        Args:
          text_iterator: texts, or lists of texts.
          vocab_size: number of ids to end with; more, if special tokens and bytes are more.
          length: number of texts, for the progress bar.
          new_special_tokens: additional special tokens.
          special_tokens_map: special token to the name it gets.
          **options: of the trainer in `tokenizers`, such as `min_frequency`, `show_progress`.
        """
        renamed, new = dict(special_tokens_map or {}), list(new_special_tokens or ())
        with self._lock:
            backend = retraining.retrained(
                self.backend,
                text_iterator,
                vocab_size=vocab_size,
                length=length,
                new_special_tokens=new,
                renamed=renamed,
                options=options,
            )
        kept = {
            role: renamed.get(t, t) for role, t in self.special_tokens_map.items() if role in ROLES
        }
        kept[ADDITIONAL] = [*(self.additional_special_tokens or ()), *new]
        tokenizer = type(self).__new__(type(self))
        tokenizer._set_up(backend, self.init_kwargs | kept)
        return tokenizer

    def _set_up(self, backend: Tokenizer, options: Mapping[str, Any]) -> None:
        """Completes the pipeline and sets every attribute."""
        options = {k: v for k, v in options.items() if v is not None and k not in _NOT_KEPT}
        self.name_or_path = options.pop("name_or_path", "")
        length = options.pop("model_max_length", options.pop("max_len", None))
        self.model_max_length = DEFAULT_MAX_LENGTH if length is None else length
        padding, truncation = backend.padding or {}, backend.truncation or {}
        self.padding_side = options.pop("padding_side", padding.get("direction", "right"))
        self.truncation_side = options.pop("truncation_side", truncation.get("direction", "right"))
        for name in ("padding_side", "truncation_side"):
            if getattr(self, name) not in SIDES:
                raise ValueError(f"{name} must be 'right' or 'left', not {getattr(self, name)!r}")
        self.model_input_names = list(options.pop("model_input_names", INPUT_NAMES))
        self.clean_up_tokenization_spaces = bool(options.pop("clean_up_tokenization_spaces", False))
        self.split_special_tokens = bool(options.pop("split_special_tokens", False))
        named = {role: options.pop(role) for role in ROLES if role in options}
        additional = options.pop(ADDITIONAL, [])
        if not isinstance(additional, list | tuple):
            raise TypeError(f"{ADDITIONAL} must be a list, not {additional!r}")
        additional = list(additional)
        for role, token in (*named.items(), *((ADDITIONAL, token) for token in additional)):
            if not isinstance(token, str | AddedToken):
                raise TypeError(f"{role} must be a string or an AddedToken, not {token!r}")
        self.init_inputs = ()
        self._saved_class = options.pop("tokenizer_class", None)
        listed = options.pop("added_tokens_decoder", {})
        single_separator = options.pop("single_separator_pairs", None)
        self.trim_offsets = bool(options.pop("trim_offsets", True))

        _add_listed(backend, listed, {*map(str, named.values()), *map(str, additional)})
        self.is_byte_level = not siblings.is_sibling(backend)
        if self.is_byte_level:
            self._special_tokens_map = {**backends.ROBERTAS_TOKENS, **named}
            add_prefix_space = options.pop("add_prefix_space", None)
            if add_prefix_space is None:
                add_prefix_space = getattr(backend.pre_tokenizer, "add_prefix_space", False)
            backends.complete(
                backend,
                add_prefix_space=add_prefix_space,
                trim_offsets=self.trim_offsets,
                single_separator=single_separator,
                tokens=self._special_tokens_map,
            )
        else:
            if single_separator:
                raise ValueError(
                    "single_separator_pairs is for RoBERTa's own kind of tokenizer: this one "
                    "writes pairs as its tokenizer.json says"
                )
            self._special_tokens_map = siblings.special_tokens(backend, named)
            if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
                prefix = options.get("add_prefix_space", backend.pre_tokenizer.add_prefix_space)
                backend.pre_tokenizer.add_prefix_space = prefix
            vocab = backend.get_vocab(with_added_tokens=True)
            additional = additional or [t for t in siblings.CAMEMBERTS_UNUSED if t in vocab]
        self._additional = additional
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([
            AddedToken(token, special=True) if isinstance(token, str) else token
            for token in additional
            if str(token) not in known
        ])  # fmt: skip
        for name in options:
            if callable(getattr(type(self), name, None)):
                raise AttributeError(f"the option {name!r} conflicts with the method {name}")
        self._other_options = options
        self.backend = backend
        self._num_ids = backend.get_vocab_size(with_added_tokens=True)  # the library counts anew
        self._warned: set[str] = set()
        self._lock = threading.Lock()


def _add_listed(backend: Tokenizer, listed: Mapping[int, AddedToken], special: set[str]) -> None:
    """Adds the tokens of an `added_tokens_decoder` that the pipeline lacks, by id."""
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    missing = [token for _, token in sorted(listed.items()) if repr(token) not in known]
    for token in missing:
        token.special = token.special or token.content in special
    backend.add_tokens(missing)
