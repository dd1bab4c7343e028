"""Compare the sizes in a bundle's configuration with its stored arrays, before any shape is computed from them.

Computing the shapes of a model takes time and memory that grow with its sizes. A damaged configuration could ask for a
billion layers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from dalle_jax.config import Config

# Limits of two sizes that no stored array shows: the positions of a model with rotary positions, and a dVAE's pixels.
MOST_TOKENS = 2**15
MOST_PIXELS = 2**13  # on one side of an image

_Limit = tuple[str, int, int]  # a configuration key, its value, and the largest value that the arrays allow


def check(path: Path, config: Config, parts: Sequence[str], ngrams: Sequence[int], stored: Any) -> None:
  """Checks that no size in a configuration is larger than the stored arrays allow.

  Args:
    path: The bundle's directory, for messages.
    config: The bundle's configuration.
    parts: The parts that a bundle with this configuration holds.
    ngrams: The number of n-grams of each order, from `bundle.json`.
    stored: The shapes of the stored parameters: for each part, a tree whose leaves have a `shape`.

  Raises:
    ValueError: A size is too large, or the parts differ.
  """
  if not isinstance(stored, dict) or set(stored) != set(parts):
    names = ', '.join(sorted(map(str, stored))) if isinstance(stored, dict) else 'other data'
    raise ValueError(
      f'The parameters in {path / "params"} do not fit {path / "config.json"}: given {names[:100]}, expected '
      f'{", ".join(sorted(parts))}. Copy the directory again or run the training command again.'
    )
  for part in parts:
    shapes = _Shapes(stored[part], ngrams)
    limits = _LIMITS.get('ngrams' if _counts(config, part) else part, _no_limits)
    for key, value, most in limits(config, shapes):
      if value > most:
        raise ValueError(
          f'{path / "config.json"} is damaged: {key} is {value}, but the stored parameters allow at most {most}. Copy '
          'the directory again or run the training command again.'
        )


def _counts(config: Config, part: str) -> bool:
  return part == 'model' and config.model.kind == 'ngram'


class _Shapes:
  """The shapes of one part, by path."""

  def __init__(self, tree: Any, ngrams: Sequence[int]):
    self.ngrams = ngrams
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    self._shapes = {tuple(_name(entry) for entry in path): tuple(leaf.shape) for path, leaf in leaves}
    self.longest = max((size for shape in self._shapes.values() for size in shape), default=0)

  def size(self, *path: str, axis: int = 0) -> int:
    """The length of one axis of the array at `path`; the longest axis of all arrays if there is no such array."""
    shape = self._shapes.get(path, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else self.longest

  def count(self, *path: str, beginning: str) -> int:
    """The number of different names below `path` that begin with `beginning`."""
    depth = len(path)
    below = {entry[depth] for entry in self._shapes if entry[:depth] == path and len(entry) > depth}
    return sum(name.startswith(beginning) for name in below)

  def layers(self, *path: str) -> int:
    """The number of layers of the transformer at `path`: the stacked ones in 'layers', and those beside it."""
    depth, end = len(path), ('attention_norm', 'scale')
    norms = {
      entry[depth:]: shape for entry, shape in self._shapes.items() if entry[:depth] == path and entry[-2:] == end
    }
    return sum((shape or (0,))[0] if inner[0] == 'layers' else 1 for inner, shape in norms.items())


def _name(entry: Any) -> str:
  return str(getattr(entry, 'key', getattr(entry, 'idx', entry)))


def _limits_of_dvae(config: Config, shapes: _Shapes) -> Iterator[_Limit]:
  dvae = config.dvae
  num_blocks = shapes.count('encoder', beginning='group_')
  yield 'config.dvae.num_groups', dvae.num_groups, num_blocks
  yield 'config.dvae.blocks_per_group', dvae.blocks_per_group, num_blocks
  yield 'config.dvae.hidden_size', dvae.hidden_size, shapes.size('encoder', 'input', 'kernel', axis=-1)
  yield 'config.dvae.decoder_input_size', dvae.decoder_input_size, shapes.longest
  yield 'config.dvae.patch_size', dvae.patch_size, shapes.size('encoder', 'input', 'kernel', axis=-2)
  yield 'the length of config.dvae.fsq_levels', len(dvae.fsq_levels), shapes.longest
  if dvae.bottleneck != 'fsq':
    yield 'config.dvae.image_vocab_size', dvae.image_vocab_size, shapes.longest
  yield 'config.data.image_size', config.data.image_size, MOST_PIXELS


def _limits_of_prior(config: Config, shapes: _Shapes) -> Iterator[_Limit]:
  prior = config.prior
  text_length, learned = config.tokenizer.text_length, prior.position == 'learned'
  yield 'config.tokenizer.text_length', text_length, shapes.size('embeddings', 'pad_embedding')
  rows = shapes.size('embeddings', 'row_embedding') if learned else MOST_TOKENS
  yield 'the codes per side of config.data.image_size', config.grid_size, rows
  yield (
    'the codes of config.data.image_size',
    config.image_length + text_length,
    text_length + (rows**2 if learned else MOST_TOKENS),
  )
  yield 'config.dvae.image_vocab_size', config.dvae.image_vocab_size, shapes.size('embeddings', 'image_embedding')
  yield from _limits_of_blocks('prior', prior, shapes)


def _limits_of_blocks(group: str, blocks: Any, shapes: _Shapes) -> Iterator[_Limit]:
  """The limits of a transformer's blocks; config.GROUP.num_heads divides embed_dim."""
  yield f'config.{group}.num_layers', blocks.num_layers, shapes.layers('transformer')
  yield f'config.{group}.embed_dim', blocks.embed_dim, shapes.longest
  yield f'config.{group}.mlp_ratio', blocks.mlp_ratio, shapes.longest


def _limits_of_model(config: Config, shapes: _Shapes) -> Iterator[_Limit]:
  model, length = config.model, config.sequence_length
  if model.kind == 'transformer':
    most = shapes.size('embeddings', 'position') if model.position == 'learned' else MOST_TOKENS
    yield 'the length of a sequence (config.model.length or config.data.image_size)', length, most
    yield from _limits_of_blocks('model', model, shapes)
  else:
    yield 'the length of a sequence (config.model.length or config.data.image_size)', length, MOST_TOKENS
    yield 'config.model.embed_dim', model.embed_dim, shapes.longest
    yield 'config.model.hidden_size', model.hidden_size, shapes.longest
    if model.kind in ('rnn', 'lstm'):
      yield 'config.model.num_layers', model.num_layers, shapes.count(beginning='layers_')
  if model.tokens != 'text':
    yield 'config.dvae.image_vocab_size', config.dvae.image_vocab_size, shapes.longest


def _limits_of_ngrams(config: Config, shapes: _Shapes) -> Iterator[_Limit]:
  del config
  for order, number in enumerate(shapes.ngrams):
    yield f'ngrams[{order}] in bundle.json', number, shapes.size(str(order), 'token')


def _limits_of_reranker(config: Config, shapes: _Shapes) -> Iterator[_Limit]:
  reranker = config.reranker
  yield 'config.tokenizer.text_length', config.tokenizer.text_length, shapes.size('text', 'position')
  yield 'config.reranker.patch_size', reranker.patch_size, shapes.longest
  num_patches = (config.data.image_size // reranker.patch_size) ** 2
  yield 'the patches of config.data.image_size', num_patches, shapes.size('image', 'position')
  yield 'config.reranker.embed_dim', reranker.embed_dim, shapes.longest
  for encoder in ('image', 'text'):
    layers, width = getattr(reranker, f'{encoder}_num_layers'), getattr(reranker, f'{encoder}_width')
    yield f'config.reranker.{encoder}_num_layers', layers, shapes.layers(encoder, 'transformer')
    yield f'config.reranker.{encoder}_width', width, shapes.longest


def _no_limits(config: Config, shapes: _Shapes) -> Iterator[_Limit]:
  del config, shapes
  yield from ()


_LIMITS = {
  'ngrams': _limits_of_ngrams,
  'dvae': _limits_of_dvae,
  'prior': _limits_of_prior,
  'model': _limits_of_model,
  'reranker': _limits_of_reranker,
}
