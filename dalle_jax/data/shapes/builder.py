"""Generate the data set `captioned_shapes` with TFDS and read it: ArrayRecord files, random access, no TensorFlow.

Importing this module imports tensorflow_datasets, which takes about a second. Nothing else in `data.shapes` does.
"""

import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from PIL import Image

from dalle_jax.data.pictures.image import decode
from dalle_jax.data.shapes.captions import caption, parse
from dalle_jax.data.shapes.partition import describe, is_reserved
from dalle_jax.data.shapes.render import MIN_SIZE, render
from dalle_jax.data.shapes.scene import MAX_JITTER, Scene, sample_scene
from dalle_jax.data.tfds import generated

VERSION = '2.0.0'  # rises when the same settings give other examples
SPLITS = ('train', 'validation', 'held_out')
# TFDS keeps a split in memory while it writes it. For a split above 1000 MiB it needs TensorFlow.
MAX_SPLIT_BYTES = 900 * 2**20
PROGRESS_EVERY = 500  # examples between two calls of `progress`

# Called with (examples written, examples in total).
Progress = Callable[[int, int], None]


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
  """All settings that determine the data set, byte for byte.

  The configuration's name contains every setting. It is part of the path, so other settings use another directory.
  """

  image_size: int
  num_train: int
  num_validation: int
  num_held_out: int
  two_object_fraction: float
  jitter: int
  seed: int

  @property
  def counts(self) -> dict[str, int]:
    return dict(zip(SPLITS, (self.num_train, self.num_validation, self.num_held_out), strict=True))


def _check(settings: dict[str, Any]) -> None:
  size, fraction, seed = settings['image_size'], settings['two_object_fraction'], settings['seed']
  if size < MIN_SIZE:
    raise ValueError(f'config.data.image_size is {size}; it must be at least {MIN_SIZE}.')
  if not 0 <= fraction <= 1:
    raise ValueError(f'config.data.two_object_fraction is {fraction}; it must lie in [0, 1].')
  if not 0 <= settings['jitter'] <= MAX_JITTER:
    raise ValueError(f'config.data.position_jitter is {settings["jitter"]}; it must lie in [0, {MAX_JITTER}].')
  if seed < 0:
    raise ValueError(f'config.data.shapes_seed is {seed}; it must be 0 or more.')
  # The PNG size of flat areas grows with the length of their outlines. No measured record exceeds this bound in bytes.
  max_record_bytes = 1_000 + 24 * size
  max_count = MAX_SPLIT_BYTES // max_record_bytes
  for name in ('num_train', 'num_validation', 'num_held_out'):
    if not 1 <= settings[name] <= max_count:
      raise ValueError(
        f'config.data.{name} is {settings[name]}; with config.data.image_size={size} it must lie in [1, {max_count}].'
      )


def _make_config(**settings: Any) -> ShapesConfig:
  """Checks the settings and returns a configuration whose name contains them."""
  _check(settings)
  template = (
    'size{image_size}_train{num_train}_validation{num_validation}_heldout{num_held_out}'
    '_two{two_object_fraction}_jitter{jitter}_seed{seed}'
  )
  return ShapesConfig(name=template.format(**settings), **settings)


def make_example(config: ShapesConfig, split: str, index: int) -> dict[str, Any]:
  """Returns example `index` of a split.

  It depends on the seed, the split, the index and the settings of the image, but not on the sizes of the splits. The
  splits share no scene, picture or caption (see `partition`).
  """
  rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
  scene, text = _sample(config, split, rng)
  png = io.BytesIO()
  Image.fromarray(render(scene, config.image_size)).save(png, 'PNG', compress_level=1)
  return {
    'image': png.getvalue(),
    'caption': text,
    'scene': scene.to_json(),
    'key': f'{split}-{index:07d}',
  }


def _sample(config: ShapesConfig, split: str, rng: np.random.Generator) -> tuple[Scene, str]:
  """Samples a scene and its caption from the part of all scenes and captions that belongs to a split."""
  two_objects = rng.random() < config.two_object_fraction
  reserved = split == 'validation'
  while True:
    scene = sample_scene(rng, two_objects, held_out=split == 'held_out', jitter=config.jitter)
    if split == 'held_out':
      return scene, caption(scene, rng)
    if is_reserved(describe(scene)) != reserved:
      continue
    text = caption(scene, rng)
    if is_reserved(parse(text)) == reserved:
      return scene, text


# TFDS stores the docstring of this class in dataset_info.json, so changing it would change the files of the data set.
class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
  """Pictures of one or two coloured shapes with captions that a program can check."""

  name = 'captioned_shapes'
  VERSION = tfds.core.Version(VERSION)
  RELEASE_NOTES: ClassVar = {
    '2.0.0': "'validation' shares no picture and no caption with 'train', in any wording. 'held_out' is unchanged.",
    '1.0.0': 'The first version: train and validation were sampled independently and overlap.',
  }

  def __init__(self, *, config: ShapesConfig, data_dir: str | os.PathLike, progress: Progress | None = None):
    self._progress = progress
    super().__init__(config=config, data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.image_size
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(size, size, 3), encoding_format='png'),
          'caption': tfds.features.Text(),
          'scene': tfds.features.Text(),
          'key': tfds.features.Text(),
        }
      ),
      disable_shuffling=True,  # record i is example i
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    counts = self.builder_config.counts
    previous, total = sum(counts[name] for name in SPLITS[: SPLITS.index(split)]), sum(counts.values())
    for index in range(counts[split]):
      yield index, make_example(self.builder_config, split, index)
      done = previous + index + 1
      if self._progress and (done % PROGRESS_EVERY == 0 or done == total):
        self._progress(done, total)


@contextlib.contextmanager
def _quiet() -> Iterator[TextIO]:
  """Suppresses TFDS's progress bars, prints and log messages. Yields the original standard output."""
  verbosity, stdout = absl_logging.get_verbosity(), sys.stdout
  tfds.disable_progress_bar()  # stays off for the whole process, because TFDS cannot tell whether it was on
  absl_logging.set_verbosity(absl_logging.ERROR)  # TFDS warns about each configuration that is not predefined
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield stdout
  finally:
    absl_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
  """Lets one process at a time write or remove a data set. The lock is released if its process dies.

  There is no lock in a directory that cannot be written: this process can only read the data there.
  """
  directory.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(directory / '.lock', 'w'))
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise
    yield


def _damage(directory: Path, config: ShapesConfig) -> str:
  """What is wrong with the files of a data set, in words; '' if nothing is."""

  def read() -> None:
    splits = tfds.builder_from_directory(directory).info.splits
    if {name: split.num_examples for name, split in splits.items()} != config.counts:
      raise ValueError('dataset_info.json states other numbers of examples')
    for split, count in config.counts.items():
      source = open_split(directory, split)
      for index in range(count):
        example = source[index]
        height, width, _ = decode(example['image']).shape
        if example['key'] != f'{split}-{index:07d}' or (height, width) != (config.image_size, config.image_size):
          raise ValueError(f'record {index} of {split} is another one')

  with _quiet():
    return generated.damage(directory, read)


def _remove(directory: Path) -> None:
  """Removes a damaged or unfinished data set, and TFDS's temporary directories of interrupted preparations."""
  generated.remove(directory, ('dataset_info.json', 'features.json', f'{CaptionedShapes.name}-*.array_record*'))
  for path in directory.parent.glob(f'incomplete.*_{directory.name}'):
    shutil.rmtree(path)


def _redirected(progress: Progress, stdout: TextIO) -> Progress:
  """Wraps a progress callback so that it prints to `stdout`."""

  def report(done: int, total: int) -> None:
    with contextlib.redirect_stdout(stdout):
      progress(done, total)

  return report


def _write(config: ShapesConfig, data_dir: Path, progress: Progress | None) -> None:
  with _quiet() as stdout:
    report = _redirected(progress, stdout) if progress else None
    builder = CaptionedShapes(config=config, data_dir=data_dir, progress=report)
    # Without a download directory, TFDS would leave an empty one in data_dir.
    with tempfile.TemporaryDirectory() as download_dir:
      builder.download_and_prepare(download_dir=download_dir)


def prepare(
  data_dir: str | os.PathLike,
  *,
  image_size: int,
  num_train: int,
  num_validation: int,
  num_held_out: int,
  two_object_fraction: float,
  jitter: int,
  seed: int,
  progress: Progress | None = None,
) -> Path:
  """Writes the data set below `data_dir`, unless a complete one with these settings exists there.

  An incomplete or damaged data set is removed and written again; see `generated`. If two processes prepare the same
  data set, the second waits for the first.

  Args:
    data_dir: the root directory. Data sets with different settings have different directories below it.
    image_size: height and width in pixels.
    num_train: number of examples in the split 'train'.
    num_validation: number of examples in 'validation'.
    num_held_out: number of examples in 'held_out'.
    two_object_fraction: expected share of scenes with two objects.
    jitter: maximum offset of an object's centre along each axis, in steps of 1/32 of the image's side; 0 or 1.
    seed: seed of all examples, 0 or more.
    progress: called with (examples written, examples in total) from time to time.

  Returns:
    The directory of the data set, to be passed to `open_split`.

  Raises:
    ValueError: a setting is out of range; or a damaged data set cannot be removed.
  """
  config = _make_config(
    image_size=image_size,
    num_train=num_train,
    num_validation=num_validation,
    num_held_out=num_held_out,
    two_object_fraction=two_object_fraction,
    jitter=jitter,
    seed=seed,
  )
  data_dir = Path(data_dir).expanduser().absolute()
  directory = data_dir / CaptionedShapes.name / config.name / str(CaptionedShapes.VERSION)
  with _locked(directory.parent):
    damage = _damage(directory, config) if directory.exists() else None
    if damage:
      absl_logging.warning('The generated data set in %s is damaged and is made again: %s.', directory, damage)
    if damage != '':
      _remove(directory)
      _write(config, data_dir, progress)
      generated.record(directory)
  return directory


class ShapesSource:
  """Random access to the records of a split.

  A record has 'image' (PNG bytes), 'caption' (str), 'scene' (JSON, see `Scene.to_json`) and 'key' (str).
  """

  def __init__(self, source: Any):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[index]
    return {name: value if name == 'image' else value.decode() for name, value in record.items()}


def open_split(builder_dir: str | os.PathLike, split: str) -> ShapesSource:
  """Opens a split of a prepared data set. Record i is example i.

  Args:
    builder_dir: the directory that `prepare` returned.
    split: one of SPLITS.

  Raises:
    ValueError: the split does not exist, or `builder_dir` has no data set.
  """
  if split not in SPLITS:
    raise ValueError(f'captioned_shapes has no split {split!r}; choose one of {", ".join(SPLITS)}.')
  if not (Path(builder_dir) / 'dataset_info.json').is_file():
    raise ValueError(f'There is no prepared data set in {builder_dir} (no dataset_info.json); call prepare first.')
  builder = tfds.builder_from_directory(builder_dir)
  return ShapesSource(builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()}))
