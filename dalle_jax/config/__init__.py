"""The configuration: typed groups, their checks, and their construction from `configs/*.py`.

A configuration file starts from `base_config()`, a locked `ml_collections.ConfigDict` that holds every key with its
default, and assigns existing keys only. `Config.from_dict` turns the result into frozen dataclasses, which refuse
unknown keys and validate themselves; every message names the key to change. Nothing here imports JAX.
"""

from dalle_jax.config.choice import ChoiceConfig
from dalle_jax.config.data import DataConfig, TokenizerConfig
from dalle_jax.config.models import BlocksConfig, DvaeConfig, PriorConfig, RerankerConfig, SequenceConfig
from dalle_jax.config.root import Config, apply_variant, base_config, choose, difference, shrink
from dalle_jax.config.running import EvaluationConfig, LoggingConfig, MeshConfig, SamplingConfig
from dalle_jax.config.training import TrainingConfig

__all__ = [
  'BlocksConfig',
  'ChoiceConfig',
  'Config',
  'DataConfig',
  'DvaeConfig',
  'EvaluationConfig',
  'LoggingConfig',
  'MeshConfig',
  'PriorConfig',
  'RerankerConfig',
  'SamplingConfig',
  'SequenceConfig',
  'TokenizerConfig',
  'TrainingConfig',
  'apply_variant',
  'base_config',
  'choose',
  'difference',
  'shrink',
]
