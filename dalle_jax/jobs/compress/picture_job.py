"""Compression of pictures with an image model."""

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
from dalle_jax.data.account import Account
from dalle_jax.data.pictures import image
from dalle_jax.data.pictures.crops import fit
from dalle_jax.data.sources import folder
from dalle_jax.data.sources.metadata_files import METADATA
from dalle_jax.data.sources.survey import survey
from dalle_jax.data.text.caption_text import check_prompt
from dalle_jax.data.text.tokenizer import PAD
from dalle_jax.files import shown
from dalle_jax.hosts import say
from dalle_jax.jobs.compress.limits import DecodingLimits, check_memory
from dalle_jax.models import likelihood
from dalle_jax.sampling import memory
from dalle_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class _Listed:
  """A picture to compress."""

  path: Path
  name: str  # the file name that decoding gives it
  caption: str
  shape: tuple[int, int]  # height and width of the pixels that are coded


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pictures to compress, and the settings that the header of the compressed file stores."""

  listed: list[_Listed]
  facts: dict[str, Any]  # the header's settings, as `compression.pictures.listing` reads them
  settings: CompressionSettings


class PictureJob:
  """Encodes and decodes pictures with one image model."""

  kind = 'pictures'

  def __init__(self, loaded: Bundle):
    self._loaded = loaded
    self._size = loaded.config.data.image_size
    self._model, self._part = loaded.stream_model
    self._text_length = max(self._model.text_length - 1, 0)
    self._tokenizer = loaded.caption_tokenizer if self._text_length else None

  @staticmethod
  def inputs(source: Path, settings: CompressionSettings, config: Config) -> Inputs:
    """List and validate the input of `encode` before the parameters are loaded.

    Raises:
      ValueError: the caption shows nothing, there are no pictures, or a picture cannot be coded or written back.
    """
    check_prompt(settings.caption, '--caption')
    if settings.caption and not config.reads_captions:
      raise ValueError(
        '--caption: the model was trained on pictures without captions (config.model.tokens=image); omit the flag.'
      )
    listed = [
      _Listed(path, name, caption, _read(path, settings, config).shape[:2])
      for path, name, caption in _list_pictures(source, settings.caption)
    ]
    facts = {
      'lossless': not settings.lossy, 'single': source.is_file(), 'size': config.data.image_size,
      'pictures': [[entry.name, *entry.shape] for entry in listed],
    }  # fmt: skip
    pictures.listing(facts, config.data.image_size)
    return Inputs(listed, facts, settings)

  def _coder(self, batch_size: int, coder: str, lossless: bool) -> PictureCoder:
    params = self._loaded.params
    row_bytes = memory.row_bytes(self._model, self._loaded.dvae, params, self._part, guided=False)
    check_memory(batch_size, batch_size * row_bytes)
    sequences = SequenceCoder(self._model, params[self._part], batch_size)
    floor = self._loaded.config.dvae.min_log_scale
    return PictureCoder(self._loaded.dvae, params['dvae'], floor, sequences, self._model, coder, lossless)

  def encode(
    self, inputs: Inputs, settings: CompressionSettings, start: Callable[..., ContainerWriter]
  ) -> dict[str, Any]:
    """Compress the pictures.

    Args:
      inputs: the pictures.
      settings: the settings of the encoder.
      start: makes the writer of the compressed file from `batch_size`, `length` and `facts` (the header's settings).

    Returns:
      The sizes and costs by name.
    """
    plan = _PicturePlan([entry.shape for entry in inputs.listed], self._size)
    batch_size = rows_for(plan.num_tiles, settings.batch_size)
    coder = self._coder(batch_size, settings.coder, not settings.lossy)
    writer = start(batch_size=batch_size, length=self._model.length, facts=inputs.facts)
    costs = PictureCosts()
    with Progress('encoding', plan.num_tiles, 'tile') as progress:
      tiles = self._tiles(inputs)
      for sizes in plan.chunks(batch_size):
        chunk = list(itertools.islice(tiles, len(sizes)))
        pixels, text = (np.stack(rows) for rows in zip(*chunk, strict=True))
        payload, content = coder.encode(pixels, sizes, text, costs)
        if settings.verify:
          coder.verify(payload, content, sizes)
        writer.chunk(len(sizes), content, payload)
        progress.update(min(costs.num_tokens // self._model.length, plan.num_tiles))
    assert next(tiles, None) is None
    writer.end()
    original_bytes = sum(entry.path.stat().st_size for entry in inputs.listed)
    return _figures(settings, costs, plan, original_bytes, writer)

  def _tiles(self, inputs: Inputs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the tiles uint8 [S, S, 3] of all pictures, each with its caption's ids int32 [L].

    At the end, print how many captions decoding will not restore exactly.
    """
    num_changed = 0
    for entry in inputs.listed:
      text = np.full(self._text_length, PAD, np.int32)
      if entry.caption and self._tokenizer is not None:
        text = self._tokenizer.encode_padded(entry.caption, self._text_length, truncate=True)
        num_changed += self._caption(text) != entry.caption
      pixels = _read(entry.path, inputs.settings, self._loaded.config)
      if pixels.shape[:2] != entry.shape:
        raise ValueError(f'{shown(entry.path)} has been changed since this command started; run the command again.')
      for tile in pictures.cut(pixels, self._size):
        yield tile, text
    if num_changed:
      say(
        f'note: {num_changed} caption(s) will come back changed: the tokenizer makes them lower case and cuts long ones'
      )

  def decode(self, reader: ContainerReader, out: Path, size: int, limits: DecodingLimits) -> None:
    """Decompress a picture, or a directory of pictures.

    Args:
      reader: the compressed file.
      out: the file or directory to write.
      size: bytes of the compressed file; not used.
      limits: what the file may ask for.

    Raises:
      Damaged: a chunk is damaged. The pictures before it are written.
      ValueError: the header does not fit the model.
    """
    del size
    header = reader.header
    names, shapes = pictures.listing(header.settings, self._size, limits.max_image_pixels)
    if header.length != self._model.length:
      raise Unreadable(f'its header says {header.length} tokens a sequence; the model has {self._model.length}')
    plan = _PicturePlan(shapes, self._size)
    if header.batch_size != rows_for(plan.num_tiles, header.batch_size):
      raise Unreadable(f'its header says {header.batch_size} sequences side by side, for {plan.num_tiles} tiles')
    limits.check_batch(header.batch_size)
    coder = self._coder(header.batch_size, header.coder, header.settings['lossless'])
    writer = _PictureWriter(out, header.settings['single'], names, shapes, self._size)
    try:
      self._decode_chunks(reader, coder, plan, writer)
    except Damaged:
      if writer.finish():
        say('note: some tiles are missing from the last picture; they are grey')
      raise

  def _decode_chunks(
    self, reader: ContainerReader, coder: PictureCoder, plan: '_PicturePlan', writer: '_PictureWriter'
  ) -> None:
    chunk_sizes, num_tiles = plan.chunks(reader.header.batch_size), 0
    with Progress('decoding', plan.num_tiles, 'tile') as progress:
      for chunk in reader.chunks():
        sizes = next(chunk_sizes, [])
        tiles, tokens, content = coder.decode(chunk, sizes)
        reader.accept(chunk, content)
        writer.add(tiles, [self._caption(row) for row in tokens])
        num_tiles += len(sizes)
        progress.update(num_tiles)
    if num_tiles < plan.num_tiles:
      raise Damaged(f'it has only {num_tiles} of {plan.num_tiles} tiles')

  def _caption(self, tokens: np.ndarray) -> str:
    return '' if self._tokenizer is None else self._tokenizer.decode(tokens[: self._text_length])

  def baselines(self, inputs: Inputs) -> dict[str, int | None]:
    """Bytes that other lossless formats need for the same pixels."""
    config = self._loaded.config
    return baselines.of_pictures([_read(entry.path, inputs.settings, config) for entry in inputs.listed])


class _PicturePlan:
  """The tiles into which pictures of given shapes are cut, in coding order."""

  def __init__(self, shapes: list[tuple[int, int]], size: int):
    self._shapes, self._size = shapes, size
    self.num_tiles = sum(-(-height // size) * -(-width // size) for height, width in shapes)
    self.num_pixels = sum(height * width for height, width in shapes)

  def chunks(self, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """Yield, for each chunk, the (height, width) of each tile without its padding."""
    chunk: list[tuple[int, int]] = []
    for shape in self._shapes:
      for size in pictures.tile_sizes(*shape, self._size):
        chunk.append(size)
        if len(chunk) == batch_size:
          yield chunk
          chunk = []
    if chunk:
      yield chunk


class _PictureWriter:
  """Collects tiles, and writes each picture as soon as all its tiles are decoded."""

  def __init__(self, out: Path, single: bool, names: list[str], shapes: list[tuple[int, int]], size: int):
    self._out, self._single, self._size = out, single, size
    self._remaining = list(zip(names, shapes, strict=True))[::-1]  # the last entry is the current picture
    self._tiles: list[np.ndarray] = []
    if not single:
      out.mkdir()

  def add(self, tiles: np.ndarray, captions: list[str]) -> None:
    for tile, caption in zip(tiles, captions, strict=True):
      self._tiles.append(tile)
      if len(self._tiles) == self._num_tiles:
        self._write(caption)

  @property
  def _num_tiles(self) -> int:
    """Number of tiles of the current picture."""
    height, width = self._remaining[-1][1]
    return -(-height // self._size) * -(-width // self._size)

  def finish(self) -> bool:
    """Write an unfinished picture, with grey for missing tiles. Returns whether there was one."""
    if not self._tiles:
      return False
    grey = np.full_like(self._tiles[0], 128)
    self._tiles += [grey] * (self._num_tiles - len(self._tiles))
    self._write('')
    return True

  def _write(self, caption: str) -> None:
    name, shape = self._remaining.pop()
    path = self._out if self._single else self._out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.encode_png(pictures.join(np.stack(self._tiles), *shape)))
    self._tiles = []
    if caption and not self._single:
      with (self._out / 'metadata.jsonl').open('a', encoding='utf-8') as file:
        file.write(json.dumps({'file_name': name, 'text': caption}, ensure_ascii=False) + '\n')


def _list_pictures(source: Path, caption: str) -> list[tuple[Path, str, str]]:
  """List the picture `source`, or the pictures in the directory `source`.

  Args:
    source: a picture or a directory.
    caption: the caption of all pictures; '' to use the captions that the directory has.

  Returns:
    The path, the name after decoding and the caption of each picture.

  Raises:
    ValueError: there are no pictures.
  """
  if source.is_file():
    return [(source, _png_name(source.name), caption)]
  if not source.is_dir():
    raise ValueError(
      f'{shown(source)} {"is neither a file nor a directory" if source.exists() else "does not exist"}; the model in '
      '--model is an image model and takes a picture or a directory of pictures.'
    )
  found, account = survey(source, 'IN'), Account('files')
  names = [name for name in found.files if name.lower().endswith(image.EXTENSIONS)]
  account.used = len(names)
  for name in found.files:
    if not name.lower().endswith(image.EXTENSIONS):
      account.leave_out('not a picture by its name; only pictures are stored', name)
  for name in found.hidden:
    account.leave_out('hidden, and therefore not read', name)
  for name, reason in found.barred.items():
    account.leave_out(reason, name)
  for name in found.linked:
    account.note('a link to a folder inside this folder, which is searched at its own place', name)
  if not names:
    raise ValueError(
      f'{shown(source)} has no pictures; name a directory of {", ".join(image.EXTENSIONS)} files.\n{account}'
    )
  say(str(account))
  captions = {} if caption else _captions(source, found.files)
  return [(source / name, _png_name(name), captions.get(name, caption)) for name in names]


def _captions(source: Path, files: list[str]) -> dict[str, str]:
  """Captions by picture name; empty if the directory has no captions (see `data.sources.folder`)."""
  if not any(PurePosixPath(name).name.lower() in METADATA or name.lower().endswith('.txt') for name in files):
    return {}
  try:
    captions = {entry.path: entry.caption for entry in folder.scan(source)}
    if not captions:
      say('note: no captions are used, because the text and metadata files have none for any picture')
    return captions
  except ValueError as error:
    say(f'note: no captions are used, because they cannot be read: {shown(str(error).splitlines()[0], 300)}')
    return {}


def _png_name(name: str) -> str:
  return name if name.lower().endswith('.png') else f'{name}.png'


def _read(path: Path, settings: CompressionSettings, config: Config) -> np.ndarray:
  """The pixels to code, uint8 [H, W, 3].

  Raises:
    ValueError: the file is not a picture, is too large, or cannot be converted to RGB without loss.
  """
  try:
    data = image.contents(path, settings.max_image_pixels)
    if not (settings.lossy or settings.resize):
      image.check_lossless(data, settings.max_image_pixels)
    pixels = image.decode(data, settings.max_image_pixels)
  except ValueError as error:
    raise ValueError(f'{shown(path)}: {error}') from None
  if settings.resize:
    return fit(pixels, config.data.image_size, resampling=config.data.resampling)
  return pixels


def _figures(
  settings: CompressionSettings, costs: PictureCosts, plan: _PicturePlan, original_bytes: int, writer: ContainerWriter
) -> dict[str, Any]:
  bits, model_bits = 8 * writer.payload_bytes, costs.codes + costs.pixels
  symbols = costs.num_tokens + (0 if settings.lossy else costs.num_values)
  mean_error = costs.squared_error / costs.num_values
  return {
    'kind': 'pictures', 'coder': settings.coder, 'lossless': not settings.lossy, 'num_tiles': plan.num_tiles,
    'num_pixels': plan.num_pixels, 'num_tokens': costs.num_tokens, 'original_bytes': original_bytes,
    'file_bytes': writer.num_bytes, 'payload_bytes': writer.payload_bytes, 'model_bits': model_bits,
    'code_bits': costs.codes, 'pixel_bits': costs.pixels, 'overhead_bits_per_symbol': (bits - model_bits) / symbols,
    'model_bits_per_token': costs.codes / costs.num_tokens, 'bits_per_pixel': 8 * writer.num_bytes / plan.num_pixels,
    'psnr_of_reconstructions': float(likelihood.psnr(mean_error / 255**2, np, least=0)) if mean_error else math.inf,
  }  # fmt: skip
