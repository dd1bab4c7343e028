"""The layout of a sequence of text and image."""


class Layout:
  """`text_length` text slots, followed by `grid_size`^2 image slots in raster order."""

  text_length: int
  grid_size: int

  @property
  def image_length(self) -> int:
    return self.grid_size**2

  @property
  def length(self) -> int:
    return self.text_length + self.image_length
