"""What accelerators can do, by the name that JAX gives them: the vendors' published figures."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator, as JAX counts devices.

  Attributes:
    name: as people say it.
    peak_flops: multiplications and additions a second of dense bfloat16 products (float16 where it has no bfloat16).
    memory: bytes.
    bandwidth: bytes a second from and to that memory.
  """

  name: str
  peak_flops: float
  memory: int
  bandwidth: float


# TPU: cloud.google.com/tpu/docs/system-architecture-tpu-vm; of v2 and v3 a device is one of the chip's two cores.
# GPU: NVIDIA's data sheets, without sparsity.
_CHIPS = {
  'TPU v2': Chip('v2', 22.5e12, 8 * GIB, 350e9),
  'TPU v3': Chip('v3', 61.5e12, 16 * GIB, 450e9),
  'TPU v4': Chip('v4', 275e12, 32 * GIB, 1228e9),
  'TPU v5 lite': Chip('v5e', 197e12, 16 * GIB, 819e9),
  'TPU v5e': Chip('v5e', 197e12, 16 * GIB, 819e9),
  'TPU v5': Chip('v5p', 459e12, 95 * GIB, 2765e9),
  'TPU v5p': Chip('v5p', 459e12, 95 * GIB, 2765e9),
  'TPU v6 lite': Chip('v6e', 918e12, 32 * GIB, 1640e9),
  'TPU v6e': Chip('v6e', 918e12, 32 * GIB, 1640e9),
  'Tesla T4': Chip('T4', 65e12, 16 * GIB, 320e9),
  'Tesla V100-SXM2-16GB': Chip('V100', 125e12, 16 * GIB, 900e9),
  'Tesla V100-SXM2-32GB': Chip('V100', 125e12, 32 * GIB, 900e9),
  'NVIDIA L4': Chip('L4', 121e12, 24 * GIB, 300e9),
  'NVIDIA L40S': Chip('L40S', 362e12, 48 * GIB, 864e9),
  'NVIDIA A10G': Chip('A10G', 70e12, 24 * GIB, 600e9),
  'NVIDIA A100-SXM4-40GB': Chip('A100', 312e12, 40 * GIB, 1555e9),
  'NVIDIA A100-SXM4-80GB': Chip('A100', 312e12, 80 * GIB, 2039e9),
  'NVIDIA H100 80GB HBM3': Chip('H100', 989e12, 80 * GIB, 3350e9),
  'NVIDIA H200': Chip('H200', 989e12, 141 * GIB, 4800e9),
  'NVIDIA B200': Chip('B200', 2250e12, 180 * GIB, 8000e9),
}


def chip(device_kind: str) -> Chip | None:
  """The accelerator that JAX calls so (`jax.Device.device_kind`); None where its figures are not known here."""
  return _CHIPS.get(device_kind)
