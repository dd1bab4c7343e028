"""Parses HTML pages for tests of reports."""

import base64
import io
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
from PIL import Image

# Text with markup that a page must escape.
NASTY = '</script><script>alert("1")</script> & \'"'


class Element(NamedTuple):
  tag: str
  attrs: dict[str, str]
  pieces: list[str]  # pieces of the text inside it, including nested elements

  @property
  def text(self):
    return ''.join(self.pieces)

  @property
  def styles(self):
    return self.attrs.get('class', '').split()

  def pixels(self):
    """The pixels of an <img> with an embedded PNG."""
    head, data = self.attrs['src'].split(',')
    assert head == 'data:image/png;base64'
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB'))


class Page(HTMLParser):
  """The elements of a page in document order; checks that they are nested correctly."""

  VOID = ('meta', 'img', 'br', 'link', 'input')

  def __init__(self, text):
    super().__init__()
    self.open, self.found = [], []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.found.append(Element(tag, dict(attrs), []))
    if tag not in self.VOID:
      self.open.append(self.found[-1])

  def handle_startendtag(self, tag, attrs):
    self.found.append(Element(tag, dict(attrs), []))

  def handle_endtag(self, tag):
    assert self.open.pop().tag == tag

  def handle_data(self, data):
    for element in self.open:
      element.pieces.append(data)

  def of(self, tag, style=None):
    """The elements with this tag, and with this class if `style` is given."""
    return [element for element in self.found if element.tag == tag and (style is None or style in element.styles)]

  def text(self, tag, style=None):
    """The texts of the elements with this tag and class."""
    return [element.text for element in self.of(tag, style)]

  def addresses(self):
    """All addresses in src and href attributes."""
    return [value for e in self.found for name, value in e.attrs.items() if name in ('src', 'href', 'xlink:href')]
