"""Measures the time and the memory of loading a large checkpoint, in ours and in transformers.

    python experiments/benchmarks/load_weights.py

It writes a roberta-large with random weights (1.4 GB in float32) to a temporary folder, as
model.safetensors and as pytorch_model.bin. Each load is a process of its own, which gives its peak
memory, and is timed after the imports. These are measured in turn:

    read    reading the bytes of the file into new memory, a lower bound for loaders that read it
    ours    `from_pretrained`: parameters stacked by layer, on JAX's default device
    torch   Hugging Face's `RobertaForMaskedLM.from_pretrained`

transformers maps the file into memory and reads a parameter when it is first used. "used" is
therefore timed too: the load, followed by the sum of each parameter. The file is read into the page
cache before each load. Times are the shortest of all rounds, since other work on the machine only
adds to them. Memory is the increase of the peak resident size, divided by the size of the weights;
it includes the pages of a mapped file.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.benchmarks.arguments import positive

FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
SIDES = ("read", "ours", "torch")
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
SMALL = {"num_hidden_layers": 2, "vocab_size": 5000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument(
        "--small", action="store_true", help="a model of 2 layers, to try this script"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a child runs
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.folder is None or not arguments.folder.is_dir():
            parser.error("--side takes --folder, a folder with weights")
        print(json.dumps(_load(arguments.side, arguments.folder)))
        return
    print(json.dumps(_about()))
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        size = _write(root, SMALL if arguments.small else LARGE)
        for kind in FILES:
            print(json.dumps(_compare(root / kind, size, arguments.rounds)), flush=True)


def _compare(folder: pathlib.Path, size: int, rounds: int) -> dict:
    runs = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            _into_page_cache(folder / FILES[folder.name])
            command = [sys.executable, __file__, f"--side={side}", f"--folder={folder}"]
            child = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=_environment())
            runs[side].append(json.loads(child.stdout.splitlines()[-1]))
    result = {"file": FILES[folder.name], "megabytes": round(size / 1e6)}
    for time_ in ("seconds", "used"):
        best = {side: min(run[time_] for run in runs[side]) for side in SIDES}
        result |= {f"{side}_{time_}": round(seconds, 2) for side, seconds in best.items()}
        for side in ("read", "torch"):
            result[f"ours_to_{side}_{time_}"] = round(best["ours"] / best[side], 2)
    for side in SIDES:
        peaks = [run["peak"] / size for run in runs[side]]
        result[f"{side}_memory"] = round(statistics.median(peaks), 2)
    return result


def _into_page_cache(path: pathlib.Path) -> None:
    buffer = bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _environment() -> dict[str, str]:
    return os.environ | {"USE_TF": "0", "USE_FLAX": "0", "TRANSFORMERS_VERBOSITY": "error"}


def _write(root: pathlib.Path, shape: dict) -> int:
    """Writes the model in both formats; returns the size of its weights in bytes."""
    import jax
    import numpy as np

    from roberta_jax import weights
    from roberta_jax.modeling.config import RobertaConfig
    from roberta_jax.modeling.heads import RobertaForMaskedLM
    from roberta_jax.weights.files import open_weights
    from roberta_jax.weights.formats import pytorch
    from roberta_jax.weights.parameters import parameter_shapes

    model = RobertaForMaskedLM(RobertaConfig.base(**shape))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), parameter_shapes(model)
    )
    weights.save_pretrained(root / "safetensors", model, params)
    (root / "bin").mkdir()
    config = (root / "safetensors" / "config.json").read_text()
    (root / "bin" / "config.json").write_text(config)
    tensors = open_weights(root / "safetensors").tensors
    keys = {name: key for key, name in enumerate(tensors)}
    state = {name: pytorch.Reference(keys[name], x.shape, x.dtype) for name, x in tensors.items()}
    arrays = ((keys[name], x.read()) for name, x in tensors.items())
    pytorch.write(root / "bin" / FILES["bin"], state, arrays)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def _load(side: str, folder: pathlib.Path) -> dict:
    """Loads the model once in this process.

    Returns:
      "seconds", the time of the load; "used", the same with the sum of each parameter; "peak", the
      increase of the peak memory in bytes.
    """
    import numpy as np

    if side == "read":

        def work():
            path = folder / FILES[folder.name]
            buffer = np.empty(path.stat().st_size, np.uint8)
            with path.open("rb", buffering=0) as file:
                view = memoryview(buffer)
                while len(view):
                    view = view[file.readinto(view[: 1 << 30]) :]
            return buffer[: len(buffer) // 8 * 8].view(np.uint64)

        def use(buffer):
            buffer.sum()
    elif side == "ours":
        import jax

        from roberta_jax import weights

        jax.devices()

        def work():
            return jax.block_until_ready(weights.from_pretrained(folder)[1])

        def use(params):
            for leaf in jax.tree.leaves(params):
                np.asarray(leaf).sum()
    else:
        from transformers import RobertaForMaskedLM

        def work():
            return RobertaForMaskedLM.from_pretrained(folder)

        def use(model):
            for parameter in model.parameters():
                parameter.data.sum()

    _reset_peak()
    before = _status("VmRSS")
    start = time.perf_counter()
    loaded = work()
    seconds = time.perf_counter() - start
    use(loaded)
    used = time.perf_counter() - start
    return {"seconds": seconds, "used": used, "peak": _status("VmHWM") - before}


def _status(name: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def _reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _about() -> dict:
    import importlib.metadata

    names = ("jax", "flax", "numpy", "safetensors", "torch", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main()
