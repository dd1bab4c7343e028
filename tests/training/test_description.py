import dataclasses
import json

from dalle_jax.config import Config
from dalle_jax.training.description import changes, describe


def test_what_a_checkpoint_gives_back_is_no_change(mesh):
  about = describe(Config(), mesh, 'data')
  assert changes(json.loads(json.dumps(about)), about) == ''


def test_nothing_is_said_of_a_checkpoint_without_description(mesh):
  assert changes({}, describe(Config(), mesh, 'data')) == ''


def test_changes_are_named(mesh):
  old = describe(Config(), mesh, 'data')
  new = describe(dataclasses.replace(Config(), seed=1, profile=(3, 4)), mesh, 'data')
  new['versions']['jax'] = '9.9'
  said = changes(old, new)
  assert 'config.seed: 0 -> 1' in said and 'config.profile: [] -> [3, 4]' in said and 'version.jax: ' in said
  assert said.count('->') == 3
