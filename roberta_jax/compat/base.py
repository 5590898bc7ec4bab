"""What the drop-in classes share: made from a config, called, cast (see `flax_classes`).

Array names carry their shape: B inputs, L tokens an input, S tokens of the other model's input, D
hidden width.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util

from roberta_jax.compat.config import FlaxRobertaConfig, as_config, shape_of
from roberta_jax.compat.generation import FlaxGenerationConfig
from roberta_jax.compat.outputs import FlaxGenerateOutput, FlaxLogitsOutput, FlaxOutput
from roberta_jax.compat.pretrained import FlaxSaved
from roberta_jax.errors import listed
from roberta_jax.modeling import generation
from roberta_jax.modeling.config import Execution
from roberta_jax.weights.save import parameter_values

Params = Mapping[str, Any]


class FlaxRobertaPreTrainedModel(FlaxSaved):
    """What the classes share: a config, a module and its parameters, loaded, saved and called.

    Attributes:
      config: The object that the model was made with, or, for this package's frozen
        `RobertaConfig`, a `FlaxRobertaConfig` of it.
      module: The linen module.
      params: Its parameters, a nested dictionary in transformers' tree; may be set to another one
        with the same leaves. With `_do_init=False` there are none: keep them yourself.
      params_shape_tree: The tree of their shapes and types.
      required_params: The set of their paths.
      key, seed, input_shape, dtype: What the model was made with.

    Args:
      config: A config of this package or of transformers.
      input_shape: Kept; the parameters do not depend on it.
      seed: Of the initial parameters.
      dtype: What to compute in. Parameters are float32 until cast (`to_bf16`).
      _do_init: False draws no parameters.
      gradient_checkpointing: Whether the backward pass computes each block again.
    """

    config_class = FlaxRobertaConfig
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
            raise TypeError(f"{type(self).__name__} has no module; make one of its subclasses")
        self._config = as_config(config)
        self.input_shape = input_shape
        self.seed = seed
        self.key = jax.random.PRNGKey(seed)
        self.dtype = dtype
        self._module = self._make_module(gradient_checkpointing)
        self.generation_config = self._generation_default = None
        if self.can_generate():
            self.generation_config = FlaxGenerationConfig.from_model_config(self._config)
            self._generation_default = FlaxGenerationConfig(**vars(self.generation_config))
        self._is_initialized = _do_init
        self._params_shape_tree = jax.eval_shape(lambda key: _draw(self._module, key), self.key)
        self._required_params = set(traverse_util.flatten_dict(self._params_shape_tree))
        if _do_init:
            self._params = self.init_weights(self.key, input_shape)

    def _read_generation(self, values: Mapping[str, Any]) -> None:
        """Takes the options of a `generation_config.json`."""
        for name in FlaxGenerationConfig.names():
            if values.get(name) is not None:
                setattr(self.generation_config, name, values[name])

    def _make_module(self, gradient_checkpointing: bool) -> Any:
        execution = Execution(
            dtype=self.dtype,
            scan_layers=False,
            remat="full" if gradient_checkpointing else "none",
        )
        return self.module_class(shape_of(self._config), execution)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> "FlaxRobertaPreTrainedModel":
        return cls(config, **kwargs)

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> "FlaxRobertaPreTrainedModel":
        """A model of this config, with random parameters; see the class for the arguments."""
        return cls(config, **kwargs)

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
        self._need_params("has no params")
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._need_params("keeps no params")
        params = flax.core.unfreeze(params)
        missing = self.required_params - set(traverse_util.flatten_dict(params))
        if missing:
            names = sorted("/".join(path) for path in missing)
            raise ValueError(f"these params lack {listed(names)}; pass the model's whole tree")
        self._params = params

    def _need_params(self, what: str) -> None:
        if not self._is_initialized:
            raise ValueError(
                f"a model made with _do_init=False {what}: get them from init_weights or from "
                "from_pretrained, and pass them to each call as params=…"
            )

    def init_weights(
        self, rng: jax.Array, input_shape: tuple[int, ...] = (1, 1), params: Params | None = None
    ) -> dict[str, Any]:
        """Draws parameters, or those alone that `params`, as they were loaded, lack.

        Args:
          rng: A JAX key.
          input_shape: Not read; the parameters do not depend on it.
          params: What `from_pretrained(…, _do_init=False)` gave.
        """
        drawn = _draw(self._module, rng)
        if params is None:
            return drawn
        flat = traverse_util.flatten_dict(drawn)
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
        """Computes outputs; pure, so that it may be jitted and differentiated.

        Args:
          input_ids: int [B, L]; for multiple choice [B, choices, L], as the next three.
          attention_mask: int [B, L], 0 where nothing may look. With a cache as long as the cache.
          token_type_ids: int [B, L]; zeros if None.
          position_ids: int [B, L]; if None, they count the tokens from `pad_token_id + 1`.
          head_mask: [layers, heads] factors of the heads.
          encoder_hidden_states: [B, S, D], for a decoder with cross-attention.
          encoder_attention_mask: int [B, S].
          params: Parameters; the model's own if None.
          dropout_rng: A JAX key, needed with `train`.
          train: Whether there is dropout.
          output_attentions, output_hidden_states, return_dict: What to return, and whether as an
            object rather than a tuple; None asks the config.
          past_key_values: The cache, from `init_cache` or from the call before.

        Raises:
          ValueError: Inputs do not fit each other or the config, or are too long.
        """
        cached = bool(past_key_values)
        variables = {"params": params or self.params}
        if cached:
            variables["cache"] = past_key_values
        output = self._module.apply(
            variables,
            _ids(input_ids),
            _ids(attention_mask),
            _ids(token_type_ids),
            _ids(position_ids),
            head_mask=None if head_mask is None else jnp.asarray(head_mask),
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=_ids(encoder_attention_mask),
            deterministic=not train,
            output_attentions=self._default("output_attentions", output_attentions),
            output_hidden_states=self._default("output_hidden_states", output_hidden_states),
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
            mutable=["cache"] if cached else False,
        )
        cache = None
        if cached:
            output, updated = output
            cache = flax.core.unfreeze(updated["cache"])
        names = self.output_class.__dataclass_fields__
        found = self.output_class(**{name: getattr(output, name, None) for name in names})
        if self._default("return_dict", return_dict):
            return found.replace(past_key_values=cache) if cached else found
        values = found.to_tuple()
        return (values[0], cache, *values[1:]) if cached else values

    def _default(self, name: str, value: bool | None) -> bool:
        if value is not None:
            return value
        return bool(getattr(self._config, name, name == "return_dict"))

    def enable_gradient_checkpointing(self) -> None:
        """Has the backward pass compute each block again instead of keeping what is inside."""
        self._module = self._make_module(True)

    def init_cache(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """An empty cache for `past_key_values`; see `modeling.generation.init_cache`."""
        return generation.init_cache(self._module, batch_size, max_length)

    def to_bf16(self, params: Params, mask: Any = None) -> Params:
        """The parameters in bfloat16; with a mask, a tree of bools, those alone where it is True.

        The model's own parameters do not change: `model.params = model.to_bf16(model.params)`.
        """
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Params:
        """As `to_bf16`, in float16."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Params:
        """As `to_bf16`, in float32."""
        return _cast(params, jnp.float32, mask)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has `generate`."""
        return False

    def generate(self, *args: Any, **kwargs: Any) -> FlaxGenerateOutput:
        """Only `FlaxRobertaForCausalLM` generates."""
        raise TypeError(
            f"{type(self).__name__} cannot generate: it has no head that predicts the next token; "
            "use FlaxRobertaForCausalLM"
        )


@functools.partial(jax.jit, static_argnums=0)
def _draw(module, key):
    return parameter_values(module, jax.random.split(key)[0])


def _ids(value):
    return None if value is None else jnp.asarray(value, jnp.int32)


def _cast(params, dtype, mask):
    def cast(x, chosen=True):
        return x.astype(dtype) if chosen and jnp.issubdtype(x.dtype, jnp.floating) else x

    if mask is None:
        return jax.tree.map(cast, params)
    return jax.tree.map(cast, flax.core.unfreeze(params), flax.core.unfreeze(mask))
