"""Compressing files of any bytes with a model of text."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle_jax.bundle import Bundle
from dalle_jax.compression import baselines, text
from dalle_jax.compression.container import Chunk, ContainerReader, ContainerWriter, Damaged, Header, Unreadable
from dalle_jax.compression.sequences import SequenceCoder, rows_for
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.training.progress import Progress


class TextJob:
  """One model, and the files that it compresses."""

  kind = 'text'

  def __init__(self, loaded: Bundle):
    self._loaded = loaded

  @staticmethod
  def inputs(source: Path, settings: CompressionSettings, config: Config) -> Path:
    """What `encode` takes, before the model is read.

    Raises:
      ValueError: it is no file, or the settings are for pictures.
    """
    del config
    if not source.is_file():
      raise ValueError(f'{source} is no file; a model of text (--model) compresses one file.')
    given = [f'--{name}' for name in ('lossy', 'resize', 'caption') if getattr(settings, name)]
    if given:
      raise ValueError(f'{", ".join(given)}: for pictures; the model in --model is one of text.')
    return source

  def encode(
    self, source: Path, settings: CompressionSettings, start: Callable[..., ContainerWriter]
  ) -> dict[str, Any]:
    """Writes `source` by the writer that `start` makes; returns the figures."""
    model, tokenizer = self._loaded.model, self._loaded.tokenizer
    capacity = settings.batch_size * model.length
    size = source.stat().st_size
    nats, tokens, done = 0.0, 0, 0
    with source.open('rb') as file, Progress('encoding', size, 'byte') as progress:
      parts = text.chunks(file, tokenizer, capacity)
      first = list(itertools.islice(parts, 1))
      batch_size = rows_for(len(text.rows(first[0][0], model.length)) if first else 0, settings.batch_size)
      writer = start(batch_size=batch_size, length=model.length, facts={})
      sequences = self._sequences(batch_size)
      for ids, content in itertools.chain(first, parts):
        payload, cost = text.encode(ids, sequences, settings.coder)
        if settings.verify:
          text.verify(ids, payload, sequences, settings.coder)
        writer.chunk(len(ids), content, payload)
        nats, tokens, done = nats + cost, tokens + len(ids), done + len(content)
        progress.update(done)
      end = writer.end()
    return _figures(settings.coder, nats / math.log(2), tokens, end.num_bytes, writer)

  def _sequences(self, batch_size: int) -> SequenceCoder:
    return SequenceCoder(self._loaded.model, self._loaded.params['model'], batch_size)

  def decode(self, reader: ContainerReader, out: Path, size: int) -> None:
    """Writes the content of a file of `size` bytes to another.

    Raises:
      Damaged: what comes next is; the file holds what was before.
      ValueError: the header does not fit the model.
    """
    header = reader.header
    if header.length != self._loaded.model.length:
      raise Unreadable(f'its header says {header.length} tokens a sequence; the model has {self._loaded.model.length}')
    sequences = None
    with out.open('wb') as file, Progress('decoding', size, 'byte') as progress:
      for chunk in reader.chunks():
        if sequences is None:
          _check_rows(chunk, header)
          sequences = self._sequences(header.batch_size)
        content = self._loaded.tokenizer.decode(text.decode(chunk, sequences, header.coder))
        reader.accept(chunk, content)
        file.write(content)
        progress.update(reader.position)

  def baselines(self, source: Path) -> dict[str, int | None]:
    """Bytes that other programs need."""
    with source.open('rb') as file:
      return baselines.of_file(file)


def _check_rows(first: Chunk, header: Header) -> None:
  """Whether the header asks for no more rows than its first chunk needs. Raises Damaged."""
  rows = -(-first.count // header.length)
  if header.batch_size != rows_for(rows, header.batch_size):
    raise Damaged(f'its header says {header.batch_size} sequences side by side, for {first.count} tokens')


def _figures(coder: str, model_bits: float, tokens: int, num_bytes: int, writer: ContainerWriter) -> dict[str, Any]:
  bits = 8 * writer.payload_bytes
  figures = {
    'kind': 'text', 'coder': coder, 'num_tokens': tokens, 'original_bytes': num_bytes, 'file_bytes': writer.num_bytes,
    'payload_bytes': writer.payload_bytes, 'model_bits': model_bits,
  }  # fmt: skip
  if tokens:
    figures |= {
      'bits_per_token': bits / tokens, 'model_bits_per_token': model_bits / tokens,
      'overhead_bits_per_token': (bits - model_bits) / tokens, 'bits_per_byte': 8 * writer.num_bytes / num_bytes,
    }  # fmt: skip
  return figures
