import pytest

from dalle_jax.config import SamplingConfig
from dalle_jax.sampling.draw_settings import DrawSettings

OUT_OF_RANGE = [
  ('temperature', -0.5, 'it must be 0 to 1,000,000.'),
  ('temperature', float('nan'), 'it must be 0 to 1,000,000.'),
  ('top_k', -1, 'it must be 0 (all tokens) or more.'),
  ('top_p', 0.0, 'it must be above 0 and at most 1 (all).'),
  ('guidance_scale', -1.0, 'it must be 0 to 1,000,000; 1 means no guidance.'),
  ('guidance_ramp', 2.0, 'it must lie in [0, 1].'),
  ('batch_size', 0, 'it must be 1 to 65,536.'),
]


@pytest.mark.parametrize(('name', 'value', 'allowed'), OUT_OF_RANGE)
def test_messages_name_the_flag_or_the_configuration_key(name, value, allowed):
  for settings, prefix in ((DrawSettings, '--'), (SamplingConfig, 'config.sampling.')):
    with pytest.raises(ValueError) as error:
      settings(**{name: value})
    assert str(error.value) == f'{prefix}{name} is {value}; {allowed}'


def test_settings_that_are_none_fall_back_to_the_models_settings():
  model_settings = SamplingConfig(temperature=0.5, top_k=7, batch_size=32)
  merged = DrawSettings(top_k=3).sampling(model_settings, 100)
  assert merged == SamplingConfig(temperature=0.5, top_k=3, batch_size=32)


def test_whole_batches_keeps_the_batch_size_even_for_fewer_samples():
  model_settings = SamplingConfig(batch_size=32)
  assert DrawSettings().sampling(model_settings, 5).batch_size == 5
  assert DrawSettings(whole_batches=True).sampling(model_settings, 5).batch_size == 32
