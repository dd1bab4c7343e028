"""The data set `captioned_shapes` on disk, as a TFDS builder: ArrayRecord files, random access, no TensorFlow.

Importing this module imports tensorflow_datasets (about a second); the rest of the package does not.
"""

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from PIL import Image

from dalle_jax.data.shapes.captions import caption
from dalle_jax.data.shapes.render import MIN_SIZE, render
from dalle_jax.data.shapes.scene import MAX_JITTER, sample_scene

SPLITS = ('train', 'validation', 'held_out')
# TFDS keeps a split in memory while it writes it, and needs TensorFlow beyond 1000 MiB.
MAX_SPLIT_BYTES = 900 * 2**20
PROGRESS_EVERY = 500  # examples

Progress = Callable[[int, int], None]


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
  """What fixes the data set, byte by byte. The configuration's name, and so its directory, tells all of it."""

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
  # A picture of flat areas compresses to about its outline's length; 1,000 + 24 per row is above every one measured.
  most = MAX_SPLIT_BYTES // (1_000 + 24 * size)
  for name in ('num_train', 'num_validation', 'num_held_out'):
    if not 1 <= settings[name] <= most:
      raise ValueError(f'config.data.{name} is {settings[name]}; at {size} pixels it must lie in [1, {most}].')


def _make_config(**settings: Any) -> ShapesConfig:
  """A validated configuration, named after its settings."""
  _check(settings)
  template = (
    'size{image_size}_train{num_train}_validation{num_validation}_heldout{num_held_out}'
    '_two{two_object_fraction}_jitter{jitter}_seed{seed}'
  )
  return ShapesConfig(name=template.format(**settings), **settings)


def make_example(config: ShapesConfig, split: str, index: int) -> dict[str, Any]:
  """Example `index` of a split: a function of the seed, the split, the index and the settings of the picture."""
  rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
  two_objects = rng.random() < config.two_object_fraction
  scene = sample_scene(rng, two_objects, held_out=split == 'held_out', jitter=config.jitter)
  png = io.BytesIO()
  Image.fromarray(render(scene, config.image_size)).save(png, 'PNG', compress_level=1)
  return {
    'image': png.getvalue(),
    'caption': caption(scene, rng),
    'scene': scene.to_json(),
    'key': f'{split}-{index:07d}',
  }


class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
  """Pictures of one or two coloured shapes with captions that a program can check."""

  name = 'captioned_shapes'
  VERSION = tfds.core.Version('1.0.0')

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
    before, total = sum(counts[name] for name in SPLITS[: SPLITS.index(split)]), sum(counts.values())
    for index in range(counts[split]):
      yield index, make_example(self.builder_config, split, index)
      done = before + index + 1
      if self._progress and (done % PROGRESS_EVERY == 0 or done == total):
        self._progress(done, total)


@contextlib.contextmanager
def _quiet() -> Iterator[TextIO]:
  """Keeps TFDS's bars, prints and notes away; yields the stream that `print` wrote to before."""
  verbosity, stdout = absl_logging.get_verbosity(), sys.stdout
  tfds.disable_progress_bar()  # for the whole process: TFDS has no way to ask whether they were on
  absl_logging.set_verbosity(absl_logging.ERROR)  # it warns of every configuration it does not know
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield stdout
  finally:
    absl_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
  """One process at a time writes or clears a data set; the lock dies with its process."""
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / '.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _is_complete(directory: Path, counts: dict[str, int]) -> bool:
  if not all((directory / name).is_file() for name in ('dataset_info.json', 'features.json')):
    return False
  splits = tfds.builder_from_directory(directory).info.splits
  if {name: split.num_examples for name, split in splits.items()} != counts:
    return False
  return all(os.path.isfile(path) for split in splits.values() for path in split.filepaths)


def _remove_unfinished(directory: Path) -> None:
  """Removes what an interrupted preparation left: the directory itself and TFDS's temporary ones beside it."""
  for path in (directory, *directory.parent.glob(f'incomplete.*_{directory.name}')):
    if path.exists():
      shutil.rmtree(path)


def _write(config: ShapesConfig, data_dir: Path, progress: Progress | None) -> None:
  with _quiet() as stdout:

    def report(done: int, total: int) -> None:
      with contextlib.redirect_stdout(stdout):
        progress(done, total)

    builder = CaptionedShapes(config=config, data_dir=data_dir, progress=report if progress else None)
    with tempfile.TemporaryDirectory() as unused:  # or TFDS leaves an empty directory for downloads in data_dir
      builder.download_and_prepare(download_dir=unused)


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
  """Writes the data set below `data_dir` unless a complete one with these settings is there.

  An incomplete one is removed and written anew. A second process that asks for the same data set waits for the first.

  Args:
    data_dir: data sets with different settings live in different directories below it.
    image_size: height and width in pixels.
    num_train, num_validation, num_held_out: examples in each split.
    two_object_fraction: expected share of scenes with two objects.
    jitter: steps of 1/32 of the side by which centres may lie off their places, 0 or 1.
    seed: example i of a split depends on it, the split and i.
    progress: called as progress(done, total) now and then while examples are written.

  Returns:
    The builder's directory, for `open_split`.

  Raises:
    ValueError: a setting is out of range.
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
    if not _is_complete(directory, config.counts):
      _remove_unfinished(directory)
      _write(config, data_dir, progress)
  return directory


class ShapesSource:
  """Random access to the records of a split: 'image' (PNG bytes), 'caption', 'scene' (JSON) and 'key' (str)."""

  def __init__(self, source: Any):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[index]
    return {name: value if name == 'image' else value.decode() for name, value in record.items()}


def open_split(builder_dir: str | os.PathLike, split: str) -> ShapesSource:
  """The records of a split of a prepared data set, in the order of their index.

  Raises:
    ValueError: there is no such split, or no data set in `builder_dir`.
  """
  if split not in SPLITS:
    raise ValueError(f'captioned_shapes has no split {split!r}; choose one of {", ".join(SPLITS)}.')
  if not (Path(builder_dir) / 'dataset_info.json').is_file():
    raise ValueError(f'There is no prepared data set in {builder_dir} (no dataset_info.json); call prepare first.')
  builder = tfds.builder_from_directory(builder_dir)
  return ShapesSource(builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()}))
