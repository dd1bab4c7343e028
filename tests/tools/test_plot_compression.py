import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'plot_compression.py'


def _run(*arguments):
  command = [sys.executable, str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _report(path, model, coder, entropy, coded, **changes):
  figures = {
    'kind': 'text', 'coder': coder, 'model': f'runs/{model}/model', 'num_tokens': 100, 'original_bytes': 300,
    'model_bits_per_token': entropy, 'bits_per_token': coded, **changes,
  }  # fmt: skip
  path.write_text(json.dumps(figures))
  return f'--report={path}'


def test_each_model_is_drawn_once_largest_entropy_first(tmp_path):
  reports = [
    _report(tmp_path / 'a', 'lstm', 'range', 4.0, 4.01),
    _report(tmp_path / 'b', 'lstm', 'huffman', 4.0, 4.25),
    _report(tmp_path / 'c', '2-gram', 'range', 6.0, 6.01),
  ]
  for out in ('a.svg', 'b.svg'):
    finished = _run(*reports, f'--out={tmp_path / out}')
    assert finished.returncode == 0, finished.stderr
  first, second, last = finished.stdout.splitlines()
  assert first.split() == ['2-gram', 'entropy', '6.0000,', 'range', 'coding', '+0.0100']
  assert second.startswith('lstm') and 'huffman coding +0.2500' in second and last.endswith('b.svg')
  svg = (tmp_path / 'a.svg').read_text()
  assert svg.startswith('<svg') and all(f'>{word}<' in svg for word in ('lstm', '2-gram', 'entropy', '4.25'))
  assert svg == (tmp_path / 'b.svg').read_text()


def test_invalid_reports_are_refused_by_name(tmp_path):
  good = _report(tmp_path / 'good', 'lstm', 'range', 4.0, 4.01)
  for arguments, message in [
    ([], 'Give --report=FILE'),
    ([f'--report={tmp_path / "nowhere"}'], 'nowhere cannot be read'),
    ([_report(tmp_path / 'picture', 'x', 'range', 1, 1, kind='pictures')], 'must be the report of a text'),
    ([_report(tmp_path / 'empty', 'x', 'range', 1, 1, num_tokens=0)], 'of 0 tokens'),
    ([good, _report(tmp_path / 'other', 'x', 'range', 1, 1, num_tokens=99)], 'different texts or tokenizers'),
  ]:
    finished = _run(*arguments, f'--out={tmp_path / "no.svg"}')
    assert finished.returncode == 2 and message in finished.stderr, finished.stderr
  assert not (tmp_path / 'no.svg').exists()
