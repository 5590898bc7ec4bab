"""Makes masked_lm.npz: outputs and gradients of Hugging Face's torch RobertaForMaskedLM.

    python -m tests.golden.make_masked_lm        (needs the extra `parity`)

Weights and inputs come from NumPy seeds (see masked_lm.py) and are not stored. The file holds, for
each case, the loss, a sample of the logits, and the norm and a sample of each parameter's gradient.
"""

import importlib.metadata
import sys

import numpy as np
import torch
import transformers

from tests.golden import masked_lm


def torch_model(config, params, **options):
    """Hugging Face's model with these weights, whose names must match exactly."""
    hf_config = transformers.RobertaConfig(**config.to_dict(), attn_implementation="eager")
    model = transformers.RobertaForMaskedLM(hf_config, **options).eval()
    state = {}
    for path, value in params.items():
        tensor = torch.from_numpy(np.array(value))
        state[masked_lm.torch_name(path)] = tensor.T if path.endswith("kernel") else tensor
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    model.load_state_dict(state)
    return model


def as_torch(array):
    """An int64 tensor, or None."""
    return None if array is None else torch.from_numpy(np.asarray(array)).long()


def logits_loss_and_gradients(config, batch, length, padded, masked):
    """(logits, loss, gradients by our paths) of one case, computed by torch."""
    model = torch_model(config, masked_lm.random_params(config, seed=1))
    ids, mask, labels = masked_lm.example_inputs(config, batch, length, seed=2, padded=padded)
    types = masked_lm.token_types(config, ids)
    output = model(
        as_torch(ids), as_torch(mask if masked else None), as_torch(types), labels=as_torch(labels)
    )
    output.loss.backward()
    torch_gradients = {name: value.grad.numpy() for name, value in model.named_parameters()}
    gradients = {}
    for path in masked_lm.parameter_shapes(config):
        value = torch_gradients.pop(masked_lm.torch_name(path))
        gradients[path] = value.T if path.endswith("kernel") else value
    assert not torch_gradients, f"parameters without a path: {sorted(torch_gradients)}"
    return output.logits.detach().numpy(), output.loss.item(), gradients


def main():
    arrays = {}
    for name, case in masked_lm.GOLDEN.items():
        logits, loss, gradients = logits_loss_and_gradients(*case)
        arrays[f"{name}/loss"] = np.float32(loss)
        arrays[f"{name}/logits"] = masked_lm.sample(logits, 1024)
        values = [gradients[path] for path in sorted(gradients)]
        arrays[f"{name}/gradient_norms"] = np.array([np.linalg.norm(v) for v in values])
        arrays[f"{name}/gradients"] = np.concatenate([masked_lm.sample(v) for v in values])
    np.savez_compressed(masked_lm.FILE, **arrays)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    print(f"{masked_lm.FILE}: {masked_lm.FILE.stat().st_size} bytes, {', '.join(versions)}")


if __name__ == "__main__":
    sys.exit(main())
