"""Streaming conversion between files of arbitrary bytes and chunks of tokens."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import numpy as np

from dalle_jax.compression.coders import CODERS, check_capacity
from dalle_jax.compression.container import Chunk, Damaged
from dalle_jax.compression.sequences import IRREPRODUCIBLE, SequenceCoder


class LosslessTokenizer(Protocol):
  """A lossless tokenizer (`data.text.text_tokenizer`)."""

  def encode(self, text: bytes) -> np.ndarray: ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes: ...

  def lengths(self, ids: np.ndarray) -> np.ndarray: ...


def chunks(file: BinaryIO, tokenizer: LosslessTokenizer, num_tokens: int) -> Iterator[tuple[np.ndarray, bytes]]:
  """Tokenize a file and yield chunks of `num_tokens` tokens; the last chunk may be shorter.

  Memory holds one chunk and the bytes read ahead for it, not the whole file.

  Args:
    file: a file open for reading.
    tokenizer: a lossless tokenizer.
    num_tokens: tokens per chunk.

  Yields:
    The token ids [N] of a chunk, and the bytes that they decode to.
  """
  buffer, ended, wanted = b'', False, num_tokens
  while True:
    while not ended and len(buffer) < wanted:
      data = file.read(wanted - len(buffer))
      buffer, ended = buffer + data, not data
    ids = tokenizer.encode(buffer)
    if len(ids) < num_tokens and not ended:
      wanted = max(2 * wanted, 1)  # the tokens have more bytes on average than assumed so far
      continue
    ids = ids[:num_tokens]
    used = int(tokenizer.lengths(ids).sum())
    if len(ids):
      yield ids, buffer[:used]
    buffer = buffer[used:]
    if ended and not buffer:
      return


def rows(ids: np.ndarray, length: int) -> list[np.ndarray]:
  """Split ids [N] into rows of `length` ids; the last row may be shorter."""
  return [ids[begin : begin + length] for begin in range(0, len(ids), length)]


def encode(ids: np.ndarray, sequences: SequenceCoder, coder: str) -> tuple[bytes, float]:
  """Encode the ids [N] of a chunk. Returns the payload and -ln p of the ids under the model, in nats."""
  encoder = CODERS[coder][0]()
  nats = sequences.encode(rows(ids, sequences.length), encoder)
  return encoder.finish(), nats


def decode(chunk: Chunk, sequences: SequenceCoder, coder: str) -> np.ndarray:
  """Decode the ids [N] of a chunk.

  Raises:
    Damaged: the chunk's `count` is larger than a batch of sequences or the payload holds.
  """
  capacity = sequences.batch_size * sequences.length
  if chunk.count > capacity:
    raise Damaged(f'a chunk claims {chunk.count} tokens; a chunk of this file has at most {capacity}')
  check_capacity(coder, chunk.payload, chunk.count, 'tokens')
  lengths = [len(row) for row in rows(np.empty(chunk.count, np.int8), sequences.length)]
  decoded = sequences.decode(lengths, CODERS[coder][1](chunk.payload))
  return np.concatenate(decoded) if decoded else np.empty(0, np.int32)


def verify(ids: np.ndarray, payload: bytes, sequences: SequenceCoder, coder: str) -> None:
  """Check that a payload decodes to the ids that it was encoded from.

  Raises:
    ValueError: it decodes to other ids.
  """
  if not np.array_equal(ids, decode(Chunk(len(ids), 0, payload), sequences, coder)):
    raise ValueError(IRREPRODUCIBLE)
