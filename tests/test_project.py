"""The project as a whole: what imports what, what the doors load, and what the papers and the packaging promise."""

import ast
import configparser
import dataclasses
import functools
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import dalle_jax
from dalle_jax.config import Config, MeshConfig
from dalle_jax.sharding import AXES

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'dalle_jax'
MODULES = sorted(PACKAGE.rglob('*.py')) + sorted((ROOT / 'configs').glob('*.py'))
MAX_LINES = 450

# Rows of the table of rooms in docs/architecture.md: | room | what is in it | may import |
ROW = re.compile(r'^\| (\w+) \|[^|]*\|([^|]*)\|$', re.MULTILINE)
# The wings of jobs/ import each other in three places only: a run begins with a choice and ends with an evaluation, a
# study draws.
WINGS = {
  'train': {'evaluate', 'choose'}, 'choose': set(), 'draw': set(), 'evaluate': set(), 'compress': set(),
  'study': {'draw'},
}  # fmt: skip
MAX_FILES = 12
MAX_FUNCTION_LINES = 60
SLOW_TO_LOAD = ('optax', 'grain', 'dalle_jax.training.state', 'dalle_jax.training.loop')
DOORS = ('train', 'generate', 'evaluate', 'compress')
# What variables that hold a group of the configuration are called.
CONFIG_VARIABLES = ('config', 'training', 'settings', 'own', 'weights')
SLOW_IMPORTS = ('jax', 'flax', 'grain', 'matplotlib', 'numpy', 'optax', 'orbax', 'sentencepiece', 'tensorflow_datasets')


def _rooms(table: int) -> dict[str, set[str]]:
  """The rooms that each room may import besides itself, as a table of docs/architecture.md states them."""
  text = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8').split('| may import |')[table]
  return {room: set(re.findall(r'\w+', allowed)) for room, allowed in ROW.findall(text)}


ROOMS = _rooms(1)
DATA_ROOMS = _rooms(2)


def dotted(path: pathlib.Path) -> str:
  """The module that a file is, as installed."""
  parts = path.relative_to(ROOT).with_suffix('').parts
  parts = ('dalle_jax', *parts) if parts[0] == 'configs' else parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room_of(module: str) -> str | None:
  """The room of a dotted module of the package; None for the package itself."""
  name = [*module.split('.'), ''][1]
  return 'doors' if name in DOORS else name or None


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding='utf-8'))


def imported(path: pathlib.Path) -> set[str]:
  """Every module that a file names in an import, also inside functions."""
  known = {dotted(module) for module in MODULES}
  found = set()
  for node in ast.walk(parsed(path)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      whole = {f'{node.module}.{alias.name}' for alias in node.names}
      found |= {name if name in known else node.module for name in whole}
  return found


@pytest.mark.parametrize('rooms', [ROOMS, DATA_ROOMS], ids=['rooms', 'data'])
def test_rooms_are_in_a_line(rooms):
  tuple(graphlib.TopologicalSorter(rooms).static_order())  # raises where rooms import in a circle


def test_every_room_is_in_the_table():
  assert set(ROOMS) == {room_of(dotted(path)) for path in MODULES} - {None}


def test_rooms_of_data_import_as_the_table_says():
  assert set(DATA_ROOMS) == {path.parent.name for path in (PACKAGE / 'data').glob('*/__init__.py')}
  for room, allowed in DATA_ROOMS.items():
    modules = {name for path in (PACKAGE / 'data' / room).glob('*.py') for name in imported(path)}
    others = {name.split('.')[2] for name in modules if name.startswith('dalle_jax.data.')} & set(DATA_ROOMS)
    assert others - {room} <= allowed, room


def test_wings_of_jobs_import_each_other_in_few_places():
  for wing, allowed in WINGS.items():
    modules = {name for path in (PACKAGE / 'jobs' / wing).glob('*.py') for name in imported(path)}
    others = {name.split('.')[2] for name in modules if name.startswith('dalle_jax.jobs.')} & set(WINGS)
    assert others - {wing} <= allowed, wing


def test_folders_of_jobs_and_data_are_small():
  parts = [PACKAGE / 'jobs' / wing for wing in WINGS] + [PACKAGE / 'data' / room for room in DATA_ROOMS]
  for folder in (PACKAGE / 'jobs', PACKAGE / 'data', *parts):
    assert len(list(folder.glob('*.py'))) <= MAX_FILES, folder


def test_file_names_stand_for_one_thing():
  # A task may share its model's name, a wing of jobs its door's; experiments and tools are named for their users.
  paths = [path for path in PACKAGE.rglob('*.py') if path.name != '__init__.py' and path.parent.name != 'tasks']
  names = [path.stem for path in paths] + list(WINGS)
  doors = {*DOORS} - {'generate'}
  assert [name for name in sorted(set(names)) if names.count(name) > 1 + (name in doors)] == []


def test_class_names_stand_for_one_thing():
  # The blocks of the dVAE and of the transformer keep the name that their parameters are known by.
  known = {'Block'}
  names = [node.name for path in PACKAGE.rglob('*.py') for node in parsed(path).body if isinstance(node, ast.ClassDef)]
  assert {name for name in names if names.count(name) > 1} <= known


@pytest.mark.parametrize('path', [*MODULES, *sorted((ROOT / 'tools').glob('*.py'))], ids=lambda path: path.stem)
def test_functions_are_short(path):
  functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
  long = [node.name for node in functions if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES]
  assert long == []


@pytest.mark.parametrize('path', MODULES, ids=dotted)
def test_imports_follow_the_plan(path):
  room = room_of(dotted(path))
  rooms = {room_of(name) for name in imported(path) if name.split('.')[0] == 'dalle_jax'} - {None, room}
  allowed = ROOMS[room] if room else {'jobs'}  # the package itself has `load`
  assert rooms <= allowed, f'{dotted(path)} imports {rooms - allowed}'


@pytest.mark.parametrize('path', sorted((PACKAGE / 'models').glob('*.py')), ids=dotted)
def test_models_are_pure(path):
  allowed = {'dalle_jax', 'flax', 'jax', 'numpy', *sys.stdlib_module_names} - {'io', 'os', 'pathlib', 'random'}
  assert {name.split('.')[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize('path', MODULES, ids=dotted)
def test_no_private_modules_are_imported(path):
  parts = {part for name in imported(path) for part in name.split('.') if part != '__future__'}
  assert not [part for part in parts if part.startswith('_')]


@pytest.mark.parametrize('path', MODULES, ids=dotted)
def test_files_are_short(path):
  assert len(path.read_text(encoding='utf-8').splitlines()) <= MAX_LINES


def in_python(code: str) -> str:
  """What a fresh interpreter prints."""
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_every_module_imports_and_the_seldom_used_wait():
  # Doors define flags of one name; each is run by itself below.
  names = [name for name in map(dotted, MODULES) if room_of(name) not in ('configs', 'doors')]
  last = 'dalle_jax.data.shapes.builder'  # a TFDS builder: loaded where the data set is made or read
  names.remove(last)
  printed = in_python(
    'import importlib, sys\n'
    f'for name in {names}: importlib.import_module(name)\n'
    'print(*(m for m in ("matplotlib", "sentencepiece", "tensorflow", "tensorflow_datasets") if m in sys.modules))\n'
    f'importlib.import_module({last!r})'
  )
  assert printed.split() == []


def test_loading_a_model_imports_nothing_of_training():
  printed = in_python(
    'import sys, dalle_jax\n'
    "dalle_jax.load('tests/golden/bundles/1')\n"
    f'print(*(name for name in {SLOW_TO_LOAD} if name in sys.modules))'
  )
  assert printed.split() == []


@pytest.mark.parametrize('door', DOORS)
def test_help_answers_without_loading_anything_slow(door):
  printed = in_python(
    'import runpy, sys\n'
    'sys.argv = ["door", "--help"]\n'
    'try:\n'
    f'  runpy.run_module("dalle_jax.{door}", run_name="__main__", alter_sys=True)\n'
    'except SystemExit:\n'
    f'  print("LOADED", *(name for name in {SLOW_IMPORTS} if name in sys.modules))'
  )
  text, loaded = printed.rsplit('LOADED', 1)
  assert loaded.split() == []
  for flag in {
    'train': ('config', 'workdir', 'stop_after'),
    'generate': ('model', 'prompt', 'num_images'),
    'evaluate': ('model', 'metrics', 'split'),
    'compress': ('model', 'coder', 'batch_size'),
  }[door]:
    assert f'--{flag}' in text


def leaves(cls: type, path: str) -> list[str]:
  """Every key of a configuration, as config.GROUP.KEY."""
  keys = []
  for field in dataclasses.fields(cls):
    name = f'{path}.{field.name}'
    keys += leaves(field.type, name) if dataclasses.is_dataclass(field.type) else [name]
  return keys


@functools.cache
def read_attributes() -> set[tuple[str, str]]:
  """(what it is read from, attribute) for every attribute that the package reads: ('training', 'batch_size')."""
  nodes = [node for path in PACKAGE.rglob('*.py') if path.parent.name != 'config' for node in ast.walk(parsed(path))]
  reads = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
  return {(ast.unparse(node.value).rsplit('.', 1)[-1].lstrip('_'), node.attr) for node in reads}


@pytest.mark.parametrize('key', leaves(Config, 'config'))
def test_every_key_is_read(key):
  *_, group, name = key.split('.')
  if group == 'mesh':
    return  # read by name, all of them: see the next test
  holders = (group, *CONFIG_VARIABLES)
  assert any((holder, name) in read_attributes() for holder in holders), f'nothing reads {key}'


def test_every_axis_of_the_mesh_is_read():
  assert set(AXES) == {field.name for field in dataclasses.fields(MeshConfig)}


def setup_cfg() -> configparser.ConfigParser:
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg', encoding='utf-8')
  return parser


def test_setup_cfg_lists_every_package():
  listed = setup_cfg()['options']['packages'].split()
  assert sorted(listed) == sorted({dotted(path.parent / '__init__.py') for path in MODULES})
  assert all((path.parent / '__init__.py').exists() for path in MODULES)


def test_packaging_names_no_addresses():
  # Packages come from wherever the user's own pip looks.
  for name in ('setup.cfg', 'pyproject.toml', '.ci/run'):
    text = (ROOT / name).read_text(encoding='utf-8')
    assert not re.search(r'://|index-url|find-links|trusted-host', text), name


def test_changelog_tells_of_this_version():
  text = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
  versions = re.findall(r'^## \[([^]]+)\]', text, re.MULTILINE)
  released = [version for version in versions if version != 'Unreleased']
  assert 'Unreleased' in versions[:1] or dalle_jax.__version__ == versions[0]
  assert dalle_jax.__version__ == released[0]


@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', *(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))])
def test_papers_link_to_files_that_exist(name):
  path = ROOT / name
  for link in re.findall(r'\]\(([^)#]+)[^)]*\)', path.read_text(encoding='utf-8')):
    if '://' not in link:
      assert (path.parent / link).exists(), f'{name} links to {link}'


def test_readme_is_short_and_gives_the_commands_of_the_doors():
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert len(text.splitlines()) < 200
  files = [*(PACKAGE / f'{name}.py' for name in (*DOORS, 'flags')), *(ROOT / 'tools').glob('*.py')]
  source = ''.join(file.read_text(encoding='utf-8') for file in files)
  for flag in set(re.findall(r'--([a-z_]+)', text)) - {'logdir', 'verbosity'}:  # TensorBoard's, absl's
    assert f"'{flag}'" in source, flag


def test_the_licence_is_apache():
  text = (ROOT / 'LICENSE').read_text(encoding='utf-8')
  assert 'Apache License' in text
  assert 'END OF TERMS AND CONDITIONS' in text
  assert setup_cfg()['metadata']['license'] == 'Apache-2.0'


def test_no_machine_paths():
  pattern = re.compile('/(root|home|Users|work|mnt)' + '/')
  papers = [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('colab/*.ipynb'), *ROOT.glob('tests/**/*.py')]
  for path in [*MODULES, *papers]:
    assert not pattern.search(path.read_text(encoding='utf-8')), path


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configurations(tmp_path):
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  subprocess.run([*pip, 'wheel', '--no-deps', '--wheel-dir', str(tmp_path), str(ROOT)], check=True)
  (wheel,) = tmp_path.glob('*.whl')
  subprocess.run([*pip, 'install', '--no-deps', '--target', str(tmp_path / 'site'), str(wheel)], check=True)
  code = "from dalle_jax import flags; print(flags.find_config('configs/quickstart.py'))"
  command = [sys.executable, '-c', code]
  environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}
  found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
  assert pathlib.Path(found.strip()) == tmp_path / 'site' / 'dalle_jax' / 'configs' / 'quickstart.py'
