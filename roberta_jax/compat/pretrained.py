"""How the drop-in classes are loaded and saved (see `flax_classes`)."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util

from roberta_jax.compat import model_files
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.errors import UsageError, listed
from roberta_jax.storage import hub
from roberta_jax.weights.config_file import read_settings
from roberta_jax.weights.save import CONFIG

logger = logging.getLogger(__name__)


class FlaxSaved:
    """`from_pretrained` and `save_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        dtype: Any = jnp.float32,
        *model_args: Any,
        config: Any = None,
        ignore_mismatched_sizes: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        subfolder: str = "",
        _do_init: bool = True,
        from_pt: bool = False,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a model of any format that `interchange.weight_files` reads.

        Parameters of a head (and of cross-attention) that the files lack are drawn, and a warning
        lists them; of those of the encoder none may be missing. Types stay as they are stored.

        Args:
          pretrained_model_name_or_path: A folder, a weight file, or a hub id.
          dtype: What to compute in.
          model_args: Further positional arguments of the class.
          config: A config, or the path of one; `config.json` beside the weights if None.
          ignore_mismatched_sizes: Draw parameters anew that have another shape in the file, instead
            of refusing them.
          local_files_only: Take a hub id's files from the cache alone.
          token, revision: Of a hub id.
          subfolder: Where the model is.
          _do_init: False returns (model, params): the parameters as they are in the files, on the
            CPU, and no others; `model.init_weights(key, shape, params)` adds what they lack.
          from_pt: Not read: PyTorch's weights are recognised.
          cache_dir: Refused; set HF_HUB_CACHE.
          force_download: Not read: the hub is asked for newer files at each load.
          kwargs: Attributes of the config to change, if it comes from the files, and arguments of
            the class (`seed`, `gradient_checkpointing`).

        Raises:
          UsageError: There is no such model, or its files are not this class's and config's.
        """
        name = os.fspath(pretrained_model_name_or_path)
        if cache_dir is not None:
            raise UsageError(f"set the environment variable HF_HUB_CACHE={cache_dir} instead")
        for unread in ("resume_download", "proxies", "trust_remote_code", "adapter_kwargs"):
            kwargs.pop(unread, None)
        place = {"subfolder": subfolder, "token": token}
        place["revision"] = revision if hub.is_hub_id(name) and revision != "main" else None
        with model_files.model_files(name, local_files_only=local_files_only, **place) as files:
            folder = files.parent if files.is_file() else files
            if config is None:
                config = FlaxRobertaConfig(**model_files.settings_in(files))
                _apply_changes(config, kwargs)
            elif isinstance(config, str | os.PathLike):
                config = FlaxRobertaConfig.from_pretrained(config, token=token)
                _apply_changes(config, kwargs)
            model = cls(config, *model_args, dtype=dtype, _do_init=False, **kwargs)
            found = model_files.read_weights(files, model.params_shape_tree)
            if cls.can_generate() and (folder / model_files.GENERATION).exists():
                model._read_generation(read_settings(folder / model_files.GENERATION))
        if found.unused:
            logger.warning("%s does not use %s of %s", cls.__name__, listed(found.unused), name)
        if found.mismatched and not ignore_mismatched_sizes:
            wrong = [f"{'/'.join(p)} ({a}, not {b})" for p, (a, b) in found.mismatched.items()]
            raise UsageError(
                f"{name} has parameters of another shape than {cls.__name__} with this config: "
                f"{listed(wrong)}; pass ignore_mismatched_sizes=True to draw them anew"
            )
        new = {*found.missing, *found.mismatched}
        lost = [path for path in found.missing if model_files.is_encoder(path)]
        if lost and _do_init:
            names = sorted("/".join(path) for path in lost)
            raise UsageError(f"{name} lacks parameters of the encoder: {listed(names)}")
        if new:
            logger.warning(
                "%s of %s are not in %s%s and %s: train the model before using it",
                listed(sorted("/".join(path) for path in new)),
                cls.__name__,
                name,
                ", or the shapes did not match," if found.mismatched else "",
                "begin as random numbers" if _do_init else "have to come from init_weights",
            )
        flat = dict(found.values)
        device = None if _do_init else jax.local_devices(backend="cpu")[0]
        for path in flat:  # one after the other, so that the host's copy of each goes at once
            flat[path] = jax.device_put(found.values.pop(path), device)
        if found.mismatched and not _do_init:
            drawn = traverse_util.flatten_dict(model.init_weights(model.key))
            flat |= {path: drawn[path] for path in found.mismatched}
        params = traverse_util.unflatten_dict(flat)
        if not _do_init:
            return model, params
        model._is_initialized = True
        model.params = model.init_weights(model.key, params=params) if new else params
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        params: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "10GB",
        token: str | bool | None = None,
        safe_serialization: bool = False,
    ) -> None:
        """Writes `config.json` and the weights into a folder; other files in it stay.

        Args:
          save_directory: The folder.
          params: Other parameters than the model's own.
          push_to_hub: Refused; `hf upload` does it.
          max_shard_size: Bytes, or "200MB", above which `flax_model.msgpack` becomes shards.
          token: Not read without `push_to_hub`.
          safe_serialization: Write `model.safetensors`, in the form that transformers' PyTorch and
            Flax classes both read, instead of `flax_model.msgpack`.

        Raises:
          UsageError: The path is a file, or the parameters are not the model's.
        """
        if push_to_hub:
            raise UsageError(f"save first, then run: hf upload NAME {save_directory}")
        own = self._config
        settings = own.to_diff_dict() if hasattr(own, "to_diff_dict") else own.to_dict()
        files = {CONFIG: settings | {"architectures": [type(self).__name__.removeprefix("Flax")]}}
        if self.can_generate():
            files = {model_files.GENERATION: self.generation_config.to_dict()} | files
        model_files.write_folder(
            save_directory,
            self.params_shape_tree,
            flax.core.unfreeze(self.params if params is None else params),
            files,
            safe_serialization=safe_serialization,
            max_shard_size=max_shard_size,
        )


def _apply_changes(config: Any, kwargs: dict[str, Any]) -> None:
    """Moves to the config what it has an attribute for; the rest are the class's arguments."""
    for name in [name for name in kwargs if hasattr(config, name)]:
        setattr(config, name, kwargs.pop(name))
