"""Read prepared TFDS data sets (array_record files) as a source of records, without TensorFlow."""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.data.unreadable import first_line
from dalle_jax.files import shown

# Features that can serve as a record's key. The first one that a data set has is used.
_KEYS = ('key', 'id', 'image_id', 'image/id', 'filename', 'file_name', 'image/filename')


class TfdsSource:
  """Random access to the examples of one split."""

  def __init__(self, examples: Any, split: str, caption_key: str, id_key: str | None):
    self._examples = examples
    self._split = split
    self._caption_key = caption_key
    self._id_key = id_key

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns the record with this index.

    Its caption is the first that is not empty, or '' if there is none. If there are several, 'captions' has all.
    """
    example = self._examples[index]
    key = f'{self._split}/{index}' if self._id_key is None else ''.join(_texts(example[self._id_key])[:1])
    captions = [text for text in _texts(_descend(example, self._caption_key)) if not is_empty(text)]
    record = {'image': example['image'], 'caption': captions[0] if captions else '', 'key': key}
    return {**record, 'captions': captions} if len(captions) > 1 else record

  def texts(self, index: int) -> list[str]:
    """Returns all captions of an example, including empty ones."""
    return _texts(_descend(self._examples[index], self._caption_key))


def open_tfds(path: str | os.PathLike, split: str, caption_key: str) -> TfdsSource:
  """Opens one split of a prepared data set.

  Args:
    path: the data set's version directory, which contains dataset_info.json.
    split: a split's name, or a slice such as 'train[:90%]'.
    caption_key: the feature with the caption, which is a Text or a sequence of Texts. A '/' separates the names of
      nested features, as in 'captions/text'.

  Returns:
    A source of {'image': encoded bytes, 'caption': str, 'key': str}. The key is the example's id or file name if it
    has one, otherwise 'SPLIT/INDEX'.

  Raises:
    ValueError: the directory is not a TFDS data set, its file format has no random access, the split does not exist or
      has missing or damaged files, or there is no image feature or no text feature `caption_key`.
  """
  builder = _builder(path)
  split_names = list(builder.info.splits)
  if split.split('[')[0] not in split_names:
    raise ValueError(f'{path} has no split {split!r}; it has {", ".join(split_names)}.')
  _check_features(builder.info.features, path, caption_key)
  _check_files(builder.info.splits[split.split('[')[0]], path)
  with _quiet():
    import tensorflow_datasets as tfds

    examples = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
  id_key = next((key for key in _KEYS if key in builder.info.features), None)
  return TfdsSource(examples, split, caption_key, id_key)


def splits(path: str | os.PathLike) -> dict[str, int]:
  """Returns the number of examples in each split.

  Raises:
    ValueError: the directory is not a TFDS data set, or its file format has no random access.
  """
  counts = {name: info.num_examples for name, info in _builder(path).info.splits.items()}
  negative = [name for name, count in counts.items() if count < 0]
  if negative:
    raise ValueError(f'config.data.path: {path} is damaged: its dataset_info.json states {counts} examples.')
  return counts


def full_name(path: str | os.PathLike) -> str:
  """Returns the name, configuration and version of a prepared data set, e.g. 'coco_captions/2014/1.1.0'."""
  return _builder(path).info.full_name


def record_files(path: str | os.PathLike, split_names: Iterable[str]) -> dict[str, int]:
  """Returns the number of records of each file of some splits, by the file's path."""
  splits = [_builder(path).info.splits[name] for name in split_names]
  return {
    os.fspath(file): count for split in splits for file, count in zip(split.filepaths, split.shard_lengths, strict=True)
  }


def _builder(path: str | os.PathLike) -> Any:
  from etils import epath  # a dependency of TFDS, which also handles gs:// paths

  path = os.fspath(path)
  if not (epath.Path(path) / 'dataset_info.json').exists():
    raise ValueError(
      f'config.data.path: {path} is not a prepared TFDS data set: it has no dataset_info.json. Give the directory of '
      'one version, such as DATA_DIR/coco_captions/2014/1.1.0.'
    )
  with _quiet():
    import tensorflow_datasets as tfds

    try:
      builder = tfds.builder_from_directory(path)
    except Exception as error:  # damaged JSON files make TFDS raise many types
      raise ValueError(f'config.data.path: {path} is not a readable TFDS data set: {first_line(error)}') from error
  file_format = builder.info.file_format.value
  if file_format != 'array_record':
    raise ValueError(
      f'config.data.path: {path} is stored as {file_format}, which has no random access; prepare the data set again '
      "with file_format='array_record'."
    )
  return builder


def _check_features(features: Any, path: str | os.PathLike, caption_key: str) -> None:
  import tensorflow_datasets as tfds

  leaves = dict(_leaves(features, ''))
  if not isinstance(leaves.get('image'), tfds.features.Image):
    raise ValueError(f'{path} has no feature "image" of type Image; its features are {", ".join(sorted(leaves))}.')
  texts = sorted(name for name, feature in leaves.items() if isinstance(feature, tfds.features.Text))
  if caption_key not in texts:
    raise ValueError(
      f'config.data.caption_key: {path} has no text feature {caption_key!r}; its text features are '
      f'{", ".join(texts) or "none"}.'
    )


def _check_files(split: Any, path: str | os.PathLike) -> None:
  """Checks that the files of a split can be opened and have the numbers of records that dataset_info.json states.

  Reads no record: a damaged record is replaced when training reads it.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  for file, expected in zip(split.filepaths, split.shard_lengths, strict=True):
    try:
      reader = ArrayRecordReader(os.fspath(file))
      count = reader.num_records()
      reader.close()
    except Exception as error:  # array_record raises RuntimeError, and other types for other file systems
      problem = f'cannot be read: {first_line(error)}'
    else:
      if count == expected:
        continue
      problem = f'has {count} records, but dataset_info.json states {expected}'
    raise ValueError(
      f'config.data.path: {path} is damaged. Its file {shown(os.path.basename(file))} {problem}. Prepare the data set '
      'again, or copy this file again; it is not made by dalle_jax, so nothing was changed.'
    )


def _leaves(feature: Any, prefix: str) -> Iterator[tuple[str, Any]]:
  """Yields the path and the feature of each leaf. A sequence is treated like one of its items."""
  while hasattr(feature, 'feature'):
    feature = feature.feature
  if not hasattr(feature, 'items'):
    yield prefix, feature
    return
  for name, child in feature.items():
    yield from _leaves(child, f'{prefix}/{name}' if prefix else name)


def _descend(example: Any, path: str) -> Any:
  """Returns the value at a path such as 'captions/text'. A feature's name may itself contain a '/'."""
  if path in example:
    return example[path]
  for cut, character in enumerate(path):
    if character == '/' and path[:cut] in example:
      return _descend(example[path[:cut]], path[cut + 1 :])
  raise KeyError(path)


def _texts(value: Any) -> list[str]:
  """Converts captions or a key to texts: one, or those of a sequence."""
  if isinstance(value, bytes):
    return [value.decode('utf-8', 'replace')]
  if isinstance(value, str) or not hasattr(value, '__len__'):
    return [str(value)]
  return [text for item in value for text in _texts(item)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses TFDS's log messages and the deprecation warnings of its dependencies."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    logging.set_verbosity(verbosity)
