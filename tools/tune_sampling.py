"""What guidance, temperature and choosing among candidates do to prompt accuracy, of a model of captioned shapes.

    python tools/tune_sampling.py grid --model=runs/quickstart/model --guidance_scale=1,2,4 --temperature=0.5,1 \\
        --out=runs/grid.json
    python tools/tune_sampling.py candidates --model=runs/quickstart/model --reranker=runs/reranker/model --most=128 \\
        --out=runs/candidates.json

`grid` draws one image for each prompt and combination of settings; those not named are the model's own. `candidates`
draws many, and asks how often the best of 1, 2, 4, ... is right, by each ranking (figure 9c of the paper); beside the
JSON file it writes the curves as SVG.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from dalle_jax import flags as doors

ACTIONS = ('grid', 'candidates')
_MODEL = flags.DEFINE_string('model', None, 'Model directory of a model of captioned shapes.')
_DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where generated data are kept; by default beside the model.')
_NUM_PROMPTS = flags.DEFINE_integer('num_prompts', 200, 'Prompts of each split and number of objects.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'Images at a time, at most.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_VALUES = {
  'guidance_scale': flags.DEFINE_list('guidance_scale', None, 'Scales; one only for `candidates`.'),
  'guidance_ramp': flags.DEFINE_list('guidance_ramp', None, 'Ramps.'),
  'temperature': flags.DEFINE_list('temperature', None, 'Temperatures.'),
  'top_k': flags.DEFINE_list('top_k', None, 'Numbers of tokens.'),
  'top_p': flags.DEFINE_list('top_p', None, 'Shares of the probability.'),
}
_MOST = flags.DEFINE_integer('most', 128, 'Candidates of each prompt.')
_RANKS = flags.DEFINE_list('ranks', None, 'Rankings; by default all that the model and --reranker allow.')
_RERANKER = flags.DEFINE_string('reranker', '', 'Model directory of a reranker.')
flags.mark_flags_as_required(['model', 'out'])


def _numbers(action: str) -> dict[str, list[Any]]:
  """What each setting takes, of those that are given."""
  given = {name: flag.value for name, flag in _VALUES.items() if flag.value is not None}
  try:
    values = {name: [(int if name == 'top_k' else float)(part) for part in parts] for name, parts in given.items()}
  except ValueError as error:
    raise ValueError(f'The settings must be numbers with commas between: {error}.') from None
  several = [name for name, parts in values.items() if len(parts) != 1]
  if action == 'candidates' and several:
    raise ValueError(f'--{several[0]} takes one number for `candidates`; given {given[several[0]]}.')
  return values


def main(action: str, argv: list[str]) -> int:
  del argv
  from dalle_jax import files

  values, out = _numbers(action), Path(_OUT.value)
  if out.suffix != '.json':
    raise ValueError(f'--out={out} must end in .json.')
  if _MOST.value < 1:
    raise ValueError(f'--most is {_MOST.value}; it must be at least 1.')
  files.check_out(out)
  doors.start_jax(distributed=False)
  from dalle_jax.jobs.study import tuning

  model, prompts = tuning.prepare(_MODEL.value, _DATA_DIR.value, _NUM_PROMPTS.value)
  facts = {'model': model.info.get('params', ''), 'seed': _SEED.value, 'num_prompts': _NUM_PROMPTS.value}
  if action == 'grid':
    rows = tuning.grid(model, prompts, values, _SEED.value, _BATCH_SIZE.value)
    print(tuning.table(rows))
    return _write(out, {**facts, 'rows': rows})
  found = _candidates(model, prompts, {name: parts[0] for name, parts in values.items()})
  print(tuning.choosing_table(found))
  return _write(out, {**facts, **found})


def _candidates(model: Any, prompts: Any, values: dict[str, Any]) -> dict[str, Any]:
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
  found = tuning.choosing(model, prompts, _MOST.value, ranks, settings, ranker)
  drawing = Path(_OUT.value).with_suffix('.svg')
  write_whole(drawing, tuning.drawing(found, curves.curve_svg).encode())
  print(drawing)
  return found


def _write(out: Path, found: dict[str, Any]) -> int:
  out.write_text(json.dumps(found, indent=2, allow_nan=False) + '\n')
  print(out)
  return 0


if __name__ == '__main__':
  doors.run(functools.partial(main, doors.take_subject(sys.argv, ACTIONS)))
