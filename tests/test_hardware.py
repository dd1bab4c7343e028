from dalle_jax import hardware


def test_known_chips_have_figures_and_others_none():
  assert hardware.chip('TPU v5 lite').peak_flops == 197e12
  assert hardware.chip('TPU v5').memory == 95 * hardware.GIB
  assert hardware.chip('cpu') is None
