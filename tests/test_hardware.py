from dalle_jax import hardware


def test_known_chips_have_figures_and_unknown_kinds_give_none():
  assert hardware.chip('TPU v5 lite').peak_flops == 197e12
  assert hardware.chip('TPU v5').memory == 95 * hardware.GIB
  assert hardware.chip('cpu') is None


def test_clock_times_matrix_units_gives_the_peak_flops():
  units = {'TPU v4': 8 * 128**2, 'TPU v5 lite': 4 * 128**2, 'TPU v5': 8 * 128**2, 'TPU v6 lite': 4 * 256**2}
  for kind, products in units.items():
    chip = hardware.chip(kind)
    assert abs(2 * products * chip.clock / chip.peak_flops - 1) < 0.003, kind


def test_compiler_options_depend_on_the_chip():
  assert hardware.compiler_options('cpu', 24) == hardware.compiler_options('NVIDIA H200', 24) == {}
  assert hardware.compiler_options('TPU v5', 24)['xla_tpu_scoped_vmem_limit_kib'] == '24576'
  assert 'xla_tpu_scoped_vmem_limit_kib' not in hardware.compiler_options('TPU v4', 24)
  hardware.compiler_options('TPU v5e', 24).clear()
  assert hardware.compiler_options('TPU v5e', 24)


def test_no_chip_gets_options_that_its_compiler_warns_about():
  # libtpu: "not supported/recommended on platforms other than Viperlite [v5e] ... incorrect results, hang, SDC".
  for kind in ('TPU v4', 'TPU v5', 'TPU v5p', 'TPU v6 lite', 'TPU v6e'):
    assert not any('async_collective_fusion' in name for name in hardware.compiler_options(kind, 24)), kind
