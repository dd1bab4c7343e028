"""Checks of prompts and captions that users type."""

import unicodedata

from dalle_jax.files import shown

LONGEST_PROMPT = 100_000  # characters
# Characters that Unicode counts among letters, marks or symbols, and that show nothing.
_BLANK = frozenset('\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0')
_SELECTORS = ((0xFE00, 0xFE0F), (0x180B, 0x180F), (0xE0100, 0xE01EF))  # variation selectors


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
  if text and not any(map(_is_visible, text)):
    raise ValueError(f"A prompt is empty: '{shown(text, 80)}' shows nothing; {flag} needs at least one word.")


def _is_visible(char: str) -> bool:
  if char in _BLANK or any(first <= ord(char) <= last for first, last in _SELECTORS):
    return False
  return unicodedata.category(char)[0] not in 'CZ' or unicodedata.category(char) == 'Co'
