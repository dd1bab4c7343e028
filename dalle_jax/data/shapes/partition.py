"""Divide all that can be shown and said between the splits 'train' and 'validation', so that they share nothing.

A description is what a caption says, whatever its wording. A scene also has one: all that can be said about it, which
does not include the jitter. A hash of the description reserves RESERVED_SHARE of all descriptions for 'validation':

- 'train' never has a scene or a caption with a reserved description.
- 'validation' has only scenes and captions with reserved descriptions.
- 'held_out' has combinations of attributes that neither of the two has (see `scene.is_held_out`). Its captions always
  mention them.

The division is the same for every seed, image size, jitter and share of scenes with two objects. So a model that was
trained on one variant of the data set can be measured on the 'validation' of another.
"""

import hashlib

from dalle_jax.data.shapes.captions import Claims, ObjectClaim
from dalle_jax.data.shapes.scene import INVERSE, Scene

RESERVED_SHARE = 0.2
_DIGEST_BYTES = 8


def describe(scene: Scene) -> Claims:
  """Returns all that a caption can say about a scene."""
  objects = tuple(ObjectClaim(shape.shape, shape.color, shape.size) for shape in scene.objects)
  return Claims(objects, scene.position, scene.background, scene.relation)


def is_reserved(claims: Claims) -> bool:
  """Whether a description is reserved for 'validation'. Paraphrases are reserved together."""
  digest = hashlib.blake2b(canonical(claims).encode(), digest_size=_DIGEST_BYTES).digest()
  return int.from_bytes(digest, 'big') < RESERVED_SHARE * 256**_DIGEST_BYTES


def canonical(claims: Claims) -> str:
  """A text that is equal for two descriptions if and only if they say the same.

  'a red circle above a blue square' and 'a blue square below a red circle' say the same.
  """
  nouns = [f'{claim.size} {claim.color} {claim.shape}' for claim in claims.objects]
  scenery = f'at {claims.position} on {claims.background}'
  if len(nouns) == 1:
    return f'{nouns[0]} {scenery}'
  inverse = None if claims.relation is None else INVERSE[claims.relation]
  orders = (f'{nouns[0]} {claims.relation} {nouns[1]}', f'{nouns[1]} {inverse} {nouns[0]}')
  return f'{min(orders)} {scenery}'
