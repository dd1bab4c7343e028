"""Files in memory that keep the sizes that they were asked to read."""

import io


class CountedReads(io.BytesIO):
  """A file; `asked` has the argument of each `read`."""

  def __init__(self, content):
    super().__init__(content)
    self.asked = []

  def read(self, size=-1):
    self.asked.append(size)
    return super().read(size)
