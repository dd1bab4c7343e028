from dalle_jax import hardware


def test_known_chips_have_figures_and_others_none():
  assert hardware.chip('TPU v5 lite').peak_flops == 197e12
  assert hardware.chip('TPU v5').memory == 95 * hardware.GIB
  assert hardware.chip('cpu') is None


def test_clocks_reach_the_peak_with_whole_matrix_units():
  units = {'TPU v4': 8 * 128**2, 'TPU v5 lite': 4 * 128**2, 'TPU v5': 8 * 128**2, 'TPU v6 lite': 4 * 256**2}
  for kind, products in units.items():
    chip = hardware.chip(kind)
    assert abs(2 * products * chip.clock / chip.peak_flops - 1) < 0.003, kind


def test_options_of_compilers_are_for_the_chips_that_have_them():
  assert hardware.compiler_options('cpu', 24) == hardware.compiler_options('NVIDIA H200', 24) == {}
  assert hardware.compiler_options('TPU v5', 24)['xla_tpu_scoped_vmem_limit_kib'] == '24576'
  assert 'xla_tpu_scoped_vmem_limit_kib' not in hardware.compiler_options('TPU v4', 24)
  hardware.compiler_options('TPU v5e', 24).clear()
  assert hardware.compiler_options('TPU v5e', 24)


def test_no_chip_is_given_options_of_which_its_compiler_warns():
  # libtpu: "not supported/recommended on platforms other than Viperlite [v5e] ... incorrect results, hang, SDC".
  for kind in ('TPU v4', 'TPU v5', 'TPU v5p', 'TPU v6 lite', 'TPU v6e'):
    assert not any('async_collective_fusion' in name for name in hardware.compiler_options(kind, 24)), kind
