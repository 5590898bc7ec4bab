"""The stack of blocks, scanned over stacked parameters or one module each."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.attention import mask_to_bias
from roberta_jax.modeling.block import Block
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import REMAT_POLICIES, Execution
from roberta_jax.modeling.inputs import shape_error
from roberta_jax.modeling.outputs import ModelOutput


class Layers(nn.Module):
    """The blocks under the names "0", "1", …"""

    config: RobertaConfig
    execution: Execution
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BLD, bias, head_masks, *others):
        kept = []
        for i in range(self.config.num_hidden_layers):
            head_mask = None if head_masks is None else head_masks[i]
            block = self.block(self.config, self.execution, name=str(i))
            x_BLD, outputs = block(x_BLD, bias, head_mask, *others)
            kept.append(outputs)
        return x_BLD, tuple(zip(*kept, strict=True))


class Encoder(nn.Module):
    """All blocks; parameters under `layer`, stacked or by number (see `Execution`)."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: jax.Array | None,
        head_mask: jax.Array | None,
        memory_BSD: jax.Array | None,
        memory_mask: jax.Array | None,
        deterministic: bool,
        init_cache: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> ModelOutput:
        """Runs the blocks.

        Args:
          x_BLD: embedded tokens.
          mask: bool, broadcastable to [B, H, L, L], True where a query may see a key; or None.
          head_mask: [H], or [layers, H]: factors on each head's attention probabilities; or None.
          memory_BSD: another model's hidden states for the cross-attention, or None.
          memory_mask: bool, broadcastable to [B, H, L, S], which of them may be seen; or None.
          deterministic: no dropout.
          init_cache: make the cache, as long as this input.
          output_hidden_states: keep the input and every block's output, layers + 1 arrays.
          output_attentions: keep every block's [B, H, L, L] attention probabilities.
        """
        config, execution = self.config, self.execution
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        if head_mask is not None:
            if head_mask.shape not in ((heads,), (layers, heads)):
                wanted = f"({heads},) or ({layers}, {heads})"
                raise shape_error("head_mask", head_mask.shape, wanted)
            head_mask = jnp.broadcast_to(head_mask, (layers, heads))

        block = Block
        if execution.remat != "none":
            # Inside a scan the loop's own structure keeps XLA from merging the two computations.
            block = nn.remat(
                Block,
                prevent_cse=not execution.scan_layers,
                policy=REMAT_POLICIES[execution.remat],
                static_argnums=(6, 7, 8, 9),  # the flags; self is 0
            )
        if execution.scan_layers:
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "cache": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0, *6 * [nn.broadcast]),
                length=layers,
                unroll=execution.scan_unroll,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config, execution, name="layer")
        else:
            stack = Layers(config, execution, block, name="layer")
        last, (hidden_states, attentions, crossed) = stack(
            x_BLD,
            mask_to_bias(mask),
            head_mask,
            memory_BSD,
            mask_to_bias(memory_mask),
            deterministic,
            init_cache,
            output_hidden_states,
            output_attentions,
        )
        has_memory = config.add_cross_attention and memory_BSD is not None
        return ModelOutput(
            last,
            None,
            (x_BLD, *hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
            tuple(crossed) if output_attentions and has_memory else None,
        )
