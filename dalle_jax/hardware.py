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
    link_bandwidth: bytes a second in one direction over one link to a neighbour in the torus, or of GPUs over all links
      to the others of a host; 0 where it is not known here.
    clock: cycles a second of the cores, in which TPUs' compiler counts; 0 where it is not known here.
  """

  name: str
  peak_flops: float
  memory: int
  bandwidth: float
  link_bandwidth: float = 0.0
  clock: float = 0.0


# TPU: cloud.google.com/tpu/docs/system-architecture-tpu-vm; of v2 and v3 a device is one of the chip's two cores.
# Links of TPUs: Austin et al. 2025, How to Scale Your Model, table of chapter 2. Clocks: those at which the matrix units
# have the peak published: four of 128 x 128 in each of v5p's and v4's two cores and in v5e's one, two of 256 x 256 in
# v6e's one, each product two operations.
# GPU: NVIDIA's data sheets, without sparsity; NVLink's two directions are halved.
_CHIPS = {
  'TPU v2': Chip('v2', 22.5e12, 8 * GIB, 350e9),
  'TPU v3': Chip('v3', 61.5e12, 16 * GIB, 450e9),
  'TPU v4': Chip('v4', 275e12, 32 * GIB, 1228e9, 45e9, 1.05e9),
  'TPU v5 lite': Chip('v5e', 197e12, 16 * GIB, 819e9, 45e9, 1.5e9),
  'TPU v5e': Chip('v5e', 197e12, 16 * GIB, 819e9, 45e9, 1.5e9),
  'TPU v5': Chip('v5p', 459e12, 95 * GIB, 2765e9, 90e9, 1.75e9),
  'TPU v5p': Chip('v5p', 459e12, 95 * GIB, 2765e9, 90e9, 1.75e9),
  'TPU v6 lite': Chip('v6e', 918e12, 32 * GIB, 1640e9, 90e9, 1.75e9),
  'TPU v6e': Chip('v6e', 918e12, 32 * GIB, 1640e9, 90e9, 1.75e9),
  'Tesla T4': Chip('T4', 65e12, 16 * GIB, 320e9),
  'Tesla V100-SXM2-16GB': Chip('V100', 125e12, 16 * GIB, 900e9, 150e9),
  'Tesla V100-SXM2-32GB': Chip('V100', 125e12, 32 * GIB, 900e9, 150e9),
  'NVIDIA L4': Chip('L4', 121e12, 24 * GIB, 300e9),
  'NVIDIA L40S': Chip('L40S', 362e12, 48 * GIB, 864e9),
  'NVIDIA A10G': Chip('A10G', 70e12, 24 * GIB, 600e9),
  'NVIDIA A100-SXM4-40GB': Chip('A100', 312e12, 40 * GIB, 1555e9, 300e9),
  'NVIDIA A100-SXM4-80GB': Chip('A100', 312e12, 80 * GIB, 2039e9, 300e9),
  'NVIDIA H100 80GB HBM3': Chip('H100', 989e12, 80 * GIB, 3350e9, 450e9),
  'NVIDIA H200': Chip('H200', 989e12, 141 * GIB, 4800e9, 450e9),
  'NVIDIA B200': Chip('B200', 2250e12, 180 * GIB, 8000e9, 900e9),
}


def chip(device_kind: str) -> Chip | None:
  """The accelerator that JAX calls so (`jax.Device.device_kind`); None where its figures are not known here."""
  return _CHIPS.get(device_kind)


# On-chip memory that one fused operation may use. XLA's default on these is 16 MiB of the 128 there are, which leaves
# large matrix products at 0.8 to 0.9 of the peak by its own estimate, and 32 MiB at 0.92 to 0.96; still more gains a
# hundredth and takes several times as long to compile.
_TPU_STEP_OPTIONS = {'xla_tpu_scoped_vmem_limit_kib': '24576'}
_WITH_LARGE_VMEM = ('TPU v5 lite', 'TPU v5e', 'TPU v5', 'TPU v5p')


def compiler_options(device_kind: str) -> dict[str, str]:
  """XLA's options with which training steps are compiled for an accelerator; none where its defaults are good."""
  return dict(_TPU_STEP_OPTIONS) if device_kind in _WITH_LARGE_VMEM else {}
