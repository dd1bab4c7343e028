"""What counts as a caption: the test for empty texts, which data checks and all caption tokenizers share.

Unicode has hundreds of characters that show nothing: spaces, control characters, zero-width characters, variation
selectors. A text of only these is an empty caption, whatever tokens it would have.
"""

import re
from collections.abc import Iterator

from dalle_jax.files import shown

# SentencePiece skips longer training sentences without a word.
MAX_SENTENCE_BYTES = 4192
LONGEST_PROMPT = 100_000  # characters

# Ranges of invisible characters: spaces, control characters, and Unicode's default ignorable code points. Three more
# are here: U+2800 (a blank Braille cell), U+FFF9..U+FFFB (annotation marks), and U+FFFD, which stands for damaged text.
_INVISIBLE = (
  '\x00-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f'
  '\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffd\U0001bca0-\U0001bca3'
  '\U0001d173-\U0001d17a\U000e0000-\U000e0fff'
)
_VISIBLE = re.compile(f'[^{_INVISIBLE}]')


def is_empty(text: str) -> bool:
  """Whether a text has no visible character, so that it says nothing as a caption or prompt."""
  return _VISIBLE.search(text) is None


def decoded(content: bytes) -> str:
  """The text of a caption file in UTF-8, without a byte-order mark.

  Raises:
    ValueError: it is in another encoding. The message is the rest of a sentence about the file.
  """
  if content.startswith((b'\xff\xfe', b'\xfe\xff')) or b'\0' in content:
    raise ValueError('is UTF-16 or UTF-32 text; save it as UTF-8')
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    byte = content[error.start]
    raise ValueError(
      f'is not UTF-8 text (byte 0x{byte:02x}, as in Latin-1 or Windows-1252); save it as UTF-8'
    ) from None


def check_characters(text: str) -> None:
  """Check that a text can be encoded.

  Raises:
    ValueError: It holds half of a surrogate pair, which is no character.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'The text {shortened(text)!r} holds {text[error.start]!a} at position {error.start}. This is half of a '
      'surrogate pair and no character; remove it.'
    ) from None


def check_prompt(text: str, flag: str = '--prompt') -> None:
  """Check a text of a flag or of a file; '' passes and stands for no text.

  Raises:
    ValueError: The text is not valid UTF-8, holds a NUL character, shows nothing, or is too long.
  """
  if not isinstance(text, str):
    raise ValueError(f'A prompt must be a string; given {type(text).__name__} ({flag}).')
  if len(text) > LONGEST_PROMPT:
    raise ValueError(f'A prompt has {len(text):,} characters; at most {LONGEST_PROMPT:,} are allowed ({flag}).')
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError(f"A prompt is not valid UTF-8: '{shown(text, 80)}' ({flag}).") from None
  if '\0' in text:
    raise ValueError(f"A prompt holds a NUL character: '{shown(text, 80)}'; remove it ({flag}).")
  if text and is_empty(text):
    raise ValueError(f"A prompt is empty: '{shown(text, 80)}' shows nothing; {flag} needs at least one word.")


def check_visible(text: str) -> None:
  """Check that a caption or prompt is not empty.

  Raises:
    ValueError: It has no visible character.
  """
  if is_empty(text):
    invisible = ' It holds only invisible characters.' if text else ''
    raise ValueError(f'The prompt {shortened(text)!r} is empty; give at least one word.{invisible}')


def shortened(text: str, length: int = 80) -> str:
  """Shorten a text to `length` characters, for messages about texts that may be very long."""
  return text if len(text) <= length else text[: length - 3] + '...'


def sentences(caption: str, most_bytes: int = MAX_SENTENCE_BYTES) -> Iterator[str]:
  """Split a caption into parts of at most `most_bytes` bytes, at white space if possible.

  SentencePiece counts the pieces of words, so a split between words changes nothing that it learns.
  """
  start = 0
  while len(caption) - start > most_bytes // 4:  # shorter texts fit, because a character has at most 4 bytes
    window = caption[start : start + most_bytes]
    head = window.encode()[:most_bytes].decode('utf-8', 'ignore')  # never ends inside a character
    end = start + len(head)
    if end == len(caption):
      break
    words = head.rsplit(None, 1)
    if len(words) == 2:
      end = start + len(words[0])
    yield caption[start:end]
    start = end
  yield caption[start:]
