"""Bits per symbol of several models, by theory and coded, in one drawing (DALL-E Explained part 2).

    for model in 2-gram lstm transformer; do for coder in range huffman; do
      python -m dalle_jax.compress encode --model=runs/$model/model --coder=$coder --report=$model-$coder.json IN OUT
    done; done
    python tools/plot_compression.py --report=2-gram-range.json --report=2-gram-huffman.json ... --out=compression.svg

Reads the figures that `compress encode` wrote and writes an SVG file; the models are those whose reports are given, the
one with the most bits first. A Huffman code spends whole bits, so that the better the model, the more it loses.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from dalle_jax import flags as doors

_REPORT = flags.DEFINE_multi_string(
  'report', [], 'JSON file of `compress encode --report`, of a text; repeat the flag.'
)
_OUT = flags.DEFINE_string('out', 'compression.svg', 'The file to write.')


def read(path: Path) -> dict[str, Any]:
  """The figures of one report.

  Raises:
    ValueError: the file holds none, or those of pictures or of an empty file.
  """
  try:
    figures = json.loads(path.read_text())
    kind, count = figures['kind'], figures['num_tokens']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f'--report={path} cannot be read: {error}') from None
  if kind != 'text' or not count:
    raise ValueError(f'--report={path} is of {count} tokens of {kind}; what can be drawn are texts.')
  return figures


def grouped(reports: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
  """Bits per symbol by model, the most first: 'entropy' and what each coder needed.

  Raises:
    ValueError: the reports are not of one text.
  """
  if len({(figures['original_bytes'], figures['num_tokens']) for figures in reports}) > 1:
    raise ValueError('The reports are of different texts or tokenizers, whose bits per symbol do not compare.')
  found: dict[str, dict[str, float]] = {}
  for figures in reports:
    name = Path(figures['model']).parent.name or figures['model']
    bars = found.setdefault(name, {'entropy': figures['model_bits_per_token']})
    bars[f'{figures["coder"]} coding'] = figures['bits_per_token']
  return dict(sorted(found.items(), key=lambda item: -item[1]['entropy']))


def main(argv: list[str]) -> int:
  del argv
  if not _REPORT.value:
    raise ValueError('Give --report=FILE, once for each report.')
  from dalle_jax.files import write_whole
  from dalle_jax.reporting import curves

  bars = grouped([read(Path(path)) for path in _REPORT.value])
  write_whole(
    Path(_OUT.value), curves.bars_svg(bars, 'Bits per symbol, by theory and coded', 'bits per symbol').encode()
  )
  for name, values in bars.items():
    losses = {key: value - values['entropy'] for key, value in values.items() if key != 'entropy'}
    print(f'{name:<20} entropy {values["entropy"]:.4f}' + ''.join(f', {k} {v:+.4f}' for k, v in losses.items()))
  print(_OUT.value)
  return 0


if __name__ == '__main__':
  doors.run(main)
