"""Compressing pictures with a model that draws them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dalle_jax.bundle import Bundle
from dalle_jax.compression import baselines, pictures
from dalle_jax.compression.container import ContainerReader, ContainerWriter, Damaged, Unreadable
from dalle_jax.compression.pictures import PictureCoder, PictureCosts
from dalle_jax.compression.sequences import SequenceCoder, rows_for
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.data import folder, image
from dalle_jax.data.crops import fit
from dalle_jax.data.tokenizer import PAD
from dalle_jax.hosts import say
from dalle_jax.models import likelihood
from dalle_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class _Listed:
  """A picture to compress."""

  path: Path
  name: str  # by which it is decoded
  caption: str
  shape: tuple[int, int]  # rows and columns of what is coded


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pictures to compress, and what the header says of them."""

  listed: list[_Listed]
  facts: dict[str, Any]  # `compression.pictures.listing` reads it
  settings: CompressionSettings


class PictureJob:
  """One model, and the pictures that it compresses."""

  kind = 'pictures'

  def __init__(self, loaded: Bundle):
    self._loaded = loaded
    self._size = loaded.config.data.image_size
    self._part = loaded.drawing_part
    self._model = loaded.prior if self._part == 'prior' else loaded.model
    self._text_length = max(self._model.text_length - 1, 0)

  @staticmethod
  def inputs(source: Path, settings: CompressionSettings, config: Config) -> Inputs:
    """What `encode` takes, before the model is read.

    Raises:
      ValueError: there are no pictures, or one that could not be coded or written again.
    """
    if settings.caption and not config.reads_captions:
      raise ValueError('--caption: the model has learnt pictures without captions (config.model.tokens=image).')
    listed = [
      _Listed(path, name, caption, _read(path, settings, config).shape[:2])
      for path, name, caption in _found(source, settings.caption)
    ]
    facts = {
      'lossless': not settings.lossy, 'single': source.is_file(), 'size': config.data.image_size,
      'pictures': [[entry.name, *entry.shape] for entry in listed],
    }  # fmt: skip
    pictures.listing(facts, config.data.image_size)
    return Inputs(listed, facts, settings)

  def _coder(self, batch_size: int, coder: str, lossless: bool) -> PictureCoder:
    params = self._loaded.params
    sequences = SequenceCoder(self._model, params[self._part], batch_size)
    floor = self._loaded.config.dvae.min_log_scale
    return PictureCoder(self._loaded.dvae, params['dvae'], floor, sequences, self._model, coder, lossless)

  def encode(
    self, inputs: Inputs, settings: CompressionSettings, start: Callable[..., ContainerWriter]
  ) -> dict[str, Any]:
    """Writes the pictures by the writer that `start` makes; returns the figures."""
    plan = _PicturePlan([entry.shape for entry in inputs.listed], self._size)
    batch_size = rows_for(plan.num_tiles, settings.batch_size)
    coder = self._coder(batch_size, settings.coder, not settings.lossy)
    writer = start(batch_size=batch_size, length=self._model.length, facts=inputs.facts)
    costs = PictureCosts()
    with Progress('encoding', plan.num_tiles, 'tile') as progress:
      tiles = self._tiles(inputs)
      for sizes in plan.chunks(batch_size):
        part = list(itertools.islice(tiles, len(sizes)))
        block, text = (np.stack(rows) for rows in zip(*part, strict=True))
        payload, content = coder.encode(block, sizes, text, costs)
        if settings.verify:
          coder.verify(payload, content, sizes)
        writer.chunk(len(sizes), content, payload)
        progress.update(min(costs.num_tokens // self._model.length, plan.num_tiles))
    assert next(tiles, None) is None
    writer.end()
    original = sum(entry.path.stat().st_size for entry in inputs.listed)
    return _figures(settings, costs, plan, original, writer)

  def _tiles(self, inputs: Inputs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles uint8 [S, S, 3] with their captions' ids, picture by picture; at the end says which captions change."""
    changed = 0
    for entry in inputs.listed:
      text = np.full(self._text_length, PAD, np.int32)
      if entry.caption and self._text_length:
        text = self._loaded.tokenizer.encode_padded(entry.caption, self._text_length, truncate=True)
        changed += self._caption(text) != entry.caption
      pixels = _read(entry.path, inputs.settings, self._loaded.config)
      if pixels.shape[:2] != entry.shape:
        raise ValueError(f'{entry.path} has been changed since this command began; run it again.')
      for tile in pictures.cut(pixels, self._size):
        yield tile, text
    if changed:
      say(f'note: {changed} caption(s) will come back as the tokenizer has them: in lower case, or cut where too long')

  def decode(self, reader: ContainerReader, out: Path, size: int) -> None:
    """Writes a picture, or a directory of them.

    Raises:
      Damaged: what comes next is; pictures that were whole before are written.
      ValueError: the header cannot be used.
    """
    del size
    header = reader.header
    names, shapes = pictures.listing(header.settings, self._size)
    if header.length != self._model.length:
      raise Unreadable(f'its header says {header.length} tokens a sequence; the model has {self._model.length}')
    plan = _PicturePlan(shapes, self._size)
    if header.batch_size != rows_for(plan.num_tiles, header.batch_size):
      raise Unreadable(f'its header says {header.batch_size} sequences side by side, for {plan.num_tiles} tiles')
    coder = self._coder(header.batch_size, header.coder, header.settings['lossless'])
    writing = _Pictures(out, header.settings['single'], names, shapes, self._size)
    try:
      self._decode_chunks(reader, coder, plan, writing)
    except Damaged:
      if writing.finish():
        say('note: of the last picture some tiles are missing; they are grey')
      raise

  def _decode_chunks(
    self, reader: ContainerReader, coder: PictureCoder, plan: '_PicturePlan', writing: '_Pictures'
  ) -> None:
    sizes_of, done = plan.chunks(reader.header.batch_size), 0
    with Progress('decoding', plan.num_tiles, 'tile') as progress:
      for chunk in reader.chunks():
        sizes = next(sizes_of, [])
        tiles, tokens, content = coder.decode(chunk, sizes)
        reader.accept(chunk, content)
        writing.add(tiles, [self._caption(row) for row in tokens])
        done += len(sizes)
        progress.update(done)
    if done < plan.num_tiles:
      raise Damaged(f'it has {done} of {plan.num_tiles} tiles')

  def _caption(self, tokens: np.ndarray) -> str:
    return self._loaded.tokenizer.decode(tokens[: self._text_length]) if self._text_length else ''

  def baselines(self, inputs: Inputs) -> dict[str, int | None]:
    """Bytes that other formats need for the same pixels, without loss."""
    config = self._loaded.config
    return baselines.of_pictures([_read(entry.path, inputs.settings, config) for entry in inputs.listed])


class _PicturePlan:
  """Which tiles there are."""

  def __init__(self, shapes: list[tuple[int, int]], size: int):
    self._shapes, self._size = shapes, size
    self.num_tiles = sum(-(-height // size) * -(-width // size) for height, width in shapes)
    self.num_pixels = sum(height * width for height, width in shapes)

  def chunks(self, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """The tiles' own sizes, chunk by chunk."""
    chunk: list[tuple[int, int]] = []
    for shape in self._shapes:
      for size in pictures.tile_sizes(*shape, self._size):
        chunk.append(size)
        if len(chunk) == batch_size:
          yield chunk
          chunk = []
    if chunk:
      yield chunk


class _Pictures:
  """Writes pictures as soon as their last tile is there."""

  def __init__(self, out: Path, single: bool, names: list[str], shapes: list[tuple[int, int]], size: int):
    self._out, self._single, self._size = out, single, size
    self._todo = list(zip(names, shapes, strict=True))[::-1]
    self._tiles: list[np.ndarray] = []
    if not single:
      out.mkdir()

  def add(self, tiles: np.ndarray, captions: list[str]) -> None:
    for tile, caption in zip(tiles, captions, strict=True):
      self._tiles.append(tile)
      if len(self._tiles) == self._wanted:
        self._write(caption)

  @property
  def _wanted(self) -> int:
    """Tiles of the picture that is being put together."""
    height, width = self._todo[-1][1]
    return -(-height // self._size) * -(-width // self._size)

  def finish(self) -> bool:
    """Writes the picture of which only some tiles are there, grey where they are not; returns whether there was one."""
    if not self._tiles:
      return False
    grey = np.full_like(self._tiles[0], 128)
    self._tiles += [grey] * (self._wanted - len(self._tiles))
    self._write('')
    return True

  def _write(self, caption: str) -> None:
    name, shape = self._todo.pop()
    path = self._out if self._single else self._out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.encode_png(pictures.join(np.stack(self._tiles), *shape)))
    self._tiles = []
    if caption and not self._single:
      with (self._out / 'metadata.jsonl').open('a', encoding='utf-8') as file:
        file.write(json.dumps({'file_name': name, 'text': caption}, ensure_ascii=False) + '\n')


def _found(source: Path, caption: str) -> list[tuple[Path, str, str]]:
  """Path, name and caption of each picture of a directory, with the captions that are there; or of the one picture.

  Raises:
    ValueError: there is none.
  """
  if source.is_file():
    return [(source, _png_name(source.name), caption)]
  if not source.is_dir():
    raise ValueError(f'There is no {source}; a model of pictures (--model) takes a picture or a directory of them.')
  files = folder.walk(source, 'IN')
  found = [name for name in files if name.lower().endswith(folder.EXTENSIONS) and (source / name).is_file()]
  if not found:
    raise ValueError(f'{source} holds no pictures ({", ".join(folder.EXTENSIONS)}).')
  captions = {} if caption else _captions(source, files)
  return [(source / name, _png_name(name), captions.get(name, caption)) for name in found]


def _captions(source: Path, files: list[str]) -> dict[str, str]:
  """Captions by picture, where the directory has some (see `data.folder`)."""
  if not any(PurePosixPath(name).name in folder.METADATA or name.endswith('.txt') for name in files):
    return {}
  try:
    return {entry.path: entry.caption for entry in folder.scan(source)}
  except ValueError as error:
    say(f'note: no captions are used: {str(error).splitlines()[0]}')
    return {}


def _png_name(name: str) -> str:
  return name if name.lower().endswith('.png') else f'{name}.png'


def _read(path: Path, settings: CompressionSettings, config: Config) -> np.ndarray:
  """The pixels to code, uint8 [H, W, 3].

  Raises:
    ValueError: the file is no picture, or RGB cannot hold it without loss.
  """
  data = path.read_bytes()
  try:
    if not (settings.lossy or settings.resize):
      image.check_lossless(data)
    pixels = image.decode(data)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  if settings.resize:
    return fit(pixels, config.data.image_size, resampling=config.data.resampling)
  return pixels


def _figures(
  settings: CompressionSettings, costs: PictureCosts, plan: _PicturePlan, original: int, writer: ContainerWriter
) -> dict[str, Any]:
  bits, model_bits = 8 * writer.payload_bytes, costs.codes + costs.pixels
  symbols = costs.num_tokens + (0 if settings.lossy else costs.num_values)
  mean_error = costs.squared_error / costs.num_values
  return {
    'kind': 'pictures', 'coder': settings.coder, 'lossless': not settings.lossy, 'num_tiles': plan.num_tiles,
    'num_pixels': plan.num_pixels, 'num_tokens': costs.num_tokens, 'original_bytes': original,
    'file_bytes': writer.num_bytes, 'payload_bytes': writer.payload_bytes, 'model_bits': model_bits,
    'code_bits': costs.codes, 'pixel_bits': costs.pixels, 'overhead_bits_per_symbol': (bits - model_bits) / symbols,
    'model_bits_per_token': costs.codes / costs.num_tokens, 'bits_per_pixel': 8 * writer.num_bytes / plan.num_pixels,
    'psnr_of_reconstructions': float(likelihood.psnr(mean_error / 255**2, np)) if mean_error else math.inf,
  }  # fmt: skip
