"""Trains a model, by default from text to images; writes its model directory and a report.

python -m dalle_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors
from dalle_jax import stages

config_flags.DEFINE_config_file(
  'config', None, 'Configuration file and variant, such as configs/quickstart.py or configs/quickstart.py:tiny.'
)
flags.mark_flag_as_required('config')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for checkpoints, metrics, the model and the report. The same command resumes a run.',
  required=True,
)  # fmt: skip
_STOP_AFTER = flags.DEFINE_enum(
  'stop_after',
  'report',
  ['data', 'tokenizer', *stages.names(), 'report'],
  'Last stage to run. If the task has no such stage, the run ends after its last one, without a report.',
)
_VERIFY_MODEL = doors.define_verify_model()
_ALLOW_OTHER_DATA = flags.DEFINE_bool(
  'allow_other_data',
  False,
  'Use finished stages of --workdir that were trained on other data, or with another tokenizer, than those of this '
  'start.',
)
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Train on several hosts. Start the same command on every host.')
_CLUSTER = 'Needed with --distributed unless Slurm, GKE or Cloud TPU provides it.'
_COORDINATOR = flags.DEFINE_string('coordinator', None, f'HOST:PORT of host 0. {_CLUSTER}')
_NUM_HOSTS = flags.DEFINE_integer('num_hosts', None, f'Number of hosts. {_CLUSTER}')
_HOST_INDEX = flags.DEFINE_integer('host_index', None, f'Index of this host, from 0. {_CLUSTER}')


def main(argv: list[str]) -> int:
  del argv
  config = doors.read_config()  # reports mistakes before JAX starts
  doors.start_jax(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_HOSTS.value, _HOST_INDEX.value)
  from dalle_jax.bundle import verify_by_default
  from dalle_jax.jobs.train import run

  verify_by_default(_VERIFY_MODEL.value)
  return run.main(config, _WORKDIR.value, _STOP_AFTER.value, _ALLOW_OTHER_DATA.value)


if __name__ == '__main__':
  doors.run(main)
