"""Estimates whether a program fits a set of accelerators, and how fast it runs, by compiling it without them.

    python tools/fit.py --config=configs/dalle.py:12b --topology=v5p:8x8x8
    python tools/fit.py --config=configs/dalle.py:1b --topology=v5e-8 --config.prior_training.batch_size=64 \\
        --json=1b.json
    python tools/fit.py --config=configs/dalle.py:12b --topology=v5p:4x4x8 --search
    python tools/fit.py --config=configs/dalle.py:300m --topology=v5e-8 --task=sample
    python tools/fit.py --config=configs/dalle.py:1b --topology=h100:8

Nothing is executed. For TPUs, the tool needs no TPU, but the libtpu version that jax[tpu] requires:
pip install 'jax[tpu]'. For GPUs, it compiles if they are present and uses arithmetic otherwise.

It prints memory use, the data that devices exchange, the compiler's estimate of the step time, and the cost of the full
run. The exit status is 3 if the program does not fit. docs/scale.md explains the figures and their limits.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors
from dalle_jax import stages
from dalle_jax.files import check_out, write_whole

EXIT_DOES_NOT_FIT = 3
_CONFIG = config_flags.DEFINE_config_file('config', None, 'Configuration file, such as configs/dalle.py:12b.')
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, "Accelerators: chip and shape ('v5p:4x4x8'), Google's name ('v5p-256'), or GPUs ('h100:8')."
)
_SLICES = flags.DEFINE_integer(
  'slices', 1, 'Number of TPU slices with this topology; config.mesh.dcn_data spans them.', lower_bound=1
)
_TASK = flags.DEFINE_enum(
  'task', 'train', ['train', 'sample'], 'Program to compile: an optimizer step, or the generation of a batch of images.'
)
_STAGE = flags.DEFINE_enum(
  'stage', None, list(stages.names()),
  'Stage whose training step is compiled. Default: the last stage that the configuration trains.',
)  # fmt: skip
_JSON = flags.DEFINE_string('json', None, 'JSON file to write the figures to.')
_HLO = flags.DEFINE_string('hlo', None, 'File to write the HLO text of the compiled programs to.')
_OVERWRITE = doors.define_overwrite('the files of --json and --hlo')
_EXPLAIN = flags.DEFINE_bool('explain', False, 'Also print the most expensive instructions.')
_SEARCH = flags.DEFINE_bool('search', False, 'Search for fast meshes, remat policies and batch sizes.')
_BATCH_SIZES = flags.DEFINE_list(
  'batch_sizes', [], "With --search: comma-separated batch sizes to try. Default: the configuration's own."
)
_TRIES = flags.DEFINE_integer(
  'tries', 4, 'With --search: number of candidates to compile, most promising first.', lower_bound=1
)
_EFFICIENCY = flags.DEFINE_float(
  'efficiency', 0.5, 'Share of peak FLOPs that matrix products reach; used when no compiler estimates it.',
  lower_bound=0.01, upper_bound=1.0,
)  # fmt: skip


def batch_sizes() -> list[int]:
  """Parses --batch_sizes.

  Raises:
    ValueError: a value is not an integer above 0.
  """
  words = _BATCH_SIZES.value
  if not all(word.isdigit() and int(word) > 0 for word in words):
    raise ValueError(f'--batch_sizes is {",".join(words)}; it must list integers above 0, such as 512,1024.')
  return [int(word) for word in words]


def write(figures: Any) -> None:
  """Writes the figures to --json, if it is set."""
  if _JSON.value:
    write_whole(Path(_JSON.value), (json.dumps(figures, indent=2) + '\n').encode())


def print_progress(line: str) -> None:
  """Prints to stderr, so that stdout has the results only."""
  print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
  del argv
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError(
      'Give --config=FILE and --topology=NAME, such as --config=configs/dalle.py:12b --topology=v5p:8x8x8.'
    )
  if _SEARCH.value and _TASK.value == 'sample':
    raise ValueError('--search compiles training steps only; leave --task=sample out.')
  sizes = batch_sizes()
  for flag, file in (('--json', _JSON.value), ('--hlo', _HLO.value)):
    if file is not None:
      check_out(Path(file), _OVERWRITE.value, flag)
  from dalle_jax.planning import topologies

  config = doors.refuse_choice(doors.read_config())
  topology = topologies.parse(_TOPOLOGY.value, _SLICES.value)
  if topology.platform == 'tpu':
    topologies.compiler_version()
    import jax

    jax.config.update('jax_platforms', 'cpu')  # of a TPU, only the compiler is needed
  from dalle_jax.planning import fit, programs, report, search

  if _TASK.value == 'sample':
    result = fit.fit_drawing(config, topology, print_progress)
  else:
    stage = programs.stage_of(config, _STAGE.value)
    if _SEARCH.value:
      best = search.search(config, stage, topology, sizes, _TRIES.value, _EFFICIENCY.value, print_progress)
      print(search.table(best))
      write([candidate.to_dict() for candidate in best])
      return 0 if best else EXIT_DOES_NOT_FIT
    result = fit.fit_training(config, stage, topology, _EFFICIENCY.value, print_progress)
  print(report.describe(result, _EXPLAIN.value))
  write(result.to_dict())
  if _HLO.value:
    write_whole(Path(_HLO.value), result.text.encode())
  return 0 if result.fits else EXIT_DOES_NOT_FIT


if __name__ == '__main__':
  doors.run(main)
