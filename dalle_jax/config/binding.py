"""Which keys of a configuration a work directory is bound to."""

# Groups and keys that may change between restarts: none of them changes what is learnt.
_FREE_GROUPS = ('mesh', 'logging', 'profile', 'sampling', 'evaluation')
_FREE_DATA_KEYS = ('num_workers', 'num_threads', 'data_dir')
# What to do where a run cannot go on may be chosen when it could not; and how the compiler fuses, when time is short.
_FREE_TRAINING_KEYS = ('nonfinite', 'max_nonfinite', 'fusion_mib')


def fixed(config: dict) -> dict:
  """The part of a configuration that a work directory is bound to."""
  kept = {name: value for name, value in config.items() if name not in _FREE_GROUPS}
  for name, group in kept.items():
    free = _FREE_DATA_KEYS if name == 'data' else _FREE_TRAINING_KEYS if name.endswith('_training') else ()
    if free:
      kept[name] = {key: value for key, value in group.items() if key not in free}
  return kept
