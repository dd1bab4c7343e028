"""The whole experiment: its groups, what must fit between them, and the way in from a mapping."""

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import Any

import ml_collections

from dalle_jax import stages
from dalle_jax.config.checks import require
from dalle_jax.config.data import DataConfig, TokenizerConfig
from dalle_jax.config.models import DvaeConfig, PriorConfig, RerankerConfig, SequenceConfig
from dalle_jax.config.running import EvaluationConfig, LoggingConfig, MeshConfig, SamplingConfig
from dalle_jax.config.training import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The whole experiment."""

  seed: int = 0
  # 'all': the dVAE, then the prior; 'dvae' alone; 'joint': both at once (section 2, footnote 3); 'sequence': a model of
  # text, or of a trained dVAE's codes (config.model.tokens); 'reranker': a model that scores pictures by captions.
  task: str = 'all'
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
  dvae: DvaeConfig = dataclasses.field(default_factory=DvaeConfig)
  dvae_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
  prior_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  joint_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  model: SequenceConfig = dataclasses.field(default_factory=SequenceConfig)
  sequence_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  reranker: RerankerConfig = dataclasses.field(default_factory=RerankerConfig)
  reranker_training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
  profile: tuple[int, ...] = ()  # first and last of the steps, in each stage, of which every host writes a trace
  sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

  @property
  def trained_stages(self) -> tuple[stages.Stage, ...]:
    """The stages that the task trains, in their order. A pretrained dVAE is not trained again."""
    has_dvae = bool(self.dvae.pretrained) or self.models_text
    return tuple(stage for stage in stages.of_task(self.task) if not (stage.name == 'dvae' and has_dvae))

  @property
  def training_groups(self) -> tuple[str, ...]:
    """The configuration groups of the trained stages' training."""
    return tuple(stage.training_group for stage in self.trained_stages)

  @property
  def counts_ngrams(self) -> bool:
    """Whether the sequence model is counted in one pass, without gradients."""
    return self.task == 'sequence' and self.model.kind == 'ngram'

  @property
  def grid_size(self) -> int:
    """Codes along one side of an image."""
    return self.data.image_size // self.dvae.downsampling

  @property
  def image_length(self) -> int:
    """Codes of an image."""
    return self.grid_size**2

  @property
  def models_text(self) -> bool:
    """Whether the task is a model of text, without pictures."""
    return self.task == 'sequence' and self.model.tokens == 'text'

  @property
  def reads_captions(self) -> bool:
    """Whether what is trained reads the captions of pictures."""
    return (
      self.model.tokens == 'text_image' if self.task == 'sequence' else 'text' in stages.of_task(self.task)[-1].reads
    )

  @property
  def sequence_length(self) -> int:
    """Tokens of a sequence of config.model."""
    text_length = {'text': self.model.length, 'image': 0, 'text_image': self.tokenizer.text_length}[self.model.tokens]
    return text_length if self.model.tokens == 'text' else text_length + self.image_length

  def __post_init__(self) -> None:
    require(0 <= self.seed < 2**31, f'config.seed is {self.seed}; it must lie in [0, 2^31).')
    require(
      not self.profile or (len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]),
      f'config.profile is {self.profile}; give the first and the last step to trace, such as --config.profile=100,105.',
    )
    require(
      self.sampling.top_k <= self.dvae.image_vocab_size,
      f'config.sampling.top_k is {self.sampling.top_k}, more than config.dvae.image_vocab_size '
      f'{self.dvae.image_vocab_size}; 0 keeps all tokens.',
    )
    require(self.task in stages.tasks(), f'config.task is {self.task!r}; allowed are {", ".join(stages.tasks())}.')
    require(
      self.task != 'dvae' or not self.dvae.pretrained,
      f'config.task is dvae, but config.dvae.pretrained {self.dvae.pretrained} leaves nothing to train; empty one.',
    )
    require(
      self.task != 'joint' or self.dvae.bottleneck == 'gumbel',
      f'config.task is joint, which needs config.dvae.bottleneck=gumbel; given {self.dvae.bottleneck!r}.',
    )
    self._check_text()
    self._check_image_tokens()
    if self.task == 'reranker':
      self._check_reranker()
    else:
      self._check_grid()

  def _check_reranker(self) -> None:
    size, patch = self.data.image_size, self.reranker.patch_size
    require(
      not self.dvae.pretrained,
      f'config.dvae.pretrained is {self.dvae.pretrained!r}, which config.task=reranker does not use; empty it.',
    )
    require(
      size % patch == 0,
      f'config.data.image_size {size} is not divisible by config.reranker.patch_size {patch}; change one of the two.',
    )

  def _check_grid(self) -> None:
    """What the dVAE's grid of codes must fit."""
    size, factor = self.data.image_size, self.dvae.downsampling
    require(
      size % factor == 0,
      f"config.data.image_size {size} is not divisible by the dVAE's downsampling {factor} "
      f'(config.dvae.patch_size * 2 ** (config.dvae.num_groups - 1)); change one of the two, for instance image_size='
      f'{max(factor, round(size / factor) * factor)}.',
    )
    require(
      not self.prior.uses_conv or self.prior.conv_kernel_size <= self.grid_size,
      f'config.prior.conv_kernel_size {self.prior.conv_kernel_size} does not fit the grid of {self.grid_size} x '
      f'{self.grid_size} codes; take a smaller odd number, or config.prior.last_attention_pattern and '
      'attention_pattern without conv.',
    )

  def _check_text(self) -> None:
    of_text = self.models_text
    task = f'{self.task!r}' + (f', config.model.tokens {self.model.tokens!r}' if self.task == 'sequence' else '')
    require(
      of_text == (self.data.source == 'text'),
      f"config.task is {task} and config.data.source {self.data.source!r}; 'sequence' reads 'text' where "
      "config.model.tokens is 'text', and nothing else does.",
    )
    imported = ('clip',) if self.task == 'reranker' else ()
    kinds = ('bytes', 'pieces') if of_text else ('captions', *imported)
    require(
      self.tokenizer.kind in kinds,
      f'config.tokenizer.kind is {self.tokenizer.kind!r}; config.task {task} takes {" or ".join(map(repr, kinds))}.',
    )

  def _check_image_tokens(self) -> None:
    """What a sequence model of a dVAE's codes needs."""
    tokens, length = self.model.tokens, self.model.length
    if self.task != 'sequence' or tokens == 'text':
      return
    require(
      bool(self.dvae.pretrained),
      f'config.model.tokens is {tokens!r}, the codes of a trained dVAE: give its model directory as '
      'config.dvae.pretrained.',
    )
    require(
      length in (SequenceConfig.length, self.sequence_length),
      f'config.model.length is {length}, but with config.model.tokens={tokens} a sequence has {self.sequence_length} '
      'tokens; leave that key out.',
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
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      kwargs[name] = _build(kind, value, f'{path}.{name}')
    else:
      kwargs[name] = _cast(value, kind, f'{path}.{name}')
  if cls is TrainingConfig:  # all stages share this class: its messages name the stage's group
    kwargs['group'] = path.removeprefix('config.')
  return cls(**kwargs)


def _cast(value: Any, kind: Any, path: str) -> Any:
  if typing.get_origin(kind) is tuple:
    return _cast_tuple(value, typing.get_args(kind)[0], path)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not kind:
    raise ValueError(f'{path} must be of type {kind.__name__}; given {value!r} of type {type(value).__name__}.')
  return value


def _cast_tuple(value: Any, kind: type, path: str) -> tuple:
  """A tuple of any length; a list from a JSON file and, for words, a string `a,b` from a flag serve as well."""
  value = [value] if isinstance(value, str) else value
  if not isinstance(value, tuple | list):
    raise ValueError(
      f'{path} must be of type tuple of {kind.__name__}; given {value!r} of type {type(value).__name__}.'
    )
  if kind is str:
    value = [part for word in value for part in (word.split(',') if isinstance(word, str) else [word])]
  return tuple(_cast(part, kind, f'{path}[{i}]') for i, part in enumerate(value))


def base_config() -> ml_collections.ConfigDict:
  """Every key with its default, locked: assigning an unknown key raises and names the nearest."""
  return ml_collections.ConfigDict(Config().to_dict()).lock()


def choose(variant: str, *groups: Sequence[str]) -> tuple[str, ...]:
  """Reads what follows the colon in `FILE:VARIANT`: words with commas between, at most one of each group.

  Args:
    variant: as given.
    groups: words that exclude each other; the first is meant where none is given, and may be ''.

  Returns:
    One word of each group.

  Raises:
    ValueError: a word is unknown, or two are of one group.
  """
  words = [word for word in variant.split(',') if word]
  found = [[word for word in words if word in group] for group in groups]
  if sum(map(len, found)) < len(words) or any(len(each) > 1 for each in found):
    lists = '; '.join(' or '.join(repr(word) for word in group if word) for group in groups)
    raise ValueError(f'The variants of this configuration are, at most one of each: {lists}; given {variant!r}.')
  return tuple((each or [group[0]])[0] for each, group in zip(found, groups, strict=True))


def apply_variant(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
  """What a configuration file without variants of its own returns: '' leaves it, 'tiny' shrinks it.

  Raises:
    ValueError: the variant is unknown.
  """
  (size,) = choose(variant, ('', 'tiny'))
  return shrink(config) if size else config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Small models and a few steps of every stage, to see that a configuration works."""
  config.data.num_train, config.data.num_validation, config.data.num_held_out = 200, 64, 64
  config.dvae.hidden_size = 16
  for blocks in (config.prior, config.model):
    blocks.num_layers, blocks.num_heads, blocks.embed_dim = 2, 2, 32
  config.evaluation.num_reconstructions = 32
  config.evaluation.num_prompts = 4
  config.evaluation.num_captions = 32
  config.evaluation.num_tokens, config.evaluation.num_context_targets = 1024, 32
  config.evaluation.sheet_prompts, config.evaluation.images_per_prompt = 2, 2
  config.sampling.batch_size = 8
  config.reranker.image_num_layers, config.reranker.text_num_layers = 1, 1
  config.reranker.image_width, config.reranker.text_width = 32, 32
  for group in stages.training_groups():
    training = config[group]
    training.num_steps, training.batch_size, training.warmup_steps = 12, 8, 4
    training.ema_every = min(training.ema_every, 2)
    training.log_every, training.eval_every, training.eval_batches = 4, 8, 2
    training.sheet_every, training.checkpoint_every = 8, 8
  return config


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
