"""The configuration keys that must stay the same when a run resumes in its work directory."""

from collections.abc import Collection

# Groups and keys that may change between restarts, because they do not change what a model learns.
_FREE_GROUPS = ('mesh', 'logging', 'profile', 'sampling', 'evaluation')
_FREE_DATA_KEYS = ('num_workers', 'num_threads', 'data_dir', 'max_image_pixels', 'max_bad_share')
# Where the data are. A work directory is bound to the fingerprint of their contents instead.
_DATA_PATHS = ('path', 'validation_path', 'skip_list')
# A run that stopped at a loss that is not finite may resume with another value of 'nonfinite' or 'max_nonfinite'.
# 'fusion_mib' only changes how the compiler fuses operations.
_FREE_TRAINING_KEYS = ('nonfinite', 'max_nonfinite', 'fusion_mib')
# The chosen values are bound instead.
_FREE_CHOICE_KEYS = ('keep',)


def fixed(config: dict, groups: Collection[str] | None = None, data_paths: bool = False) -> dict:
  """The groups and keys of a configuration that must not change between restarts.

  Args:
    config: A configuration as nested dicts, as `Config.to_dict` returns it.
    groups: The groups that the task reads; None for all groups. A group that the task does not read may change.
    data_paths: Whether the paths of the data are among the keys.
  """
  bound = {
    name: value for name, value in config.items() if name not in _FREE_GROUPS and (groups is None or name in groups)
  }
  free_data_keys = _FREE_DATA_KEYS if data_paths else (*_FREE_DATA_KEYS, *_DATA_PATHS)
  for name, group in bound.items():
    kind = 'training' if name.endswith('_training') else name
    free_keys = {'data': free_data_keys, 'training': _FREE_TRAINING_KEYS, 'choice': _FREE_CHOICE_KEYS}.get(kind, ())
    if free_keys:
      bound[name] = {key: value for key, value in group.items() if key not in free_keys}
  return bound
