"""Checks pictures and captions before training.

    python tools/check_data.py --path=PICTURES --out=CHECK
    python tools/check_data.py --path=TARS --out=CHECK --text_length=64 --vocab_size=4096

--path is what config.data.path may be: a folder, tar files, Parquet files, prepared shards. CHECK/check.html shows
counts, histograms and examples: unreadable, unusual and repeated pictures, and captions that are missing, repeated or
too long. CHECK/check.json has all figures. CHECK/skip.txt lists pictures to leave out; edit it, and train with
--config.data.skip_list=CHECK/skip.txt. The exit status is 1 if there is nothing to train on.
"""

from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import check_new, make_directory

_PATH = flags.DEFINE_string('path', None, 'The pictures, as in config.data.path.')
_OUT = flags.DEFINE_string('out', None, 'Directory to write.')
_SOURCE = flags.DEFINE_string('source', 'auto', 'Kind of the source, as in config.data.source.')
_CAPTION_KEY = flags.DEFINE_string('caption_key', 'caption', 'Parquet: the column of the captions.')
_CAPTION_TEMPLATE = flags.DEFINE_string('caption_template', '', 'As config.data.caption_template.')
_VALIDATION_FRACTION = flags.DEFINE_float('validation_fraction', 0.1, 'As config.data.validation_fraction.', 0.0, 1.0)
_GROUP_SEPARATOR = flags.DEFINE_string('group_separator', '', 'As config.data.group_separator.')
_SKIP_LIST = flags.DEFINE_string('skip_list', '', 'Leave out the pictures of this list, as config.data.skip_list.')
_TEXT_LENGTH = flags.DEFINE_integer('text_length', 256, 'As config.tokenizer.text_length.', 2)
_VOCAB_SIZE = flags.DEFINE_integer('vocab_size', 16_384, 'As config.tokenizer.vocab_size.', 270)
_TINY = flags.DEFINE_integer('tiny', 32, 'A picture is tiny if its shorter side has fewer pixels.', 1)
_ENORMOUS = flags.DEFINE_integer('enormous', 25_000_000, 'A picture is enormous if it has more pixels.', 1)
_NEAR_DISTANCE = flags.DEFINE_integer('near_distance', 3, 'Most different bits of the hashes of near duplicates.', 0, 3)
_SKIP = flags.DEFINE_list(
  'skip', ['unreadable', 'duplicates', 'leaks'],
  'What the skip list holds: unreadable, duplicates, leaks, near, tiny, enormous, over_long.',
)  # fmt: skip
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', 0, 'Processes that decode; 0: one for each core.', 0)
_MAX_IMAGE_PIXELS = doors.define_max_image_pixels()
_OVERWRITE = doors.define_overwrite('the files in --out')
flags.mark_flags_as_required(['path', 'out'])


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.config import DataConfig
  from dalle_jax.jobs.study import data_check

  if unknown := [word for word in _SKIP.value if word not in data_check.SKIPS]:
    raise ValueError(f'--skip has {", ".join(unknown)}; allowed are {", ".join(data_check.SKIPS)}.')
  config = DataConfig(
    source=_SOURCE.value, path=_PATH.value, caption_key=_CAPTION_KEY.value, caption_template=_CAPTION_TEMPLATE.value,
    validation_fraction=_VALIDATION_FRACTION.value, group_separator=_GROUP_SEPARATOR.value, skip_list=_SKIP_LIST.value,
    max_image_pixels=_MAX_IMAGE_PIXELS.value,
  )  # fmt: skip
  out = make_directory(_OUT.value)
  check_new([out / name for name in (data_check.PAGE, data_check.FIGURES, data_check.SKIP_LIST)], _OVERWRITE.value)
  settings = data_check.CheckSettings(
    text_length=_TEXT_LENGTH.value, vocab_size=_VOCAB_SIZE.value, tiny=_TINY.value, enormous=_ENORMOUS.value,
    near_distance=_NEAR_DISTANCE.value, num_processes=_NUM_PROCESSES.value, skip=_SKIP.value,
  )  # fmt: skip
  checked = data_check.check(config, out, settings)
  print(checked.account)
  for kind in sorted(checked.groups):
    if checked.groups[kind]:
      print(f'  {kind}: {len(checked.groups[kind]):,}')
  print(f'{checked.num_skipped:,} pictures in {out / data_check.SKIP_LIST}; page: {out / data_check.PAGE}')
  if problem := checked.figures['captions'].get('problem'):
    print(f'The tokenizer cannot be trained: {problem}')
  if not checked.account.used:
    print('There is nothing to train on.')
    return 1
  return 0


if __name__ == '__main__':
  doors.run(main)
