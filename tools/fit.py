"""Does it fit, and how fast would it be? Compiles the real program for accelerators that need not be there.

    python tools/fit.py --config=configs/dalle.py:12b --topology=v5p:8x8x8
    python tools/fit.py --config=configs/dalle.py:1b --topology=v5e-8 --config.prior_training.batch_size=64 \
        --json=1b.json
    python tools/fit.py --config=configs/dalle.py:12b --topology=v5p:4x4x8 --search
    python tools/fit.py --config=configs/dalle.py:300m --topology=v5e-8 --task=sample
    python tools/fit.py --config=configs/dalle.py:1b --topology=h100:8

For TPUs it needs libtpu of the version that jax[tpu] asks for, and no TPU: pip install 'jax[tpu]'. For GPUs it compiles
where they are present, and uses arithmetic where they are not. Nothing is run. Memory, what devices exchange, the
compiler's estimate of a step, and what follows for the whole run are printed; the exit status is 3 where the program
does not fit. docs/scale.md explains the figures and what they do not know.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors

EXIT_DOES_NOT_FIT = 3
_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment, for instance configs/dalle.py:12b.')
_TOPOLOGY = flags.DEFINE_string('topology', None, "Accelerators: 'v5p:4x4x8', Google's 'v5p-256', or 'h100:8'.")
_SLICES = flags.DEFINE_integer('slices', 1, 'How many of that topology, joined by config.mesh.dcn_data.', lower_bound=1)
_TASK = flags.DEFINE_enum('task', 'train', ['train', 'sample'], 'The optimizer step, or drawing a batch of images.')
_STAGE = flags.DEFINE_enum(
  'stage', None, ['dvae', 'prior', 'joint', 'sequence', 'reranker'],
  'The stage whose step it is; by default the last that the configuration trains.',
)  # fmt: skip
_JSON = flags.DEFINE_string('json', None, 'Writes the figures to this file.')
_HLO = flags.DEFINE_string('hlo', None, 'Writes the text of the compiled programs to this file.')
_EXPLAIN = flags.DEFINE_bool('explain', False, 'Also prints the instructions that cost most.')
_SEARCH = flags.DEFINE_bool('search', False, 'Tries meshes, policies of rematerialisation and batches.')
_BATCH_SIZES = flags.DEFINE_list('batch_sizes', [], "--search: batch sizes to try; by default the configuration's.")
_TRIES = flags.DEFINE_integer('tries', 4, '--search: programs to compile, of the most promising.', lower_bound=1)
_EFFICIENCY = flags.DEFINE_float(
  'efficiency', 0.5, 'Of the peak, what matrix products reach, where no compiler says.', lower_bound=0.01,
  upper_bound=1.0,
)  # fmt: skip


def batch_sizes() -> list[int]:
  """The values of --batch_sizes.

  Raises:
    ValueError: one is no number above 0.
  """
  words = _BATCH_SIZES.value
  if not all(word.isdigit() and int(word) > 0 for word in words):
    raise ValueError(f'--batch_sizes is {",".join(words)}; it must list numbers above 0, such as 512,1024.')
  return [int(word) for word in words]


def write(found: Any) -> None:
  if _JSON.value:
    path = Path(_JSON.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')


def tell(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
  del argv
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError('Give --config=FILE and --topology=NAME, for instance --config=configs/dalle.py:12b '
                     '--topology=v5p:8x8x8.')  # fmt: skip
  if _SEARCH.value and _TASK.value == 'sample':
    raise ValueError('--search tries training steps; leave --task=sample out.')
  sizes = batch_sizes()
  from dalle_jax.planning import topologies

  config = doors.read_config()
  topology = topologies.parse(_TOPOLOGY.value, _SLICES.value)
  if topology.platform == 'tpu':
    topologies.compiler_version()
    import jax

    jax.config.update('jax_platforms', 'cpu')  # the compiler is all that is needed of a TPU
  from dalle_jax.planning import fit, programs, report, search

  if _TASK.value == 'sample':
    found = fit.fit_drawing(config, topology, tell)
  else:
    stage = programs.stage_of(config, _STAGE.value)
    if _SEARCH.value:
      best = search.search(config, stage, topology, sizes, _TRIES.value, _EFFICIENCY.value, tell)
      print(search.table(best))
      write([one.to_dict() for one in best])
      return 0 if best else EXIT_DOES_NOT_FIT
    found = fit.fit_training(config, stage, topology, _EFFICIENCY.value, tell)
  print(report.describe(found, _EXPLAIN.value))
  write(found.to_dict())
  if _HLO.value:
    Path(_HLO.value).write_text(found.text, encoding='utf-8')
  return 0 if found.fits else EXIT_DOES_NOT_FIT


if __name__ == '__main__':
  doors.run(main)
