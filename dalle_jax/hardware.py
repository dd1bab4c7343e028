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
    link_bandwidth: bytes a second in one direction over one link to a neighbour in the torus, or of GPUs over all links
      to the others of a host; 0 where it is not known here.
    clock: cycles a second of the cores, in which TPUs' compiler counts; 0 of GPUs.
  """

  name: str
  peak_flops: float
  memory: int
  link_bandwidth: float = 0.0
  clock: float = 0.0


# TPU: cloud.google.com/tpu/docs/system-architecture-tpu-vm; of v2 and v3 a device is one of the chip's two cores.
# Links of TPUs: Austin et al. 2025, How to Scale Your Model, table of chapter 2. Clocks: those at which matrix units
# have the peak published. XLA's estimates of a large product agree: 0.99 of 8 x 128 x 128 products a cycle on v5p (four
# units in each of two cores), 0.93 of as many on v4, 0.96 of half as many on v5e, 0.7 of 4 x 256 x 256 on v6e.
# GPU: NVIDIA's data sheets, without sparsity; of NVLink, or PCI Express where there is none, one of the two directions.
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
  """The accelerator that JAX calls so (`jax.Device.device_kind`); None where its figures are not known here."""
  return _CHIPS.get(device_kind)


# A product with a split matrix would be cut into as many as there are shards, each reading and writing the whole result
# while the next shard comes: by XLA's estimate four layers of the 1B model on v5e:2x4 take 1,053 million cycles so, and
# 624 with matrices brought together first; with tensor=2, 751 and 710.
_WHOLE_PRODUCTS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': str(2**20)}
# Parameters are gathered and gradients summed beside matrix products instead of before and after them. On other chips
# the compiler takes the same options with the warning that results might be wrong, so there they are not given. With
# sums that end scattered fused likewise, products get slower by more than is hidden.
_BESIDE_PRODUCTS = {
  'xla_enable_async_all_gather': 'true',
  'xla_enable_async_all_reduce': 'true',
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_reduce': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
}
_BESIDE_PRODUCTS_ON = ('TPU v5 lite', 'TPU v5e')
# Of these the default is 16 MiB of on-chip memory for a fused operation, of the 128 that there are. By XLA's own
# estimate the products of an MLP of width 3968 and their gradients take 23.7 million cycles on v5p with 16 MiB, 22.0
# with 24, 21.5 with 32 and 21.1 with 48; but then they take 1.1, 1.5 and 2.5 times as long to compile.
_WITH_LARGER_FUSIONS = ('TPU v5 lite', 'TPU v5e', 'TPU v5', 'TPU v5p')


def compiler_options(device_kind: str, fusion_mib: int) -> dict[str, str]:
  """XLA's options with which training steps are compiled for an accelerator; none where its defaults are good.

  Args:
    device_kind: JAX's name of it.
    fusion_mib: on-chip memory for one fused operation, where it can be chosen.
  """
  options = dict(_WHOLE_PRODUCTS) if device_kind.startswith('TPU') else {}
  if device_kind in _BESIDE_PRODUCTS_ON:
    options |= _BESIDE_PRODUCTS
  if device_kind in _WITH_LARGER_FUSIONS:
    options['xla_tpu_scoped_vmem_limit_kib'] = str(1024 * fusion_mib)
  return options
