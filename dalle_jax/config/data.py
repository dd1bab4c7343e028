"""What is learnt from: pictures, captions and their tokens."""

import dataclasses

from dalle_jax.config.checks import require, require_choice, require_fraction, require_positive

SOURCES = ('captioned_shapes', 'folder', 'tfds', 'text')
TOKENIZERS = ('captions', 'clip', 'bytes', 'pieces')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where pictures and captions come from, and how they are read."""

  source: str = 'captioned_shapes'  # one of SOURCES
  # folder: pictures with captions; tfds: a prepared data set's directory; text: a file, a directory of .txt files, or
  # several of both with commas between, and if empty the texts of Python's own help.
  path: str = ''
  validation_path: str = ''  # text: what is held out, given as `path` is; empty: the end of `path`
  data_dir: str = ''  # where generated data sets are kept; empty: WORKDIR/data
  image_size: int = 32  # height and width in pixels
  crop: str = 'center'  # 'center', 'random' along the longer side, or 'paper': the stage's own (Listings 1 and 2)
  resampling: str = 'area'  # of pictures made smaller: exact means over areas, or 'box': of whole pixels, and faster
  flip: bool = False  # random left-right flips while the dVAE trains (Listing 1)
  caption_key: str = 'caption'  # tfds: the feature that holds the text
  validation_fraction: float = 0.1  # folder: share of names held out; text: of bytes, without a validation_path
  group_separator: str = ''  # folder: captions equal up to this text share a name
  num_train: int = 20_000  # captioned_shapes: examples in each split
  num_validation: int = 1_000
  num_held_out: int = 1_000
  two_object_fraction: float = 0.5  # captioned_shapes: share of scenes with two objects
  position_jitter: int = 1  # captioned_shapes: steps of 1/32 of the side by which centres are moved, 0 or 1
  shapes_seed: int = 0  # captioned_shapes: the seed that fixes the data set
  num_workers: int = 0  # data-loading processes; 0 reads in threads of this one
  num_threads: int = 4  # reading threads per process

  def __post_init__(self) -> None:
    require_choice('data', self, 'source', SOURCES)
    require_choice('data', self, 'crop', ('center', 'random', 'paper'))
    require_choice('data', self, 'resampling', ('area', 'box'))
    require_positive('data', self, 'image_size', 'num_train', 'num_validation', 'num_held_out', 'num_threads')
    require_fraction('data', self, 'validation_fraction', 'two_object_fraction')
    require(self.num_workers >= 0, f'config.data.num_workers is {self.num_workers}; it must be 0 or more.')
    require(
      self.position_jitter in (0, 1), f'config.data.position_jitter is {self.position_jitter}; allowed are 0 and 1.'
    )
    require(self.shapes_seed >= 0, f'config.data.shapes_seed is {self.shapes_seed}; it must be 0 or more.')
    if self.source == 'captioned_shapes':
      require(
        self.image_size >= 32,
        f'config.data.image_size is {self.image_size}; captioned_shapes needs 32 or more to be judged.',
      )
    elif self.source != 'text':
      require(bool(self.path), f'config.data.source={self.source!r} needs config.data.path: the directory to read.')
    require(
      self.source == 'text' or not self.validation_path,
      f'config.data.validation_path is {self.validation_path!r}, which only config.data.source=text reads; given '
      f'{self.source!r}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
  """The captions' byte-pair encoding (section 2.2: lower-cased, 16,384 pieces), or a tokenizer of text without loss."""

  # 'captions' of pictures, 'clip' for the imported CLIP alone; of text 'bytes', or 'pieces': byte pairs, nothing lost.
  kind: str = 'captions'
  vocab_size: int = 16_384  # at least 270, as 256 pieces stand for bytes; at most; a small corpus gives fewer pieces
  text_length: int = 256  # text slots of the prior, the start-of-text slot among them
  bpe_dropout: float = 0.1  # share of merges left out while the prior trains, new for each epoch (section 2.2)

  def __post_init__(self) -> None:
    require_choice('tokenizer', self, 'kind', TOKENIZERS)
    require_fraction('tokenizer', self, 'bpe_dropout')
    require(self.vocab_size >= 270, f'config.tokenizer.vocab_size is {self.vocab_size}; it must be at least 270.')
    require(self.text_length >= 2, f'config.tokenizer.text_length is {self.text_length}; it must be at least 2.')
