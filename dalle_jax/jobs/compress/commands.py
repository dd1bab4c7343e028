"""Compressing files with a trained model, and getting them back: what `python -m dalle_jax.compress` does."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform as host
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax

from dalle_jax import bundle, sharding
from dalle_jax.bundle import Bundle, drawing_parts, holds_text
from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.container import ContainerReader, ContainerWriter, Damaged, Header, Unreadable
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.evaluation.sequence_likelihood import num_values
from dalle_jax.files import check_directory, check_file, finite_or_null, replacing, write_json
from dalle_jax.hosts import say
from dalle_jax.jobs.compress.picture_job import PictureJob
from dalle_jax.jobs.compress.text_job import TextJob
from dalle_jax.training.signals import terminations_as_interrupts


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
  """Compresses `source` into the file `out`, prints what it cost, and returns that.

  Args:
    model: a model directory. A model of text takes files of any kind, one of pictures a picture or a directory of them.
    source: what to compress.
    out: the file to write.
    settings: how.
    overwrite: whether `out` may exist.
    compare: whether to measure other programs' results too.
    report: a JSON file to write the figures to.

  Raises:
    ValueError: the model, a file or a setting cannot be used.
  """
  start = time.monotonic()
  job_of, needs = _job_kind(model)
  source_path, out_path = Path(source), Path(out)
  check_file(out_path, overwrite, 'OUT', (source_path, Path(model)))
  if report:
    check_file(Path(report), overwrite, '--report', (source_path, Path(model), out_path))
  with _readable(source):
    inputs = job_of.inputs(source_path, settings, bundle.read_config(Path(model)))
    loaded = _load(model, needs)
    job, identity = job_of(loaded), _identity(Path(model), loaded)
    begin = functools.partial(_writer, kind=job_of.kind, coder=settings.coder, identity=identity)
    with replacing(out_path) as partial, partial.open('wb') as file:
      figures = job.encode(inputs, settings, functools.partial(begin, file))
      figures |= {
        'model': str(Path(model)), 'model_kind': _name(loaded), 'num_values': num_values(loaded.params),
        'seconds': round(time.monotonic() - start, 2),
      }  # fmt: skip
      if compare:
        figures['baselines'] = job.baselines(inputs)
    if report:
      write_json(Path(report), finite_or_null(figures))
  _print(figures)
  return figures


def decode(model: str, source: str, out: str, *, recover: bool = False, overwrite: bool = False) -> None:
  """Writes what `encode` read to `out`, a file or, for several pictures, a new or empty directory.

  Args:
    model: the directory of the model that it was coded with.
    source: the compressed file.
    out: what to write.
    recover: whether to keep what whole chunks before a damage hold.
    overwrite: whether `out` may exist, if it is a file.

  Raises:
    ValueError: the file is damaged or of another model; without `recover` nothing is written.
  """
  out_path, damage = Path(out), None
  with _readable(source), Path(source).open('rb') as file:
    reader = ContainerReader(file)
    if reader.header.settings.get('single', True) is True:
      check_file(out_path, overwrite, 'OUT', (Path(source), Path(model)))
    else:
      check_directory(out_path, 'OUT')
    job_of, needs = _job_kind(model)
    loaded = _load(model, needs)
    _check_model(reader.header, _identity(Path(model), loaded), job_of.kind, model)
    if reader.header.platform != platform():
      say(f'note: coded on {reader.coded_on}; this is {platform()!a}. Checksums tell whether it computes the same.')
    with replacing(out_path) as partial:
      try:
        job_of(loaded).decode(reader, partial, Path(source).stat().st_size)
        reader.check_whole()
      except Damaged as error:
        if not recover or not reader.num_chunks:
          raise
        damage = error
    if damage:
      raise Damaged(f'{damage}. What was read of the {reader.num_chunks} whole chunk(s) before that is in {out}.')
  say(out)


def info(source: str) -> dict[str, Any]:
  """What a compressed file says of itself; its checksums are compared, no model is needed.

  Raises:
    ValueError: it is damaged, or something else.
  """
  with _readable(source), Path(source).open('rb') as file:
    reader = ContainerReader(file)
    sizes, counts = 0, 0
    for chunk in reader.chunks():
      sizes, counts = sizes + len(chunk.payload), counts + chunk.count
      reader.skip(chunk)
    assert reader.end is not None
  unit = {'text': 'tokens', 'pictures': 'tiles'}[reader.header.kind]
  facts = dataclasses.asdict(reader.header) | {
    'chunks': reader.end.num_chunks, unit: counts, 'content_bytes': reader.end.num_bytes, 'payload_bytes': sizes,
    'file_bytes': Path(source).stat().st_size,
  }  # fmt: skip
  for name, value in facts.items():
    print(f'{name:<14} {value if isinstance(value, int) else json.dumps(value)}')
  return facts


def platform() -> dict[str, str]:
  """Where this program computes: what a model's roundings may depend on."""
  import jaxlib

  device = jax.devices()[0]
  names = {'device': device.device_kind, 'runtime': device.client.platform_version, 'processor': _processor()}
  versions = {'jax': jax.__version__, 'jaxlib': jaxlib.__version__, 'flags': os.environ.get('XLA_FLAGS', '')}
  return {'platform': device.platform, **names, **versions}


def _processor() -> str:
  """The model of the processor, where the system tells it."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    return host.processor() or host.machine()


def _job_kind(model: str) -> tuple[type[TextJob] | type[PictureJob], tuple[str, ...]]:
  """What a model compresses, and the parts of its directory that do."""
  return (TextJob, ('model',)) if holds_text(model) else (PictureJob, drawing_parts(model))


def _load(path: str, needs: tuple[str, ...]) -> Bundle:
  """The model on one device, whatever there are: its roundings must not depend on their number."""
  return bundle.load(Path(path), sharding.one_device_mesh(), needs)


def _identity(path: Path, loaded: Bundle) -> str:
  """A fingerprint of all that a model directory means: parameters, configuration and tokenizer."""
  digest = hashlib.sha256(bundle.fingerprint(loaded.params).encode())
  for name in ('config.json', 'tokenizer.model'):
    file = path / name
    digest.update(hashlib.sha256(file.read_bytes() if file.exists() else b'').digest())
  return digest.hexdigest()[:16]


def _name(loaded: Bundle) -> str:
  return 'prior' if loaded.drawing_part == 'prior' else loaded.config.model.kind


def _writer(
  file: BinaryIO, *, kind: str, coder: str, identity: str, batch_size: int, length: int, facts: dict[str, Any]
) -> ContainerWriter:
  header = Header(
    kind=kind, coder=coder, model=identity, batch_size=batch_size, length=length, settings=facts, platform=platform()
  )
  return ContainerWriter(file, header)


def _check_model(header: Header, found: str, kind: str, model: str) -> None:
  if header.model != found:
    raise Unreadable(f'it was coded with the model {header.model!r}, and {model} (--model) is the model {found!r}')
  if header.kind != kind or header.coder not in CODERS:
    raise Unreadable(f'its header names the kind {header.kind!r} and the coder {header.coder!r}')


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
  """Puts the file's name before what is wrong with it; SIGTERM inside is as Ctrl-C."""
  try:
    with terminations_as_interrupts():
      yield
  except OSError as error:
    raise ValueError(f'{error.filename or source}: {error.strerror or error}') from None
  except jax.errors.JaxRuntimeError as error:
    first = str(error).splitlines()[0]
    raise ValueError(f'{source}: {first} Files coded with a lower --batch_size need less memory.') from error
  except Unreadable as error:
    raise type(error)(f'{source}: {error}') from None


def _print(figures: dict[str, Any]) -> None:
  """The figures that people look for first."""
  bits, model_bits = 8 * figures['payload_bytes'], figures['model_bits']
  share = f' ({100 * (bits / model_bits - 1):+.3f}%)' if model_bits and math.isfinite(model_bits) else ''
  original, size = figures['original_bytes'], figures['file_bytes']
  ratio = f', {original / size:.2f} to 1' if size and original else ''
  entropy = f'{model_bits:,.1f} bits' if math.isfinite(model_bits) else 'infinite'
  print(f'{original:,} bytes to {size:,}{ratio}, in {figures["seconds"]:.1f} s')
  print(f"coded: {bits:,} bits by {figures['coder']} coding; the data's entropy by the model: {entropy}{share}")
  print(f'header and checksums: {size - figures["payload_bytes"]:,} bytes')
  for name, value in figures.items():
    if name.startswith(('bits_per_', 'model_bits_per_', 'overhead_bits_per_', 'psnr')):
      print(f'{name:<28} {value:.4f}')
  for name, value in figures.get('baselines', {}).items():
    print(f'{name:<28} {value:,} bytes' if value is not None else f'{name:<28} not measured: pip install zstandard')
