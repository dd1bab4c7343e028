"""Configuration of the training data and the tokenizer."""

import dataclasses

from dalle_jax.config.checks import require, require_choice, require_fraction, require_positive

SOURCES = ('auto', 'captioned_shapes', 'folder', 'tars', 'parquet', 'records', 'tfds', 'mixture', 'text')
SOURCES_WITHOUT_PATH = ('auto', 'captioned_shapes', 'text')  # they make their own data if config.data.path is empty
CLASS = '{class}'  # in config.data.caption_template
TOKENIZERS = ('captions', 'clip', 'bytes', 'pieces')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where images, captions and text come from, and how they are read."""

  # One of SOURCES. 'auto': found from what `path` holds; 'captioned_shapes' if it is empty.
  source: str = 'auto'
  # 'folder', 'tars', 'parquet': a directory of captioned images, as files, in tar files or in Parquet files. 'records':
  # what tools/prepare_data.py has written. 'tfds': the directory of a prepared data set. 'mixture': several of these
  # with their shares of a batch, such as 'a:0.7,b:0.3'. 'text': a file, a directory of .txt files, or several of these
  # separated by commas; empty: the help texts of Python's standard library.
  path: str = ''
  validation_path: str = ''  # 'text': held-out text, in the form of `path`; empty: hold out the end of `path`
  data_dir: str = ''  # directory for generated data sets; empty: WORKDIR/data
  image_size: int = 32  # height and width of images, in pixels
  # The square cut from an image: 'center', 'random' (a random position along the longer side), or 'paper' (Listing 1
  # for the dVAE, Listing 2 for the prior).
  crop: str = 'center'
  # Downscaling: 'area' averages over exact areas; 'box' averages whole pixels; 'draft' decodes large JPEGs at a half, a
  # quarter or an eighth of their size first, which is about twice as fast and not quite a mean.
  resampling: str = 'area'
  flip: bool = False  # flip images left to right at random while the dVAE trains (Listing 1)
  caption_key: str = 'caption'  # 'tfds': the feature that holds the caption; 'parquet': the column
  # Captions of images that have none, where {class} stands for the name of the image's folder: 'a photo of a {class}'.
  # Empty: such images are left out, unless the task reads no captions.
  caption_template: str = ''
  # Share of the data to hold out. 'folder', 'tars', 'parquet', 'records': of the groups of images (see
  # group_separator). 'tfds': of the examples, if the data set has no held-out split. 'text': of the bytes, if
  # validation_path is empty.
  validation_fraction: float = 0.1
  # Images whose captions are equal up to this text form a group, and a group is in one split. Empty: compare full
  # captions. Images without captions, or with captions from a template, form a group each.
  group_separator: str = ''
  # A file of the paths of pictures to leave out, one a line, as tools/check_data.py writes it. Empty: leave out none.
  # 'folder', 'tars', 'parquet', 'records'.
  skip_list: str = ''
  num_train: int = 20_000  # 'captioned_shapes': examples in the train split
  num_validation: int = 1_000  # 'captioned_shapes': examples in the validation split
  num_held_out: int = 1_000  # 'captioned_shapes': examples in the held_out split
  two_object_fraction: float = 0.5  # 'captioned_shapes': share of scenes with two objects
  position_jitter: int = 1  # 'captioned_shapes': largest random shift of objects, in 1/32 of the image side; 0 or 1
  shapes_seed: int = 0  # 'captioned_shapes': seed of the data set
  # The largest number of pixels of a picture, rows times columns. It bounds the memory that a damaged or hostile file
  # can ask for. Larger pictures are left out.
  max_image_pixels: int = 89_478_485
  # Data-loading processes; 0: load in threads of the main process; -1: 1 for each 16 cores, up to 8.
  num_workers: int = -1
  num_threads: int = 0  # reading threads per process; 0: 1 for each core of the process, from 2 to 16
  # Share of records that may turn out to be unreadable while a stage trains. Other records take their places; if there
  # are more, the run ends after a checkpoint. One record is always allowed, unless this is 0.
  max_bad_share: float = 0.01

  def __post_init__(self) -> None:
    require_choice('data', self, 'source', SOURCES)
    if self.source == 'auto' and not self.path:
      object.__setattr__(self, 'source', 'captioned_shapes')
    require_choice('data', self, 'crop', ('center', 'random', 'paper'))
    require_choice('data', self, 'resampling', ('area', 'box', 'draft'))
    require_positive('data', self, 'image_size', 'num_train', 'num_validation', 'num_held_out', 'max_image_pixels')
    require_fraction('data', self, 'validation_fraction', 'two_object_fraction', 'max_bad_share')
    require(
      self.num_workers >= -1, f'config.data.num_workers is {self.num_workers}; it must be 0 or more, or -1 to choose.'
    )
    require(
      self.num_threads >= 0, f'config.data.num_threads is {self.num_threads}; it must be 1 or more, or 0 to choose.'
    )
    require(
      self.position_jitter in (0, 1), f'config.data.position_jitter is {self.position_jitter}; allowed are 0 and 1.'
    )
    require(self.shapes_seed >= 0, f'config.data.shapes_seed is {self.shapes_seed}; it must be 0 or more.')
    require(
      not self.caption_template or CLASS in self.caption_template,
      f'config.data.caption_template is {self.caption_template!r}; it must contain {CLASS}, as in "a photo of a '
      f'{CLASS}".',
    )
    if self.source == 'captioned_shapes':
      require(
        self.image_size >= 32,
        f'config.data.image_size is {self.image_size}; config.data.source=captioned_shapes needs at least 32, '
        'so that generated images can be judged.',
      )
    elif self.source not in SOURCES_WITHOUT_PATH:
      require(bool(self.path), f'config.data.source={self.source!r} needs config.data.path, the directory to read.')
    require(
      not self.skip_list or self.source in ('auto', 'folder', 'tars', 'parquet', 'records', 'mixture'),
      f'config.data.skip_list is {self.skip_list!r}, but config.data.source={self.source!r} does not read it.',
    )
    require(
      self.source == 'text' or not self.validation_path,
      f'config.data.validation_path is {self.validation_path!r}, but only config.data.source=text reads it; given '
      f'{self.source!r}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
  """The byte-pair encoding of captions (section 2.2: lower-cased, 16,384 pieces), or a lossless tokenizer of text."""

  # For captions: 'captions', a byte-pair encoding, or 'clip', the tokenizer of an imported CLIP (reranker only). For
  # models of text: 'bytes', or 'pieces', a lossless byte-pair encoding.
  kind: str = 'captions'
  vocab_size: int = 16_384  # maximum number of pieces, at least 270 (256 of them are bytes); a small corpus gives fewer
  text_length: int = 256  # text positions before the image tokens, including the start-of-text position
  bpe_dropout: float = 0.1  # share of merges skipped while the prior trains, sampled again each epoch (section 2.2)

  def __post_init__(self) -> None:
    require_choice('tokenizer', self, 'kind', TOKENIZERS)
    require_fraction('tokenizer', self, 'bpe_dropout')
    require(self.vocab_size >= 270, f'config.tokenizer.vocab_size is {self.vocab_size}; it must be at least 270.')
    require(self.text_length >= 2, f'config.tokenizer.text_length is {self.text_length}; it must be at least 2.')
