"""Measures a trained model on a split of its data; prints a table, and writes a JSON file and an HTML page.

python -m dalle_jax.evaluate --model=runs/quickstart/model --metrics=elbo,likelihood,prompt_accuracy
"""

from absl import flags

from dalle_jax import flags as doors

_DEFAULT = "Default: the model's own setting."
_MODEL = flags.DEFINE_string('model', None, 'Model directory, WORKDIR/model of a training run.', required=True)
_VERIFY_MODEL = doors.define_verify_model()
_METRICS = flags.DEFINE_list(
  'metrics', ['elbo'],
  'Metrics to measure, separated by commas: elbo, reconstruction, codebook, likelihood, fid, kid, precision_recall, '
  'inception_score, blurred_fid, clip_score, prompt_accuracy, diversity. all: all that model, data and flags allow.',
)  # fmt: skip
_SPLIT = flags.DEFINE_string('split', 'validation', 'Split of the data, such as train or validation.')
_NUM_IMAGES = flags.DEFINE_integer(
  'num_images', None,
  'Number of images to measure on, from the start of the split; one image is generated for each caption. 0: the whole '
  'split. Default: 1024, or the whole split if it is smaller.',
)  # fmt: skip
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, "Images per batch. Default: 32; for generating, the model's config.sampling.batch_size."
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of all sampling. The same seed gives the same figures.')
_SOURCE = flags.DEFINE_string('source', None, "Kind of data, like config.data.source. Default: the model's own data.")
_DATA = flags.DEFINE_string(
  'data', None, "Directory of the data, like config.data.path. Default: the model's own data."
)
_MAX_IMAGE_PIXELS = doors.define_max_image_pixels(None)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Directory for generated data sets. Default: config.data.data_dir, or data beside the model.'
)
_OUT = flags.DEFINE_string('out', None, 'JSON file for the figures. Default: evaluation_SPLIT.json beside the model.')
_OVERWRITE = doors.define_overwrite('the figures of an earlier evaluation')
_TEMPERATURE = flags.DEFINE_float('temperature', None, f'Temperature of the generated images. {_DEFAULT}')
_TOP_K = flags.DEFINE_integer('top_k', None, f'Number of likeliest tokens to sample from; 0: all. {_DEFAULT}')
_TOP_P = flags.DEFINE_float('top_p', None, f'Probability mass to sample from, above 0; 1: all. {_DEFAULT}')
_GUIDANCE_SCALE = flags.DEFINE_float(
  'guidance_scale', None, f"Factor on the caption's effect on the logits; 1: no guidance. {_DEFAULT}"
)
_GUIDANCE_RAMP = flags.DEFINE_float(
  'guidance_ramp', None, f'Share of the image, 0 to 1, over which the guidance scale grows from 1. {_DEFAULT}'
)
_FEATURES = flags.DEFINE_string(
  'features', None, 'Network whose features fid, kid and other distances compare: reranker or inception.'
)
_RERANKER = flags.DEFINE_string(
  'reranker', None, 'Model directory of a reranker, for clip_score and --features=reranker.'
)
_INCEPTION = flags.DEFINE_string(
  'inception', None, 'Weights for --features=inception: pt_inception-2015-12-05-6726825d.pth from pytorch-fid.'
)
_CACHE = flags.DEFINE_string(
  'cache', None, 'Directory for cached features and hashes of real images. Default: two directories beside the model.'
)
_IMAGES_PER_PROMPT = flags.DEFINE_integer('images_per_prompt', 8, 'diversity: images per prompt, 2 or more.')
_DIVERSITY_PROMPTS = flags.DEFINE_integer('diversity_prompts', 64, 'diversity: largest number of prompts.')
_BLUR_RADII = flags.DEFINE_list(
  'blur_radii', list('012345678'), 'blurred_fid: standard deviations of the Gaussian blur, in pixels.'
)


def _radii() -> tuple[float, ...]:
  try:
    return tuple(float(radius) for radius in _BLUR_RADII.value)
  except ValueError:
    raise ValueError(f'--blur_radii is {",".join(_BLUR_RADII.value)!r}; give numbers separated by commas.') from None


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.bundle import verify_by_default
  from dalle_jax.jobs.evaluate import evaluation_run
  from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings

  verify_by_default(_VERIFY_MODEL.value)
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
    max_image_pixels=_MAX_IMAGE_PIXELS.value,
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
  evaluation_run.evaluate(settings, overwrite=_OVERWRITE.value)
  return 0


if __name__ == '__main__':
  doors.run(main)
