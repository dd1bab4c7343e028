"""Files of any bytes to chunks of tokens and back, as a stream."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import numpy as np

from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.container import Chunk, Damaged
from dalle_jax.compression.sequences import IRREPRODUCIBLE, SequenceCoder


class ByteTokenizer(Protocol):
  """A tokenizer without loss (`data.text_tokenizer`)."""

  def encode(self, text: bytes) -> np.ndarray: ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes: ...

  def lengths(self, ids: np.ndarray) -> np.ndarray: ...


def chunks(file: BinaryIO, tokenizer: ByteTokenizer, num_tokens: int) -> Iterator[tuple[np.ndarray, bytes]]:
  """Cuts a file into tokens, `num_tokens` at a time and the rest at last, with the bytes that they stand for.

  No more of the file is held than a chunk needs and what is read ahead for it.
  """
  buffer, ended, wanted = b'', False, num_tokens
  while True:
    while not ended and len(buffer) < wanted:
      data = file.read(wanted - len(buffer))
      buffer, ended = buffer + data, not data
    ids = tokenizer.encode(buffer)
    if len(ids) < num_tokens and not ended:
      wanted = max(2 * wanted, 1)  # a token stands for more bytes than was thought
      continue
    ids = ids[:num_tokens]
    used = int(tokenizer.lengths(ids).sum())
    if len(ids):
      yield ids, buffer[:used]
    buffer = buffer[used:]
    if ended and not buffer:
      return


def rows(ids: np.ndarray, length: int) -> list[np.ndarray]:
  """Ids [N] in rows of `length`, the last one shorter."""
  return [ids[begin : begin + length] for begin in range(0, len(ids), length)]


def encode(ids: np.ndarray, sequences: SequenceCoder, coder: str) -> tuple[bytes, float]:
  """The payload of a chunk, and its cost in nats by the model."""
  encoder = CODERS[coder][0]()
  nats = sequences.encode(rows(ids, sequences.length), encoder)
  return encoder.finish(), nats


def decode(chunk: Chunk, sequences: SequenceCoder, coder: str) -> np.ndarray:
  """The ids [N] of a chunk.

  Raises:
    Damaged: it claims more tokens than a chunk has.
  """
  if chunk.count > sequences.batch_size * sequences.length:
    raise Damaged(f'a chunk claims {chunk.count} tokens')
  lengths = [len(row) for row in rows(np.empty(chunk.count, np.int8), sequences.length)]
  found = sequences.decode(lengths, CODERS[coder][1](chunk.payload))
  return np.concatenate(found) if found else np.empty(0, np.int32)


def verify(ids: np.ndarray, payload: bytes, sequences: SequenceCoder, coder: str) -> None:
  """Whether a payload decodes to the ids that it was made of. Raises ValueError."""
  if not np.array_equal(ids, decode(Chunk(len(ids), 0, payload), sequences, coder)):
    raise ValueError(IRREPRODUCIBLE)
