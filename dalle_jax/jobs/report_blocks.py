"""What a page shows of pictures and tokens: reconstructions, the use of the codebook, samples, likelihoods."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.evaluation.token_likelihood import token_nats
from dalle_jax.jobs import examples
from dalle_jax.jobs.sheet_samples import PromptSamples
from dalle_jax.reporting import codebook as codebook_page
from dalle_jax.reporting import gallery, likelihood_maps

Block = tuple[str, str]  # title and HTML

BATCH_SIZE = 8  # sequences read at a time: each has logits over both vocabularies, 126 MB in the paper's model
NUM_READINGS = 8  # held-out pictures whose tokens are shown, and about as many drawn ones
NUM_CODES = 16  # of the most used codes, shown as what they decode to


class Group(NamedTuple):
  """Images drawn for prompts."""

  title: str
  note: str  # how they were drawn
  prompts: Sequence[str]  # [''] where they were drawn without
  drawn: PromptSamples
  right: np.ndarray | None  # bool [P, N], a judge's verdicts


class HeldOut(NamedTuple):
  """Pictures that were not trained on, as tokens."""

  title: str
  text: np.ndarray  # int32 [N, text_length - 1]; [N, 0] for a model of images alone
  codes: np.ndarray  # int32 [N, h, w]
  images: np.ndarray  # uint8 [N, H, W, 3]


def reconstructions(originals: np.ndarray, reconstructed: np.ndarray) -> Block:
  """Originals beside their reconstructions, both uint8 [N, H, W, 3]."""
  psnr = reconstruction.psnr(originals, reconstructed)
  return 'Reconstructions', gallery.reconstructions(originals, reconstructed, psnr)


def codebook(dvae: Any, params: Any, codes: np.ndarray, mesh: Mesh) -> Block:
  """How the codes int32 [...] of many pictures use the codebook.

  Args:
    dvae: the module.
    params: its parameters, on the mesh.
    codes: of the pictures, [N, h, w].
    mesh: of the devices.
  """
  counts = np.bincount(codes.reshape(-1), minlength=dvae.image_vocab_size)
  perplexity = reconstruction.codebook_scores(codes, dvae.image_vocab_size)['codebook/perplexity']
  most = [int(code) for code in np.argsort(-counts, kind='stable')[:NUM_CODES] if counts[code]]
  grids = np.broadcast_to(np.asarray(most, np.int32)[:, None, None], (len(most), *codes.shape[1:]))
  decoded = reconstruction.decode(dvae, params, grids, mesh, NUM_CODES)
  return 'Codebook', codebook_page.use(counts, perplexity, most, decoded)


def blocks(
  model: Any,
  params: Any,
  tokenizer: Tokenizer | None,
  groups: Sequence[Group],
  held_out: HeldOut,
  mesh: Mesh,
) -> list[Block]:
  """Samples by prompt, in the order of their likelihood, and the likelihood of tokens.

  Args:
    model: of streams.
    params: its parameters, on the mesh.
    tokenizer: of captions, where the model has read some.
    groups: what was drawn, if anything.
    held_out: pictures to read.
    mesh: of the devices.
  """
  texts, codes = [held_out.text], [held_out.codes]
  for group in groups:  # all are read in one go, by one compiled program
    grids = group.drawn.codes
    texts.append(group.drawn.text.repeat(grids.shape[1], axis=0))
    codes.append(grids.reshape(-1, *grids.shape[2:]))
  nats = token_nats(model, params, np.concatenate(texts), np.concatenate(codes), mesh)
  parts = np.split(nats, np.cumsum([len(part) for part in codes])[:-1])
  shown, readings = [], _held_out_readings(model, tokenizer, held_out, parts[0])
  for group, part in zip(groups, parts[1:], strict=True):
    part = part.reshape(*group.drawn.codes.shape[:2], -1)
    scores = -part[..., model.text_length :].sum(axis=-1)
    shown.append((group.title, _samples(group, scores)))
    readings += _drawn_readings(model, tokenizer, group, part, -(-NUM_READINGS // len(groups)))
  return [*shown, ('Likelihood of tokens', likelihood_maps.maps(readings))]


def token_blocks(measured: Any, groups: Sequence[Group]) -> list[Block]:
  """The blocks of `blocks` for the first pictures of a measured split and groups of samples.

  Args:
    measured: The measured model and split, `jobs.evaluate.measured.Measured`.
    groups: What was sampled.
  """
  count = min(NUM_READINGS, measured.count)
  codes, _ = measured.reconstructed
  title = f'{measured.settings.split} picture'
  held_out = HeldOut(title, measured.text[:count], codes[:count], measured.pictures[:count])
  model, part = measured.loaded.stream_model
  loaded = measured.loaded
  return blocks(model, loaded.params[part], loaded.tokenizer, groups, held_out, measured.mesh)


def _samples(group: Group, scores: np.ndarray) -> str:
  order = 'Right ones first, then by' if group.right is not None else 'By'
  note = (
    f'{group.note} {order} likelihood: below each image the logarithm of its probability at temperature 1, in nats.'
  )
  return gallery.samples(group.prompts, group.drawn.images, scores, note, group.right)


def _held_out_readings(
  model: Any, tokenizer: Tokenizer | None, given: HeldOut, nats: np.ndarray
) -> list[likelihood_maps.Reading]:
  return [
    _reading(model, tokenizer, f'{given.title} {i + 1}', given.images[i], given.text[i], nats[i])
    for i in range(len(nats))
  ]


def _drawn_readings(
  model: Any, tokenizer: Tokenizer | None, group: Group, nats: np.ndarray, count: int
) -> list[likelihood_maps.Reading]:
  """Of the first image of each of the first prompts, or, without prompts, of the first images."""
  places = [(p, i) for i in range(nats.shape[1]) for p in range(len(nats))][:count]
  text, images = group.drawn.text, group.drawn.images
  names = [f'{group.title}, {f"prompt {p + 1}" if tokenizer else f"image {i + 1}"}' for p, i in places]
  return [
    _reading(model, tokenizer, name, images[p, i], text[p], nats[p, i])
    for name, (p, i) in zip(names, places, strict=True)
  ]


def _reading(
  model: Any,
  tokenizer: Tokenizer | None,
  title: str,
  image: np.ndarray,
  text: np.ndarray,
  nats: np.ndarray,
) -> likelihood_maps.Reading:
  pieces = examples.caption_pieces(tokenizer, text) if tokenizer else []
  grid = nats[model.text_length :].reshape(model.grid_size, model.grid_size)
  return likelihood_maps.Reading(title, image, grid, list(zip(pieces, nats.tolist(), strict=False)))
