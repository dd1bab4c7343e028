import errno
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import crc32c
import jax
import numpy as np
import optax
import pytest

from dalle_jax import hosts, integrity, trees
from dalle_jax.sharding import use_mesh
from dalle_jax.training import checkpoint, checkpoint_checksums
from dalle_jax.training.checkpoint import Checkpoints
from dalle_jax.training.checkpoint_checksums import DamagedError
from dalle_jax.training.state import abstract_state, create_state


@pytest.fixture
def state(linear_task, mesh):
  with use_mesh(mesh):
    return create_state(linear_task(), optax.adam(0.1), mesh, 0, use_ema=True)


@pytest.fixture
def abstract(linear_task, mesh):
  with use_mesh(mesh):
    return abstract_state(linear_task(), optax.adam(0.1), mesh, use_ema=True)


@pytest.fixture
def failing_reads():
  """Wait until the reads that Orbax abandons after a failure have ended, so that their warnings stay in the test."""
  yield
  time.sleep(0.2)


ignores_stray_reads = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def _save(directory, state, losses, keep=2):
  """Save checkpoints of steps 1, 2, ... with the held-out losses `losses` (None: not measured)."""
  with Checkpoints(directory, keep) as checkpoints:
    for step, loss in enumerate(losses, 1):
      shifted = jax.tree.map(lambda x, step=step: x + step, state)
      checkpoints.save(step, shifted, {'position': step}, {'note': f'n{step}'}, loss)


def test_a_restored_checkpoint_equals_the_saved_one(tmp_path, state, abstract, assert_trees_equal):
  _save(tmp_path, state, [None])
  with Checkpoints(tmp_path, 2) as checkpoints:
    restored = checkpoints.restore_latest(abstract)
  assert_trees_equal(restored.state, jax.tree.map(lambda x: x + 1, state))
  assert (restored.step, restored.data, restored.meta) == (1, {'position': 1}, {'note': 'n1'})
  for leaf, like in zip(jax.tree.leaves(restored.state), jax.tree.leaves(abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_an_empty_directory_restores_nothing(tmp_path, abstract):
  with Checkpoints(tmp_path / 'new', 2) as checkpoints:
    assert checkpoints.restore_latest(abstract) is None
    assert checkpoints.steps() == [] and checkpoints.best_step() is None


@pytest.mark.parametrize(
  ('losses', 'kept_steps', 'best'),
  [
    ([3.0, 1.0, 2.0, 4.0, 5.0], [2, 4, 5], 2),
    ([5.0, 4.0, 3.0, 2.0], [3, 4], 4),
    ([None, None, None, None], [3, 4], None),
    ([None, 2.0, None, None, None], [2, 4, 5], 2),
  ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, state, losses, kept_steps, best):
  _save(tmp_path, state, losses)
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == kept_steps
    assert checkpoints.best_step() == best


def test_the_best_checkpoint_is_kept_after_a_restart(tmp_path, state, abstract):
  _save(tmp_path, state, [1.0, None, 3.0])
  with Checkpoints(tmp_path, 2) as checkpoints:
    checkpoints.restore_latest(abstract)
    checkpoints.save(4, state, {}, {}, 2.0)
    checkpoints.save(5, state, {}, {})
    assert checkpoints.best_step() == 1
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [1, 4, 5]


def test_saving_an_earlier_or_equal_step_is_refused(tmp_path, state):
  _save(tmp_path, state, [None, None])
  with Checkpoints(tmp_path, 2) as checkpoints:
    for step in (1, 2):
      with pytest.raises(ValueError, match='holds step 2 already'):
        checkpoints.save(step, state, {}, {})


def _arrays(directory):
  return [path for path in directory.rglob('d/*') if path.is_file()]


def _cut(directory):
  for path in _arrays(directory):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(directory):
  for path in _arrays(directory):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _lose(directory):
  for path in _arrays(directory):
    path.unlink()


def _empty(name):
  def damage(directory):
    for path in (directory / name).iterdir():
      path.write_bytes(b'')

  return damage


def _flip_bit(name):
  def damage(directory):
    path = directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)

  return damage


def _lower_version(directory):
  path = directory / 'meta' / 'metadata'
  path.write_text(path.read_text().replace('"format_version": 4', '"format_version": 2'))


def _other_arrays(directory):
  """The files hold other arrays than were saved, and their checksums are right."""
  shutil.rmtree(directory / 'state')
  shutil.copytree(directory.parent / '2' / 'state', directory / 'state')
  list_file = directory / 'checksums' / 'checksums.json'
  arrays = json.loads(list_file.read_text())['arrays']
  handler = checkpoint_checksums.ChecksumHandler()
  (directory / 'checksums' / 'arrays.process_0.json').write_text(json.dumps(arrays))
  handler.finalize(directory / 'checksums')


def _no_arrays(directory):
  list_file = directory / 'checksums' / 'checksums.json'
  values = json.loads(list_file.read_text())
  list_file.write_text(integrity.with_checksum({'files': values['files']}))


DAMAGES = {
  'other arrays': _other_arrays,
  'no checksums of arrays': _no_arrays,
  'cut': _cut,
  'flipped': _flip,
  'lost': _lose,
  'no state': lambda directory: shutil.rmtree(directory / 'state'),
  'empty data': _empty('data'),
  'empty meta': _empty('meta'),
  'flipped data': _flip_bit('data/metadata'),
  'flipped meta': _flip_bit('meta/metadata'),
  'flipped metadata of arrays': _flip_bit('state/_METADATA'),
  'flipped checksums': _flip_bit('checksums/checksums.json'),
  'no checksums': lambda directory: shutil.rmtree(directory / 'checksums'),
  'version 2': _lower_version,
}


@pytest.mark.parametrize('kind', DAMAGES)
@ignores_stray_reads
@pytest.mark.usefixtures('failing_reads')
def test_a_damaged_newest_checkpoint_is_reported_and_skipped(
  tmp_path, state, abstract, assert_trees_equal, caplog, kind
):
  _save(tmp_path, state, [None, 2.0, 1.0])
  DAMAGES[kind](tmp_path / '3')
  with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, 2) as checkpoints:
    restored = checkpoints.restore_latest(abstract)
    assert restored.step == 2
    assert_trees_equal(restored.state, jax.tree.map(lambda x: x + 2, state))
    assert f'Checkpoint {tmp_path / "3"} cannot be restored: ' in caplog.text
    assert f'The checkpoint {tmp_path / "2"} is used instead.' in caplog.text
    assert all(len(record.getMessage()) < 800 and record.getMessage().isprintable() for record in caplog.records)
    checkpoints.save(3, state, {'position': 3}, {})  # training reaches step 3 again
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.restore_latest(abstract).step == 3


@ignores_stray_reads
@pytest.mark.usefixtures('failing_reads')
def test_it_is_an_error_if_all_checkpoints_are_damaged(tmp_path, state, abstract):
  _save(tmp_path, state, [None, None])
  for step in ('1', '2'):
    _cut(tmp_path / step)
  with Checkpoints(tmp_path, 2) as checkpoints:
    with pytest.raises(ValueError, match=r'None of the checkpoints \[1, 2\] .* Nothing was deleted\. Copy an intact'):
      checkpoints.restore_latest(abstract)
    assert checkpoints.steps() == [1, 2]


def test_checksums_cover_every_file_of_every_item(tmp_path, state, abstract):
  _save(tmp_path, state, [None])
  files = {
    path.relative_to(tmp_path / '1').as_posix(): path
    for item in ('state', 'data', 'meta')
    for path in (tmp_path / '1' / item).rglob('*')
    if path.is_file() and path.name != 'commit_success.txt'
  }
  listed = json.loads((tmp_path / '1' / 'checksums' / 'checksums.json').read_text())['files']
  assert listed == {
    name: {'size': path.stat().st_size, 'crc32c': f'{crc32c.crc32c(path.read_bytes()):08x}'}
    for name, path in files.items()
  }
  with Checkpoints(tmp_path, 2) as checkpoints:
    for name, path in files.items():
      data = path.read_bytes()
      for position in {0, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(DamagedError, match=re.escape(name)):
          checkpoints.restore(1, abstract)
      path.write_bytes(data)
    assert checkpoints.restore(1, abstract).step == 1


def test_changed_arrays_are_named(tmp_path, state, abstract):
  _save(tmp_path, state, [None, None, None], keep=3)
  _other_arrays(tmp_path / '3')
  changed = re.escape("['step'] (its contents have changed)")
  with Checkpoints(tmp_path, 3) as checkpoints, pytest.raises(DamagedError, match=f'^damaged: .*{changed}'):
    checkpoints.restore(3, abstract)


def test_the_checksums_of_arrays_are_those_of_the_state_in_memory(tmp_path, state):
  _save(tmp_path, state, [None])
  stored = json.loads((tmp_path / '1' / 'checksums' / 'checksums.json').read_text())['arrays']
  saved = trees.named_leaves(jax.tree.map(lambda x: np.asarray(x + 1), state))
  assert stored == {
    name: crc32c.crc32c(array.tobytes()) ^ crc32c.crc32c(bytes(array.nbytes)) for name, array in saved.items()
  }


@pytest.mark.parametrize('name', ['checksums.json', 'metadata', 'manifest.ocdbt', '2'])
@pytest.mark.parametrize('number', [errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_checkpoint_that_may_not_be_read_is_not_damaged(tmp_path, state, abstract, monkeypatch, name, number):
  real_open, real_scandir = Path.open, os.scandir

  def refuse(path):
    if Path(path).name == name and '2' in Path(path).parts:
      raise OSError(number, os.strerror(number), str(path))

  def opened(path, *arguments, **options):
    refuse(path)
    return real_open(path, *arguments, **options)

  def scanned(path):
    refuse(path)
    return real_scandir(path)

  _save(tmp_path, state, [None, None])
  with Checkpoints(tmp_path, 2) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(Path, 'open', opened)
      patch.setattr(os, 'scandir', scanned)
      with pytest.raises(ValueError, match=rf'2 may not be read: .*{os.strerror(number)}'):
        checkpoints.restore_latest(abstract)
    checkpoints.save(3, state, {}, {})
    assert checkpoints.steps() == [2, 3]  # no checkpoint was deleted as damaged


def test_a_missing_file_is_damage(tmp_path, state, abstract):
  _save(tmp_path, state, [None, None])
  (tmp_path / '2' / 'checksums' / 'checksums.json').unlink()
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.restore_latest(abstract).step == 1


def test_a_host_passes_over_no_checkpoint_that_another_host_may_not_read(tmp_path, state, abstract, monkeypatch):
  def read(*arguments):
    raise ValueError('restoring 2: host 1 failed: PermissionError')  # as `hosts.together` raises it on the others

  _save(tmp_path, state, [None, None])
  with Checkpoints(tmp_path, 2) as checkpoints:
    monkeypatch.setattr(Checkpoints, '_read', read)
    monkeypatch.setattr(hosts, 'any_host', np.ones_like)
    with pytest.raises(ValueError, match='restoring 2: host 1 failed'):
      checkpoints.restore_latest(abstract)


@pytest.mark.parametrize('error', [MemoryError('too little'), RuntimeError('RESOURCE_EXHAUSTED: Out of memory')])
def test_out_of_memory_does_not_count_as_damage(tmp_path, state, abstract, monkeypatch, error):
  def read(*arguments):
    raise error

  _save(tmp_path, state, [None, None])
  with Checkpoints(tmp_path, 2) as checkpoints:
    monkeypatch.setattr(Checkpoints, '_read', read)
    with pytest.raises(type(error), match=str(error)):
      checkpoints.restore_latest(abstract)
    checkpoints.save(3, state, {}, {})
    assert checkpoints.steps() == [2, 3]  # no checkpoint was deleted as damaged


def _wider(abstract):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 1), x.dtype, sharding=None), abstract)


def test_a_checkpoint_of_another_model_is_an_error_that_lists_the_differences(tmp_path, state, abstract):
  old_run = {'config': {'prior': {'num_layers': 8}}, 'versions': {'jax': '0.1'}}
  with Checkpoints(tmp_path, 2, old_run) as checkpoints:
    checkpoints.save(1, state, {}, {})
  new_run = {'config': {'prior': {'num_layers': 6}}, 'versions': {'jax': '0.2'}}
  with Checkpoints(tmp_path, 2, new_run) as checkpoints, pytest.raises(ValueError) as error:
    checkpoints.restore_latest(_wider(abstract))
  message = str(error.value)
  assert f'Training cannot continue from the checkpoint {tmp_path / "1"}' in message
  assert "['ema']['model']['kernel']: given float32[3, 2], expected float32[3, 2, 1]" in message
  assert 'config.prior.num_layers: 8 -> 6; version.jax: ' in message
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.restore_latest(abstract).step == 1  # the checkpoint is still there


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path, state, abstract, monkeypatch):
  monkeypatch.setattr(checkpoint, 'FORMAT_VERSION', 99)
  _save(tmp_path, state, [None])
  with Checkpoints(tmp_path, 2) as checkpoints, pytest.raises(ValueError, match=r'has format 99, and .* reads 1 to 4'):
    checkpoints.restore_latest(abstract)
