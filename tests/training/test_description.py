import dataclasses
import json

from dalle_jax.config import Config
from dalle_jax.training.description import changes, describe


def test_a_description_read_back_from_json_has_no_changes(mesh):
  about = describe(Config(), mesh, 'data')
  assert changes(json.loads(json.dumps(about)), about) == ''


def test_a_checkpoint_without_description_reports_no_changes(mesh):
  assert changes({}, describe(Config(), mesh, 'data')) == ''


def test_changed_keys_and_versions_are_listed(mesh):
  old = describe(Config(), mesh, 'data')
  new = describe(dataclasses.replace(Config(), seed=1, profile=(3, 4)), mesh, 'data')
  new['versions']['jax'] = '9.9'
  text = changes(old, new)
  assert 'config.seed: 0 -> 1' in text and 'config.profile: [] -> [3, 4]' in text and 'version.jax: ' in text
  assert text.count('->') == 3
