"""The configuration: typed groups, their checks, and the way in from `configs/*.py`.

A configuration file starts from `base_config()`, a locked `ml_collections.ConfigDict` that holds every key with its
default, and assigns existing keys only. `Config.from_dict` turns the result into frozen dataclasses which refuse
unknown keys and validate themselves; every message names the key to change. Nothing here imports JAX.
"""

import dataclasses
import difflib
from typing import Any

import ml_collections

SOURCES = ('captioned_shapes', 'folder', 'tfds')
DTYPES = ('float32', 'bfloat16')
SCHEDULES = ('cosine', 'constant')
OPTIMIZERS = ('adamw', 'muon')


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)


def _require_positive(group: str, obj: Any, *names: str) -> None:
  for name in names:
    value = getattr(obj, name)
    _require(value > 0, f'config.{group}.{name} is {value}; it must be above 0.')


def _require_fraction(group: str, obj: Any, *names: str) -> None:
  for name in names:
    value = getattr(obj, name)
    _require(0 <= value <= 1, f'config.{group}.{name} is {value}; it must lie in [0, 1].')


def _require_choice(group: str, obj: Any, name: str, choices: tuple[str, ...]) -> None:
  value = getattr(obj, name)
  _require(value in choices, f'config.{group}.{name} is {value!r}; allowed are {", ".join(choices)}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where pictures and captions come from, and how they are read."""

  source: str = 'captioned_shapes'  # one of SOURCES
  path: str = ''  # folder: pictures with captions; tfds: a prepared data set's directory
  data_dir: str = ''  # where generated data sets are kept; empty: WORKDIR/data
  image_size: int = 32  # height and width in pixels
  crop: str = 'center'  # 'center', or 'random' along the longer side
  flip: bool = False  # random left-right flips while the dVAE trains (Listing 1)
  caption_key: str = 'caption'  # tfds: the feature that holds the text
  validation_fraction: float = 0.1  # folder: share of names held out
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
    _require_choice('data', self, 'source', SOURCES)
    _require_choice('data', self, 'crop', ('center', 'random'))
    _require_positive('data', self, 'image_size', 'num_train', 'num_validation', 'num_held_out', 'num_threads')
    _require_fraction('data', self, 'validation_fraction', 'two_object_fraction')
    _require(self.num_workers >= 0, f'config.data.num_workers is {self.num_workers}; it must be 0 or more.')
    _require(
      self.position_jitter in (0, 1), f'config.data.position_jitter is {self.position_jitter}; allowed are 0 and 1.'
    )
    _require(self.shapes_seed >= 0, f'config.data.shapes_seed is {self.shapes_seed}; it must be 0 or more.')
    if self.source == 'captioned_shapes':
      _require(
        self.image_size >= 32,
        f'config.data.image_size is {self.image_size}; captioned_shapes needs 32 or more to be judged.',
      )
    else:
      _require(bool(self.path), f'config.data.source={self.source!r} needs config.data.path: the directory to read.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
  """The captions' byte-pair encoding (section 2.2: lower-cased, 16,384 pieces)."""

  vocab_size: int = 16_384  # at least 270, as 256 pieces stand for bytes; at most; a small corpus gives fewer pieces
  text_length: int = 256  # text slots of the prior, the start-of-text slot among them

  def __post_init__(self) -> None:
    _require(self.vocab_size >= 270, f'config.tokenizer.vocab_size is {self.vocab_size}; it must be at least 270.')
    _require(self.text_length >= 2, f'config.tokenizer.text_length is {self.text_length}; it must be at least 2.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DvaeConfig:
  """The discrete VAE's shape and the schedules of its loss (appendix A)."""

  image_vocab_size: int = 8192
  hidden_size: int = 256  # channels at full resolution; they double with each group
  decoder_input_size: int = 128  # channels of the decoder's input, the "codebook" width
  num_groups: int = 4  # groups of blocks, with a factor 2 in resolution between neighbours
  blocks_per_group: int = 2
  patch_size: int = 1  # pixels folded into channels before the encoder; above 1 saves work at full resolution
  dtype: str = 'float32'  # of the convolutions; parameters are float32
  temperature_start: float = 1.0
  temperature_end: float = 1 / 16
  temperature_steps: int = 150_000  # cosine from start to end
  kl_weight: float = 6.6 / 192  # on the KL per position; 6.6/192 at 256x256 (appendix A.2)
  kl_warmup_steps: int = 5_000  # cosine from 0 to kl_weight
  # The next six are for short runs; their defaults leave the released models' recipe as it is.
  logits_init_scale: float = 1.0  # of the encoder's output weights at initialisation
  residual_gain: float = 0.0  # of the blocks' branches; 0: 1 / (number of blocks)^2 as in the released models
  codebook_init_scale: float = 1.0  # of the decoder's input weights at initialisation
  normal_steps: int = 0  # steps over which a normal likelihood of the pixels gives way to the logit-Laplace
  normal_scale: float = 0.1  # standard deviation of that normal, on mapped pixels
  min_log_scale: float = -4.6  # floor of ln b: half a step of 8-bit pixels is about 0.01 in logit space

  @property
  def downsampling(self) -> int:
    """Pixels per code along one side."""
    return self.patch_size * 2 ** (self.num_groups - 1)

  def __post_init__(self) -> None:
    _require_choice('dvae', self, 'dtype', DTYPES)
    _require_positive(
      'dvae', self, 'hidden_size', 'decoder_input_size', 'num_groups', 'blocks_per_group', 'patch_size',
      'temperature_start', 'temperature_end', 'temperature_steps', 'kl_warmup_steps', 'logits_init_scale',
      'codebook_init_scale', 'normal_scale',
    )  # fmt: skip
    _require(
      self.image_vocab_size >= 2, f'config.dvae.image_vocab_size is {self.image_vocab_size}; it must be at least 2.'
    )
    _require(
      self.hidden_size % 4 == 0,
      f'config.dvae.hidden_size is {self.hidden_size}; it must be a multiple of 4, as blocks work at a quarter width.',
    )
    _require(self.normal_steps >= 0, f'config.dvae.normal_steps is {self.normal_steps}; it must be 0 or more.')
    _require(self.residual_gain >= 0, f'config.dvae.residual_gain is {self.residual_gain}; it must be 0 or more.')
    _require(self.kl_weight >= 0, f'config.dvae.kl_weight is {self.kl_weight}; it must be 0 or more.')
    _require(
      self.temperature_end <= self.temperature_start,
      f'config.dvae.temperature_end is {self.temperature_end}, above temperature_start {self.temperature_start}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig:
  """The transformer over text tokens followed by image tokens (section 2.2, appendix B)."""

  num_layers: int = 64
  num_heads: int = 62
  head_dim: int = 64
  mlp_ratio: int = 4
  text_loss_weight: float = 1 / 8
  image_loss_weight: float = 7 / 8
  dtype: str = 'float32'  # of activations and matrix products; parameters are float32
  remat: bool = False  # recompute activations in the backward pass

  @property
  def embed_dim(self) -> int:
    return self.num_heads * self.head_dim

  def __post_init__(self) -> None:
    _require_choice('prior', self, 'dtype', DTYPES)
    _require_positive('prior', self, 'num_layers', 'num_heads', 'head_dim', 'mlp_ratio')
    _require(
      self.text_loss_weight >= 0 and self.image_loss_weight >= 0 and self.text_loss_weight + self.image_loss_weight > 0,
      'config.prior.text_loss_weight and image_loss_weight must be 0 or more, and not both 0; '
      f'given {self.text_loss_weight} and {self.image_loss_weight}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """One stage of training: length, batch, optimizer, and what happens how often (in steps; 0: never)."""

  num_steps: int = 1_000
  batch_size: int = 32  # examples per optimizer step, over all devices and hosts
  accumulation_steps: int = 1  # parts into which a batch is cut to save memory
  optimizer: str = 'adamw'  # 'adamw' as in the paper, or 'muon' for the matrices of blocks and AdamW for the rest
  learning_rate: float = 3e-4  # AdamW's
  muon_learning_rate: float = 0.02  # Muon's, at the same points of the schedule
  final_learning_rate: float = 0.0  # at the end of a cosine schedule
  schedule: str = 'cosine'
  warmup_steps: int = 100
  b1: float = 0.9  # AdamW's, and Muon's momentum
  b2: float = 0.96
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 4.0  # global gradient norm; 0: no clipping
  ema_decay: float = 0.999  # of the parameters used for evaluation and kept in the model; 0: no averaging
  log_every: int = 50
  eval_every: int = 500
  eval_batches: int = 8
  sheet_every: int = 0  # pictures on the way
  checkpoint_every: int = 500
  keep_checkpoints: int = 2  # newest kept; the best by held-out loss is kept besides

  def __post_init__(self) -> None:
    group = '{dvae,prior}_training'
    _require_choice(group, self, 'schedule', SCHEDULES)
    _require_choice(group, self, 'optimizer', OPTIMIZERS)
    _require_positive(
      group, self, 'num_steps', 'batch_size', 'accumulation_steps', 'learning_rate', 'muon_learning_rate', 'eps',
      'log_every', 'eval_batches', 'keep_checkpoints',
    )  # fmt: skip
    for name in ('b1', 'b2', 'ema_decay'):
      value = getattr(self, name)
      _require(0 <= value < 1, f'config.{group}.{name} is {value}; it must lie in [0, 1).')
    for name in (
      'final_learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm', 'eval_every', 'sheet_every',
      'checkpoint_every',
    ):  # fmt: skip
      value = getattr(self, name)
      _require(value >= 0, f'config.{group}.{name} is {value}; it must be 0 or more.')
    _require(
      self.batch_size % self.accumulation_steps == 0,
      f'config.{group}.batch_size {self.batch_size} is not divisible by accumulation_steps {self.accumulation_steps}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the device mesh's axes; one of them may be -1 and takes what is left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self) -> None:
    sizes = dataclasses.asdict(self)
    for name, value in sizes.items():
      _require(value == -1 or value > 0, f'config.mesh.{name} is {value}; it must be -1 (what is left) or above 0.')
    _require(list(sizes.values()).count(-1) <= 1, f'At most one axis of config.mesh may be -1; given {sizes}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
  """Where metrics go besides WORKDIR/*/metrics.jsonl and the console."""

  tensorboard: bool = True
  wandb_project: str = ''  # Weights & Biases, only where a project is named


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """How images are drawn unless a command says otherwise."""

  temperature: float = 1.0
  top_k: int = 0  # tokens kept at each step; 0: all
  batch_size: int = 64

  def __post_init__(self) -> None:
    _require(self.temperature >= 0, f'config.sampling.temperature is {self.temperature}; it must be 0 or more.')
    _require(self.top_k >= 0, f'config.sampling.top_k is {self.top_k}; it must be 0 (all tokens) or more.')
    _require_positive('sampling', self, 'batch_size')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """What is measured and drawn when training has ended."""

  num_reconstructions: int = 256  # held-out pictures for PSNR and codebook figures
  num_prompts: int = 128  # captions of each split and number of objects whose images are judged (captioned_shapes)
  sheet_prompts: int = 8  # captions on a sample sheet
  images_per_prompt: int = 8  # images of each caption on the sheet
  batch_size: int = 64

  def __post_init__(self) -> None:
    _require_positive('evaluation', self, *(f.name for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The whole experiment."""

  seed: int = 0
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
  dvae: DvaeConfig = dataclasses.field(default_factory=DvaeConfig)
  dvae_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
  prior_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
  sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

  @property
  def grid_size(self) -> int:
    """Codes along one side of an image."""
    return self.data.image_size // self.dvae.downsampling

  @property
  def image_length(self) -> int:
    """Codes of an image."""
    return self.grid_size**2

  def __post_init__(self) -> None:
    _require(0 <= self.seed < 2**31, f'config.seed is {self.seed}; it must lie in [0, 2^31).')
    _require(
      self.sampling.top_k <= self.dvae.image_vocab_size,
      f'config.sampling.top_k is {self.sampling.top_k}, more than config.dvae.image_vocab_size '
      f'{self.dvae.image_vocab_size}; 0 keeps all tokens.',
    )
    size, factor = self.data.image_size, self.dvae.downsampling
    _require(
      size % factor == 0,
      f"config.data.image_size {size} is not divisible by the dVAE's downsampling {factor} "
      f'(config.dvae.patch_size * 2 ** (config.dvae.num_groups - 1)); change one of the two, for instance image_size='
      f'{max(factor, round(size / factor) * factor)}.',
    )

  @classmethod
  def from_dict(cls, values: Any) -> 'Config':
    """Builds the configuration from a ConfigDict or dict.

    Args:
      values: nested mapping; missing keys take their defaults.

    Raises:
      ValueError: an unknown key (with the nearest known one), a value of a wrong type or out of range.
    """
    if isinstance(values, ml_collections.ConfigDict):
      values = values.to_dict()
    return _build(cls, values, 'config')

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def _build(cls: type, values: dict[str, Any], path: str) -> Any:
  """A dataclass from a mapping, group by group."""
  fields = {f.name: f for f in dataclasses.fields(cls)}
  if not isinstance(values, dict):
    raise ValueError(f'{path} must be a group of keys ({", ".join(fields)}); given {values!r}.')
  kwargs = {}
  for name, value in values.items():
    if name not in fields:
      near = difflib.get_close_matches(str(name), fields, n=1)
      hint = f'did you mean {path}.{near[0]}?' if near else f'known keys: {", ".join(fields)}.'
      raise ValueError(f'Unknown key {path}.{name}; {hint}')
    kind = fields[name].type
    if dataclasses.is_dataclass(kind):
      kwargs[name] = _build(kind, value, f'{path}.{name}')
    else:
      kwargs[name] = _cast(value, kind, f'{path}.{name}')
  try:
    return cls(**kwargs)
  except ValueError as error:
    # Both stages share a dataclass: say which one is meant.
    raise ValueError(str(error).replace('config.{dvae,prior}_training', path)) from None


def _cast(value: Any, kind: type, path: str) -> Any:
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not kind:
    raise ValueError(f'{path} must be of type {kind.__name__}; given {value!r} of type {type(value).__name__}.')
  return value


def base_config() -> ml_collections.ConfigDict:
  """Every key with its default, locked: assigning an unknown key raises and names the nearest."""
  return ml_collections.ConfigDict(Config().to_dict()).lock()


def apply_variant(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
  """What a configuration file returns for `FILE:variant`: '' leaves it, 'tiny' runs every stage for a few steps.

  Raises:
    ValueError: the variant is unknown.
  """
  if variant not in ('', 'tiny'):
    raise ValueError(f"This configuration has the variants '' and 'tiny'; given {variant!r}.")
  if variant == 'tiny':
    _shrink(config)
  return config


def _shrink(config: ml_collections.ConfigDict) -> None:
  config.data.num_train, config.data.num_validation, config.data.num_held_out = 200, 64, 64
  config.dvae.hidden_size = 16
  config.prior.num_layers, config.prior.num_heads, config.prior.head_dim = 2, 2, 16
  config.evaluation.num_reconstructions = 32
  config.evaluation.num_prompts = 4
  config.evaluation.sheet_prompts, config.evaluation.images_per_prompt = 2, 2
  config.sampling.batch_size = 8
  for training in (config.dvae_training, config.prior_training):
    training.num_steps, training.batch_size, training.warmup_steps = 12, 8, 4
    training.log_every, training.eval_every, training.eval_batches = 4, 8, 2
    training.sheet_every, training.checkpoint_every = 8, 8


def difference(old: dict[str, Any], new: dict[str, Any], path: str = 'config') -> list[str]:
  """Lines `key: old -> new` for every leaf that differs between two nested dicts."""
  lines = []
  for name in sorted(set(old) | set(new)):
    a, b = old.get(name, '(absent)'), new.get(name, '(absent)')
    if isinstance(a, dict) and isinstance(b, dict):
      lines += difference(a, b, f'{path}.{name}')
    elif a != b:
      lines.append(f'{path}.{name}: {a!r} -> {b!r}')
  return lines
