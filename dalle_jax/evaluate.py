"""Measures a trained model on data, and writes the figures as JSON.

python -m dalle_jax.evaluate --model=runs/quickstart/model --metrics=elbo
"""

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, as training writes it (WORKDIR/model).')
_METRICS = flags.DEFINE_list('metrics', ['elbo'], 'What to measure; elbo: the bound with a uniform and the own prior.')
_SPLIT = flags.DEFINE_string('split', 'validation', 'Split of the data.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 1024, 'Pictures to measure on, from the first; 0: all of the split.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Pictures at a time.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of what is sampled; the same seed gives the same figures.')
_SOURCE = flags.DEFINE_string('source', None, "Kind of data, as config.data.source; by default the model's own.")
_DATA = flags.DEFINE_string('data', None, "Directory of the data, as config.data.path; by default the model's own.")
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where generated data are kept; by default beside the model.')
_OUT = flags.DEFINE_string('out', None, 'JSON file for the figures; by default evaluation_SPLIT.json beside the model.')
flags.mark_flag_as_required('model')


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.pipeline import evaluate

  settings = evaluate.Settings(
    model=_MODEL.value,
    metrics=tuple(_METRICS.value),
    split=_SPLIT.value,
    num_images=_NUM_IMAGES.value,
    batch_size=_BATCH_SIZE.value,
    seed=_SEED.value,
    source=_SOURCE.value,
    data=_DATA.value,
    data_dir=_DATA_DIR.value,
    out=_OUT.value,
  )
  doors.start_jax(distributed=False)
  evaluate.evaluate(settings)
  return 0


if __name__ == '__main__':
  doors.run(main)
