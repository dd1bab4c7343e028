"""The bundle, or model directory: one directory with everything that a command needs to use a trained model.

    bundle.json       format version, version of dalle_jax, names of the parts, file sizes, and fingerprints of the
                      parameters, the tokenizer and the training data
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
therefore never looks like a complete bundle.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

import dalle_jax
from dalle_jax import hosts, sharding, stages, trees
from dalle_jax.config import Config
from dalle_jax.data import clip_tokenizer, text_tokenizer
from dalle_jax.data.clip_tokenizer import ClipTokenizer
from dalle_jax.data.text_tokenizer import TextTokenizer
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.factory import make_dvae, make_prior, make_reranker, make_sequence_model, make_stream_model
from dalle_jax.files import check_array_path
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.reranker import Reranker
from dalle_jax.models.sequence import SequenceModel

FORMAT_VERSION = 1
# For each kind of bundle: what error messages call it, and what they ask for if a command needs it.
KINDS = {
  'pictures': ('a model of images', 'a model of images'),
  'model': ('a model of text', 'a model of text (config.task=sequence)'),
  'reranker': (
    'a reranker',
    'a reranker: python -m dalle_jax.train --config=configs/reranker.py --workdir=... trains one',
  ),
}
CAPTION_TOKENIZERS: dict[str, type[Tokenizer] | type[ClipTokenizer]] = {  # keys: values of config.tokenizer.kind
  'captions': Tokenizer,
  'clip': ClipTokenizer,
}
_FILES = ('bundle.json', 'config.json', 'params')


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
  """The first 16 hexadecimal digits of a SHA-256 over the names, shapes, dtypes and bytes of a tree of arrays."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()[:16]


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
  with hosts.together(f'finishing {path}'):
    if is_main:
      info = {
        'format_version': FORMAT_VERSION,
        'dalle_jax_version': dalle_jax.__version__,
        'parts': sorted(params),
        'data': data_fingerprint,
        **_part_data(part_data or {}, data_fingerprint),
        'files': _sizes(partial / 'params'),
        **_identity(config, tokenizer, params),
      }
      (partial / 'bundle.json').write_text(json.dumps(info, indent=2) + '\n')
      shutil.rmtree(path, ignore_errors=True)
      partial.rename(path)


def _part_data(part_data: Mapping[str, str], data_fingerprint: str) -> dict[str, Any]:
  """The entry of `bundle.json` for parts that were trained on other data."""
  return {'part_data': dict(part_data)} if set(part_data.values()) - {data_fingerprint} else {}


def _identity(config: Config, tokenizer: Any, params: dict[str, Any]) -> dict[str, Any]:
  """The entries of `bundle.json` that identify the tokenizer and the parameters."""
  info: dict[str, Any] = {}
  if tokenizer is not None:
    info |= {'text_vocab_size': tokenizer.vocab_size, 'tokenizer': tokenizer.pieces_hash}
  if 'model' in params and config.model.kind == 'ngram':
    info['ngrams'] = [len(level['token']) for level in params['model']]
  if jax.process_count() == 1:
    info['params'] = fingerprint(params)
  return info


def _sizes(directory: Path) -> dict[str, int]:
  """The size in bytes of every file below a directory, by its path relative to the directory."""
  files = (file for file in sorted(directory.rglob('*')) if file.is_file())
  return {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}


def check(path: Path, needs: tuple[str, ...] = ('dvae', 'prior'), flag: str = '--model') -> dict[str, Any]:
  """Checks that a bundle exists and is complete, and returns the contents of `bundle.json`.

  Args:
    path: The bundle's directory.
    needs: The parts that the bundle must hold; () accepts any parts. ('model',) alone asks for a model of text.
    flag: The flag or configuration key that names the directory, for error messages.

  Raises:
    ValueError: The bundle is missing, incomplete, damaged or of another kind. The message says what to do.
  """
  path = Path(path)
  check_array_path(path, flag, reading=True)
  if not path.is_dir():
    raise ValueError(_missing_message(path, needs, flag))
  missing = [name for name in _FILES if not (path / name).exists()]
  if missing:
    raise ValueError(
      f'{path} ({flag}) is not a complete model directory: it lacks {", ".join(missing)}. Set {flag} to WORKDIR/model, '
      'the directory that training printed at its end, or run the training command again.'
    )
  try:
    info = json.loads((path / 'bundle.json').read_text())
    version, files = info['format_version'], dict(info.get('files', {}))
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path / "bundle.json"} is damaged ({error}); run the training command again.') from None
  if version != FORMAT_VERSION:
    is_newer = isinstance(version, int) and version > FORMAT_VERSION
    raise ValueError(
      f'{path} ({flag}) has bundle format {version}, and this version of dalle_jax reads format {FORMAT_VERSION}.'
      f'{_writer(path)} {"Install a newer dalle_jax." if is_newer else "Train the model again."}'
    )
  _check_parts(path, info, needs, flag)
  sizes = _sizes(path / 'params')
  damaged = [
    f'{name} ({sizes.get(name, 0)} of {size} bytes)' for name, size in files.items() if sizes.get(name) != size
  ]
  if damaged:
    raise ValueError(
      f'The parameters in {path / "params"} are damaged: {", ".join(damaged[:3])}'
      f'{", ..." if len(damaged) > 3 else ""}. Copy the directory again or run the training command again.'
    )
  return info


def _missing_message(path: Path, needs: tuple[str, ...], flag: str) -> str:
  """The error message for a directory that does not exist."""
  needed = f'; this needs {KINDS["reranker"][1]}' if needs == ('reranker',) else ''
  message = f'There is no model directory at {path} ({flag}){needed}. Training writes it to WORKDIR/model when it ends.'
  partial = path.with_name(path.name + '.partial')
  if partial.is_dir():
    message += (
      f' {partial} is incomplete, because training stopped while it was written: run the training command again.'
    )
  return message


def _check_parts(path: Path, info: dict[str, Any], needs: tuple[str, ...], flag: str) -> None:
  """Checks that a bundle has its tokenizer and the parts `needs`; see `check`."""
  parts = info.get('parts', ['dvae', 'prior'])
  if _has_tokenizer(info) and not (path / 'tokenizer.model').exists():
    raise ValueError(
      f'{path} ({flag}) is not a complete model directory: it lacks tokenizer.model. Copy the directory again or run '
      'the training command again.'
    )
  kind, needed = _kind(parts), _kind(list(needs))
  if needs and kind != needed:
    raise ValueError(f'{path} ({flag}) holds {KINDS[kind][0]}, but this needs {KINDS[needed][1]}.')
  if not set(needs) <= set(parts):
    raise ValueError(
      f'{path} ({flag}) holds the {" and ".join(parts)} only, but this needs the {" and ".join(needs)}. Train a prior '
      f'on it: python -m dalle_jax.train --config=... --config.dvae.pretrained={path} --workdir=..., with the values '
      f'of config.dvae in {path / "config.json"}.'
    )


def _kind(parts: list[str]) -> str:
  """The key of KINDS for a bundle with these parts."""
  return parts[0] if parts in (['model'], ['reranker']) else 'pictures'


def _has_tokenizer(info: dict[str, Any]) -> bool:
  """Whether a bundle has a tokenizer, according to its `bundle.json`."""
  return 'tokenizer' in info or 'prior' in info.get('parts', ['prior'])


def read_config(path: Path) -> Config:
  """Reads the configuration of a bundle.

  Raises:
    ValueError: `config.json` is missing or damaged.
  """
  try:
    return Config.from_dict(json.loads((Path(path) / 'config.json').read_text()))
  except (ValueError, OSError) as error:
    raise ValueError(f'The model directory {path} is damaged: {error}{_writer(path)}') from None


def _writer(path: Path) -> str:
  """A sentence about the version that wrote a bundle; empty if it is this version or unknown."""
  try:
    version = json.loads((Path(path) / 'bundle.json').read_text())['dalle_jax_version']
  except (OSError, ValueError, KeyError, TypeError):
    return ''
  is_same = version == dalle_jax.__version__
  return '' if is_same else f' It was written by dalle_jax {version}; this is {dalle_jax.__version__}.'


def load(path: Path, mesh: Mesh, needs: tuple[str, ...] = ('dvae', 'prior'), flag: str = '--model') -> Bundle:
  """Loads a bundle. Each device reads its shards of the parameters directly.

  Args:
    path: The bundle's directory.
    mesh: The device mesh for the parameters.
    needs: The parts that the bundle must hold; () accepts any parts. Other parts are loaded too.
    flag: The flag or configuration key that names the directory, for error messages.

  Raises:
    ValueError: The bundle is missing, incomplete or damaged, or lacks a part.
  """
  path = Path(path).absolute()
  info = check(path, needs, flag)
  config, tokenizer = read_config(path), None
  if _has_tokenizer(info):
    file, kind = path / 'tokenizer.model', config.tokenizer.kind
    if kind == 'clip':
      clip_tokenizer.check_packages()
    tokenizer_class = CAPTION_TOKENIZERS.get(kind)
    try:
      tokenizer = tokenizer_class.load(file) if tokenizer_class else text_tokenizer.load(kind, file)
    except ValueError as error:
      raise ValueError(f'The model directory {path} is damaged: {error}') from None
  vocab_size = tokenizer.vocab_size if tokenizer else None
  boxed = jax.eval_shape(lambda: init_params(config, vocab_size, info.get('ngrams')))
  shardings = sharding.param_shardings(boxed, mesh)
  abstract = jax.tree.map(
    lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding),
    nn.unbox(boxed),
    shardings,
  )
  return Bundle(config, tokenizer, _read_params(path, abstract), info)


def _read_params(path: Path, abstract: Any) -> Any:
  """Reads the parameters with the shapes, dtypes and shardings in `abstract`, if they fit the files."""
  import orbax.checkpoint as ocp

  try:
    with ocp.StandardCheckpointer() as checkpointer:
      differences = trees.differences(checkpointer.metadata(path / 'params').item_metadata.tree, abstract)
      if not differences:
        return checkpointer.restore(path / 'params', abstract)
  except Exception as error:  # Orbax and its storage raise many types; the first line gives the cause
    cause = str(error).strip().partition('\n')[0]
    raise ValueError(
      f'The parameters in {path / "params"} cannot be read: {cause[:300]} Copy the directory again or run the training '
      'command again.'
    ) from error
  raise ValueError(
    f'The parameters in {path / "params"} do not fit {path / "config.json"}: {differences}. Copy the directory again '
    'or run the training command again.'
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
  parts = check(Path(model), needs=('dvae',)).get('parts', [])
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
  return check(Path(model), needs=()).get('parts') == ['model']
