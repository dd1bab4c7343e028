"""How text and an image lie in a sequence."""


class Layout:
  """`text_length` places of text, then a grid of `grid_size` times `grid_size` of an image in raster order."""

  text_length: int
  grid_size: int

  @property
  def image_length(self) -> int:
    return self.grid_size**2

  @property
  def length(self) -> int:
    return self.text_length + self.image_length
