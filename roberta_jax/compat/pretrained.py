"""`from_pretrained` and `save_pretrained` of the drop-in classes."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util

from roberta_jax.compat import loading, saving
from roberta_jax.compat.config import CONFIG_CLASSES, to_roberta_config
from roberta_jax.compat.generation_config import FlaxGenerationConfig
from roberta_jax.compat.loading import GENERATION_CONFIG
from roberta_jax.errors import UsageError, listed
from roberta_jax.storage import hub
from roberta_jax.weights.config_file import CONFIG_NAME, check_written_for, read_config_dict

logger = logging.getLogger(__name__)


class FlaxPretrainedMixin:
    """Loading and saving for `FlaxRobertaPreTrainedModel`, the only class that inherits from it.

    It uses that class's constructor, attributes and `init_weights`.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        dtype: Any = jnp.float32,
        *model_args: Any,
        config: Any = None,
        ignore_mismatched_sizes: bool = False,
        _do_init: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Loads a model from files in any format that `roberta_jax.weights` reads.

        Parameters of a head or of cross-attention that the files lack are initialized at random,
        and a warning lists them. Parameters of the encoder must all be there. Parameters have the
        dtypes of the files.

        Args:
          pretrained_model_name_or_path: A folder, a weight file, or a Hugging Face hub id.
          dtype: The dtype of the computation.
          model_args: Further positional arguments of the class.
          config: A config, or the path of one. If None, the `config.json` beside the weights.
          ignore_mismatched_sizes: Whether to initialize at random the parameters whose shape in
            the files differs from the model's. Otherwise they raise an error.
          _do_init: If False, returns `(model, params)`: the parameters that the files have, on the
            CPU. Complete them with `model.init_weights(key, shape, params)`.
          kwargs: Where the files are and how to fetch them (`revision`, `token`, `subfolder`,
            `cache_dir`, `local_files_only`, `force_download`; see `storage.hub.HubOptions`, also
            for those of transformers' keywords that have no effect); attributes to set in a config
            that is read from a file; and keyword arguments of the class (`seed`,
            `gradient_checkpointing`).

        Raises:
          NotFoundError: There is no such model. It is an `OSError`.
          UsageError: The model's files do not match the class and the config.
          TypeError: A keyword has none of these meanings.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub_arguments = {key: kwargs[key] for key in hub.LOADING_KEYWORDS.intersection(kwargs)}
        options = hub.HubOptions.pop_from(kwargs, name)
        kwargs.pop("attn_implementation", None)
        changes = set(kwargs)

        def check_config(written_for: Mapping[str, Any]) -> None:
            if config_dict is not None:  # a config that is passed may be another on purpose
                check_written_for(to_roberta_config(config), written_for, path, changes)

        config_dict = None
        with loading.local_model_files(name, options) as path:
            if config is None:
                config_dict = dict(loading.read_config(path)) | {"_name_or_path": name}
                config, kwargs = cls._config_from_dict(config_dict, kwargs, path)
            elif isinstance(config, str | os.PathLike):
                config, kwargs = cls.config_class.from_pretrained(
                    config, **{**hub_arguments, **kwargs, "return_unused_kwargs": True}
                )
            model = cls(config, *model_args, dtype=dtype, _do_init=False, **kwargs)
            weights = loading.read_parameters(path, model.params_shape_tree, check_config)
            generation_file = (path.parent if path.is_file() else path) / GENERATION_CONFIG
            if cls.can_generate() and generation_file.exists():
                model.generation_config = FlaxGenerationConfig.from_dict(
                    read_config_dict(generation_file)
                )
        _check_parameters(weights, cls.__name__, name, ignore_mismatched_sizes, _do_init)
        flat = dict(weights.values)
        device = None if _do_init else jax.local_devices(backend="cpu")[0]
        for leaf_path in flat:  # one at a time, to free the host's copy of each at once
            flat[leaf_path] = jax.device_put(weights.values.pop(leaf_path), device)
        if weights.mismatched and not _do_init:
            initial = traverse_util.flatten_dict(model.init_weights(model.key))
            flat |= {leaf_path: initial[leaf_path] for leaf_path in weights.mismatched}
        params = traverse_util.unflatten_dict(flat)
        if not _do_init:
            return model, params
        if weights.missing or weights.mismatched:
            params = model.init_weights(model.key, params=params)
        model._is_initialized = True
        model.params = params
        return model

    @classmethod
    def _config_from_dict(
        cls, config_dict: dict[str, Any], kwargs: dict[str, Any], source: os.PathLike
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the config with the attributes that `kwargs` names, and the other `kwargs`."""
        try:
            config_class = CONFIG_CLASSES.get(config_dict.get("model_type"), cls.config_class)
            config, unused = config_class.from_dict(
                config_dict, return_unused_kwargs=True, **kwargs
            )
            to_roberta_config(config)  # checks the fields, while the file is known
            return config, unused
        except (TypeError, ValueError) as error:
            raise UsageError(f"cannot use the config of {source}: {error}") from error

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raises UsageError: nothing is uploaded; use `hf upload`."""
        hub.check_no_upload("FOLDER", True, (), "push_to_hub")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        params: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "10GB",
        token: str | bool | None = None,
        safe_serialization: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes `config.json` and the weights into a folder. Its other files stay.

        A class that can generate also writes `generation_config.json`.

        Args:
          save_directory: The folder; created if it does not exist.
          params: The parameters to save; the model's own if None.
          push_to_hub: Not supported; use `hf upload`.
          max_shard_size: Size above which `flax_model.msgpack` is split into shards, in bytes or
            as a string such as "200MB".
          token: Ignored, since nothing is uploaded.
          safe_serialization: Whether to write `model.safetensors`, which transformers' PyTorch and
            Flax classes both read, instead of `flax_model.msgpack`.
          kwargs: Further arguments of an upload (`repo_id`, `commit_message`, ...), which have no
            effect.

        Raises:
          UsageError: The path is a file, or the parameters are not the model's.
        """
        hub.check_no_upload(save_directory, push_to_hub, kwargs, "save_pretrained")
        config = self._config
        settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config.to_dict()
        settings = hub.without_loading_keywords(settings)
        settings |= {"architectures": [_architecture(type(self), config)]}
        json_files = {CONFIG_NAME: settings}
        if self.can_generate():
            json_files = {
                GENERATION_CONFIG: self.generation_config.to_dict(),
                CONFIG_NAME: settings,
            }
        saving.write_model_folder(
            save_directory,
            self.params_shape_tree,
            flax.core.unfreeze(self.params if params is None else params),
            json_files,
            safe_serialization=safe_serialization,
            max_shard_size=max_shard_size,
        )


# The beginning of transformers' class names, by `model_type`.
_CLASS_PREFIXES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def _architecture(model_class: type, config: Any) -> str:
    """Returns transformers' name of the class whose PyTorch version has a model's parameters."""
    name = model_class.__name__.removeprefix("Flax")
    prefix = _CLASS_PREFIXES.get(getattr(config, "model_type", None))
    return re.sub("^(XLM)?Roberta", prefix, name) if prefix else name


def _check_parameters(
    weights: loading.ParameterFiles,
    class_name: str,
    name: str,
    ignore_mismatched_sizes: bool,
    do_init: bool,
) -> None:
    """Raises an error if the files' parameters do not fit; warns of unused and missing ones."""
    if weights.unused:
        logger.warning("%s does not use %s of %s", class_name, listed(weights.unused), name)
    if weights.mismatched and not ignore_mismatched_sizes:
        mismatches = [
            f"{'/'.join(path)} ({stored_shape}, not {model_shape})"
            for path, (stored_shape, model_shape) in weights.mismatched.items()
        ]
        raise UsageError(
            f"{name} has parameters of another shape than {class_name} with this config: "
            f"{listed(mismatches)}; pass ignore_mismatched_sizes=True to initialize them at random"
        )
    missing_in_encoder = [path for path in weights.missing if loading.is_encoder(path)]
    if missing_in_encoder and do_init:
        names = sorted("/".join(path) for path in missing_in_encoder)
        raise UsageError(
            f"{name} lacks parameters of the encoder: {listed(names)}; pass _do_init=False to load "
            "the others without them"
        )
    not_loaded = {*weights.missing, *weights.mismatched}
    if not_loaded:
        logger.warning(
            "%s of %s are not in %s%s and %s: train the model before using it",
            listed(sorted("/".join(path) for path in not_loaded)),
            class_name,
            name,
            ", or the shapes did not match," if weights.mismatched else "",
            "are initialized at random" if do_init else "must be initialized with init_weights",
        )
