"""Encodes the pictures of a data set with a dVAE once, so that priors train on their codes.

    python tools/encode_images.py --config=configs/emoji.py --config.data.path=PICTURES \\
      --config.dvae.pretrained=runs/dvae/model --config.data.crop=random --crops=4 --out=CODES
    python -m dalle_jax.train --config=configs/emoji.py --config.data.path=CODES \\
      --config.dvae.pretrained=runs/dvae/model --config.data.crop=random --workdir=runs/prior

The configuration is that of the run, which reads CODES afterwards in place of the pictures, alone or in a mixture. The
centre of each picture is encoded and, with --crops, further crops of the kind config.data.crop; a run with this crop
chooses one of them each time, and a run with config.data.crop=center reads the centre. The splits stay as they are, and
held-out pictures are encoded at the centre only. CODES/codes.json has the fingerprints of the dVAE and of the
tokenizer, which is that of --tokenizer, or else the one that a run on these pictures trains.

All devices of a host share each batch, whatever config.mesh says. With --distributed, each host writes its share of the
shards. If the command is stopped, run it again: it goes on with the shards that are missing.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors
from dalle_jax.files import check_path

config_flags.DEFINE_config_file(
  'config', None, 'Configuration file and variant of the run, with config.dvae.pretrained.'
)
_OUT = flags.DEFINE_string('out', None, 'Directory to write.')
_CROPS = flags.DEFINE_integer(
  'crops', 0, 'Crops of each training picture besides the centre, of the kind config.data.crop.', 0, 1024
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Crops that each host encodes at once.', 1)
_PER_SHARD = flags.DEFINE_integer('per_shard', 2_000, 'Pictures in a shard.', 1)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'Tokenizer of the captions, such as runs/prior/tokenizer.model; empty: train it on the captions.'
)
_VERIFY_MODEL = doors.define_verify_model()
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Encode on several hosts. Start the same command on every host.')
_CLUSTER = 'Needed with --distributed unless Slurm, GKE or Cloud TPU provides it.'
_COORDINATOR = flags.DEFINE_string('coordinator', None, f'HOST:PORT of host 0. {_CLUSTER}')
_NUM_HOSTS = flags.DEFINE_integer('num_hosts', None, f'Number of hosts. {_CLUSTER}')
_HOST_INDEX = flags.DEFINE_integer('host_index', None, f'Index of this host, from 0. {_CLUSTER}')
flags.mark_flags_as_required(['config', 'out'])


def main(argv: list[str]) -> int:
  del argv
  check_path(_OUT.value, '--out')
  config = doors.read_config()
  doors.start_jax(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_HOSTS.value, _HOST_INDEX.value)
  import jax

  from dalle_jax import bundle, hosts
  from dalle_jax.jobs.study import image_codes

  bundle.verify_by_default(_VERIFY_MODEL.value)
  hosts.agree(hosts.facts(config.to_dict(), out=_OUT.value, crops=_CROPS.value, per_shard=_PER_SHARD.value))
  summary = image_codes.run(
    config, Path(_OUT.value).absolute(), _CROPS.value, _BATCH_SIZE.value, _PER_SHARD.value, _TOKENIZER.value
  )
  if jax.process_index() == 0:
    if summary.account:
      print(summary.account)
    for name, reason in summary.left_out:
      print(f'left out: {name}: {reason}')
    print(f'{summary.pictures:,} pictures encoded, {summary.num_bytes / 1e6:,.1f} MB: {_OUT.value}')
  hosts.barrier('end')  # a host that exits earlier would abort hosts that are still writing
  return 0


if __name__ == '__main__':
  doors.run(main)
