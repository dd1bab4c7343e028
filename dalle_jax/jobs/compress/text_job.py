"""Compression of files of any bytes with a text model."""

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
from dalle_jax.files import shown
from dalle_jax.jobs.compress.limits import DecodingLimits, check_memory
from dalle_jax.training.progress import Progress


class TextJob:
  """Encodes and decodes files with one text model."""

  kind = 'text'

  def __init__(self, loaded: Bundle):
    self._loaded = loaded

  @staticmethod
  def inputs(source: Path, settings: CompressionSettings, config: Config) -> Path:
    """Validate the input of `encode` before the parameters are loaded.

    Returns:
      The file to pass to `encode`.

    Raises:
      ValueError: `source` is not a file, or a setting is for pictures only.
    """
    del config
    if not source.is_file():
      raise ValueError(f'{shown(source)} is not a file; a text model (--model) compresses one file.')
    picture_flags = [f'--{name}' for name in ('lossy', 'resize', 'caption') if getattr(settings, name)]
    if picture_flags:
      raise ValueError(
        f'{", ".join(picture_flags)}: for pictures only, but --model is a text model; omit for text models.'
      )
    return source

  def encode(
    self, source: Path, settings: CompressionSettings, start: Callable[..., ContainerWriter]
  ) -> dict[str, Any]:
    """Compress the file `source`.

    Args:
      source: the file.
      settings: the settings of the encoder.
      start: makes the writer of the compressed file from `batch_size`, `length` and `facts` (the header's settings).

    Returns:
      The sizes and costs by name.
    """
    model, tokenizer = self._loaded.model, self._loaded.text_tokenizer
    capacity = settings.batch_size * model.length
    size = source.stat().st_size
    nats, num_tokens, num_bytes = 0.0, 0, 0
    with source.open('rb') as file, Progress('encoding', size, 'byte') as progress:
      chunks = text.chunks(file, tokenizer, capacity)
      first = list(itertools.islice(chunks, 1))  # sets the batch size; empty for an empty file
      batch_size = rows_for(len(text.rows(first[0][0], model.length)) if first else 0, settings.batch_size)
      writer = start(batch_size=batch_size, length=model.length, facts={})
      sequences = self._sequences(batch_size)
      for ids, content in itertools.chain(first, chunks):
        payload, cost = text.encode(ids, sequences, settings.coder)
        if settings.verify:
          text.verify(ids, payload, sequences, settings.coder)
        writer.chunk(len(ids), content, payload)
        nats, num_tokens, num_bytes = nats + cost, num_tokens + len(ids), num_bytes + len(content)
        progress.update(num_bytes)
      end = writer.end()
    return _figures(settings.coder, nats / math.log(2), num_tokens, end.num_bytes, writer)

  def _sequences(self, batch_size: int) -> SequenceCoder:
    sequences = SequenceCoder(self._loaded.model, self._loaded.params['model'], batch_size)
    check_memory(batch_size, sequences.state_bytes)
    return sequences

  def decode(self, reader: ContainerReader, out: Path, size: int, limits: DecodingLimits) -> None:
    """Decompress a file.

    Args:
      reader: the compressed file.
      out: the file to write.
      size: bytes of the compressed file, for the progress line.
      limits: what the file may ask for.

    Raises:
      Damaged: a chunk is damaged. `out` then has the content of the chunks before it.
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
          limits.check_batch(header.batch_size)
          sequences = self._sequences(header.batch_size)
        content = self._loaded.text_tokenizer.decode(text.decode(chunk, sequences, header.coder))
        reader.accept(chunk, content)
        file.write(content)
        progress.update(reader.position)

  def baselines(self, source: Path) -> dict[str, int | None]:
    """Bytes that other programs need for the same file; None if a program is not installed."""
    with source.open('rb') as file:
      return baselines.of_file(file)


def _check_rows(first: Chunk, header: Header) -> None:
  """Check that the header asks for no more rows than its first chunk needs. Raises Damaged.

  A damaged batch size could otherwise exhaust the memory.
  """
  rows = -(-first.count // header.length)
  if header.batch_size != rows_for(rows, header.batch_size):
    raise Damaged(f'its header says {header.batch_size} sequences side by side, for {first.count} tokens')


def _figures(coder: str, model_bits: float, num_tokens: int, num_bytes: int, writer: ContainerWriter) -> dict[str, Any]:
  bits = 8 * writer.payload_bytes
  figures = {
    'kind': 'text', 'coder': coder, 'num_tokens': num_tokens, 'original_bytes': num_bytes,
    'file_bytes': writer.num_bytes, 'payload_bytes': writer.payload_bytes, 'model_bits': model_bits,
  }  # fmt: skip
  if num_tokens:
    figures |= {
      'bits_per_token': bits / num_tokens, 'model_bits_per_token': model_bits / num_tokens,
      'overhead_bits_per_token': (bits - model_bits) / num_tokens, 'bits_per_byte': 8 * writer.num_bytes / num_bytes,
    }  # fmt: skip
  return figures
