"""Measures the training step of Hugging Face's RobertaForMaskedLM in PyTorch.

As `Trainer` trains with `bf16=True`: float32 parameters, `torch.autocast` to bfloat16, the fused
AdamW. Attention is PyTorch's SDPA, without a mask, so that it can use its fastest kernel; the loss
is compiled by `torch.compile`. Gradients are not clipped.

    shipped      the model with labels, which has logits at every position
    masked_only  its encoder, and its head on the masked tokens alone, as in this package
"""

import gc
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable

from experiments.benchmarks.accelerator.machine import Emit
from experiments.benchmarks.accelerator.workload import CONFIGS, masked_rows
from experiments.benchmarks.sides import peak_mb

_WARM_UP = 2  # steps
ROUND_SECONDS = 1.0
HEADS = ("masked_only", "shipped")
BACKENDS = ("inductor", "aot_eager", "none")


def measure(
    emit: Emit,
    *,
    name: str,
    model: str,
    length: int,
    rows: list[int],
    head: str,
    backend: str,
    device: str,
    rounds: int,
    steps: int | None,
) -> None:
    """Emits the record of one step, after every round.

    Args:
      emit: takes a record; one of the same name replaces an earlier one.
      name: of the record.
      model: a key of `workload.CONFIGS`.
      length: tokens of a row.
      rows: microbatches to try, descending. The first that fits in memory is measured.
      head: one of `HEADS`.
      backend: one of `BACKENDS`: that of `torch.compile`, or "none" for no compilation.
      device: "cuda" or "cpu".
      rounds: to measure; the record has their median.
      steps: of a round, or None for about `ROUND_SECONDS`.
    """
    record = {
        "part": "step", "name": name, "side": "torch", "model": model, "length": length,
        "head": head, "backend": backend,
    }  # fmt: skip
    if reason := _missing(device):
        emit(record | {"status": "refused", "reason": reason})
        return
    import torch

    too_large = []
    for number in rows:
        try:
            _measure_rows(emit, record, number, backend, device, rounds, steps)
            return
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error).splitlines()[0][:300]
        # Behind the handler, whose exception keeps the arrays alive.
        too_large.append({"rows": number, "reason": reason})
        record["too_large"] = too_large
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    reason = "; ".join(f"{each['rows']} rows: {each['reason']}" for each in too_large)
    emit(record | {"status": "refused", "reason": f"does not fit in memory: {reason}"})


def _missing(device: str) -> str | None:
    """Why there is nothing to measure, or None."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "this PyTorch has no CUDA device"
    return None


def _measure_rows(emit, record, rows, backend, device, rounds, steps) -> None:
    """Raises torch.cuda.OutOfMemoryError if so many rows do not fit."""
    import torch

    run, parameters = _make_run(record["model"], record["length"], rows, record["head"], backend,
                                device)  # fmt: skip
    start = time.perf_counter()
    first_loss = run(1)[1]
    compile_seconds = time.perf_counter() - start
    run(_WARM_UP - 1)
    steps = steps or max(1, math.ceil(ROUND_SECONDS / run(1)[0]))
    rates = []
    for _ in range(rounds):
        seconds, loss = run(steps)
        rates.append(rows * record["length"] * steps / seconds)
        on_cpu = device == "cpu"
        peak = peak_mb() * 2**20 if on_cpu else torch.cuda.max_memory_allocated()
        is_finite = math.isfinite(first_loss) and math.isfinite(loss)
        emit(
            record
            | {
                "status": "measured" if is_finite else "failed",
                "reason": None if is_finite else "the loss is not finite",
                "rows": rows,
                "steps": steps,
                "tokens_per_second": statistics.median(rates),
                "tokens_per_second_of_rounds": rates,
                "peak_bytes": peak,
                "compile_seconds": compile_seconds,
                "parameters": parameters,
                "first_loss": first_loss if is_finite else None,
                "last_loss": loss if is_finite else None,
            }
        )


def _make_run(
    model: str, length: int, rows: int, head: str, backend: str, device: str
) -> tuple[Callable[[int], tuple[float, float]], int]:
    """(steps -> (seconds, last loss), number of the parameters)."""
    os.environ["USE_TF"] = "0"  # otherwise transformers imports TensorFlow if it is installed
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig(**CONFIGS[model], attn_implementation="sdpa")
    network = RobertaForMaskedLM(config).train().to(device)
    if network.config._attn_implementation != "sdpa":
        raise RuntimeError(f"attention is {network.config._attn_implementation}, not sdpa")
    if network.lm_head.decoder.weight is not network.roberta.embeddings.word_embeddings.weight:
        raise RuntimeError("the decoder is not tied to the word embeddings, as in the other model")
    ids, positions, labels = (torch.from_numpy(x).long() for x in masked_rows(model, rows, length))
    everywhere = torch.full_like(ids, -100).scatter_(1, positions, labels).to(device)
    # Places in the flattened batch: a fixed number, so that the program has no dynamic shapes.
    places = (positions + torch.arange(rows)[:, None] * length).flatten().to(device)
    ids, labels = ids.to(device), labels.flatten().to(device)

    def loss_of() -> torch.Tensor:
        if head == "shipped":
            return network(ids, labels=everywhere).loss
        hidden = network.roberta(ids)[0].flatten(0, 1)[places]
        return torch.nn.functional.cross_entropy(network.lm_head(hidden).float(), labels)

    compute = loss_of if backend == "none" else torch.compile(loss_of, backend=backend)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
    )

    def run(steps: int) -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = compute()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        last = float(loss.detach())
        return time.perf_counter() - start, last

    return run, sum(p.numel() for p in network.parameters())
