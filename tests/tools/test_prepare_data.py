import json
import pathlib
import subprocess
import sys
import time

from numbered_pictures import save_numbered

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'prepare_data.py'
NUM = 1000


def command(*arguments):
  return [sys.executable, str(SCRIPT), *map(str, arguments)]


def test_a_killed_copy_is_continued_by_the_same_command(tmp_path):
  root, out = save_numbered(tmp_path / 'a', NUM), tmp_path / 'out'
  arguments = command(f'--path={root}', f'--out={out}', '--per_shard=10', '--num_threads=1')
  process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while process.poll() is None and not (out / 'pictures-00001.json').exists():
    time.sleep(0.001)
  process.kill()
  process.wait()
  assert not (out / 'manifest.json').exists(), 'the process had finished before it was killed'
  finished = subprocess.run(arguments, capture_output=True, text=True, check=False)
  assert finished.returncode == 0, finished.stderr
  assert '1,000 pictures found, 1,000 used, 0 left out' in finished.stdout
  assert '1,000 pictures in 100 shards' in finished.stdout
  names = [row[0] for file in sorted(out.glob('pictures-*.json')) for row in json.loads(file.read_text())['records']]
  assert names == sorted(path.name for path in root.glob('*.png'))
  for path in root.glob('*.png'):
    path.write_bytes(b'no picture')
  finished = subprocess.run(command(f'--path={root}', f'--out={tmp_path / "b"}'), capture_output=True, text=True)
  assert finished.returncode == 1 and 'nothing to train on' in finished.stdout, finished.stderr
