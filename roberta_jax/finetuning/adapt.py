"""What is trained, and how fast: the options `adapt.*` of a fine-tuning run.

A run without these options trains all parameters at one rate, with the very model and optimizer
that it has without this module. With them,

    model = adapted_model(plain_model, adaptation)
    optimizer = adapted_optimizer(plain_optimizer, adaptation, config)
    params = adapted_params(loaded.params, adaptation, plain_model, seed)

are used in place of the plain ones, for training and evaluation. `plain_params` gives what the
plain model takes and the formats of `weights` hold.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import traverse_util

from roberta_jax.errors import UsageError, counted, spelled
from roberta_jax.finetuning import lora
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.training.parameter_rates import (
    Factors,
    count_trained,
    layerwise_factors,
    scale_rates,
    stop_frozen,
)
from roberta_jax.training.state import count_parameters
from roberta_jax.weights.adapters import LORA, MODULES, adapted_modules
from roberta_jax.weights.names import stack_layers
from roberta_jax.weights.parameters import parameter_values


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Which parameters are trained, and at which rates.

    Attributes:
      layer_decay: factor of the learning rate from one layer to the one below it; 1 gives all the
        same. `training.parameter_rates` defines it exactly.
      reinit_layers: how many layers, from the top, start from random values, together with the
        pooler if the model has one (Zhang et al. 2021, "Revisiting few-sample BERT fine-tuning").
      frozen_layers: how many layers, from the bottom, are not trained; nor are the embeddings if
        there is one. In a model whose layers are not stacked (`Execution.scan_layers`), the
        backward pass ends above them.
      freeze_embeddings: whether the embeddings are not trained, also without frozen layers.
      lora_rank: rank of the LoRA adapters; 0 for none. With them, the adapters and the task's head
        are all that is trained, so that the options above cannot be used.
      lora_alpha: the adapters' product is scaled by alpha / rank.
      lora_targets: modules that have adapters, by peft's names: "query", "key", "value", "dense",
        or longer ends of the names in `weights.adapters.MODULES`.

    Raises:
      UsageError: a value is out of its range, or two options exclude each other.
    """

    layer_decay: float = 1.0
    reinit_layers: int = 0
    frozen_layers: int = 0
    freeze_embeddings: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        for name in ("reinit_layers", "frozen_layers", "lora_rank"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UsageError(f"{_key(name, value)} must be a whole number of at least 0.")
        if not isinstance(self.freeze_embeddings, bool):
            value = self.freeze_embeddings
            raise UsageError(f"{_key('freeze_embeddings', value)} must be true or false.")
        if not _is_number(self.layer_decay) or not 0 < self.layer_decay <= 1:
            raise UsageError(
                f"{_key('layer_decay', self.layer_decay)} must be above 0 and at most 1; 1 gives "
                "all layers the same learning rate."
            )
        if not _is_number(self.lora_alpha) or not 0 < self.lora_alpha < math.inf:
            raise UsageError(f"{_key('lora_alpha', self.lora_alpha)} must be a positive number.")
        self._check_targets()
        self._check_combination()

    def _check_targets(self) -> None:
        targets = self.lora_targets
        if isinstance(targets, str) or not targets:
            raise UsageError(
                f"{_key('lora_targets', targets)} must be a list of at least one module, such as "
                "--config.adapt.lora_targets=\"('query','value')\"."
            )
        for target in targets:
            if not isinstance(target, str) or not adapted_modules([target]):
                raise UsageError(
                    f"--config.adapt.lora_targets: {target!r} is not a module of a layer. Use "
                    f"names such as query, value or dense, which are ends of {', '.join(MODULES)}."
                )
        object.__setattr__(self, "lora_targets", tuple(targets))

    def _check_combination(self) -> None:
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_targets"):
                if getattr(self, name) != getattr(Adaptation, name):
                    raise UsageError(
                        f"--config.adapt.{name} has no effect without LoRA: set the rank too, such "
                        "as --config.adapt.lora_rank=8, or leave it out."
                    )
            return
        for name in ("layer_decay", "reinit_layers", "frozen_layers", "freeze_embeddings"):
            value = getattr(self, name)
            if value != getattr(Adaptation, name):
                raise UsageError(
                    f"{_key(name, value)} cannot be combined with "
                    f"{_key('lora_rank', self.lora_rank)}: with LoRA the encoder keeps its weights "
                    "and only adapters and head are trained. Leave one of them out."
                )

    def check_model(self, config: RobertaConfig) -> None:
        """Checks that the options fit a model.

        Raises:
          UsageError: the model has too few layers, or a smaller width than the rank.
        """
        layers = config.num_hidden_layers
        for name in ("reinit_layers", "frozen_layers"):
            if getattr(self, name) > layers:
                raise UsageError(
                    f"{_key(name, getattr(self, name))} is more than the "
                    f"{counted(layers, 'layer')} of the model: use at most {layers}."
                )
        if self.reinit_layers + self.frozen_layers > layers:
            raise UsageError(
                f"{_key('reinit_layers', self.reinit_layers)} and "
                f"{_key('frozen_layers', self.frozen_layers)} overlap in a model of "
                f"{counted(layers, 'layer')}: layers with random weights would not be trained. "
                f"Use at most {layers} together."
            )
        if self.lora_rank > config.hidden_size:
            raise UsageError(
                f"{_key('lora_rank', self.lora_rank)} is more than the model's hidden size, "
                f"{config.hidden_size}. Ranks from 4 to 64 are usual."
            )

    def factors(self, num_layers: int) -> Factors | None:
        """The factors of the learning rate, or None if all are 1."""
        if self.lora_rank:
            return lora.factors()
        if self.layer_decay == 1 and not self.frozen_layers and not self.freeze_embeddings:
            return None
        return layerwise_factors(
            num_layers,
            decay=self.layer_decay,
            frozen_layers=self.frozen_layers,
            freeze_embeddings=self.freeze_embeddings or self.frozen_layers > 0,
        )


@dataclasses.dataclass(frozen=True)
class AdaptedModel:
    """A model whose frozen parameters get no gradient and whose kernels have adapters.

    It is used as the module is: `init`, `apply`, `count`, `config` and `execution`.

    Attributes:
      model: the module.
      adaptation: what is trained.
    """

    model: nn.Module
    adaptation: Adaptation

    @property
    def config(self) -> RobertaConfig:
        return self.model.config

    @property
    def execution(self) -> Any:
        return self.model.execution

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the module's, with the initial adapter. All arrays are boxed with their axes."""
        variables = self.model.init(rngs, *args, **kwargs)
        key = rngs["params"] if isinstance(rngs, Mapping) else rngs
        return {**variables, "params": self._with_adapter(variables["params"], key)}

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the module's. `variables["params"]` holds the adapter too."""
        params = variables["params"]
        factors = self.adaptation.factors(self.config.num_hidden_layers)
        if factors is not None:
            params = stop_frozen(params, factors)
        params = plain_params(params, self.adaptation)
        return self.model.apply({**variables, "params": params}, *args, **kwargs)

    def count(self, **batch: Any) -> dict[str, jax.Array]:
        """As the module's."""
        return self.model.count(**batch)

    def _with_adapter(self, params: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        adaptation = self.adaptation
        if not adaptation.lora_rank:
            return dict(params)
        key = jax.random.fold_in(key, zlib.crc32(LORA.encode()))
        adapter = lora.initial_adapter(params, adaptation.lora_rank, adaptation.lora_targets, key)
        return {**params, LORA: adapter}


def adapted_model(model: nn.Module, adaptation: Adaptation) -> "nn.Module | AdaptedModel":
    """Returns the model to train and to evaluate: the module itself if all of it is trained.

    Raises:
      UsageError: the options do not fit the model.
    """
    adaptation.check_model(model.config)
    if _stops_gradients(adaptation):
        return AdaptedModel(model, adaptation)
    return model


def adapted_optimizer(
    optimizer: optax.GradientTransformation, adaptation: Adaptation, config: RobertaConfig
) -> optax.GradientTransformation:
    """Returns the optimizer for the adapted parameters: itself if all have the same rate.

    Raises:
      UsageError: the options do not fit the model.
    """
    adaptation.check_model(config)
    factors = adaptation.factors(config.num_hidden_layers)
    return optimizer if factors is None else scale_rates(optimizer, factors)


def adapted_params(
    params: Mapping[str, Any], adaptation: Adaptation, model: nn.Module, seed: int
) -> dict[str, Any]:
    """Returns the parameters to start from.

    Args:
      params: the model's, stacked or unstacked, on the host, as `weights.load.load_pretrained`
        returns them. They are not changed.
      adaptation: what is trained.
      model: the module that they belong to.
      seed: of the layers that start from random values and of the adapters. Stacked and unstacked
        models get the same values.

    Raises:
      UsageError: the options do not fit the model.
    """
    adaptation.check_model(model.config)
    key = jax.random.key(seed)
    if adaptation.reinit_layers:
        params = _with_new_layers(params, adaptation.reinit_layers, model, key)
    params = AdaptedModel(model, adaptation)._with_adapter(params, key)
    return jax.tree.map(np.asarray, params)


def plain_params(params: Mapping[str, Any], adaptation: Adaptation) -> dict[str, Any]:
    """Returns the parameters of the plain model, with which it computes what the adapted one does.

    Args:
      params: those of the adapted model, on devices or on the host; or of the plain model.
      adaptation: with which they were trained.
    """
    return lora.merge(params, adaptation.lora_alpha)


def describe(adaptation: Adaptation, params: Any, config: RobertaConfig) -> str:
    """Returns a sentence with the options and the numbers of trained and frozen parameters.

    Args:
      adaptation: what is trained.
      params: the parameters of the adapted model, or their shapes.
      config: the model's.
    """
    options = []
    if adaptation.lora_rank:
        targets = ", ".join(adaptation.lora_targets)
        alpha = f"{adaptation.lora_alpha:g}"
        options.append(f"LoRA of rank {adaptation.lora_rank} and alpha {alpha} on {targets}")
    if adaptation.layer_decay != 1:
        options.append(f"learning rate times {adaptation.layer_decay:g} from layer to layer")
    if adaptation.reinit_layers:
        options.append(f"top {counted(adaptation.reinit_layers, 'layer')} initialized randomly")
    if adaptation.frozen_layers:
        options.append(f"lowest {counted(adaptation.frozen_layers, 'layer')} and embeddings frozen")
    elif adaptation.freeze_embeddings:
        options.append("embeddings frozen")
    total = count_parameters(params)
    factors = adaptation.factors(config.num_hidden_layers)
    trained = total if factors is None else count_trained(params, factors)
    if trained == total:
        numbers = f"all {counted(total, 'parameter')} are trained"
    else:
        share = f"{100 * trained / total:.2g} %"
        numbers = f"{trained:,} of {counted(total, 'parameter')} ({share}) are trained, "
        numbers += f"{total - trained:,} are frozen"
    return "; ".join([*options, numbers])


def _with_new_layers(
    params: Mapping[str, Any], number: int, model: nn.Module, key: jax.Array
) -> dict[str, Any]:
    """Replaces the top layers and the pooler by values of the model's own initializers."""
    small = model.clone(
        config=model.config.replace(num_hidden_layers=number),
        execution=dataclasses.replace(model.execution, scan_layers=False),
    )

    @jax.jit  # computes only what is returned
    def initial_values(key):
        values = parameter_values(small, key)
        return {path: x for path, x in _flat(values).items() if _is_new(path)}

    values = traverse_util.unflatten_dict(initial_values(key))
    new = {path: np.asarray(x) for path, x in _flat(stack_layers(values)).items()}
    first = model.config.num_hidden_layers - number
    result = {}
    for path, array in _flat(params).items():
        place = _layer_of(path)
        if not _is_new(path):
            result[path] = array
        elif place is None:  # the pooler
            result[path] = new[path].astype(array.dtype)
        elif path[place].isdecimal():
            layer = int(path[place]) - first
            stacked = path[:place] + path[place + 1 :]
            result[path] = array if layer < 0 else new[stacked][layer].astype(array.dtype)
        else:
            result[path] = np.concatenate([array[:first], new[path].astype(array.dtype)])
    return traverse_util.unflatten_dict(result)


_flat = traverse_util.flatten_dict


def _layer_of(path: tuple[str, ...]) -> int | None:
    """Where a path has the number of the layer, or would have it if layers were not stacked."""
    return path.index("layer") + 1 if "layer" in path else None


def _is_new(path: tuple[str, ...]) -> bool:
    return "layer" in path or "pooler" in path


def _stops_gradients(adaptation: Adaptation) -> bool:
    return bool(adaptation.lora_rank or adaptation.frozen_layers or adaptation.freeze_embeddings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(name: str, value: Any) -> str:
    return f"--config.adapt.{name}={spelled(value)}"
