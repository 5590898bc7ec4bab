"""The stack of transformer blocks, either scanned over stacked parameters or unrolled.

Array names carry their shape: B batch, L length, S length of the cross-attention's keys, D hidden
width, H heads.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels import attention
from roberta_jax.kernels.masks import Mask, Segments, bias_of, mask_to_bias
from roberta_jax.modeling.block import Block
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import REMAT_POLICIES, Execution, has_loop
from roberta_jax.modeling.inputs import shape_error
from roberta_jax.modeling.outputs import ModelOutput


class UnrolledLayers(nn.Module):
    """The blocks one after the other, named "0", "1", …; called like the scanned block.

    With `first_only`, the last one computes its first token alone.
    """

    config: RobertaConfig
    execution: Execution
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BLD, mask, head_masks, *rest):
        *others, first_only = rest
        outputs = []
        for i in range(self.config.num_hidden_layers):
            head_mask = None if head_masks is None else head_masks[i]
            block = self.block(self.config, self.execution, name=str(i))
            is_last = i == self.config.num_hidden_layers - 1
            x_BLD, block_outputs = block(x_BLD, mask, head_mask, *others, first_only and is_last)
            outputs.append(block_outputs)
        return x_BLD, tuple(zip(*outputs, strict=True))


class LastLayerApart(nn.Module):
    """A scan over all blocks but the last one, which computes its first token alone.

    Called like the scanned block, with the parameters that `split_last` gives.
    """

    config: RobertaConfig
    execution: Execution
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BLD, mask, head_masks, *rest):
        *others, _ = rest
        num_others = self.config.num_hidden_layers - 1
        other_masks = last_mask = None
        if head_masks is not None:
            other_masks, last_mask = head_masks[:-1], head_masks[-1]
        if num_others:
            stack = scanned(self.block, num_others, self.execution.scan_unroll)
            stack = stack(self.config, self.execution, name="others")
            x_BLD, _ = stack(x_BLD, mask, other_masks, *others, False)
        last = self.block(self.config, self.execution, name="last")
        return last(x_BLD, mask, last_mask, *others, True)


def split_last(variables):
    """{"params": stacked blocks} as those of the last block and of the others."""
    # One primitive, whose gradient is a concatenation. That of two slices is a sum of two arrays
    # that are padded with zeros.
    params = nn.unbox(variables["params"])
    parts = jax.tree.map(lambda x: jax.lax.split(x, (x.shape[0] - 1, 1)), params)
    others, last = jax.tree.transpose(jax.tree.structure(params), None, parts)
    return {"params": {"others": others, "last": jax.tree.map(lambda x: x[0], last)}}


def scanned(block: type[nn.Module], layers: int, unroll: int) -> type[nn.Module]:
    """The block, scanned over stacked parameters and masks of heads."""
    return nn.scan(
        block,
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0, *7 * [nn.broadcast]),
        length=layers,
        unroll=layers if unroll < 0 else min(unroll, layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class Encoder(nn.Module):
    """All blocks. Their parameters are under `layer`; see `Execution.scan_layers` for the names."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Segments | jax.Array | None,
        head_mask: jax.Array | None,
        encoder_states_BSD: jax.Array | None,
        encoder_mask: Segments | None,
        deterministic: bool,
        init_cache: bool,
        output_hidden_states: bool,
        output_attentions: bool,
        first_only: bool = False,
    ) -> ModelOutput:
        """Runs the blocks.

        Args:
          x_BLD: the embedded tokens.
          mask: segments, or a bool array that is broadcastable to [B, H, L, L], True where a query
            may attend to a key; or None for no mask.
          head_mask: [H] or [layers, H] factors on each head's attention probabilities, or None.
          encoder_states_BSD: the hidden states that the cross-attention attends to, or None.
          encoder_mask: the segments of these, or None for no mask.
          deterministic: True turns dropout off.
          init_cache: create the cache. Its size is the length of this input.
          output_hidden_states: return the embeddings and every block's output, layers + 1 arrays.
          output_attentions: return every block's [B, H, L, L] attention probabilities.
          first_only: compute the first token of the last block's output alone, [B, 1, D]; not with
            a cache, nor with the outputs of all blocks.

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
                # Whether to keep XLA from merging the recomputation with the forward pass. A loop
                # does so by itself. What "dots" recomputes XLA weighs better without a barrier.
                prevent_cse=execution.remat == "full" and not has_loop(execution, layers),
                policy=REMAT_POLICIES[execution.remat],
                static_argnums=(6, 7, 8, 9, 10),  # the bool arguments; self is 0
            )
        if not execution.scan_layers:
            stack = UnrolledLayers(config, execution, block, name="layer")
        elif not first_only:
            stack = scanned(block, layers, execution.scan_unroll)(config, execution, name="layer")
        else:
            stack = nn.map_variables(LastLayerApart, "params", split_last)
            stack = stack(config, execution, block, name="layer")
        last_hidden_state, (hidden_states, attentions, cross_attentions) = stack(
            x_BLD,
            self._for_blocks(mask),
            head_mask,
            encoder_states_BSD,
            self._for_blocks(encoder_mask),
            deterministic,
            init_cache,
            output_hidden_states,
            output_attentions,
            first_only,
        )
        has_cross_attention = config.add_cross_attention and encoder_states_BSD is not None
        return ModelOutput(
            last_hidden_state,
            None,
            (x_BLD, *hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
            tuple(cross_attentions) if output_attentions and has_cross_attention else None,
        )

    def _for_blocks(self, mask: Segments | jax.Array | None) -> Mask:
        """The mask as all blocks use it: made once, unless a fused kernel makes it itself."""
        if not isinstance(mask, Segments):
            return mask_to_bias(mask)
        is_fused = attention.is_fused(attention.of_platform(self.execution.attention))
        return mask if is_fused else bias_of(mask)
