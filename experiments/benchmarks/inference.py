"""Measures the time of encoding texts with roberta-base, in ours, in PyTorch and in onnxruntime.

    pip install onnxruntime onnx onnxscript      # beside the extra `parity`
    python -m experiments.benchmarks.inference   # all shapes; or --shapes=1x128,2x512

All encode the same ids with the same random weights in float32 into the last hidden states.

    ours         `RobertaModel`, computed as the commands do (`modeling.execution.for_inference`)
    stacked      the same as training computes it, by a scan over stacked blocks
    onnxruntime  the model exported by PyTorch, with attention, GELU and LayerNorm fused by
                 onnxruntime's optimizer for BERT
    torch        Hugging Face's `RobertaModel` with SDPA attention

Each side is a process of its own. They are measured in turn, a few calls each, so that other work
on the machine affects all of them. A ratio is the median over the rounds of (time of the other /
time of ours). The largest difference of the hidden states from torch's is printed too.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from experiments.benchmarks.arguments import positive, some_of
from experiments.benchmarks.sides import Side, about, serve, speedups
from roberta_jax.training.host_memory import KeptMemory, use_one_heap

SHAPES = ("1x128", "8x128", "32x128", "2x512")
SIDES = ("ours", "stacked", "onnxruntime", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=some_of(SHAPES), default=",".join(SHAPES))
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--calls", type=positive, default=2, help="calls of each side per round")
    parser.add_argument("--side", choices=("export", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of a child
    arguments = parser.parse_args()
    if arguments.side == "export":
        _export(arguments.folder)
    elif arguments.side:
        _serve(arguments.side, arguments.folder, arguments.shapes, arguments.calls)
    else:
        print(json.dumps(about("jax", "jaxlib", "numpy", "torch", "transformers", "onnxruntime")))
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(_command("export", folder), check=True, stdout=subprocess.DEVNULL)
            for shape in arguments.shapes.split(","):
                result = _compare(folder, shape, arguments.rounds, arguments.calls)
                print(json.dumps(result), flush=True)


def _command(side: str, folder: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "experiments.benchmarks.inference",
        f"--side={side}",
        f"--folder={folder}",
    ]


def _compare(folder: str, shape: str, rounds: int, calls: int) -> dict:
    """Measures all sides in turn; returns milliseconds per call and ratios."""
    children = {
        side: Side([*_command(side, folder), f"--shapes={shape}", f"--calls={calls}"])
        for side in SIDES
    }
    seconds = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, child in children.items():
            seconds[side].append(child.ask()["seconds"])
    for child in children.values():
        child.ask("stop")
    hidden = {side: np.load(pathlib.Path(folder, f"{side}.npy")) for side in SIDES}
    result = {"shape": shape}
    for side in SIDES:
        result[f"{side}_ms"] = round(1e3 * statistics.median(seconds[side]), 1)
    result |= speedups(seconds)
    for side in SIDES[:-1]:
        result[f"difference_{side}"] = float(np.abs(hidden[side] - hidden["torch"]).max())
    return result


def _serve(side: str, folder: str, shape: str, calls: int) -> None:
    """Answers each line of standard input with the median time of some calls."""
    rows, length = map(int, shape.split("x"))
    ids = np.random.default_rng(0).integers(4, 50000, (rows, length))
    if side in ("ours", "stacked"):
        use_one_heap()  # as the commands do
        call = _ours(folder, ids, is_stacked=side == "stacked")
    else:
        call = {"onnxruntime": _onnxruntime, "torch": _torch}[side](folder, ids)
    with KeptMemory() as memory:  # without an effect on the other sides
        with memory.running(side):
            call()
        np.save(pathlib.Path(folder, f"{side}.npy"), call())
        serve(call, calls)


def _ours(folder: str, ids: np.ndarray, is_stacked: bool) -> Callable[[], np.ndarray]:
    import jax

    import roberta_jax
    from roberta_jax.modeling.execution import Execution, for_inference

    execution = Execution() if is_stacked else for_inference()
    model, params = roberta_jax.from_pretrained(folder, roberta_jax.RobertaModel, execution)
    params = jax.device_put(params)

    @jax.jit
    def encode(params, ids, mask):
        return model.apply({"params": params}, ids, mask).last_hidden_state

    ids, mask = ids.astype(np.int32), np.ones(ids.shape, np.int32)
    return lambda: np.asarray(encode(params, ids, mask))


def _torch(folder: str, ids: np.ndarray) -> Callable[[], np.ndarray]:
    torch, model = _torch_model(folder, "sdpa")
    ids = torch.from_numpy(ids)
    mask = torch.ones_like(ids)

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model(ids, attention_mask=mask).last_hidden_state.numpy()

    return call


def _torch_model(folder: str, attention: str):
    os.environ["USE_TF"] = "0"  # otherwise transformers imports TensorFlow if it is installed
    import torch
    from transformers import RobertaModel

    loaded = RobertaModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation=attention
    )
    return torch, loaded.eval()


def _export(folder: str) -> None:
    """Writes random weights in Hugging Face's format, and the model in onnx's."""
    os.environ["USE_TF"] = "0"
    import torch
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    torch.manual_seed(0)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    _, model = _torch_model(folder, "eager")  # whose attention onnxruntime recognises

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model(ids, attention_mask=mask).last_hidden_state

    ids = torch.randint(4, 50000, (2, 64))
    file = f"{folder}/model.onnx"
    shape = {0: "batch", 1: "length"}
    torch.onnx.export(
        Encoder(),
        (ids, torch.ones_like(ids)),
        file,
        input_names=["ids", "mask"],
        output_names=["hidden"],
        dynamic_axes={"ids": shape, "mask": shape},
        opset_version=17,
        dynamo=False,
    )
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(
        file, model_type="bert", num_heads=12, hidden_size=768, opt_level=0
    )
    counts = fused.get_fused_operator_statistics()
    if counts["Attention"] != 12 or counts["SkipLayerNormalization"] != 24:
        sys.exit(f"onnxruntime's optimizer did not fuse the model as expected: {counts}")
    fused.save_model_to_file(file)


def _onnxruntime(folder: str, ids: np.ndarray) -> Callable[[], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        f"{folder}/model.onnx", providers=["CPUExecutionProvider"]
    )
    feed = {"ids": ids, "mask": np.ones_like(ids)}
    return lambda: session.run(None, feed)[0]


if __name__ == "__main__":
    main()
