"""Trains a text-to-image model: data, tokenizer, dVAE, prior, model directory, report.

python -m dalle_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors
from dalle_jax import stages

config_flags.DEFINE_config_file('config', None, 'Experiment, for instance configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory for checkpoints, metrics, the model and the report.')
_STOP_AFTER = flags.DEFINE_enum(
  'stop_after',
  'report',
  ['data', 'tokenizer', *stages.names(), 'report'],
  'Last stage to run; joint training counts as both. A task without it runs to its end.',
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other hosts of a pod first: set it on every host, with the same command.'
)
_COORDINATOR = flags.DEFINE_string('coordinator', None, '--distributed, where no cluster tells: HOST:PORT of host 0.')
_NUM_HOSTS = flags.DEFINE_integer('num_hosts', None, '--distributed, where no cluster tells: the number of hosts.')
_HOST_INDEX = flags.DEFINE_integer('host_index', None, '--distributed, where no cluster tells: the number of this one.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv: list[str]) -> int:
  del argv
  config = doors.read_config()  # errors come before JAX starts
  doors.start_jax(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_HOSTS.value, _HOST_INDEX.value)
  from dalle_jax.jobs.train import run

  return run.main(config, _WORKDIR.value, _STOP_AFTER.value)


if __name__ == '__main__':
  doors.run(main)
