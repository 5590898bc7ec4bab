"""What accelerators can do: memory, peak rate, and bandwidths, from their makers' tables.

Sources, all per chip:

* TPU: the tables of docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e ("Peak compute per chip
  (bf16)", "HBM capacity", "HBM bandwidth", "Bidirectional inter-chip interconnect bandwidth (per
  chip)" with the number of ICI ports, "Data center network bandwidth per Pod"). A link is one port
  in one direction: half of the chip's bidirectional bandwidth divided by its ports. The data-center
  network is the pod's bandwidth divided by its chips; for v5p it is that of the 200 Gbit/s card of
  a host of 4 chips. The memory that a program can use is what libtpu 0.0.42 names when a program
  does not fit ("available HBM (15.75G)").
* GPU: NVIDIA's data sheets of the A100 (SXM, 80 GB), H100 (SXM) and H200 (SXM): dense bfloat16
  rate, memory bandwidth, and NVLink, whose figure counts both directions. Between nodes: one
  ConnectX-7 card of 400 Gbit/s for each GPU, as in the DGX H100 and H200, and of 200 Gbit/s, as in
  the DGX A100. The memory is not the data sheets' 80 and 141 GB but the total that CUDA's driver
  reports, rounded down, which PyTorch's messages of exhausted memory name ("GPU 0 has a total
  capacity of 139.80 GiB" on an H200, 79.11 GiB on an H100, 79.15 GiB on an A100). `nvidia-smi`
  shows 143,771, 81,559 and 81,920 MiB, which includes what the driver keeps for itself. XLA
  allocates `GPU_FRACTION` of this total, and a program can use no more (docs.jax.dev, "GPU memory
  allocation": 75% unless XLA_CLIENT_MEM_FRACTION says otherwise). None of this was measured with
  this package.

A multiply-add counts as two operations. GB are 10^9 bytes, GiB are 2^30 bytes.
"""

import dataclasses

GB, GIB = 10**9, 2**30

# The part of a GPU's memory that XLA allocates, and that a program can use.
GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      name: as in `--topology`, such as "v5e".
      kind: what JAX calls the device.
      usable: bytes of memory that a program can use.
      flops: peak bfloat16 operations per second, dense.
      memory_bandwidth: bytes per second from and to the memory.
      link: bytes per second that a collective over one mesh axis can send within a slice (TPU: one
        torus axis in both directions) or within a node (GPU: NVLink).
      network: bytes per second that a chip can send to other slices or nodes.
      dimensions: of a TPU's torus; 0 for a GPU.
      per_host: chips of a host, or GPUs of a node.
      inner, outer: what the two networks are called.
    """

    name: str
    kind: str
    usable: float
    flops: float
    memory_bandwidth: float
    link: float
    network: float
    dimensions: int
    per_host: int
    inner: str
    outer: str


def _tpu(name, kind, usable, flops, bandwidth, port, network, dimensions, per_host):
    return Chip(
        name=name, kind=kind, usable=usable * GIB, flops=flops * 1e12,
        memory_bandwidth=bandwidth * GB, link=2 * port * GB, network=network * GB,
        dimensions=dimensions, per_host=per_host, inner="ICI", outer="DCN",
    )  # fmt: skip


def _gpu(name, kind, memory, flops, bandwidth, nvlink, network):
    return Chip(
        name=name, kind=kind, usable=GPU_FRACTION * memory * GIB, flops=flops * 1e12,
        memory_bandwidth=bandwidth * GB, link=nvlink / 2 * GB, network=network * GB,
        dimensions=0, per_host=8, inner="NVLink", outer="network",
    )  # fmt: skip


CHIPS = {
    chip.name: chip
    for chip in (
        # usable GiB, TFLOP/s, GB/s of memory, GB/s of a port, GB/s of network
        _tpu("v5e", "TPU v5 lite", 15.75, 197, 819, 50, 3.125, 2, 8),
        _tpu("v5p", "TPU v5", 95.74, 459, 2765, 100, 6.25, 3, 4),
        _tpu("v6e", "TPU v6 lite", 31.25, 918, 1600, 100, 12.5, 2, 8),
        # GiB of memory, TFLOP/s, GB/s of memory, GB/s of NVLink in both directions, GB/s of network
        _gpu("a100", "NVIDIA A100-SXM4-80GB", 79.1, 312, 2039, 600, 25),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 79.1, 989, 3350, 900, 50),
        _gpu("h200", "NVIDIA H200", 139.7, 989, 4800, 900, 50),
    )
}

# The shapes of v5e and v6e slices (docs.cloud.google.com/tpu/docs/v5e and /v6e, "Configurations").
# Those of v5p are boxes whose sides are multiples of 4, up to 6144 chips, and the smaller ones
# here.
FLAT_SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
MOST_CHIPS_OF_A_BOX = 6144
