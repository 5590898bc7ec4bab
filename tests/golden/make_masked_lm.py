"""Makes masked_lm.npz: what Hugging Face's torch RobertaForMaskedLM computes from known weights.

    cd tests; python -m golden.make_masked_lm        (with the package and its extra `parity`)

Weights and inputs come from NumPy seeds (see masked_lm.py) and are not stored. Stored for each case
are the loss, a sample of the logits, and of each parameter's gradient the norm and a sample.
"""

import importlib.metadata
import sys

import numpy as np
import torch
import transformers

from tests.golden import masked_lm


def torch_model(config, params, **options):
    """Hugging Face's model with these weights; every name must be found, none left over."""
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
    """(logits, loss, gradients by our paths) of one case."""
    model = torch_model(config, masked_lm.random_params(config, seed=1))
    ids, mask, labels = masked_lm.example_inputs(config, batch, length, seed=2, padded=padded)
    types = masked_lm.token_types(config, ids)
    output = model(
        as_torch(ids), as_torch(mask if masked else None), as_torch(types), labels=as_torch(labels)
    )
    output.loss.backward()
    found = {name: value.grad.numpy() for name, value in model.named_parameters()}
    gradients = {}
    for path in masked_lm.parameter_shapes(config):
        value = found.pop(masked_lm.torch_name(path))
        gradients[path] = value.T if path.endswith("kernel") else value
    assert not found, f"parameters without a path: {sorted(found)}"
    return output.logits.detach().numpy(), output.loss.item(), gradients


def main():
    stored = {}
    for name, case in masked_lm.GOLDEN.items():
        logits, loss, gradients = logits_loss_and_gradients(*case)
        stored[f"{name}/loss"] = np.float32(loss)
        stored[f"{name}/logits"] = masked_lm.sample(logits, 1024)
        values = [gradients[path] for path in sorted(gradients)]
        stored[f"{name}/gradient_norms"] = np.array([np.linalg.norm(v) for v in values])
        stored[f"{name}/gradients"] = np.concatenate([masked_lm.sample(v) for v in values])
    np.savez_compressed(masked_lm.FILE, **stored)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    print(f"{masked_lm.FILE}: {masked_lm.FILE.stat().st_size} bytes, {', '.join(versions)}")


if __name__ == "__main__":
    sys.exit(main())
