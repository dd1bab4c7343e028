"""Counts the errors of the judge of captioned_shapes: near misses that it accepts, and true scenes that it rejects.

    python tools/judge_errors.py
    python tools/judge_errors.py --model=runs/quickstart/model

The near misses are the list in dalle_jax/evaluation/near_misses.py. The true scenes are the first ones of a split.
Each is checked against everything that can be said about it. With a model, the scenes are also checked after the
model's dVAE has encoded and decoded them. The first errors are listed.
"""

import collections
from pathlib import Path

import numpy as np
from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory of a model of captioned_shapes; reconstructs the scenes.')
_VERIFY_MODEL = doors.define_verify_model()
_SPLIT = flags.DEFINE_enum('split', 'validation', ('train', 'validation', 'held_out'), 'Split of the true scenes.')
_SEED = flags.DEFINE_integer('seed', None, "Seed of the true scenes. By default, the data's.", lower_bound=0)
_COUNT = flags.DEFINE_integer('count', 1000, 'Number of true scenes.', lower_bound=1)

MOST_LISTED = 20


def count_accepted() -> int:
  """Prints the number of accepted near misses of each kind, and returns their sum."""
  from dalle_jax.evaluation.judge import judge
  from dalle_jax.evaluation.near_misses import near_misses

  listed = near_misses()
  totals, accepted, details = collections.Counter(item.kind for item in listed), collections.Counter(), []
  for item in listed:
    if judge([item.caption], item.image[None])[0]:
      accepted[item.kind] += 1
      details.append(f'  {item.kind}: {item.detail}; {item.caption!r} accepted')
  print(f'{"near misses":<28}{"listed":>8}{"accepted":>10}')
  for kind, total in totals.items():
    print(f'{kind:<28}{total:>8,}{accepted[kind]:>10,}')
  print(f'{"all":<28}{len(listed):>8,}{accepted.total():>10,}')
  print('\n'.join(details[:MOST_LISTED]))
  return accepted.total()


def count_rejected(name: str, scenes: list, images: np.ndarray) -> int:
  """Prints the number of images of true scenes that the judge rejects, and returns it.

  Args:
    name: what the images are.
    scenes: N scenes.
    images: uint8 [N, H, H, 3].
  """
  from dalle_jax.data.shapes.partition import canonical, describe
  from dalle_jax.evaluation import judge

  details = []
  for scene, image in zip(scenes, images, strict=True):
    if not judge.satisfies(describe(scene), image):
      scene_read = judge.read(image)
      seen = 'not readable' if scene_read is None else f'read as {canonical(describe(scene_read))}'
      details.append(f'  {canonical(describe(scene))}: {seen}')
  print(f'{name}: {len(details):,} of {len(scenes):,} rejected ({len(details) / len(scenes):.2%})')
  print('\n'.join(details[:MOST_LISTED]))
  return len(details)


def main(argv: list[str]) -> int:
  del argv
  doors.start_jax(distributed=False)
  from dalle_jax import bundle, sharding
  from dalle_jax.config import DataConfig
  from dalle_jax.data.pictures.image import decode
  from dalle_jax.data.shapes import builder
  from dalle_jax.data.shapes.scene import Scene
  from dalle_jax.evaluation import reconstruction

  bundle.verify_by_default(_VERIFY_MODEL.value)
  path = Path(_MODEL.value) if _MODEL.value else None
  if path:
    bundle.check(path, needs=('dvae',))
  data = bundle.read_config(path).data if path else DataConfig(image_size=32)
  if data.source != 'captioned_shapes':
    raise ValueError(f'--model {path} was trained on {data.source}; the judge only reads captioned_shapes.')
  seed = data.shapes_seed if _SEED.value is None else _SEED.value
  config = builder.ShapesConfig(
    name='', image_size=data.image_size, num_train=1, num_validation=1, num_held_out=1,
    two_object_fraction=0.5, jitter=data.position_jitter, seed=seed,
  )  # fmt: skip
  examples = [builder.make_example(config, _SPLIT.value, index) for index in range(_COUNT.value)]
  scenes = [Scene.from_json(example['scene']) for example in examples]
  images = np.stack([decode(example['image']) for example in examples])
  count_accepted()
  count_rejected(f'true scenes of {_SPLIT.value}, rendered', scenes, images)
  if path:
    mesh = sharding.make_mesh()
    loaded = bundle.load(path, mesh, needs=('dvae',))
    _, decoded = reconstruction.reconstruct(loaded.dvae, loaded.params['dvae'], images, mesh, 64)
    psnr = reconstruction.psnr(images, decoded).mean()
    count_rejected(f'true scenes of {_SPLIT.value}, reconstructed with {psnr:.1f} dB', scenes, decoded)
  return 0


if __name__ == '__main__':
  doors.run(main)
