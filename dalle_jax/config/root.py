"""The configuration of an experiment: its groups, the checks between groups, and construction from a mapping."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from typing import Any

import ml_collections

from dalle_jax import stages
from dalle_jax.config.checks import require
from dalle_jax.config.choice import ChoiceConfig
from dalle_jax.config.data import DataConfig, TokenizerConfig
from dalle_jax.config.models import DvaeConfig, PriorConfig, RerankerConfig, SequenceConfig
from dalle_jax.config.running import EvaluationConfig, LoggingConfig, MeshConfig, SamplingConfig
from dalle_jax.config.training import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The configuration of an experiment."""

  seed: int = 0
  # 'all': the dVAE, then the prior. 'dvae': only the dVAE. 'joint': both at once (section 2, footnote 3). 'sequence': a
  # model of text or of a trained dVAE's codes (config.model.tokens). 'reranker': a model that scores how well images
  # match captions.
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
  profile: tuple[int, ...] = ()  # first and last step of a profiler trace, written in each stage by every host
  sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
  choice: ChoiceConfig = dataclasses.field(default_factory=ChoiceConfig)

  @property
  def task_stages(self) -> tuple[stages.Stage, ...]:
    """The stages that the task needs, in order, whether they are trained or not. A text model needs no dVAE."""
    return tuple(stage for stage in stages.of_task(self.task) if not (stage.name == 'dvae' and self.models_text))

  @property
  def trained_stages(self) -> tuple[stages.Stage, ...]:
    """The stages that the task trains, in order. A pretrained dVAE is not trained again."""
    return tuple(stage for stage in self.task_stages if not (stage.name == 'dvae' and self.dvae.pretrained))

  @property
  def training_groups(self) -> tuple[str, ...]:
    """The training groups of the trained stages, such as 'prior_training'."""
    return tuple(stage.training_group for stage in self.trained_stages)

  @property
  def counts_ngrams(self) -> bool:
    """Whether the model is a table of n-gram counts, estimated in one pass without gradients."""
    return self.task == 'sequence' and self.model.kind == 'ngram'

  @property
  def grid_size(self) -> int:
    """Number of codes along one side of an image."""
    return self.data.image_size // self.dvae.downsampling

  @property
  def image_length(self) -> int:
    """Number of codes of an image."""
    return self.grid_size**2

  @property
  def models_text(self) -> bool:
    """Whether the task trains a model of text, without images."""
    return self.task == 'sequence' and self.model.tokens == 'text'

  @property
  def reads_captions(self) -> bool:
    """Whether the last stage of the task reads captions."""
    return (
      self.model.tokens == 'text_image' if self.task == 'sequence' else 'text' in stages.of_task(self.task)[-1].reads
    )

  @property
  def sequence_length(self) -> int:
    """Number of tokens in a sequence of config.model."""
    text_length = {'text': self.model.length, 'image': 0, 'text_image': self.tokenizer.text_length}[self.model.tokens]
    return text_length if self.model.tokens == 'text' else text_length + self.image_length

  def __post_init__(self) -> None:
    require(0 <= self.seed < 2**31, f'config.seed is {self.seed}; it must lie in [0, 2^31).')
    require(
      not self.profile or (len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]),
      f'config.profile is {self.profile}; give the first and the last step to trace, such as --config.profile=100,105.',
    )
    require(self.task in stages.tasks(), f'config.task is {self.task!r}; allowed are {", ".join(stages.tasks())}.')
    require(
      self.task != 'dvae' or not self.dvae.pretrained,
      f'config.task is dvae, but config.dvae.pretrained={self.dvae.pretrained} is already trained, so nothing is left '
      'to train; leave config.dvae.pretrained empty, or choose another config.task.',
    )
    require(
      self.task != 'joint' or self.dvae.bottleneck == 'gumbel',
      f'config.dvae.bottleneck is {self.dvae.bottleneck!r}; config.task=joint needs config.dvae.bottleneck=gumbel.',
    )
    self._check_text()
    self._check_image_tokens()
    self._check_choice()
    if self.task == 'reranker':
      self._check_reranker()
    if any('dvae' in stage.model_groups for stage in self.task_stages):
      self._check_grid()

  def _check_reranker(self) -> None:
    size, patch = self.data.image_size, self.reranker.patch_size
    require(
      not self.dvae.pretrained,
      f'config.dvae.pretrained is {self.dvae.pretrained!r}, but config.task=reranker uses no dVAE; leave it empty.',
    )
    require(
      size % patch == 0,
      f'config.data.image_size {size} is not divisible by config.reranker.patch_size {patch}; change one of the two.',
    )

  def _check_grid(self) -> None:
    """Checks that the image size, the attention patterns and top-k sampling fit the dVAE's grid of codes."""
    require(
      self.sampling.top_k <= self.dvae.image_vocab_size,
      f'config.sampling.top_k is {self.sampling.top_k}; it must be at most config.dvae.image_vocab_size, '
      f'{self.dvae.image_vocab_size}, or 0 to keep all tokens.',
    )
    size, factor = self.data.image_size, self.dvae.downsampling
    require(
      size % factor == 0,
      f"config.data.image_size {size} is not divisible by the dVAE's downsampling {factor} "
      f'(config.dvae.patch_size * 2 ** (config.dvae.num_groups - 1)); change one of the two, for instance '
      f'config.data.image_size={max(factor, round(size / factor) * factor)}.',
    )
    has_prior = any('prior' in stage.model_groups for stage in self.task_stages)
    require(
      not (has_prior and self.prior.uses_conv) or self.prior.conv_kernel_size <= self.grid_size,
      f'config.prior.conv_kernel_size {self.prior.conv_kernel_size} does not fit the grid of {self.grid_size} x '
      f'{self.grid_size} codes; set a smaller odd number, or leave conv out of config.prior.attention_pattern and '
      'config.prior.last_attention_pattern.',
    )

  def _check_text(self) -> None:
    """Checks that the data source and the tokenizer fit the task."""
    task = f'config.task={self.task}'
    if self.task == 'sequence':
      task += f' with config.model.tokens={self.model.tokens}'
    require(
      not self.models_text or self.data.source in ('text', 'auto'),
      f'config.data.source is {self.data.source!r}, but {task} needs config.data.source=text. To model image tokens, '
      'set config.model.tokens to image or text_image.',
    )
    require(
      self.models_text or self.data.source != 'text',
      f"config.data.source is 'text', but {task} needs images. Choose another source, or set config.task=sequence and "
      'config.model.tokens=text to model text.',
    )
    imported = ('clip',) if self.task == 'reranker' else ()
    kinds = ('bytes', 'pieces') if self.models_text else ('captions', *imported)
    require(
      self.tokenizer.kind in kinds,
      f'config.tokenizer.kind is {self.tokenizer.kind!r}, but {task} needs {" or ".join(map(repr, kinds))}.',
    )

  def _check_image_tokens(self) -> None:
    """Checks that n-grams of image tokens have a trained dVAE, and that sequences have the right length."""
    tokens, length = self.model.tokens, self.model.length
    if self.task != 'sequence' or tokens == 'text':
      return
    require(
      bool(self.dvae.pretrained) or not self.counts_ngrams,
      'config.dvae.pretrained is empty, but config.model.kind=ngram needs a trained dVAE; set config.dvae.pretrained '
      'to its model directory. Models of other kinds train one first.',
    )
    require(
      length in (SequenceConfig.length, self.sequence_length),
      f'config.model.length is {length}, but with config.model.tokens={tokens} a sequence has {self.sequence_length} '
      'tokens; leave config.model.length out.',
    )

  def _check_choice(self) -> None:
    """Checks that sizes can be chosen for the task, and that the keys that keep their values exist."""
    for key in self.choice.keep:
      group, _, name = key.partition('.')
      value = getattr(self, group, None) if group in {field.name for field in dataclasses.fields(self)} else None
      require(
        value is not None and (not name or name in (vars(value) if dataclasses.is_dataclass(value) else ())),
        f'config.choice.keep names {_shown(key)}, which is neither a key nor a group of keys; write '
        'prior.num_layers or dvae_training.',
      )
    if not self.choice.enabled:
      return
    require(
      self.task in ('all', 'dvae', 'sequence') and not self.models_text and not self.counts_ngrams,
      f'config.choice.enabled is True, but sizes cannot be chosen for config.task={self.task} with this model; choose '
      'config.task all, dvae, or sequence with config.model.tokens=image, or another configuration file.',
    )
    require(
      bool(self.data.path),
      'config.choice.enabled is True, but config.data.path is empty; set it to the pictures to choose the sizes for.',
    )

  @classmethod
  def from_dict(cls, values: Any) -> 'Config':
    """Builds the configuration from a ConfigDict or dict.

    Args:
      values: A nested mapping. Missing keys get their defaults.

    Raises:
      ValueError: A key is unknown, or a value has the wrong type or is out of range. For an unknown key, the message
        suggests the nearest known key.
    """
    if isinstance(values, ml_collections.ConfigDict):
      values = values.to_dict()
    return _build(cls, values, 'config')

  def to_dict(self) -> dict[str, Any]:
    """Returns the configuration as nested dicts, the inverse of `from_dict`."""
    return dataclasses.asdict(self)


def _build(cls: type, values: dict[str, Any], path: str) -> Any:
  """Builds a configuration group, and the groups in it, from a mapping. `path` is its name in messages."""
  fields = {f.name: f for f in dataclasses.fields(cls)}
  if not isinstance(values, dict):
    raise ValueError(f'{path} must be a group of keys ({", ".join(fields)}); given {_shown(values)}.')
  kwargs = {}
  for name, value in values.items():
    if name not in fields:
      matches = difflib.get_close_matches(str(name), fields, n=1)
      hint = f'did you mean {path}.{matches[0]}?' if matches else f'known keys: {", ".join(fields)}.'
      raise ValueError(f'Unknown key {path}.{name[:80]}; {hint}')
    kind = fields[name].type
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      kwargs[name] = _build(kind, value, f'{path}.{name}')
    else:
      kwargs[name] = _cast(value, kind, f'{path}.{name}')
  if cls is TrainingConfig:  # All stages share this class. Its messages name the `group`.
    kwargs['group'] = path.removeprefix('config.')
  return cls(**kwargs)


def _cast(value: Any, kind: Any, path: str) -> Any:
  """Converts a value to `kind`: integers become floats, and lists become tuples. Rejects other types."""
  if typing.get_origin(kind) is tuple:
    return _cast_tuple(value, typing.get_args(kind)[0], path)
  if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
    return float(value)
  if type(value) is not kind:
    raise ValueError(f'{path} must be of type {kind.__name__}; given {_shown(value)} of type {type(value).__name__}.')
  if (kind is int and not -(2**63) <= value < 2**63) or (kind is float and math.isnan(value)):
    raise ValueError(f'{path} is {_shown(value)}; it must be a number from -2^63 to 2^63 - 1.')
  return value


def _shown(value: Any) -> str:
  """The value in a message, without the end if it is long."""
  text = ascii(value) if not isinstance(value, int) or abs(value) < 2**63 else f'a number of {value.bit_length()} bits'
  return text if len(text) <= 80 else text[:77] + '...'


def _cast_tuple(value: Any, kind: type, path: str) -> tuple:
  """Converts a value to a tuple. Values from JSON files are lists, and values of flags are strings such as 'a,b'."""
  value = [value] if isinstance(value, str) else value
  if not isinstance(value, tuple | list):
    raise ValueError(
      f'{path} must be of type tuple of {kind.__name__}; given {_shown(value)} of type {type(value).__name__}.'
    )
  if kind is str:
    value = [word for item in value for word in (item.split(',') if isinstance(item, str) else [item])]
  return tuple(_cast(item, kind, f'{path}[{i}]') for i, item in enumerate(value))


def base_config() -> ml_collections.ConfigDict:
  """Returns every key with its default, locked: assigning an unknown key raises an error with the nearest known key."""
  return ml_collections.ConfigDict(Config().to_dict()).lock()


def choose(variant: str, *groups: Sequence[str]) -> tuple[str, ...]:
  """Parses the part after the colon in `--config=FILE:VARIANT`: words separated by commas.

  Args:
    variant: The words, such as 'lstm,tiny'; '' for none.
    groups: Groups of words that exclude each other. The first word of a group is its default and may be ''.

  Returns:
    One word of each group.

  Raises:
    ValueError: A word is unknown, or two of the words are in the same group.
  """
  words = [word for word in variant.split(',') if word]
  chosen = [[word for word in words if word in group] for group in groups]
  unknown = [word for word in words if not any(word in group for group in groups)]
  clashing = next((group_words for group_words in chosen if len(group_words) > 1), [])
  if unknown or clashing:
    problem = (
      f'There is no variant {unknown[0]!r}' if unknown else f'Variants {" and ".join(clashing)} exclude each other'
    )
    choices = '; '.join(' or '.join(repr(word) for word in group if word) for group in groups)
    rule = ', at most one of each group, separated by commas' if len(groups) > 1 else ''
    raise ValueError(f'{problem}; allowed{rule}: {choices} (--config=FILE:VARIANT, given {variant!r}).')
  return tuple((group_words or [group[0]])[0] for group_words, group in zip(chosen, groups, strict=True))


def apply_variant(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
  """Returns the configuration for a file whose only variant is 'tiny': shrunk for 'tiny', unchanged for ''.

  Raises:
    ValueError: The variant is unknown.
  """
  (size,) = choose(variant, ('', 'tiny'))
  return shrink(config) if size else config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Sets small models and a few steps for every stage, in place, for a quick trial of a configuration."""
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
  """Returns a line 'key: old -> new' for every leaf that differs between two nested dicts."""
  lines = []
  for name in sorted(set(old) | set(new)):
    old_value, new_value = old.get(name, '(absent)'), new.get(name, '(absent)')
    if isinstance(old_value, dict) and isinstance(new_value, dict):
      lines += difference(old_value, new_value, f'{path}.{name}')
    elif old_value != new_value:
      lines.append(f'{path}.{name}: {old_value!r} -> {new_value!r}')
  return lines
