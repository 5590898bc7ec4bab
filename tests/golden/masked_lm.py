"""Random masked-LM weights from a NumPy seed, and Hugging Face's names for them.

Shared by the script that makes the golden values, the tests that check against them without
torch, and the live comparisons. Independent of the package's own converter, so that an error
there cannot hide one here.
"""

import pathlib

import numpy as np

from roberta_jax.modeling.config import RobertaConfig

FILE = pathlib.Path(__file__).with_name("masked_lm.npz")


def config(**changes) -> RobertaConfig:
    """A narrow model of the released models' kind, without dropout."""
    shape = {
        "vocab_size": 211,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return RobertaConfig.base(**(shape | changes))


# The golden cases: config, rows, tokens a row, whether rows end in padding, whether the attention
# mask hides it (without, padding is attended to and passes gradients on).
GOLDEN = {
    "padded": (config(), 3, 24, True, True),
    "unmasked": (config(num_hidden_layers=1), 2, 11, True, False),
    "types": (config(type_vocab_size=2, num_attention_heads=1), 2, 38, False, True),
    "relu": (
        config(hidden_act="relu", num_hidden_layers=1, layer_norm_eps=1e-12),
        1,
        7,
        False,
        True,
    ),
    "512": (config(max_position_embeddings=514, num_hidden_layers=1), 1, 512, False, True),
}


def token_types(config, ids: np.ndarray) -> np.ndarray | None:
    """Random token types, where the model has more than one."""
    if config.type_vocab_size == 1:
        return None
    return np.random.default_rng(3).integers(0, config.type_vocab_size, ids.shape).astype(np.int32)


def sample(array: np.ndarray, size: int = 64) -> np.ndarray:
    """Up to `size` entries, evenly spread over the flattened array."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(size, flat.size)).astype(np.int64)]


def parameter_shapes(config) -> dict[str, tuple[int, ...]]:
    """Path ("roberta/embeddings/…") and shape of every parameter, blocks by number."""
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
    """Weights by path: every tensor random, biases and LayerNorms too, so that each one counts."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in parameter_shapes(config).items():
        # Kernels by fan-in, so that every sub-layer weighs in whatever the width.
        spread = shape[0] ** -0.5 if path.endswith("kernel") else 0.2
        value = spread * rng.standard_normal(shape)
        params[path] = (value + path.endswith("scale")).astype(np.float32)
    return params


def nest(params: dict, stack: bool) -> dict:
    """The nested tree that our models take, blocks stacked or by number."""
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
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree


def flatten(tree: dict, stacked: bool) -> dict[str, np.ndarray]:
    """`nest` backwards."""
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
    """Hugging Face's torch name of the parameter at this path; kernels are transposed there."""
    name = path.replace("/", ".")
    for ending in ("kernel", "embedding", "scale"):
        if name.endswith(f".{ending}"):
            name = name.removesuffix(ending) + "weight"
    return name


def example_inputs(config, batch: int, length: int, seed: int, padded: bool = True):
    """(input_ids, attention_mask, labels): int32 [batch, length], labels -100 but at 15 percent.

    With `padded`, every row but the first ends in padding of its own length.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, config.vocab_size, (batch, length)).astype(np.int32)
    ids[:, 0] = config.bos_token_id
    labels = np.where(rng.random((batch, length)) < 0.15, ids, -100).astype(np.int32)
    labels[:, 1] = ids[:, 1]  # at least one in each row
    if padded:
        for row in range(1, batch):
            real = int(rng.integers(2, length))
            ids[row, real:] = config.pad_token_id
            labels[row, real:] = -100
    return ids, (ids != config.pad_token_id).astype(np.int32), labels
