"""The base of the drop-in classes: construction, parameters, calls and casts.

Array names carry their shape: B batch, L tokens of an input, S tokens of the encoder's input, D
hidden size.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util

from roberta_jax.compat.config import RobertaConfig, to_mutable_config, to_roberta_config
from roberta_jax.compat.generation_config import FlaxGenerationConfig
from roberta_jax.compat.outputs import FlaxGenerateOutput, FlaxLogitsOutput, FlaxOutput
from roberta_jax.compat.pretrained import FlaxPretrainedMixin
from roberta_jax.errors import listed
from roberta_jax.modeling import generation
from roberta_jax.modeling.execution import Execution
from roberta_jax.storage import hub
from roberta_jax.weights.parameters import parameter_values

Params = Mapping[str, Any]


class FlaxRobertaPreTrainedModel(FlaxPretrainedMixin):
    """The base class: a config, a linen module and its parameters.

    Create one of its subclasses, which set `module_class` and `output_class`.

    Attributes:
      config: The config that was passed; for a frozen `modeling.config.RobertaConfig`, a
        `RobertaConfig` with its values.
      module: The linen module.
      params: The parameters, a nested dictionary in transformers' tree. It can be set to a tree
        that has all of `required_params`. With `_do_init=False` the model holds no parameters;
        pass them to each call.
      params_shape_tree: The tree of the parameters' shapes and dtypes.
      required_params: The set of the parameters' paths.
      key, seed, input_shape, dtype: The values passed to the constructor.
      generation_config: Default options of `generate`; None if the class cannot generate.

    Args:
      config: A config of this package or of transformers.
      input_shape: Stored only; parameters do not depend on it.
      seed: Seed of the initial parameters.
      dtype: The dtype of the computation. Parameters are float32 until they are cast (`to_bf16`).
      _do_init: Whether to initialize parameters.
      gradient_checkpointing: Whether the backward pass recomputes the activations of each layer.

    Raises:
      TypeError: `config` is not a config, or this class was instantiated itself.
      ValueError: The config is not a valid RoBERTa config.
    """

    config_class: type[RobertaConfig] = RobertaConfig
    base_model_prefix = "roberta"
    main_input_name = "input_ids"
    module_class: type | None = None
    output_class: type[FlaxOutput] = FlaxLogitsOutput

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
    ):
        if self.module_class is None:
            raise TypeError(
                f"{type(self).__name__} is an abstract base class; create one of its subclasses, "
                "such as FlaxRobertaForMaskedLM"
            )
        self._config = to_mutable_config(config, self.config_class)
        self.input_shape = input_shape
        self.seed = seed
        self.key = jax.random.PRNGKey(seed)
        self.dtype = dtype
        self._module = self._build_module(gradient_checkpointing)
        self.generation_config = self._initial_generation_config = None
        if self.can_generate():
            self.generation_config = FlaxGenerationConfig.from_model_config(self._config)
            self._initial_generation_config = dataclasses.replace(self.generation_config)
        self._is_initialized = _do_init
        self._params_shape_tree = jax.eval_shape(
            lambda key: _init_params(self._module, key), self.key
        )
        self._required_params = set(traverse_util.flatten_dict(self._params_shape_tree))
        if _do_init:
            self._params = self.init_weights(self.key, input_shape)

    def _build_module(self, gradient_checkpointing: bool) -> Any:
        execution = Execution(
            dtype=self.dtype,
            scan_layers=False,
            remat="full" if gradient_checkpointing else "none",
        )
        return self.module_class(to_roberta_config(self._config), execution)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> "FlaxRobertaPreTrainedModel":
        return cls.from_config(config, **kwargs)

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> "FlaxRobertaPreTrainedModel":
        """Creates a model with random parameters.

        Args:
          config: A config.
          kwargs: Arguments of the class; keywords about loading (`trust_remote_code`) have no
            effect.
        """
        return cls(config, **hub.without_loading_keywords(kwargs))

    @property
    def config(self) -> Any:
        return self._config

    @property
    def module(self) -> Any:
        return self._module

    @property
    def framework(self) -> str:
        return "flax"

    @property
    def params_shape_tree(self) -> dict[str, Any]:
        return self._params_shape_tree

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        return self._required_params

    @property
    def params(self) -> dict[str, Any]:
        self._check_holds_params("has no params")
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._check_holds_params("cannot hold params")
        params = flax.core.unfreeze(params)
        missing = self.required_params - set(traverse_util.flatten_dict(params))
        if missing:
            names = sorted("/".join(path) for path in missing)
            raise ValueError(
                f"params lacks {listed(names)}; it must have every path of model.required_params"
            )
        self._params = params

    def _check_holds_params(self, problem: str) -> None:
        if not self._is_initialized:
            raise ValueError(
                f"a model created with _do_init=False {problem}: create them with init_weights or "
                "from_pretrained, and pass them to each call as params=..."
            )

    def init_weights(
        self, rng: jax.Array, input_shape: tuple[int, ...] = (1, 1), params: Params | None = None
    ) -> dict[str, Any]:
        """Returns random initial parameters, or `params` completed with them.

        Args:
          rng: A JAX key.
          input_shape: Ignored; parameters do not depend on it.
          params: A tree that may lack parameters, as `from_pretrained(..., _do_init=False)`
            returns it.
        """
        initial = _init_params(self._module, rng)
        if params is None:
            return initial
        flat = traverse_util.flatten_dict(initial)
        given = traverse_util.flatten_dict(flax.core.unfreeze(params))
        return traverse_util.unflatten_dict(flat | given)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        head_mask: jax.Array | None = None,
        encoder_hidden_states: jax.Array | None = None,
        encoder_attention_mask: jax.Array | None = None,
        params: Params | None = None,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Params | None = None,
    ) -> FlaxOutput | tuple[Any, ...]:
        """Computes the outputs. A pure function, which can be jitted and differentiated.

        Args:
          input_ids: int [B, L]. For multiple choice, this and the next three arguments are
            [B, choices, L].
          attention_mask: int [B, L], 0 at tokens that are not attended to. With a cache it has the
            cache's length instead of L.
          token_type_ids: int [B, L]; zeros if None.
          position_ids: int [B, L]; if None, tokens that are not padding are counted from
            `pad_token_id + 1`.
          head_mask: [layers, heads], factors of each head's attention probabilities.
          encoder_hidden_states: [B, S, D], for a decoder with cross-attention.
          encoder_attention_mask: int [B, S].
          params: The parameters; the model's own if None.
          dropout_rng: A JAX key; required for dropout, that is with `train=True`.
          train: Whether to apply dropout.
          output_attentions, output_hidden_states: Whether to return these; the config's value if
            None.
          return_dict: Whether to return an object rather than a tuple; the config's value if None.
          past_key_values: The cache, from `init_cache` or from the previous call.

        Raises:
          ValueError: The shapes do not match each other or the config, or the input is longer than
            the position table.
        """
        has_cache = bool(past_key_values)
        variables = {"params": params or self.params}
        if has_cache:
            variables["cache"] = past_key_values
        output = self._module.apply(
            variables,
            _as_int32(input_ids),
            _as_int32(attention_mask),
            _as_int32(token_type_ids),
            _as_int32(position_ids),
            head_mask=None if head_mask is None else jnp.asarray(head_mask),
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=_as_int32(encoder_attention_mask),
            deterministic=not train,
            output_attentions=self._flag("output_attentions", output_attentions),
            output_hidden_states=self._flag("output_hidden_states", output_hidden_states),
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
            mutable=["cache"] if has_cache else False,
        )
        cache = None
        if has_cache:
            output, updated = output
            cache = flax.core.unfreeze(updated["cache"])
        names = self.output_class.__dataclass_fields__
        flax_output = self.output_class(**{name: getattr(output, name, None) for name in names})
        if self._flag("return_dict", return_dict):
            return flax_output.replace(past_key_values=cache) if has_cache else flax_output
        values = flax_output.to_tuple()
        return (values[0], cache, *values[1:]) if has_cache else values

    def _flag(self, name: str, value: bool | None) -> bool:
        """Returns a flag of the call, or the config's if it is None."""
        if value is not None:
            return value
        return bool(getattr(self._config, name, name == "return_dict"))

    def enable_gradient_checkpointing(self) -> None:
        """Makes the backward pass recompute the activations of each layer, which saves memory."""
        self._module = self._build_module(True)

    def init_cache(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """Returns an empty cache for `past_key_values`; see `modeling.generation.init_cache`."""
        return generation.init_cache(self._module, batch_size, max_length)

    def to_bf16(self, params: Params, mask: Any = None) -> Params:
        """Returns the floating-point parameters cast to bfloat16.

        The model's own parameters do not change; set them with
        `model.params = model.to_bf16(model.params)`.

        Args:
          params: The parameters.
          mask: A tree of bools like `params`; only parameters where it is True are cast.
        """
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Params:
        """Like `to_bf16`, with float16."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Params:
        """Like `to_bf16`, with float32."""
        return _cast(params, jnp.float32, mask)

    @classmethod
    def can_generate(cls) -> bool:
        """Returns whether the class implements `generate`."""
        return False

    def generate(self, *args: Any, **kwargs: Any) -> FlaxGenerateOutput:
        """Raises TypeError: only `FlaxRobertaForCausalLM` generates."""
        raise TypeError(
            f"{type(self).__name__} cannot generate, since it has no next-token head; "
            "use FlaxRobertaForCausalLM"
        )


@functools.partial(jax.jit, static_argnums=0)
def _init_params(module, key):
    return parameter_values(module, jax.random.split(key)[0])


def _as_int32(value):
    return None if value is None else jnp.asarray(value, jnp.int32)


def _cast(params, dtype, mask):
    def cast(x, selected=True):
        return x.astype(dtype) if selected and jnp.issubdtype(x.dtype, jnp.floating) else x

    if mask is None:
        return jax.tree.map(cast, params)
    return jax.tree.map(cast, flax.core.unfreeze(params), flax.core.unfreeze(mask))
