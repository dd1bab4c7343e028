"""Plots the bits per symbol of several models: their entropy, and what each coder needs (DALL-E Explained, part 2).

    for model in 2-gram lstm transformer; do for coder in range huffman; do
      python -m dalle_jax.compress encode --model=runs/$model/model --coder=$coder --report=$model-$coder.json IN OUT
    done; done
    python tools/plot_compression.py --report=2-gram-range.json --report=2-gram-huffman.json ... --out=compression.svg

Reads the reports that `compress encode` wrote, and writes an SVG file with the models sorted by entropy, largest first.
A Huffman code spends a whole number of bits per symbol, so its overhead grows as models get better.
"""

from pathlib import Path
from typing import Any

from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import read_json_object

_REPORT = flags.DEFINE_multi_string(
  'report', [], 'JSON file that `compress encode --report` wrote for a text; repeat the flag for more reports.'
)
_OUT = flags.DEFINE_string('out', 'compression.svg', 'SVG file to write.')
_OVERWRITE = doors.define_overwrite('the file of --out')


FIELDS = {
  'kind': str, 'num_tokens': int, 'original_bytes': int, 'model': str, 'coder': str,
  'model_bits_per_token': int | float, 'bits_per_token': int | float,
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
  """Reads the figures of one report.

  Raises:
    ValueError: the file is not a report, or is the report of images or of an empty file.
  """
  figures = read_json_object(path, 'Name a file that `compress encode --report` wrote (--report).')
  kind, count = figures.get('kind'), figures.get('num_tokens')
  wrong = [name for name, types in FIELDS.items() if not isinstance(figures.get(name), types)]
  if wrong and (kind not in ('text', 'pictures') or type(count) is not int or (kind == 'text' and count > 0)):
    raise ValueError(f'--report={path} is not a report of `compress encode`: it has no valid {", ".join(wrong)}.')
  if kind != 'text' or not count:
    raise ValueError(
      f'--report={path} is of {count} tokens of {kind}; it must be the report of a text that is not empty.'
    )
  return figures


def grouped(reports: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
  """Groups the bits per symbol by model, largest entropy first: 'entropy', and the bits that each coder needs.

  Raises:
    ValueError: the reports are of different texts.
  """
  if len({(figures['original_bytes'], figures['num_tokens']) for figures in reports}) > 1:
    raise ValueError('The reports are of different texts or tokenizers, so their bits per symbol cannot be compared.')
  models: dict[str, dict[str, float]] = {}
  for figures in reports:
    name = Path(figures['model']).parent.name or figures['model']
    bars = models.setdefault(name, {'entropy': figures['model_bits_per_token']})
    bars[f'{figures["coder"]} coding'] = figures['bits_per_token']
  return dict(sorted(models.items(), key=lambda item: -item[1]['entropy']))


def main(argv: list[str]) -> int:
  del argv
  if not _REPORT.value:
    raise ValueError('Give --report=FILE once for each report.')
  from dalle_jax.files import check_out, write_whole
  from dalle_jax.reporting import curves

  check_out(Path(_OUT.value), _OVERWRITE.value)
  bars = grouped([read(Path(path)) for path in _REPORT.value])
  write_whole(
    Path(_OUT.value), curves.bars_svg(bars, 'Bits per symbol, by theory and coded', 'bits per symbol').encode()
  )
  for name, values in bars.items():
    overheads = {key: value - values['entropy'] for key, value in values.items() if key != 'entropy'}
    print(f'{name:<20} entropy {values["entropy"]:.4f}' + ''.join(f', {k} {v:+.4f}' for k, v in overheads.items()))
  print(_OUT.value)
  return 0


if __name__ == '__main__':
  doors.run(main)
