import pathlib
import subprocess
import sys

from numbered_pictures import save_numbered

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'check_data.py'


def run(*arguments):
  command = [sys.executable, str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_files_are_written_and_the_status_tells_whether_there_is_anything(tmp_path):
  root = save_numbered(tmp_path / 'a', 6)
  flags = [f'--path={root}', f'--out={tmp_path / "out"}', '--vocab_size=280', '--text_length=8']
  finished = run(*flags)
  assert finished.returncode == 0, finished.stderr
  assert '6 pictures found, 6 used, 0 left out' in finished.stdout and 'checking: 6/6' in finished.stderr
  assert {path.name for path in (tmp_path / 'out').iterdir()} >= {'check.html', 'check.json', 'skip.txt'}
  for path in root.glob('*.png'):
    path.write_bytes(b'no picture')
  finished = run(*flags, '--overwrite')
  assert finished.returncode == 1 and 'nothing to train on' in finished.stdout, finished.stderr
  finished = run(*flags, '--skip=twins')
  assert finished.returncode == 2 and '--skip has twins; allowed are unreadable' in finished.stderr
