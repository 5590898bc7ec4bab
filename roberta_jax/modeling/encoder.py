"""The stack of transformer blocks, either scanned over stacked parameters or unrolled.

Array names carry their shape: B batch, L length, S length of the cross-attention's keys, D hidden
width, H heads.
"""

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
    """The unrolled blocks, named "0", "1", …; called like the scanned block."""

    config: RobertaConfig
    execution: Execution
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BLD, bias, head_masks, *others):
        outputs = []
        for i in range(self.config.num_hidden_layers):
            head_mask = None if head_masks is None else head_masks[i]
            block = self.block(self.config, self.execution, name=str(i))
            x_BLD, block_outputs = block(x_BLD, bias, head_mask, *others)
            outputs.append(block_outputs)
        return x_BLD, tuple(zip(*outputs, strict=True))


class Encoder(nn.Module):
    """All blocks. Their parameters are under `layer`; see `Execution.scan_layers` for the names."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: jax.Array | None,
        head_mask: jax.Array | None,
        encoder_states_BSD: jax.Array | None,
        encoder_mask: jax.Array | None,
        deterministic: bool,
        init_cache: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> ModelOutput:
        """Runs the blocks.

        Args:
          x_BLD: the embedded tokens.
          mask: bool, broadcastable to [B, H, L, L], True where a query may attend to a key; or None
            for no mask.
          head_mask: [H] or [layers, H] factors on each head's attention probabilities, or None.
          encoder_states_BSD: the hidden states that the cross-attention attends to, or None.
          encoder_mask: bool, broadcastable to [B, H, L, S], True where a query may attend to them;
            or None for no mask.
          deterministic: True turns dropout off.
          init_cache: create the cache. Its size is the length of this input.
          output_hidden_states: return the embeddings and every block's output, layers + 1 arrays.
          output_attentions: return every block's [B, H, L, L] attention probabilities.

        Raises:
          ValueError: `head_mask` has the wrong shape.
        """
        config, execution = self.config, self.execution
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        if head_mask is not None:
            if head_mask.shape not in ((heads,), (layers, heads)):
                raise shape_error(
                    "head_mask", head_mask.shape, f"({heads},) or ({layers}, {heads})"
                )
            head_mask = jnp.broadcast_to(head_mask, (layers, heads))

        block = Block
        if execution.remat != "none":
            block = nn.remat(
                Block,
                # A scan already keeps XLA from merging the recomputation with the forward pass.
                prevent_cse=not execution.scan_layers,
                policy=REMAT_POLICIES[execution.remat],
                static_argnums=(6, 7, 8, 9),  # the bool arguments; self is 0
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
        last_hidden_state, (hidden_states, attentions, cross_attentions) = stack(
            x_BLD,
            mask_to_bias(mask),
            head_mask,
            encoder_states_BSD,
            mask_to_bias(encoder_mask),
            deterministic,
            init_cache,
            output_hidden_states,
            output_attentions,
        )
        has_cross_attention = config.add_cross_attention and encoder_states_BSD is not None
        return ModelOutput(
            last_hidden_state,
            None,
            (x_BLD, *hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
            tuple(cross_attentions) if output_attentions and has_cross_attention else None,
        )
