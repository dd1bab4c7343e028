"""The bundle, or model directory: one directory with everything that a command needs to use a trained model.

    bundle.json       format version, version of dalle_jax, names of the parts, sizes and SHA-256 of the other files,
                      fingerprints of the parameters, the tokenizer and the training data, and a checksum of its own
    config.json       the configuration that the model was trained with
    tokenizer.model   the SentencePiece model, or CLIP's merges; an empty file for the byte tokenizer
    params/           the parameters of each part, such as {'dvae': ..., 'prior': ...}, written by Orbax

A bundle has one of these sets of parts:

- 'dvae' and 'prior'
- 'dvae' and 'model', a sequence model of the dVAE's codes that takes the place of the prior
- 'dvae'
- 'model', a model of text
- 'reranker'

It has a tokenizer if one of its parts reads text.

`save` writes a bundle to a temporary directory beside its final path and then renames it. An interrupted write
therefore never looks like a complete bundle. `load` compares every file with its checksum.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dalle_jax
from dalle_jax import hosts, integrity, sharding, stages, trees
from dalle_jax.bundle import bundle_files, bundle_sizes
from dalle_jax.bundle.bundle_files import FORMAT_VERSION, check, verify_by_default
from dalle_jax.config import Config
from dalle_jax.data.text import clip_tokenizer, text_tokenizer
from dalle_jax.data.text.clip_tokenizer import ClipTokenizer
from dalle_jax.data.text.text_tokenizer import TextTokenizer
from dalle_jax.data.text.tokenizer import Tokenizer
from dalle_jax.factory import make_dvae, make_prior, make_reranker, make_sequence_model, make_stream_model
from dalle_jax.files import check_array_path, read_json_object, shown
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.reranker import Reranker
from dalle_jax.models.sequence import SequenceModel

__all__ = ['FORMAT_VERSION', 'check', 'verify_by_default']  # from `bundle_files`; other names are defined here
_PIECE_BYTES = 64 * 2**20  # about the size of the pieces of a split array that hosts gather for the fingerprint
CAPTION_TOKENIZERS: dict[str, type[Tokenizer] | type[ClipTokenizer]] = {  # keys: values of config.tokenizer.kind
  'captions': Tokenizer,
  'clip': ClipTokenizer,
}


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A loaded model.

  Attributes:
    config: The configuration that the model was trained with.
    tokenizer: The tokenizer; None if no part reads text.
    params: The parameters of each part, on the mesh.
    info: The contents of `bundle.json`.
  """

  config: Config
  tokenizer: Tokenizer | ClipTokenizer | TextTokenizer | None
  params: dict[str, Any]
  info: dict[str, Any]

  @property
  def caption_tokenizer(self) -> Tokenizer | None:
    """The tokenizer of a model of images; None if it reads no captions."""
    assert self.tokenizer is None or isinstance(self.tokenizer, Tokenizer), 'a model of images has no other tokenizer'
    return self.tokenizer

  @property
  def text_tokenizer(self) -> TextTokenizer:
    """The tokenizer of a model of text."""
    assert self.tokenizer is not None, 'a model of text has a tokenizer'
    assert not isinstance(self.tokenizer, Tokenizer | ClipTokenizer), 'a model of text reads no captions'
    return self.tokenizer

  @property
  def dvae(self) -> Dvae:
    return make_dvae(self.config.dvae)

  @property
  def prior(self) -> Prior:
    assert self.tokenizer is not None, 'load(..., needs=("dvae", "prior")) rejects a bundle without a prior'
    return make_prior(self.config, self.tokenizer.vocab_size)

  @property
  def model(self) -> SequenceModel:
    assert 'model' in self.params, 'load(..., needs=("model",)) rejects a bundle without a sequence model'
    return make_sequence_model(self.config, self.tokenizer.vocab_size if self.tokenizer else 0)

  @property
  def reranker(self) -> Reranker:
    assert 'reranker' in self.params, 'load(..., needs=("reranker",)) rejects a bundle without a reranker'
    assert self.tokenizer is not None, 'a reranker reads captions'
    return make_reranker(self.config, self.tokenizer.vocab_size)

  @property
  def drawing_part(self) -> str | None:
    """The part that samples image tokens: 'prior', 'model', or None if the bundle has neither."""
    return drawing_part_of(self.params)

  @property
  def stream_model(self) -> tuple[Any, str]:
    """The model that samples image tokens, and the name of its part in `params`."""
    return make_stream_model(self.config, self.tokenizer.vocab_size if self.tokenizer else 0)


def drawing_part_of(parts: Iterable[str]) -> str | None:
  """The part that samples image tokens, out of a bundle's parts: 'prior', 'model', or None if there is neither."""
  return next((part for part in ('prior', 'model') if part in parts), None)


def fingerprint(params: Any) -> str:
  """The first 16 hexadecimal digits of a SHA-256 over the names, shapes, dtypes and bytes of a tree of arrays.

  The value does not depend on the mesh. All hosts must call this together; none holds more than one array, or one piece
  of a split array.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}'.encode())
    for piece in _pieces(leaf):
      digest.update(piece.tobytes())
  return digest.hexdigest()[:16]


def _pieces(leaf: Any) -> Iterator[np.ndarray]:
  """Arrays whose concatenated bytes are the bytes of `leaf`; several if it is split over hosts."""
  if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
    yield np.asarray(leaf)
    return
  assert isinstance(leaf.sharding, NamedSharding), 'arrays of several hosts are on a mesh'
  rows = leaf.shape[0]
  per_piece = max(1, _PIECE_BYTES * rows // max(leaf.nbytes, 1))
  slice_rows = jax.jit(
    lambda array, start, count: jax.lax.dynamic_slice_in_dim(array, start, count),
    static_argnums=2, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()),
  )  # fmt: skip
  for start in range(0, rows, per_piece):
    yield np.asarray(slice_rows(leaf, start, min(per_piece, rows - start)))


def save(
  path: Path,
  config: Config,
  tokenizer: Tokenizer | ClipTokenizer | TextTokenizer | None,
  params: dict[str, Any],
  data_fingerprint: str,
  part_data: Mapping[str, str] | None = None,
) -> None:
  """Writes a bundle, and replaces an older bundle at the same path.

  Args:
    path: The directory to create.
    config: The configuration that the model was trained with.
    tokenizer: The tokenizer of captions or text; None if no part reads text.
    params: The parameters of each part, unboxed. Every process writes its shards of sharded arrays.
    data_fingerprint: The fingerprint of the data.
    part_data: The fingerprint of the training data of each part, if they are known. `bundle.json` lists them if they
      differ from each other or from the data.
  """
  import orbax.checkpoint as ocp

  path = Path(path).absolute()
  check_array_path(path, 'The model directory')
  partial = path.with_name(path.name + '.partial')
  is_main = jax.process_index() == 0
  with hosts.together(f'beginning {path}'):
    if is_main:
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      (partial / 'config.json').write_text(json.dumps(config.to_dict(), indent=2) + '\n')
      if tokenizer is not None:
        tokenizer.save(partial / 'tokenizer.model')
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(partial / 'params', params)
  hosts.barrier('bundle_params')
  identity = _identity(config, tokenizer, params)
  with hosts.together(f'finishing {path}'):
    if is_main:
      info = {
        'format_version': FORMAT_VERSION,
        'dalle_jax_version': dalle_jax.__version__,
        'parts': sorted(params),
        'data': data_fingerprint,
        **_part_data(part_data or {}, data_fingerprint),
        'files': bundle_files.describe(partial),
        **identity,
      }
      (partial / 'bundle.json').write_text(integrity.with_checksum(info))
      shutil.rmtree(path, ignore_errors=True)
      partial.rename(path)


def _part_data(part_data: Mapping[str, str], data_fingerprint: str) -> dict[str, Any]:
  """The entry of `bundle.json` for parts that were trained on other data."""
  return {'part_data': dict(part_data)} if set(part_data.values()) - {data_fingerprint} else {}


def _identity(config: Config, tokenizer: Any, params: dict[str, Any]) -> dict[str, Any]:
  """The entries of `bundle.json` that identify the tokenizer and the parameters."""
  info: dict[str, Any] = {'params': fingerprint(params)}
  if tokenizer is not None:
    info |= {'text_vocab_size': tokenizer.vocab_size, 'tokenizer': tokenizer.pieces_hash}
  if 'model' in params and config.model.kind == 'ngram':
    info['ngrams'] = [len(level['token']) for level in params['model']]
  return info


def read_config(path: Path) -> Config:
  """Reads the configuration of a bundle.

  Raises:
    ValueError: `config.json` is missing or damaged.
  """
  try:
    return Config.from_dict(read_json_object(Path(path) / 'config.json'))
  except ValueError as error:
    why = shown(error, 500)
    raise ValueError(f'The model directory {path} is damaged: {why}{bundle_files.writer(path)}') from None


def load(
  path: Path, mesh: Mesh, needs: tuple[str, ...] = ('dvae', 'prior'), flag: str = '--model', verify: bool | None = None
) -> Bundle:
  """Loads a bundle. Each device reads its shards of the parameters directly.

  Args:
    path: The bundle's directory.
    mesh: The device mesh for the parameters.
    needs: The parts that the bundle must hold; () accepts any parts. Other parts are loaded too.
    flag: The flag or configuration key that names the directory, for error messages.
    verify: Whether to compare all files with their checksums; None: as `verify_by_default` set it, else True.

  Raises:
    ValueError: The bundle is missing, incomplete or damaged, or lacks a part.
  """
  path, verify = Path(path).absolute(), bundle_files.verifies(verify)
  info = check(path, needs, flag, verify)
  has_checksums = info['format_version'] > 1
  if verify and has_checksums:
    bundle_files.verify_params(path, info)
  config, tokenizer = read_config(path), None
  if bundle_files.has_tokenizer(info):
    tokenizer = _load_tokenizer(path, config, None if has_checksums or not verify else info.get('tokenizer'))
  params = _read_params(path, config, tokenizer.vocab_size if tokenizer else None, info.get('ngrams', []), mesh)
  if verify and not has_checksums:
    _check_without_checksums(path, info, params)
  return Bundle(config, tokenizer, params, info)


def _load_tokenizer(path: Path, config: Config, pieces_hash: str | None) -> Any:
  """Reads the tokenizer of a bundle, and compares its fingerprint with `pieces_hash` unless that is None."""
  file, kind = path / 'tokenizer.model', config.tokenizer.kind
  if kind == 'clip':
    clip_tokenizer.check_packages()
  tokenizer_class = CAPTION_TOKENIZERS.get(kind)
  try:
    tokenizer = tokenizer_class.load(file) if tokenizer_class else text_tokenizer.load(kind, file)
  except ValueError as error:
    raise ValueError(f'The model directory {path} is damaged: {shown(error, 300)}') from None
  if pieces_hash is not None and tokenizer.pieces_hash != pieces_hash:
    raise ValueError(
      f'The model directory {path} is damaged: tokenizer.model is not the tokenizer that bundle.json names. Copy the '
      'directory again or run the training command again.'
    )
  return tokenizer


def _check_without_checksums(path: Path, info: dict[str, Any], params: Any) -> None:
  """Compares the parameters of a bundle of format 1, whose files have no checksums, with their fingerprint."""
  expected = info.get('params')
  if expected is not None and fingerprint(params) != expected:
    raise ValueError(
      f'The parameters in {path / "params"} are damaged: their fingerprint is not {bundle_files.brief(expected)}. Copy '
      f'the directory again or run the training command again. To load them anyway, set {bundle_files.FLAG}.'
    )
  checked = 'Only its parameters and tokenizer were' if expected is not None else 'Its parameters were not'
  bundle_files.say_once(f'{path} was written by an earlier version, without checksums of its files. {checked} checked.')


def _read_params(path: Path, config: Config, vocab_size: int | None, ngrams: list[int], mesh: Mesh) -> Any:
  """Reads the parameters of a configuration onto a mesh, if they fit the files.

  Raises:
    ValueError: The files cannot be read, or do not fit the configuration.
  """
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    with _reading(path):
      stored = checkpointer.metadata(path / 'params').item_metadata.tree
    bundle_sizes.check(path, config, _parts(config, vocab_size), ngrams, stored)
    abstract = _abstract_params(path, config, vocab_size, ngrams, mesh)
    differences = trees.differences(stored, abstract)
    if not differences:
      with _reading(path):
        return checkpointer.restore(path / 'params', abstract)
  raise ValueError(
    f'The parameters in {path / "params"} do not fit {path / "config.json"}: {differences}. Copy the directory again '
    'or run the training command again.'
  )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
  """Turns errors of reading into ValueError with a message of one line."""
  try:
    yield
  except Exception as error:  # Orbax and its storage raise many types
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      raise
    raise ValueError(
      f'The parameters in {path / "params"} cannot be read: {integrity.cause(error).rstrip(".")}. Copy the '
      'directory again or run the training command again.'
    ) from error


def _abstract_params(path: Path, config: Config, vocab_size: int | None, ngrams: list[int], mesh: Mesh) -> Any:
  """Shapes, dtypes and shardings of the parameters of a configuration on a mesh."""
  try:
    boxed = jax.eval_shape(lambda: init_params(config, vocab_size, ngrams))
  except (OverflowError, TypeError, ZeroDivisionError) as error:  # sizes that no array can have
    raise ValueError(
      f'The model directory {path} is damaged: no model has the sizes in config.json ({integrity.cause(error)}).'
    ) from error
  return jax.tree.map(
    lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding),
    nn.unbox(boxed),
    sharding.param_shardings(boxed, mesh),
  )


def init_params(config: Config, text_vocab_size: int | None, ngrams: list[int] | None = None) -> dict[str, Any]:
  """Initial parameters, boxed, with the shapes in a bundle of this configuration.

  Args:
    config: The model's configuration.
    text_vocab_size: The size of the tokenizer's vocabulary; None without a tokenizer.
    ngrams: The number of n-grams of each order, for an n-gram model.
  """
  key = jax.random.key(0)
  return {
    part: stages.part_initializer(part)(config, text_vocab_size or 0, ngrams or [], key)
    for part in _parts(config, text_vocab_size)
  }


def _parts(config: Config, text_vocab_size: int | None) -> list[str]:
  """The parts in a bundle of this configuration."""
  parts = [part for part, _ in stages.of_task(config.task)[-1].parts]
  if config.models_text:
    parts.remove('dvae')
  if text_vocab_size is None and 'prior' in parts:
    parts.remove('prior')  # an imported dVAE has no prior
  return parts


def drawing_parts(model: str) -> tuple[str, str]:
  """The parts of a model directory that generate images: ('dvae', 'prior') or ('dvae', 'model').

  Raises:
    ValueError: The directory is missing or damaged, or holds no model that generates images.
  """
  parts = check(Path(model), needs=('dvae',))['parts']
  needs = ('dvae', drawing_part_of(parts) or 'prior')
  check(Path(model), needs)
  return needs


def takes_prompts(model: str) -> bool:
  """Whether the model in a model directory generates images for prompts.

  Raises:
    ValueError: The directory is missing or damaged, or holds no model that generates images.
  """
  drawing_parts(model)
  return read_config(Path(model)).reads_captions


def holds_text(model: str) -> bool:
  """Whether a model directory holds a model of text.

  Raises:
    ValueError: The directory is missing, incomplete or damaged.
  """
  return check(Path(model), needs=())['parts'] == ['model']
