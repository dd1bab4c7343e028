"""The actions of `python -m dalle_jax.compress`: encode and decode files with a trained model."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform as host
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import jax

from dalle_jax import bundle, sharding
from dalle_jax.bundle import Bundle, drawing_parts, holds_text
from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.container import ContainerReader, ContainerWriter, Damaged, Header, Unreadable
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.evaluation.sequence_likelihood import num_values
from dalle_jax.files import (
  check_directory,
  check_file,
  check_regular,
  finite_or_null,
  naming,
  read_json_object,
  replacing,
  shown,
  write_json,
)
from dalle_jax.hosts import say
from dalle_jax.jobs.compress.limits import DecodingLimits
from dalle_jax.jobs.compress.picture_job import PictureJob
from dalle_jax.jobs.compress.text_job import TextJob
from dalle_jax.training.signals import terminations_as_interrupts

# Keys of config.json that do not change probabilities, besides the training settings. They are part of the format: a
# change makes files that were coded before unreadable.
_FREE = ('seed', 'mesh', 'logging', 'profile', 'sampling', 'evaluation')


class Job(Protocol):
  """The interface of `TextJob` and `PictureJob`; `encode` and `baselines` take what `inputs` returned."""

  kind: str

  def __init__(self, loaded: Bundle): ...

  @staticmethod
  def inputs(source: Path, settings: CompressionSettings, config: Config) -> Any: ...

  def encode(
    self, inputs: Any, /, settings: CompressionSettings, start: Callable[..., ContainerWriter]
  ) -> dict[str, Any]: ...

  def decode(self, reader: ContainerReader, out: Path, size: int, limits: DecodingLimits) -> None: ...

  def baselines(self, inputs: Any, /) -> dict[str, int | None]: ...


def encode(
  model: str,
  source: str,
  out: str,
  settings: CompressionSettings,
  *,
  overwrite: bool = False,
  compare: bool = False,
  report: str | None = None,
) -> dict[str, Any]:
  """Compress `source` into the file `out`, and print the sizes.

  Args:
    model: a model directory. A text model compresses any file; an image model compresses a picture or a directory of
      pictures.
    source: the file or directory to compress.
    out: the file to write.
    settings: the settings of the encoder.
    overwrite: whether `out` may already exist.
    compare: whether to measure other compression programs or image formats too.
    report: a JSON file for the figures; None for no report.

  Returns:
    The sizes, costs and settings by name, as in the report.

  Raises:
    ValueError: the model, a file or a setting cannot be used.
  """
  start = time.monotonic()
  job_type, parts = _job_type(model)
  source_path, out_path = Path(source), Path(out)
  check_file(out_path, overwrite, 'OUT', (source_path, Path(model)))
  if report:
    check_file(Path(report), overwrite, '--report', (source_path, Path(model), out_path))
  with _readable_errors(source):
    inputs = job_type.inputs(source_path, settings, bundle.read_config(Path(model)))
    loaded = _load(model, parts)
    job, identity = job_type(loaded), _identity(Path(model), loaded)
    make_writer = functools.partial(_writer, kind=job_type.kind, coder=settings.coder, identity=identity)
    with naming(out_path), replacing(out_path) as partial, partial.open('wb') as file:
      figures = job.encode(inputs, settings, functools.partial(make_writer, file))
      figures |= {
        'model': str(Path(model)), 'model_kind': _model_kind(loaded), 'num_values': num_values(loaded.params),
        'seconds': round(time.monotonic() - start, 2),
      }  # fmt: skip
      if compare:
        figures['baselines'] = job.baselines(inputs)
    if report:
      write_json(Path(report), finite_or_null(figures))
  _print(figures)
  return figures


def decode(
  model: str,
  source: str,
  out: str,
  *,
  recover: bool = False,
  overwrite: bool = False,
  limits: DecodingLimits | None = None,
) -> None:
  """Decode a file that `encode` wrote.

  Args:
    model: the directory of the model that encoded the file.
    source: the compressed file.
    out: the file to write, or the directory if the file holds a directory of pictures. The directory must be new or
      empty.
    recover: whether to write the content of the intact chunks before the first damage.
    overwrite: whether `out` may exist, if it is a file.
    limits: what the file may ask for; None for the defaults.

  Raises:
    ValueError: the file asks for too much, is damaged, or another model encoded it. Without `recover` nothing is
      written.
  """
  out_path, damage = Path(out), None
  with _readable_errors(source), _opened(source) as file:
    reader = ContainerReader(file)
    if reader.header.settings.get('single', True) is True:
      check_file(out_path, overwrite, 'OUT', (Path(source), Path(model)))
    else:
      check_directory(out_path, 'OUT')
    job_type, parts = _job_type(model)
    loaded = _load(model, parts)
    _check_model(reader.header, loaded, job_type.kind, model)
    if reader.header.platform != platform():
      say(
        f'note: the file was encoded on {reader.coded_on}; this machine is {platform()!a}. If it computes other '
        'probabilities, the checksums will show it.'
      )
    with naming(out_path), replacing(out_path) as partial:
      try:
        job_type(loaded).decode(reader, partial, Path(source).stat().st_size, limits or DecodingLimits())
        reader.check_whole()
      except Damaged as error:
        if not recover or not reader.num_chunks:
          raise
        damage = error
    if damage:
      raise Damaged(f'{damage}. The content of the {reader.num_chunks} whole chunk(s) before that damage is in {out}.')
  say(out)


def info(source: str) -> dict[str, Any]:
  """Print and return the header and the sizes of a compressed file.

  All checksums are verified. No model is needed.

  Raises:
    ValueError: the file is damaged or is not a compressed file.
  """
  with _readable_errors(source), _opened(source) as file:
    reader = ContainerReader(file)
    payload_bytes, count = 0, 0
    for chunk in reader.chunks():
      payload_bytes, count = payload_bytes + len(chunk.payload), count + chunk.count
      reader.skip(chunk)
    assert reader.end is not None
  unit = {'text': 'tokens', 'pictures': 'tiles'}[reader.header.kind]
  facts = dataclasses.asdict(reader.header) | {
    'chunks': reader.end.num_chunks, unit: count, 'content_bytes': reader.end.num_bytes,
    'payload_bytes': payload_bytes, 'file_bytes': Path(source).stat().st_size,
  }  # fmt: skip
  for name, value in facts.items():
    print(f'{name:<14} {value if isinstance(value, int) else shown(json.dumps(value), 1000)}')
  return facts


def _opened(source: str) -> BinaryIO:
  """Open a compressed file. Raises ValueError if it is a pipe, a device or a directory."""
  try:
    check_regular(Path(source))
  except ValueError as error:
    raise ValueError(f'{shown(source)}: {error}.') from None
  return Path(source).open('rb')


def platform() -> dict[str, str]:
  """The device, versions and XLA flags of this process. The rounding of a model's logits may depend on each."""
  import jaxlib

  device = jax.devices()[0]
  names = {'device': device.device_kind, 'runtime': device.client.platform_version, 'processor': _processor()}
  versions = {'jax': jax.__version__, 'jaxlib': jaxlib.__version__, 'flags': os.environ.get('XLA_FLAGS', '')}
  return {'platform': device.platform, **names, **versions}


def _processor() -> str:
  """The processor's model name, or its architecture if the system does not give a name."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    return host.processor() or host.machine()


def _job_type(model: str) -> tuple[type[Job], tuple[str, ...]]:
  """The job class for a model directory, and the parts of the directory that the job needs."""
  return (TextJob, ('model',)) if holds_text(model) else (PictureJob, drawing_parts(model))


def _load(path: str, parts: tuple[str, ...]) -> Bundle:
  """Load the model on a single device, because the rounding of logits must not depend on the number of devices."""
  return bundle.load(Path(path), sharding.one_device_mesh(), parts)


def _identity(path: Path, loaded: Bundle) -> str:
  """A fingerprint of a model: its parameters, its tokenizer, and what its configuration says about probabilities."""
  config = read_json_object(path / 'config.json')
  model = {name: group for name, group in config.items() if name not in _FREE and not name.endswith('_training')}
  model['data'] = {'image_size': loaded.config.data.image_size}
  model['dvae'] = {name: value for name, value in config.get('dvae', {}).items() if name != 'pretrained'}
  return _digest(path, loaded, json.dumps(model, sort_keys=True).encode())


def _earlier_identity(path: Path, loaded: Bundle) -> str:
  """The fingerprint in files of earlier versions: of all bytes of config.json, and so of the mesh and of paths too."""
  return _digest(path, loaded, (path / 'config.json').read_bytes())


def _digest(path: Path, loaded: Bundle, config: bytes) -> str:
  digest = hashlib.sha256(bundle.fingerprint(loaded.params).encode())
  tokenizer = path / 'tokenizer.model'
  for content in (config, tokenizer.read_bytes() if tokenizer.exists() else b''):
    digest.update(hashlib.sha256(content).digest())
  return digest.hexdigest()[:16]


def _model_kind(loaded: Bundle) -> str:
  return 'prior' if loaded.drawing_part == 'prior' else loaded.config.model.kind


def _writer(
  file: BinaryIO, *, kind: str, coder: str, identity: str, batch_size: int, length: int, facts: dict[str, Any]
) -> ContainerWriter:
  header = Header(
    kind=kind, coder=coder, model=identity, batch_size=batch_size, length=length, settings=facts, platform=platform()
  )
  return ContainerWriter(file, header)


def _check_model(header: Header, loaded: Bundle, kind: str, model: str) -> None:
  identity = _identity(Path(model), loaded)
  if header.model not in (identity, _earlier_identity(Path(model), loaded)):
    raise Unreadable(
      f'it was coded with the model {shown(repr(header.model))}, but {model} (--model) is the model {identity!r}'
    )
  if header.kind != kind or header.coder not in CODERS:
    raise Unreadable(
      f'its header names the kind {header.kind!r} and the coder {shown(repr(header.coder))}; the kind of the '
      f'model in --model is {kind!r}, and the coders are {", ".join(CODERS)}'
    )


@contextlib.contextmanager
def _readable_errors(source: str) -> Iterator[None]:
  """Put the file's name at the start of error messages, and handle SIGTERM like Ctrl-C."""
  try:
    with terminations_as_interrupts():
      yield
  except OSError as error:
    if error.errno is None:
      raise ValueError(f'{shown(error.filename or source)}: {shown(error)}') from None
    with naming(source):
      raise
  except jax.errors.JaxRuntimeError as error:
    first_line = shown(str(error).splitlines()[0], 300)
    raise ValueError(f'{shown(source)}: {first_line} Encode with a lower --batch_size to use less memory.') from error
  except Unreadable as error:
    raise type(error)(f'{shown(source)}: {error}') from None


def _print(figures: dict[str, Any]) -> None:
  """Print the most important figures."""
  bits, model_bits = 8 * figures['payload_bytes'], figures['model_bits']
  overhead = f' ({100 * (bits / model_bits - 1):+.3f}%)' if model_bits and math.isfinite(model_bits) else ''
  original, size = figures['original_bytes'], figures['file_bytes']
  ratio = f', {original / size:.2f} to 1' if size and original else ''
  entropy = f'{model_bits:,.1f} bits' if math.isfinite(model_bits) else 'infinite'
  print(f'{original:,} bytes to {size:,} bytes{ratio}, in {figures["seconds"]:.1f} s')
  print(f'{figures["coder"]} coding: {bits:,} bits; entropy of the data under the model: {entropy}{overhead}')
  print(f'header and checksums: {size - figures["payload_bytes"]:,} bytes')
  for name, value in figures.items():
    if name.startswith(('bits_per_', 'model_bits_per_', 'overhead_bits_per_', 'psnr')):
      print(f'{name:<28} {value:.4f}')
  for name, value in figures.get('baselines', {}).items():
    print(f'{name:<28} {value:,} bytes' if value is not None else f'{name:<28} not measured: pip install zstandard')
