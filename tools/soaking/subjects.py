"""The kinds of input: each makes a damaged input from an undamaged one, uses it as a door does, and judges the result.

A trial returns an `Outcome`, or raises. The worker counts an error as clean if the commands would print one message for
it and exit with status 2 (`dalle_jax.boundary`). Any other exception would be a traceback.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, features

from dalle_jax import bundle, sharding
from dalle_jax.config import Config
from dalle_jax.config.binding import fixed
from dalle_jax.config.overrides import groups_read
from dalle_jax.data.pictures import image
from dalle_jax.data.sources import folder
from dalle_jax.data.sources.usable_pictures import Choices
from dalle_jax.importing import torch_file
from dalle_jax.jobs.compress.limits import DecodingLimits
from dalle_jax.jobs.compress.picture_job import PictureJob
from dalle_jax.jobs.compress.text_job import TextJob
from dalle_jax.jobs.draw.given_picture import read_mask
from soaking.base import PICTURE_RUN, TEXT_RUN
from soaking.mutations import mutate_bytes, mutate_json, random_text, with_png_checksums
from soaking.results import Outcome

RIGHT = Outcome('right')
_FORMATS = (
  ('PNG', 'RGB'), ('PNG', 'L'), ('PNG', 'P'), ('PNG', 'LA'), ('PNG', 'I;16'), ('PNG', '1'), ('PNG', 'RGBA'),
  ('JPEG', 'RGB'), ('JPEG', 'L'), ('JPEG', 'CMYK'), ('WEBP', 'RGB'), ('WEBP', 'RGBA'), ('GIF', 'P'), ('BMP', 'RGB'),
  ('TIFF', 'RGB'), ('TIFF', 'I;16'), ('AVIF', 'RGB'),
)  # fmt: skip


def wrong(detail: str) -> Outcome:
  return Outcome('silent wrong', detail)


class Pictures:
  """Pictures of every format: what decodes must be what Pillow decodes, and the folder's check must agree."""

  def __init__(self, base: Path):
    del base

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    data = mutate_bytes(rng, _picture(rng))
    if rng.random() < 0.5:
      data = with_png_checksums(data)
    (directory / 'a.png').write_bytes(data)
    (directory / 'b.png').write_bytes(_good_picture())
    for name in 'ab':
      (directory / f'{name}.txt').write_text('a picture', encoding='utf-8')
    accepted = {entry.path for entry in folder.open_folder(directory, Choices(validation_fraction=0))['train'].entries}
    try:
      pixels = image.decode(data)
    except ValueError as error:
      if 'a.png' in accepted:
        return wrong(f"the folder's check accepts what cannot be decoded: {error}")
      _expect_value_error(lambda: read_mask(str(directory / 'a.png')))
      return Outcome('clean error', str(error))
    if 'a.png' not in accepted:
      return wrong("the folder's check refuses what can be decoded")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
      return wrong(f'decoded to {pixels.dtype} {pixels.shape}')
    with Image.open(io.BytesIO(data)) as opened:
      opened.load()
      sizes = (opened.size, opened.size[::-1])
    if (pixels.shape[1], pixels.shape[0]) not in sizes:
      return wrong(f'decoded to {pixels.shape}, Pillow to {sizes[0]}')
    _expect_value_error(lambda: read_mask(str(directory / 'a.png')))
    return RIGHT


def _expect_value_error(call: Callable[[], Any]) -> None:
  """Calls something that may fail, but only with a ValueError."""
  try:
    call()
  except ValueError:
    pass


def _picture(rng: np.random.Generator) -> bytes:
  """A picture of a random format and mode, up to 40 pixels wide."""
  name, mode = _FORMATS[int(rng.integers(len(_FORMATS)))]
  if name == 'AVIF' and not features.check('avif'):
    name = 'PNG'
  height, width = (int(side) for side in rng.integers(1, 41, size=2))
  pixels = np.kron(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)), np.ones((8, 8, 1)))[:height, :width]
  made = Image.fromarray(pixels.astype(np.uint8))
  made = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == 'I;16' else made.convert(mode)
  options: dict[str, Any] = {}
  if name == 'PNG' and mode in ('L', 'P', 'RGB') and rng.random() < 0.3:
    options['transparency'] = (0, 0, 0) if mode == 'RGB' else 0
  if name in ('PNG', 'JPEG', 'WEBP') and rng.random() < 0.4:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    options['exif'] = exif
  buffer = io.BytesIO()
  made.save(buffer, name, **options)
  return buffer.getvalue()


def _good_picture() -> bytes:
  buffer = io.BytesIO()
  Image.new('RGB', (4, 4)).save(buffer, 'PNG')
  return buffer.getvalue()


class Prompts:
  """Prompts of random characters, with random settings: an image of the right size, or a clean error."""

  def __init__(self, base: Path):
    from dalle_jax.jobs.draw.model import Model

    mesh = sharding.one_device_mesh()
    self._model = Model(bundle.load(base / PICTURE_RUN / 'model', mesh), mesh)
    self._model.generate('a red circle', batch_size=1)

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    prompt = random_text(rng, 200)
    settings: dict[str, Any] = {'truncate': bool(rng.random() < 0.7), 'batch_size': 1}
    if rng.random() < 0.3:
      settings |= {'negative_prompt': random_text(rng, 50), 'guidance_scale': 2.0}
    if rng.random() < 0.2:
      names = ('temperature', 'top_k', 'top_p', 'seed', 'num_images', 'candidates', 'guidance_ramp')
      name = names[int(rng.integers(len(names)))]
      values = (
        (-1, 2**70, -(2**70)) if name in ('top_k', 'seed', 'num_images', 'candidates') else (-1.0, 2.5, np.nan, 1e300)
      )
      settings[name] = values[int(rng.integers(len(values)))]
    drawn = self._model.generate([prompt], **settings)
    size = self._model.config.data.image_size
    if drawn.dtype != np.uint8 or drawn.shape != (1, 1, size, size, 3):
      return wrong(f'{prompt!a} gave {drawn.dtype} {drawn.shape}')
    again = self._model.generate([prompt], **settings)
    return RIGHT if np.array_equal(drawn, again) else wrong(f'{prompt!a} gives another image the second time')


class Bundles:
  """Model directories with one damaged file: the same parameters and configuration, or a clean error."""

  def __init__(self, base: Path):
    self._path, self._mesh = base / PICTURE_RUN / 'model', sharding.one_device_mesh()
    self._expected = self._identity(self._path)

  def _identity(self, path: Path) -> tuple[Any, ...]:
    loaded = bundle.load(path, self._mesh, needs=())
    assert loaded.tokenizer is not None
    return bundle.fingerprint(loaded.params), loaded.config.to_dict(), loaded.tokenizer.pieces_hash

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    copy = directory / 'model'
    shutil.copytree(self._path, copy)
    damaged = _damage_a_file(rng, copy)
    return RIGHT if self._identity(copy) == self._expected else wrong(f'{damaged} is damaged and the model loads')


def _damage_a_file(rng: np.random.Generator, directory: Path) -> str:
  """Damages or deletes a random file below a directory, JSON more often; returns its relative path."""
  files = sorted(file for file in directory.rglob('*') if file.is_file())
  by_kind = [file for file in files if file.suffix == '.json'] if rng.random() < 0.3 else files
  file = (by_kind or files)[int(rng.integers(len(by_kind or files)))]
  if file.suffix == '.json':
    file.write_text(mutate_json(rng, file.read_text(encoding='utf-8')), encoding='utf-8', errors='surrogateescape')
  elif rng.random() < 0.05:
    file.unlink()
  else:
    file.write_bytes(mutate_bytes(rng, file.read_bytes()))
  return file.relative_to(directory).as_posix()


class CheckpointFiles:
  """A damaged newest checkpoint: restoring gives its undamaged state or the state of the checkpoint before it."""

  def __init__(self, base: Path):
    from dalle_jax.data.text.tokenizer import Tokenizer
    from dalle_jax.training.optimizer import make_optimizer
    from dalle_jax.training.stage_tasks import make_task, training_of
    from dalle_jax.training.state import abstract_state

    run = base / PICTURE_RUN
    config = bundle.read_config(run / 'model')
    training = training_of(config, 'prior')
    task = make_task(config, 'prior', Tokenizer.load(run / 'tokenizer.model').vocab_size)
    mesh = sharding.one_device_mesh()
    self._abstract = abstract_state(task, make_optimizer(training), mesh, training.ema_decay > 0)
    self._path, self._keep = run / 'prior' / 'checkpoints', training.keep_checkpoints
    with self._open(self._path) as checkpoints:
      self._steps = checkpoints.steps()
      assert len(self._steps) >= 2, 'the run must keep two checkpoints'
      self._expected = {step: self._identity(checkpoints.restore(step, self._abstract)) for step in self._steps}

  def _open(self, path: Path) -> Any:
    from dalle_jax.training.checkpoint import Checkpoints

    return Checkpoints(path, self._keep)

  def _identity(self, restored: Any) -> tuple[Any, ...]:
    return bundle.fingerprint(jax.tree.leaves(restored.state)), restored.data, restored.meta

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    copy = directory / 'checkpoints'
    shutil.copytree(self._path, copy)
    damaged = _damage_a_file(rng, copy / str(self._steps[-1]))
    with self._open(copy) as checkpoints:
      restored = checkpoints.restore_latest(self._abstract)
      if restored is None:
        return wrong(f'{damaged} is damaged, and all checkpoints are overlooked')
      if self._identity(restored) != self._expected.get(restored.step):
        return wrong(f'{damaged} is damaged, and step {restored.step} is restored with other contents')
    return RIGHT


class CompressedFiles:
  """Damaged compressed files: the original contents, or a clean error."""

  def __init__(self, base: Path):
    mesh, self._files = sharding.one_device_mesh(), []
    for run, name, job, original in (
      (PICTURE_RUN, 'picture.djxc', PictureJob, 'source.png'), (TEXT_RUN, 'text.djxc', TextJob, 'corpus.txt'),
    ):  # fmt: skip
      loaded = bundle.load(base / run / 'model', mesh, ('dvae', 'prior') if job is PictureJob else ('model',))
      self._files.append(((base / name).read_bytes(), job(loaded), (base / original).read_bytes()))

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    from dalle_jax.compression.container import ContainerReader

    data, job, original = self._files[int(rng.integers(2))]
    source, out = directory / 'a.djxc', directory / 'out.png'
    source.write_bytes(mutate_bytes(rng, data))
    with source.open('rb') as file:
      reader = ContainerReader(file)
      if reader.header.kind != job.kind:
        return Outcome('clean error', 'another kind of file')
      job.decode(reader, out, source.stat().st_size, DecodingLimits())
      reader.check_whole()
    if isinstance(job, PictureJob):
      same = np.array_equal(image.decode(out.read_bytes()), image.decode(original))
    else:
      same = out.read_bytes() == original
    return RIGHT if same else wrong('decoded to other contents')


class TorchFiles:
  """Damaged torch files. Where the checksums of the archive are right again, any arrays count as right."""

  def __init__(self, base: Path):
    del base
    rng = np.random.default_rng(0)
    self._arrays = {'blocks.w': rng.normal(size=(3, 4)).astype(np.float32), 'b': np.arange(6, dtype=np.int64)}

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    file = directory / 'a.pt'
    members = {
      'archive/data.pkl': _torch_pickle(self._arrays), 'archive/version': b'3\n',
      **{f'archive/data/{i}': array.tobytes() for i, array in enumerate(self._arrays.values())},
    }  # fmt: skip
    checksums_hold = rng.random() < 0.5
    if checksums_hold:
      name = list(members)[int(rng.integers(len(members)))] if rng.random() < 0.3 else 'archive/data.pkl'
      members[name] = mutate_bytes(rng, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
      for name, data in members.items():
        archive.writestr(name, data)
    file.write_bytes(buffer.getvalue() if checksums_hold else mutate_bytes(rng, buffer.getvalue()))
    tensors = torch_file.read(file)
    if checksums_hold:
      return RIGHT
    same = tensors.keys() == self._arrays.keys() and all(np.array_equal(tensors[k], a) for k, a in self._arrays.items())
    return RIGHT if same else wrong(f'read {sorted(tensors)} with other values')


def _torch_pickle(arrays: dict[str, np.ndarray]) -> bytes:
  """The pickle of a state dict, as torch.save writes it, written by hand."""
  out = bytearray(b'\x80\x02}q\x00(')
  for number, (name, array) in enumerate(arrays.items()):
    kind = b'FloatStorage' if array.dtype == np.float32 else b'LongStorage'
    strides = tuple(stride // array.itemsize for stride in array.strides)
    out += _text(name) + b'ctorch._utils\n_rebuild_tensor_v2\n('
    out += b'(' + _text('storage') + b'ctorch\n' + kind + b'\n' + _text(str(number)) + _text('cpu') + _int(array.size)
    out += b'tQ' + _int(0) + _ints(array.shape) + _ints(strides) + b'\x89ccollections\nOrderedDict\n)RtR'
  return bytes(out + b'u.')


def _text(text: str) -> bytes:
  data = text.encode()
  return b'X' + len(data).to_bytes(4, 'little') + data


def _int(value: int) -> bytes:
  return b'J' + value.to_bytes(4, 'little')


def _ints(values: tuple[int, ...]) -> bytes:
  return b'(' + b''.join(map(_int, values)) + b't'


class WorkDirectories:
  """Work directories with a damaged JSON file: taken as they were, or refused with the file unchanged."""

  def __init__(self, base: Path):
    self._run = base / PICTURE_RUN
    self._config = bundle.read_config(self._run / 'model')
    self._fixed = self._bound((self._run / 'config.json').read_text(encoding='utf-8'))

  def _bound(self, text: str) -> Any:
    """The values of a config.json that a work directory fixes, with defaults for missing keys; None without them.

    Values of other groups and keys may be anything: the command's own configuration replaces them. So may the values of
    names that no configuration has.
    """
    try:
      values = json.loads(text)
    except (ValueError, RecursionError):
      return None
    defaults = json.loads(json.dumps(Config.from_dict({}).to_dict()))
    if not isinstance(values, dict):
      return None
    for name, value in values.items():
      if name not in defaults:
        continue
      if isinstance(defaults[name], dict) != isinstance(value, dict):
        return None
      defaults[name] = {**defaults[name], **value} if isinstance(value, dict) else value
    return fixed(defaults, groups_read(self._config))

  def trial(self, rng: np.random.Generator, directory: Path) -> Outcome:
    from dalle_jax.jobs.train.workspace import Workspace
    from dalle_jax.reporting.run_curves import run_curves
    from dalle_jax.training.metrics_log import read_metrics

    names = ('config.json', 'seconds.json', 'dvae/metrics.jsonl', 'prior/metrics.jsonl')
    for name in names:
      (directory / name).parent.mkdir(exist_ok=True)
      shutil.copy(self._run / name, directory / name)
    name = names[int(rng.integers(len(names)))]
    damaged = mutate_json(rng, (directory / name).read_text(encoding='utf-8'))
    (directory / name).write_text(damaged, encoding='utf-8', errors='surrogateescape')
    data = (directory / name).read_bytes()
    try:
      space = Workspace(str(directory), self._config)
      run_curves(directory)
      rows = read_metrics(directory / 'dvae' / 'metrics.jsonl')
      seconds = space.seconds()
    except ValueError as error:
      if (directory / name).read_bytes() != data:
        return wrong(f'{name} is refused and overwritten')
      return Outcome('clean error', str(error))
    if name == 'config.json' and self._bound(damaged) != self._fixed:
      return wrong(f'config.json is damaged and taken: {damaged[:200]!a}')
    if not all(isinstance(row, dict) and isinstance(row.get('step'), int) for row in rows):
      return wrong(f'{name}: rows of metrics without a step')
    if not all(isinstance(value, int | float) and value >= 0 for value in seconds.values()):
      return wrong(f'seconds.json is damaged and taken: {damaged[:200]!a}')
    return RIGHT


SUBJECTS: dict[str, Callable[[Path], Any]] = {
  'pictures': Pictures,
  'prompts': Prompts,
  'model directories': Bundles,
  'checkpoints': CheckpointFiles,
  'compressed files': CompressedFiles,
  'torch files': TorchFiles,
  'work directories': WorkDirectories,
}
