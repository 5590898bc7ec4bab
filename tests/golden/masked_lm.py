"""Random masked-LM weights from a NumPy seed, and Hugging Face's names for them.

Used by the script that makes the golden values, by the tests that compare with them without torch,
and by the live comparisons. It does not use the package's own converter, so that an error there
cannot hide one here.
"""

import pathlib

import numpy as np

from tests.support.small_config import small_config

FILE = pathlib.Path(__file__).with_name("masked_lm.npz")


# The golden cases: config, batch size, length, whether rows end in padding, and whether there is an
# attention mask (without one, tokens attend to the padding and gradients flow through it).
GOLDEN = {
    "padded": (small_config(), 3, 24, True, True),
    "unmasked": (small_config(num_hidden_layers=1), 2, 11, True, False),
    "types": (small_config(type_vocab_size=2, num_attention_heads=1), 2, 38, False, True),
    "relu": (
        small_config(hidden_act="relu", num_hidden_layers=1, layer_norm_eps=1e-12),
        1,
        7,
        False,
        True,
    ),
    "512": (small_config(max_position_embeddings=514, num_hidden_layers=1), 1, 512, False, True),
}


def token_types(config, ids: np.ndarray) -> np.ndarray | None:
    """Random token types, or None if the model has a single one."""
    if config.type_vocab_size == 1:
        return None
    return np.random.default_rng(3).integers(0, config.type_vocab_size, ids.shape).astype(np.int32)


def sample(array: np.ndarray, size: int = 64) -> np.ndarray:
    """Up to `size` evenly spaced entries of the flattened array."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(size, flat.size)).astype(np.int64)]


def parameter_shapes(config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its path ("roberta/embeddings/…"), with unstacked blocks."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes = {}

    def dense(path, inputs, outputs):
        shapes[f"{path}/kernel"] = (inputs, outputs)
        shapes[f"{path}/bias"] = (outputs,)

    def norm(path):
        shapes[f"{path}/scale"] = (width,)
        shapes[f"{path}/bias"] = (width,)

    embeddings = "roberta/embeddings"
    for table, rows in (
        ("word_embeddings", config.vocab_size),
        ("position_embeddings", config.max_position_embeddings),
        ("token_type_embeddings", config.type_vocab_size),
    ):
        shapes[f"{embeddings}/{table}/embedding"] = (rows, width)
    norm(f"{embeddings}/LayerNorm")
    for i in range(config.num_hidden_layers):
        layer = f"roberta/encoder/layer/{i}"
        for name in ("query", "key", "value"):
            dense(f"{layer}/attention/self/{name}", width, width)
        dense(f"{layer}/attention/output/dense", width, width)
        norm(f"{layer}/attention/output/LayerNorm")
        dense(f"{layer}/intermediate/dense", width, inner)
        dense(f"{layer}/output/dense", inner, width)
        norm(f"{layer}/output/LayerNorm")
    dense("lm_head/dense", width, width)
    norm("lm_head/layer_norm")
    shapes["lm_head/bias"] = (config.vocab_size,)
    return shapes


def random_params(config, seed: int) -> dict[str, np.ndarray]:
    """Weights by path. Biases and LayerNorms are random too, so that each one has an effect."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in parameter_shapes(config).items():
        # Kernels are scaled by their fan-in, so that no sub-layer vanishes at any width.
        scale = shape[0] ** -0.5 if path.endswith("kernel") else 0.2
        value = scale * rng.standard_normal(shape)
        params[path] = (value + path.endswith("scale")).astype(np.float32)
    return params


def nest(params: dict, stack: bool) -> dict:
    """The nested tree that our models take, with the blocks stacked or numbered."""
    tree = {}
    prefix = "roberta/encoder/layer/"
    if stack:
        tails = [
            path.removeprefix(f"{prefix}0/") for path in params if path.startswith(f"{prefix}0/")
        ]
        layers = len({path.split("/")[3] for path in params if path.startswith(prefix)})
        stacked = {
            prefix + tail: np.stack([params[f"{prefix}{i}/{tail}"] for i in range(layers)])
            for tail in tails
        }
        params = {p: v for p, v in params.items() if not p.startswith(prefix)} | stacked
    for path, value in params.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flatten(tree: dict, stacked: bool) -> dict[str, np.ndarray]:
    """The inverse of `nest`."""
    flat = {}

    def walk(path, value):
        if isinstance(value, dict):
            for name, child in value.items():
                walk(f"{path}/{name}" if path else name, child)
        elif stacked and "/encoder/layer/" in path:
            for i, part in enumerate(np.asarray(value)):
                flat[path.replace("/layer/", f"/layer/{i}/")] = part
        else:
            flat[path] = np.asarray(value)

    walk("", tree)
    return flat


def torch_name(path: str) -> str:
    """The torch name, in Hugging Face's model, of the parameter at this path.

    Kernels are transposed there.
    """
    name = path.replace("/", ".")
    for ending in ("kernel", "embedding", "scale"):
        if name.endswith(f".{ending}"):
            name = name.removesuffix(ending) + "weight"
    return name


def example_inputs(config, batch: int, length: int, seed: int, padded: bool = True):
    """(input_ids, attention_mask, labels), int32 [batch, length]; 85 percent of labels are -100.

    With `padded`, every row but the first ends in a random amount of padding.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, config.vocab_size, (batch, length)).astype(np.int32)
    ids[:, 0] = config.bos_token_id
    labels = np.where(rng.random((batch, length)) < 0.15, ids, -100).astype(np.int32)
    labels[:, 1] = ids[:, 1]  # at least one target in each row
    if padded:
        for row in range(1, batch):
            end = int(rng.integers(2, length))
            ids[row, end:] = config.pad_token_id
            labels[row, end:] = -100
    return ids, (ids != config.pad_token_id).astype(np.int32), labels
