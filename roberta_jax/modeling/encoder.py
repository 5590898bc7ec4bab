"""The stack of blocks, scanned over stacked parameters or one module each."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.modeling.attention import mask_to_bias
from roberta_jax.modeling.config import REMAT_POLICIES, Execution, RobertaConfig
from roberta_jax.modeling.layers import Block, shape_error


class Layers(nn.Module):
    """The blocks under the names "0", "1", …"""

    config: RobertaConfig
    execution: Execution
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BLD, bias, head_masks, *flags):
        kept = []
        for i in range(self.config.num_hidden_layers):
            head_mask = None if head_masks is None else head_masks[i]
            block = self.block(self.config, self.execution, name=str(i))
            x_BLD, outputs = block(x_BLD, bias, head_mask, *flags)
            kept.append(outputs)
        hidden_states, attentions = zip(*kept, strict=True)
        return x_BLD, (hidden_states, attentions)


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
        deterministic: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> tuple[jax.Array, tuple[jax.Array, ...] | None, tuple[jax.Array, ...] | None]:
        """Runs the blocks.

        Args:
          x_BLD: embedded tokens.
          mask: bool, broadcastable to [B, H, L, L], True where a query may see a key; or None.
          head_mask: [H], or [layers, H]: factors on each head's attention probabilities; or None.
          deterministic: no dropout.
          output_hidden_states: keep the input and every block's output, layers + 1 arrays.
          output_attentions: keep every block's [B, H, L, L] attention probabilities.

        Returns:
          (last hidden state, hidden states or None, attentions or None).
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
                static_argnums=(4, 5, 6),  # the flags; self is 0
            )
        if execution.scan_layers:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=layers,
                unroll=execution.scan_unroll,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config, execution, name="layer")
        else:
            stack = Layers(config, execution, block, name="layer")
        last, (hidden_states, attentions) = stack(
            x_BLD,
            mask_to_bias(mask),
            head_mask,
            deterministic,
            output_hidden_states,
            output_attentions,
        )
        return (
            last,
            (x_BLD, *hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )
