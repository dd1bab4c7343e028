"""A trained model as one directory, the bundle: everything a command needs to use the model, and nothing else.

    bundle.json       format version, code version, parts, fingerprints of them, tokenizer and data, sizes of files
    config.json       the configuration it was trained with
    tokenizer.model   the SentencePiece model of captions or text; CLIP's merges; empty for bytes
    params/           the parameters by part, {'dvae': ..., 'prior': ...} for instance, written by Orbax

The parts are 'dvae' and 'prior'; 'dvae' and 'model', a sequence model over the dVAE's codes in place of the prior;
'model' alone, a model of text; 'reranker' alone; or the dVAE alone. A bundle has a tokenizer where there is text.

A bundle is written beside its place and renamed into it, so that a half-written one is never taken for a whole one.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable
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
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.reranker import Reranker
from dalle_jax.models.sequence import SequenceModel

FORMAT_VERSION = 1
# By what a bundle is for: what it holds, and what is needed where another is given.
KINDS = {
  'pictures': ('a model of pictures', 'one that draws pictures'),
  'model': ('a model of text', 'a model of text (config.task=sequence)'),
  'reranker': (
    'a reranker',
    'a reranker: python -m dalle_jax.train --config=configs/reranker.py --workdir=... trains one',
  ),
}
CAPTION_TOKENIZERS: dict[str, type[Tokenizer] | type[ClipTokenizer]] = {  # by config.tokenizer.kind
  'captions': Tokenizer,
  'clip': ClipTokenizer,
}
_FILES = ('bundle.json', 'config.json', 'params')


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A loaded model: configuration, modules, and parameters by part on the mesh; a tokenizer where there is text."""

  config: Config
  tokenizer: Tokenizer | ClipTokenizer | TextTokenizer | None
  params: dict[str, Any]
  info: dict[str, Any]

  @property
  def dvae(self) -> Dvae:
    return make_dvae(self.config.dvae)

  @property
  def prior(self) -> Prior:
    assert self.tokenizer is not None, 'load(..., needs=("dvae", "prior")) refuses a bundle without a prior'
    return make_prior(self.config, self.tokenizer.vocab_size)

  @property
  def model(self) -> SequenceModel:
    assert 'model' in self.params, 'load(..., needs=("model",)) refuses a bundle without one'
    return make_sequence_model(self.config, self.tokenizer.vocab_size if self.tokenizer else 0)

  @property
  def reranker(self) -> Reranker:
    assert 'reranker' in self.params, 'load(..., needs=("reranker",)) refuses a bundle without one'
    assert self.tokenizer is not None, 'a reranker reads captions'
    return make_reranker(self.config, self.tokenizer.vocab_size)

  @property
  def drawing_part(self) -> str | None:
    """The part that samples images: 'prior', 'model' in its place, or None for a dVAE or a reranker alone."""
    return drawing_part_of(self.params)

  @property
  def stream_model(self) -> tuple[Any, str]:
    """What draws images, and the part of the parameters that it has."""
    return make_stream_model(self.config, self.tokenizer.vocab_size if self.tokenizer else 0)


def drawing_part_of(parts: Iterable[str]) -> str | None:
  """The part of a model of pictures that samples images: 'prior', 'model' in its place, or None."""
  return next((part for part in ('prior', 'model') if part in parts), None)


def fingerprint(params: Any) -> str:
  """SHA-256 over the names, shapes and bytes of a tree of arrays, its first 16 hexadecimal digits."""
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
) -> None:
  """Writes the bundle, replacing an older one at the same place.

  Args:
    path: the directory to create.
    config: what the model was trained with.
    tokenizer: of captions or text; None where there is no text.
    params: by part, unboxed; sharded arrays are written by every process that holds a part.
    data_fingerprint: names the training data.
  """
  import orbax.checkpoint as ocp

  path = Path(path).absolute()
  partial = path.with_name(path.name + '.partial')
  main = jax.process_index() == 0
  with hosts.together(f'beginning {path}'):
    if main:
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      (partial / 'config.json').write_text(json.dumps(config.to_dict(), indent=2) + '\n')
      if tokenizer is not None:
        tokenizer.save(partial / 'tokenizer.model')
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(partial / 'params', params)
  hosts.barrier('bundle_params')
  with hosts.together(f'finishing {path}'):
    if main:
      info = {
        'format_version': FORMAT_VERSION,
        'dalle_jax_version': dalle_jax.__version__,
        'parts': sorted(params),
        'data': data_fingerprint,
        'files': _sizes(partial / 'params'),
        **_identity(config, tokenizer, params),
      }
      (partial / 'bundle.json').write_text(json.dumps(info, indent=2) + '\n')
      shutil.rmtree(path, ignore_errors=True)
      partial.rename(path)


def _identity(config: Config, tokenizer: Any, params: dict[str, Any]) -> dict[str, Any]:
  """What `bundle.json` says of the tokenizer and the parameters."""
  info: dict[str, Any] = {}
  if tokenizer is not None:
    info |= {'text_vocab_size': tokenizer.vocab_size, 'tokenizer': tokenizer.pieces_hash}
  if 'model' in params and config.model.kind == 'ngram':
    info['ngrams'] = [len(level['token']) for level in params['model']]
  if jax.process_count() == 1:
    info['params'] = fingerprint(params)
  return info


def _sizes(directory: Path) -> dict[str, int]:
  """Bytes of every file below a directory, by its path from there."""
  files = (file for file in sorted(directory.rglob('*')) if file.is_file())
  return {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}


def check(path: Path, needs: tuple[str, ...] = ('dvae', 'prior'), flag: str = '--model') -> dict[str, Any]:
  """The contents of `bundle.json`, after looking whether the bundle is there and whole.

  Args:
    path: the directory.
    needs: the parts that it must hold, ('model',) alone meaning a model of text; () for any.
    flag: where the directory was named, for messages.

  Raises:
    ValueError: what is missing, and what to do about it.
  """
  path = Path(path)
  if not path.is_dir():
    partial = path.with_name(path.name + '.partial')
    hint = f' {partial} is a half-written one: run the training command again.' if partial.is_dir() else ''
    wanted = f'; this needs {KINDS["reranker"][1]}' if needs == ('reranker',) else ''
    raise ValueError(
      f'There is no model directory at {path} ({flag}){wanted}; training writes one to WORKDIR/model when it ends.'
      + hint
    )
  missing = [name for name in _FILES if not (path / name).exists()]
  if missing:
    raise ValueError(
      f'{path} is not a whole model directory: it lacks {", ".join(missing)}. Give {flag} the directory that '
      'training printed at its end (WORKDIR/model), or run the training command again.'
    )
  try:
    info = json.loads((path / 'bundle.json').read_text())
    version, files = info['format_version'], dict(info.get('files', {}))
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path / "bundle.json"} is damaged ({error}); run the training command again.') from None
  if version != FORMAT_VERSION:
    newer = isinstance(version, int) and version > FORMAT_VERSION
    raise ValueError(
      f'{path} ({flag}) has bundle format {version}, and this version of dalle_jax reads format {FORMAT_VERSION}.'
      f'{_writer(path)} {"Install a newer dalle_jax." if newer else "Train it again."}'
    )
  _check_parts(path, info, needs, flag)
  found = _sizes(path / 'params')
  damaged = [
    f'{name} ({found.get(name, 0)} of {size} bytes)' for name, size in files.items() if found.get(name) != size
  ]
  if damaged:
    raise ValueError(
      f'The parameters in {path / "params"} are damaged: {", ".join(damaged[:3])}'
      f'{", ..." if len(damaged) > 3 else ""}. Copy the directory again or run the training command again.'
    )
  return info


def _check_parts(path: Path, info: dict[str, Any], needs: tuple[str, ...], flag: str) -> None:
  parts = info.get('parts', ['dvae', 'prior'])
  if _has_tokenizer(info) and not (path / 'tokenizer.model').exists():
    raise ValueError(f'{path} is not a whole model directory: it lacks tokenizer.model. Copy it again, or train again.')
  kind, needed = _kind(parts), _kind(list(needs))
  if needs and kind != needed:
    raise ValueError(f'{path} ({flag}) holds {KINDS[kind][0]}, and this needs {KINDS[needed][1]}.')
  if not set(needs) <= set(parts):
    raise ValueError(
      f'{path} ({flag}) holds the {" and ".join(parts)} only, and this needs the {" and ".join(needs)}. Train a prior '
      f'on it: python -m dalle_jax.train --config=... --config.dvae.pretrained={path} --workdir=..., with the keys of '
      f'config.dvae in {path / "config.json"}.'
    )


def _kind(parts: list[str]) -> str:
  return parts[0] if parts in (['model'], ['reranker']) else 'pictures'


def _has_tokenizer(info: dict[str, Any]) -> bool:
  return 'tokenizer' in info or 'prior' in info.get('parts', ['prior'])


def read_config(path: Path) -> Config:
  """The configuration of a bundle.

  Raises:
    ValueError: the file is missing or damaged.
  """
  try:
    return Config.from_dict(json.loads((Path(path) / 'config.json').read_text()))
  except (ValueError, OSError) as error:
    raise ValueError(f'The model directory {path} is damaged: {error}{_writer(path)}') from None


def _writer(path: Path) -> str:
  """A sentence about the version that wrote a bundle, where it was another one."""
  try:
    version = json.loads((Path(path) / 'bundle.json').read_text())['dalle_jax_version']
  except (OSError, ValueError, KeyError, TypeError):
    return ''
  same = version == dalle_jax.__version__
  return '' if same else f' It was written by dalle_jax {version}; this is {dalle_jax.__version__}.'


def load(path: Path, mesh: Mesh, needs: tuple[str, ...] = ('dvae', 'prior'), flag: str = '--model') -> Bundle:
  """Reads a bundle, its parameters straight onto the mesh; all of them, also those not needed.

  Args:
    path: the directory.
    mesh: of the devices.
    needs: the parts that it must hold.
    flag: where the directory was named, for messages.

  Raises:
    ValueError: the directory is missing, half-written or damaged, or a part is not there.
  """
  path = Path(path).absolute()
  info = check(path, needs, flag)
  config, tokenizer = read_config(path), None
  if _has_tokenizer(info):
    file, kind = path / 'tokenizer.model', config.tokenizer.kind
    if kind == 'clip':
      clip_tokenizer.check_packages()
    of_captions = CAPTION_TOKENIZERS.get(kind)
    try:
      tokenizer = of_captions.load(file) if of_captions else text_tokenizer.load(kind, file)
    except ValueError as error:
      raise ValueError(f'The model directory {path} is damaged: {error}') from None
  vocab_size = tokenizer.vocab_size if tokenizer else None
  boxed = jax.eval_shape(lambda: init_params(config, vocab_size, info.get('ngrams')))
  shardings = sharding.param_shardings(boxed, mesh)
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), nn.unbox(boxed), shardings
  )
  return Bundle(config, tokenizer, _read_params(path, abstract), info)


def _read_params(path: Path, abstract: Any) -> Any:
  """The parameters, onto the devices that `abstract` names. They are compared with it before anything is read."""
  import orbax.checkpoint as ocp

  try:
    with ocp.StandardCheckpointer() as checkpointer:
      differences = trees.differences(checkpointer.metadata(path / 'params').item_metadata.tree, abstract)
      if not differences:
        return checkpointer.restore(path / 'params', abstract)
  except Exception as error:  # Orbax and its storage raise many kinds, and say what helps in their first line
    first = str(error).strip().partition('\n')[0]
    raise ValueError(
      f'The parameters in {path / "params"} cannot be read: {first[:300]} Run the training command again.'
    ) from error
  raise ValueError(f'The parameters in {path / "params"} do not fit {path / "config.json"}: {differences}.')


def init_params(config: Config, text_vocab_size: int | None, ngrams: list[int] | None = None) -> dict[str, Any]:
  """Fresh parameters, boxed, with the shapes that a bundle of the configuration holds.

  Args:
    config: The model's configuration.
    text_vocab_size: The number of the tokenizer's ids; None without a tokenizer.
    ngrams: The number of entries of each order, for a model of n-grams.
  """
  key = jax.random.key(0)
  return {
    part: stages.part_initializer(part)(config, text_vocab_size or 0, ngrams or [], key)
    for part in _parts(config, text_vocab_size)
  }


def _parts(config: Config, text_vocab_size: int | None) -> list[str]:
  """The parts that a bundle of the configuration holds."""
  parts = [part for part, _ in stages.of_task(config.task)[-1].parts]
  if config.models_text:
    parts.remove('dvae')
  if text_vocab_size is None and 'prior' in parts:
    parts.remove('prior')  # a dVAE alone, such as an imported one
  return parts


def drawing_parts(model: str) -> tuple[str, str]:
  """The parts of a model directory that draw: the dVAE, and the prior or what stands in its place.

  Raises:
    ValueError: the directory holds no such model.
  """
  parts = check(Path(model), needs=('dvae',)).get('parts', [])
  needs = ('dvae', drawing_part_of(parts) or 'prior')
  check(Path(model), needs)
  return needs


def takes_prompts(model: str) -> bool:
  """Whether a model directory holds a model that draws for prompts.

  Raises:
    ValueError: it holds no model that draws.
  """
  drawing_parts(model)
  return read_config(Path(model)).reads_captions


def holds_text(model: str) -> bool:
  """Whether a model directory holds a model of text.

  Raises:
    ValueError: the directory is missing, half-written or damaged.
  """
  return check(Path(model), needs=()).get('parts') == ['model']
