"""The layout of a sequence of text and image."""

from typing import TYPE_CHECKING


class Layout:
  """`text_length` text slots, followed by `grid_size`^2 image slots in raster order."""

  # Read-only attributes. At run time a property would become the default value of a subclass's dataclass field.
  if TYPE_CHECKING:

    @property
    def text_length(self) -> int:
      raise NotImplementedError

    @property
    def grid_size(self) -> int:
      raise NotImplementedError

  @property
  def image_length(self) -> int:
    return self.grid_size**2

  @property
  def length(self) -> int:
    return self.text_length + self.image_length
