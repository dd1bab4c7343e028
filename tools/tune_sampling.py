"""Measures how sampling settings and reranking affect the prompt accuracy of a model of captioned shapes.

    python tools/tune_sampling.py grid --model=runs/quickstart/model --guidance_scale=1,2,4 --temperature=0.5,1 \\
        --out=runs/grid.json
    python tools/tune_sampling.py candidates --model=runs/quickstart/model --reranker=runs/reranker/model --most=128 \\
        --out=runs/candidates.json

`grid` generates one image per prompt for every combination of the given settings. Settings that are not given keep the
model's own values.

`candidates` generates many images per prompt and measures how often the best of 1, 2, 4, ... is correct, for each
ranking (figure 9c of the paper). It also writes the curves as an SVG file beside the JSON file.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from dalle_jax import flags as doors

ACTIONS = ('grid', 'candidates')
_VERIFY_MODEL = doors.define_verify_model()
_MODEL = flags.DEFINE_string('model', None, 'Model directory of a model trained on captioned shapes.')
_DATA_DIR = flags.DEFINE_string('data_dir', '', 'Directory of generated data sets. Default: beside the model.')
_NUM_PROMPTS = flags.DEFINE_integer('num_prompts', 200, 'Prompts per split and number of objects.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed for sampling.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'Maximum number of images generated at a time.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_OVERWRITE = doors.define_overwrite('the files of --out')
_VALUES = {
  'guidance_scale': flags.DEFINE_list(
    'guidance_scale', None, 'Guidance scales to try, separated by commas; 1: no guidance. `candidates` takes one value.'
  ),
  'guidance_ramp': flags.DEFINE_list(
    'guidance_ramp', None, 'Shares of the image over which the guidance scale grows from 1, in [0, 1].'
  ),
  'temperature': flags.DEFINE_list('temperature', None, 'Temperatures to try; 0 takes the most likely tokens.'),
  'top_k': flags.DEFINE_list('top_k', None, 'Numbers of most likely tokens to sample from; 0: all.'),
  'top_p': flags.DEFINE_list('top_p', None, 'Probability masses to sample from, in (0, 1]; 1: all.'),
}
_MOST = flags.DEFINE_integer('most', 128, '`candidates`: images generated per prompt.')
_RANKS = flags.DEFINE_list(
  'ranks', None,
  '`candidates`: comma-separated rankings: reranker, likelihood, caption_likelihood. Default: all that the model and '
  '--reranker allow.',
)  # fmt: skip
_RERANKER = flags.DEFINE_string('reranker', '', '`candidates`: model directory of a reranker.')
flags.mark_flags_as_required(['model', 'out'])


def _numbers(action: str) -> dict[str, list[Any]]:
  """The values of the settings that are given, by name."""
  words = {name: flag.value for name, flag in _VALUES.items() if flag.value is not None}
  try:
    values = {name: [(int if name == 'top_k' else float)(word) for word in words[name]] for name in words}
  except ValueError as error:
    raise ValueError(f'The settings must be numbers separated by commas: {error}.') from None
  several = [name for name, numbers in values.items() if len(numbers) != 1]
  if action == 'candidates' and several:
    raise ValueError(f'--{several[0]} takes one number for `candidates`; given {",".join(words[several[0]])}.')
  return values


def main(action: str, argv: list[str]) -> int:
  del argv
  from dalle_jax import files

  values, out = _numbers(action), Path(_OUT.value)
  if out.suffix != '.json':
    raise ValueError(f'--out={out} must end in .json.')
  if _MOST.value < 1:
    raise ValueError(f'--most is {_MOST.value}; it must be at least 1.')
  for path in (out, out.with_suffix('.svg')) if action == 'candidates' else (out,):
    files.check_out(path, _OVERWRITE.value)
  doors.start_jax(distributed=False)
  from dalle_jax.bundle import verify_by_default
  from dalle_jax.jobs.study import tuning

  verify_by_default(_VERIFY_MODEL.value)
  model, prompts = tuning.prepare(_MODEL.value, _DATA_DIR.value, _NUM_PROMPTS.value)
  facts = {'model': model.info.get('params', ''), 'seed': _SEED.value, 'num_prompts': _NUM_PROMPTS.value}
  if action == 'grid':
    rows = tuning.grid(model, prompts, values, _SEED.value, _BATCH_SIZE.value)
    print(tuning.table(rows))
    return _write(out, {**facts, 'rows': rows})
  accuracies = _candidates(model, prompts, {name: numbers[0] for name, numbers in values.items()})
  print(tuning.choosing_table(accuracies))
  return _write(out, {**facts, **accuracies})


def _candidates(model: Any, prompts: Any, values: dict[str, Any]) -> dict[str, Any]:
  """Measures the accuracy of the best candidate, and writes the curves as SVG."""
  from dalle_jax.files import write_whole
  from dalle_jax.jobs.study import tuning
  from dalle_jax.reporting import curves
  from dalle_jax.sampling.draw_settings import DrawSettings

  ranker = None
  if _RERANKER.value:
    from dalle_jax.jobs import ranker as rankers

    ranker = rankers.load(_RERANKER.value, model.mesh)
  ranks = _RANKS.value or tuning.possible_ranks(model, ranker)
  settings = DrawSettings(num_images=1, seed=_SEED.value, batch_size=_BATCH_SIZE.value, **values)
  accuracies = tuning.choosing(model, prompts, _MOST.value, ranks, settings, ranker)
  svg_path = Path(_OUT.value).with_suffix('.svg')
  write_whole(svg_path, tuning.drawing(accuracies, curves.curve_svg).encode())
  print(svg_path)
  return accuracies


def _write(out: Path, results: dict[str, Any]) -> int:
  from dalle_jax.files import write_whole

  write_whole(out, (json.dumps(results, indent=2, allow_nan=False) + '\n').encode())
  print(out)
  return 0


if __name__ == '__main__':
  doors.run(functools.partial(main, doors.take_subject(sys.argv, ACTIONS)))
