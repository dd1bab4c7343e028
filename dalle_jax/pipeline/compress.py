"""Compressing files with a trained model, and getting them back: what `python -m dalle_jax.compress` does."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax

from dalle_jax import bundle, sharding
from dalle_jax.bundle import Bundle
from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.container import Damaged, Header, Reader, Writer
from dalle_jax.evaluation.text import num_values
from dalle_jax.pipeline.compress_pictures import PictureJob
from dalle_jax.pipeline.compress_text import TextJob
from dalle_jax.pipeline.draw import drawing_parts
from dalle_jax.pipeline.workspace import say
from dalle_jax.pipeline.write import holds_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How to encode; the fields are flags of `python -m dalle_jax.compress encode`.

  Raises:
    ValueError: a value that cannot be.
  """

  coder: str = 'range'
  batch_size: int = 64
  verify: bool = True
  lossy: bool = False
  resize: bool = False
  caption: str = ''

  def __post_init__(self) -> None:
    if self.coder not in CODERS:
      raise ValueError(f'--coder is {self.coder!r}; allowed are {", ".join(CODERS)}.')
    if not 1 <= self.batch_size <= 1 << 16:
      raise ValueError(f'--batch_size is {self.batch_size}; it must lie in 1 to {1 << 16}.')


def encode(
  model: str,
  source: str,
  out: str,
  settings: Settings,
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
  source_path, out_path = Path(source), _check_out(out, overwrite)
  if report:
    _check_parent(Path(report), '--report')
  job_of.check(source_path, settings, bundle.read_config(Path(model)))
  loaded = _load(model, needs)
  job = job_of(loaded)
  with _replacing(out_path) as partial, partial.open('wb') as file:
    figures = job.encode(source_path, settings, lambda **facts: _writer(file, loaded, settings, job_of.kind, **facts))
  figures |= {
    'model': str(Path(model)), 'model_kind': _name(loaded), 'num_values': num_values(loaded.params),
    'seconds': round(time.monotonic() - start, 2),
  }  # fmt: skip
  if compare:
    figures['baselines'] = job.baselines(source_path, settings)
  if report:
    Path(report).write_text(json.dumps(figures, indent=2) + '\n')
  _print(figures)
  return figures


def decode(model: str, source: str, out: str, *, recover: bool = False, overwrite: bool = False) -> None:
  """Writes what `encode` read to `out`, a file or, for several pictures, a directory.

  Args:
    model: the directory of the model that it was coded with.
    source: the compressed file.
    out: what to write.
    recover: whether to keep what whole chunks before a damage hold.
    overwrite: whether `out` may exist.

  Raises:
    ValueError: the file is damaged or of another model; without `recover` nothing is written.
  """
  out_path = _check_out(out, overwrite)
  with _opened(source) as file, _naming(source):
    reader = Reader(file)
    header = reader.header
    job_of, needs = _job_kind(model)
    loaded = _load(model, needs)
    _check_model(header, loaded, job_of.kind, model)
    if header.platform != platform():
      say(f'note: coded on {reader.coded_on}; checksums tell whether this machine computes the same')
    job, damage = job_of(loaded), None
    with _replacing(out_path) as partial:
      try:
        job.decode(reader, partial, Path(source).stat().st_size)
        reader.check_whole()
      except Damaged as error:
        if not recover or not reader.num_chunks:
          raise
        damage = error
    if damage:
      raise ValueError(f'{damage}. What the {reader.num_chunks} whole chunk(s) before it hold is in {out}.')
  say(out)


def info(source: str) -> dict[str, Any]:
  """What a compressed file says of itself; its checksums are compared, no model is needed.

  Raises:
    ValueError: it is damaged, or something else.
  """
  with _opened(source) as file, _naming(source):
    reader = Reader(file)
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
    print(f'{name:<14} {json.dumps(value) if isinstance(value, dict) else value}')
  return facts


def platform() -> dict[str, str]:
  """Where this program computes: what a model's roundings may depend on."""
  device = jax.devices()[0]
  return {'platform': device.platform, 'device': device.device_kind, 'jax': jax.__version__}


def _job_kind(model: str) -> tuple[type[TextJob] | type[PictureJob], tuple[str, ...]]:
  """What a model compresses, and the parts of its directory that do."""
  return (TextJob, ('model',)) if holds_text(model) else (PictureJob, drawing_parts(model))


def _load(path: str, needs: tuple[str, ...]) -> Bundle:
  """The model on one device, whatever there are: its roundings must not depend on their number."""
  return bundle.load(Path(path), sharding.one_device_mesh(), needs)


def _fingerprint(loaded: Bundle) -> str:
  return loaded.info.get('params') or bundle.fingerprint(loaded.params)


def _name(loaded: Bundle) -> str:
  return loaded.config.model.kind if 'model' in loaded.params else 'prior'


def _writer(
  file: BinaryIO, loaded: Bundle, settings: Settings, kind: str, *, batch_size: int, length: int, facts: dict[str, Any]
) -> Writer:
  header = Header(
    kind=kind, coder=settings.coder, model=_fingerprint(loaded), batch_size=batch_size, length=length,
    settings=facts, platform=platform(),
  )  # fmt: skip
  return Writer(file, header)


def _check_model(header: Header, loaded: Bundle, kind: str, model: str) -> None:
  found = _fingerprint(loaded)
  if header.model != found:
    raise ValueError(f'it was coded with the model {header.model}, and {model} (--model) is the model {found}')
  if header.kind != kind or header.coder not in CODERS:
    raise ValueError(f'its header names the kind {header.kind!r} and the coder {header.coder!r}')


def _check_out(out: str, overwrite: bool) -> Path:
  path = Path(out)
  if path.exists() and not overwrite:
    raise ValueError(f'{path} exists; give another name for what is written, or --overwrite.')
  _check_parent(path, 'the output')
  return path


def _check_parent(path: Path, what: str) -> None:
  if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
    raise ValueError(f'{what}: {path} cannot be written: {path.absolute().parent} is no directory, or is read-only.')


@contextlib.contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
  try:
    file = Path(source).open('rb')
  except OSError as error:
    raise ValueError(f'{source} cannot be read: {error.strerror}') from None
  with file:
    yield file


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
  """Puts the file's name before what is wrong with it."""
  try:
    yield
  except ValueError as error:
    raise type(error)(f'{source}: {error}') from None


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
  """A path beside `out` to write to, which takes its place if all goes well and is removed if not."""
  partial = out.with_name(out.name + '.partial')
  _remove(partial)
  try:
    yield partial
  except BaseException:
    _remove(partial)
    raise
  _remove(out)
  partial.rename(out)


def _remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _print(figures: dict[str, Any]) -> None:
  """The figures that people look for first."""
  bits, model_bits = 8 * figures['payload_bytes'], figures['model_bits']
  share = f' ({100 * (bits / model_bits - 1):+.3f}%)' if model_bits else ''
  original, size = figures['original_bytes'], figures['file_bytes']
  ratio = f', {original / size:.2f} to 1' if size and original else ''
  print(f'{original:,} bytes to {size:,}{ratio}, in {figures["seconds"]:.1f} s')
  print(f"coded: {bits:,} bits by {figures['coder']} coding; the model's entropy: {model_bits:,.1f} bits{share}")
  print(f'header and checksums: {size - figures["payload_bytes"]:,} bytes')
  for name, value in figures.items():
    if name.startswith(('bits_per_', 'model_bits_per_', 'overhead_bits_per_', 'psnr')) and math.isfinite(value):
      print(f'{name:<28} {value:.4f}')
  for name, value in figures.get('baselines', {}).items():
    print(f'{name:<28} {value:,} bytes' if value is not None else f'{name:<28} not installed')
