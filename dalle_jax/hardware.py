"""Accelerators by JAX's device kind: published performance figures, and XLA options for training steps."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one accelerator, counted as JAX counts devices.

  Attributes:
    name: common name, such as 'v5e'.
    peak_flops: peak dense bfloat16 FLOPs per second (float16 on chips without bfloat16); a multiply-add counts as two.
    memory: bytes of device memory.
    link_bandwidth: bytes per second in one direction. On TPUs, of one link to a neighbour in the torus; on GPUs, of all
      links of a GPU to the other GPUs of its host. 0 if unknown.
    clock: core clock in Hz, the unit of the TPU compiler's cost estimates. 0 on GPUs.
  """

  name: str
  peak_flops: float
  memory: int
  link_bandwidth: float = 0.0
  clock: float = 0.0


# TPU figures: cloud.google.com/tpu/docs/system-architecture-tpu-vm. On v2 and v3 a JAX device is one of a chip's two
# cores. TPU links: Austin et al. 2025, How to Scale Your Model, table of chapter 2.
# TPU clocks are chosen so that the matrix units reach the published peak. XLA's estimates for a large product agree, as
# a share of the multiply-adds per cycle: 0.99 of 8 x 128 x 128 on v5p (two cores with four units each), 0.93 of
# 8 x 128 x 128 on v4, 0.96 of 4 x 128 x 128 on v5e, and 0.7 of 4 x 256 x 256 on v6e.
# GPU figures: NVIDIA's data sheets, without sparsity. Bandwidth is one direction of NVLink, or of PCI Express on GPUs
# without NVLink.
_CHIPS = {
  'TPU v2': Chip('v2', 22.5e12, 8 * GIB, 0.0, 0.7e9),
  'TPU v3': Chip('v3', 61.5e12, 16 * GIB, 0.0, 0.94e9),
  'TPU v4': Chip('v4', 275e12, 32 * GIB, 45e9, 1.05e9),
  'TPU v5 lite': Chip('v5e', 197e12, 16 * GIB, 45e9, 1.5e9),
  'TPU v5e': Chip('v5e', 197e12, 16 * GIB, 45e9, 1.5e9),
  'TPU v5': Chip('v5p', 459e12, 95 * GIB, 90e9, 1.75e9),
  'TPU v5p': Chip('v5p', 459e12, 95 * GIB, 90e9, 1.75e9),
  'TPU v6 lite': Chip('v6e', 918e12, 32 * GIB, 90e9, 1.75e9),
  'TPU v6e': Chip('v6e', 918e12, 32 * GIB, 90e9, 1.75e9),
  'Tesla T4': Chip('T4', 65e12, 16 * GIB, 16e9),
  'Tesla V100-SXM2-16GB': Chip('V100', 125e12, 16 * GIB, 150e9),
  'Tesla V100-SXM2-32GB': Chip('V100', 125e12, 32 * GIB, 150e9),
  'NVIDIA L4': Chip('L4', 121e12, 24 * GIB, 32e9),
  'NVIDIA L40S': Chip('L40S', 362e12, 48 * GIB, 32e9),
  'NVIDIA A10G': Chip('A10G', 70e12, 24 * GIB, 32e9),
  'NVIDIA A100-SXM4-40GB': Chip('A100', 312e12, 40 * GIB, 300e9),
  'NVIDIA A100-SXM4-80GB': Chip('A100', 312e12, 80 * GIB, 300e9),
  'NVIDIA H100 80GB HBM3': Chip('H100', 989e12, 80 * GIB, 450e9),
  'NVIDIA H200': Chip('H200', 989e12, 141 * GIB, 450e9),
  'NVIDIA B200': Chip('B200', 2250e12, 180 * GIB, 900e9),
}


def chip(device_kind: str) -> Chip | None:
  """Looks up an accelerator by `jax.Device.device_kind`; None if this table does not have it."""
  return _CHIPS.get(device_kind)


# XLA may split a matrix product with a sharded operand into one product per shard, so that the next shard arrives
# during the current product (windowed einsum). Each of these products reads and writes the full result, which costs
# more than the overlap saves. This threshold (MiB) turns the splitting off, so matrices are gathered first. By XLA's
# estimate, four layers of the 1B model on v5e:2x4 take 624 million cycles with gathered matrices and 1,050 million with
# splitting; with tensor=2, 710 and 751 million.
_GATHER_BEFORE_PRODUCTS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': str(2**20)}
# Overlap the all-gathers of parameters and the all-reduces of gradients with matrix products. We set these options on
# v5e only: on other TPUs the compiler accepts them but warns that results may be wrong. We do not fuse reduce-scatters:
# the products slow down by more than the overlap saves.
_OVERLAP_COLLECTIVES = {
  'xla_enable_async_all_gather': 'true',
  'xla_enable_async_all_reduce': 'true',
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_reduce': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
}
_OVERLAP_KINDS = ('TPU v5 lite', 'TPU v5e')
# These chips have 128 MiB of on-chip memory; a fused operation may use 16 MiB of it by default. Larger fusions are
# faster but take longer to compile. By XLA's estimate, the MLP products of width 3968 with their gradients take 23.7
# million cycles on v5p with 16 MiB, 22.0 with 24, 21.5 with 32 and 21.1 with 48. Compiling with 24, 32 and 48 MiB takes
# 1.1, 1.5 and 2.5 times as long as with 16.
_LARGE_FUSION_KINDS = ('TPU v5 lite', 'TPU v5e', 'TPU v5', 'TPU v5p')


def compiler_options(device_kind: str, fusion_mib: int) -> dict[str, str]:
  """Chooses XLA options for compiling training steps.

  Args:
    device_kind: the accelerator, as in `jax.Device.device_kind`.
    fusion_mib: on-chip memory for one fused operation in MiB, used on chips where it can be set.

  Returns:
    Values by option name; empty if XLA's defaults are best.
  """
  options = dict(_GATHER_BEFORE_PRODUCTS) if device_kind.startswith('TPU') else {}
  if device_kind in _OVERLAP_KINDS:
    options |= _OVERLAP_COLLECTIVES
  if device_kind in _LARGE_FUSION_KINDS:
    options['xla_tpu_scoped_vmem_limit_kib'] = str(1024 * fusion_mib)
  return options
