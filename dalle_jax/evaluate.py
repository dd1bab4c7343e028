"""Measures a trained model on data, and writes the figures as JSON.

python -m dalle_jax.evaluate --model=runs/quickstart/model --metrics=elbo,likelihood,prompt_accuracy
"""

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, as training writes it (WORKDIR/model).')
_METRICS = flags.DEFINE_list(
  'metrics', ['elbo'],
  'What to measure: elbo, reconstruction, codebook, likelihood, fid, kid, precision_recall, inception_score, '
  'blurred_fid, clip_score, prompt_accuracy, diversity; or all that this model, its data and the flags allow.',
)  # fmt: skip
_SPLIT = flags.DEFINE_string('split', 'validation', 'Split of the data.')
_NUM_IMAGES = flags.DEFINE_integer(
  'num_images', None,
  'Pictures to measure on, from the first, and images to draw, one for each caption; 0: all of the split; by default '
  '1024, or all of a smaller split.',
)  # fmt: skip
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, "Pictures at a time; by default 32, and in drawing the model's own."
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of what is sampled; the same seed gives the same figures.')
_SOURCE = flags.DEFINE_string('source', None, "Kind of data, as config.data.source; by default the model's own.")
_DATA = flags.DEFINE_string('data', None, "Directory of the data, as config.data.path; by default the model's own.")
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where generated data are kept; by default beside the model.')
_OUT = flags.DEFINE_string('out', None, 'JSON file for the figures; by default evaluation_SPLIT.json beside the model.')
_TEMPERATURE = flags.DEFINE_float('temperature', None, "Of the images drawn; by default the model's own, as below.")
_TOP_K = flags.DEFINE_integer('top_k', None, 'Tokens to choose among, 0 for all.')
_TOP_P = flags.DEFINE_float('top_p', None, 'Share of the probability to choose among, 1 for all.')
_GUIDANCE_SCALE = flags.DEFINE_float('guidance_scale', None, "How far the caption's effect is exaggerated; 1: not.")
_GUIDANCE_RAMP = flags.DEFINE_float('guidance_ramp', None, 'Share of the image over which the scale grows.')
_FEATURES = flags.DEFINE_string('features', None, 'What distances between pictures are of: reranker or inception.')
_RERANKER = flags.DEFINE_string('reranker', None, 'Model directory of a reranker: its features, and clip_score.')
_INCEPTION = flags.DEFINE_string(
  'inception', None, 'The weights of --features=inception: pt_inception-2015-12-05-6726825d.pth of pytorch-fid.'
)
_CACHE = flags.DEFINE_string(
  'cache', None, 'Directory for features of real pictures; by default features beside the model.'
)
_IMAGES_PER_PROMPT = flags.DEFINE_integer('images_per_prompt', 8, 'Images of each prompt whose diversity is measured.')
_DIVERSITY_PROMPTS = flags.DEFINE_integer('diversity_prompts', 64, 'Prompts whose diversity is measured, at most.')
_BLUR_RADII = flags.DEFINE_list(
  'blur_radii', list('012345678'), 'Radii of blurred_fid: standard deviations of the Gaussian in pixels.'
)
flags.mark_flag_as_required('model')


def _radii() -> tuple[float, ...]:
  try:
    return tuple(float(radius) for radius in _BLUR_RADII.value)
  except ValueError:
    raise ValueError(f'--blur_radii is {",".join(_BLUR_RADII.value)!r}; it must list numbers.') from None


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.jobs.evaluate import evaluation_run
  from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings

  settings = EvaluationSettings(
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
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
    guidance_scale=_GUIDANCE_SCALE.value,
    guidance_ramp=_GUIDANCE_RAMP.value,
    features=_FEATURES.value,
    reranker=_RERANKER.value,
    inception=_INCEPTION.value,
    cache=_CACHE.value,
    images_per_prompt=_IMAGES_PER_PROMPT.value,
    diversity_prompts=_DIVERSITY_PROMPTS.value,
    blur_radii=_radii(),
  )
  doors.start_jax(distributed=False)
  evaluation_run.evaluate(settings)
  return 0


if __name__ == '__main__':
  doors.run(main)
