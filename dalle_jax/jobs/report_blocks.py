"""Blocks of a report: reconstructions, use of the codebook, samples, and likelihoods of tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dalle_jax.data.text.tokenizer import Tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.evaluation.token_likelihood import token_nats
from dalle_jax.jobs import examples
from dalle_jax.jobs.choose.draft import ChosenKey
from dalle_jax.jobs.sheet_samples import PromptSamples
from dalle_jax.reporting import codebook as codebook_page
from dalle_jax.reporting import gallery, likelihood_maps
from dalle_jax.reporting.blocks import reason_table

Block = tuple[str, str]  # (title, HTML)

NUM_READINGS = 8  # held-out images with a likelihood map; about as many generated images get one too
NUM_CODES = 16  # number of most used codes that are decoded and shown


class Group(NamedTuple):
  """Images sampled for P prompts, N for each.

  Attributes:
    title: The title of their block in the report.
    note: A sentence on how they were sampled.
    prompts: The prompts; [''] for a model without prompts.
    samples: The images and their tokens.
    right: The judge's verdicts, bool [P, N]: whether an image shows what its prompt says. None if there is no judge.
  """

  title: str
  note: str
  prompts: Sequence[str]
  samples: PromptSamples
  right: np.ndarray | None


class HeldOut(NamedTuple):
  """N held-out images and their tokens.

  Attributes:
    title: What the report calls each of them, such as 'validation image'.
    text: Caption tokens int32 [N, text_length - 1]; [N, 0] for a model without captions.
    codes: Image tokens int32 [N, h, w].
    images: Images uint8 [N, H, W, 3].
  """

  title: str
  text: np.ndarray
  codes: np.ndarray
  images: np.ndarray


def choices(chosen: Sequence[ChosenKey]) -> list[Block]:
  """The block of the chosen sizes and steps with their reasons; none if nothing was chosen."""
  rows = [(f'config.{choice.key}', f'{choice.value}: {choice.reason}') for choice in chosen]
  return [('Chosen sizes and steps', reason_table(rows))] if rows else []


def reconstructions(originals: np.ndarray, reconstructed: np.ndarray) -> Block:
  """The block of originals beside their reconstructions, both uint8 [N, H, W, 3]."""
  psnr = reconstruction.psnr(originals, reconstructed)
  return 'Reconstructions', gallery.reconstructions(originals, reconstructed, psnr)


def codebook(dvae: Any, params: Any, codes: np.ndarray, mesh: Mesh) -> Block:
  """The block on how often codes are used, with images of the most used codes.

  Args:
    dvae: The dVAE's module.
    params: Its parameters, on the mesh.
    codes: The codes of many images, int32 [N, h, w].
    mesh: The device mesh.
  """
  counts = np.bincount(codes.reshape(-1), minlength=dvae.image_vocab_size)
  perplexity = reconstruction.codebook_scores(codes, dvae.image_vocab_size)['codebook/perplexity']
  most_used = [int(code) for code in np.argsort(-counts, kind='stable')[:NUM_CODES] if counts[code]]
  grids = np.broadcast_to(np.asarray(most_used, np.int32)[:, None, None], (len(most_used), *codes.shape[1:]))
  decoded = reconstruction.decode(dvae, params, grids, mesh, NUM_CODES)
  return 'Codebook', codebook_page.use(counts, perplexity, most_used, decoded)


def blocks(
  model: Any,
  params: Any,
  tokenizer: Tokenizer | None,
  groups: Sequence[Group],
  held_out: HeldOut,
  mesh: Mesh,
) -> list[Block]:
  """The blocks of samples, ordered by likelihood for each prompt, and the block of token likelihoods.

  Args:
    model: The stream model that sampled the images.
    params: Its parameters, on the mesh.
    tokenizer: The captions' tokenizer; None for a model without captions.
    groups: The sampled images; may be empty.
    held_out: Held-out images for the block of token likelihoods.
    mesh: The device mesh.
  """
  texts, codes = [held_out.text], [held_out.codes]
  for group in groups:
    grids = group.samples.codes
    texts.append(group.samples.text.repeat(grids.shape[1], axis=0))
    codes.append(grids.reshape(-1, *grids.shape[2:]))
  # One call for all images, so that one compiled program serves them.
  all_nats = token_nats(model, params, np.concatenate(texts), np.concatenate(codes), mesh)
  held_out_nats, *group_nats = np.split(all_nats, np.cumsum([len(grids) for grids in codes])[:-1])
  sample_blocks, readings = [], _held_out_readings(model, tokenizer, held_out, held_out_nats)
  for group, nats in zip(groups, group_nats, strict=True):
    nats = nats.reshape(*group.samples.codes.shape[:2], -1)
    scores = -nats[..., model.text_length :].sum(axis=-1)
    sample_blocks.append((group.title, _samples(group, scores)))
    readings += _sample_readings(model, tokenizer, group, nats, -(-NUM_READINGS // len(groups)))
  return [*sample_blocks, ('Likelihood of tokens', likelihood_maps.maps(readings))]


def token_blocks(measured: Any, groups: Sequence[Group]) -> list[Block]:
  """Calls `blocks` for a measured model, with the first NUM_READINGS images of its split as held-out images.

  Args:
    measured: The measured model and split, a `jobs.evaluate.measured.Measured`.
    groups: The sampled images; may be empty.
  """
  count = min(NUM_READINGS, measured.count)
  codes = measured.codes
  title = f'{measured.settings.split} image'
  held_out = HeldOut(title, measured.text[:count], codes[:count], measured.shown[:count])
  loaded = measured.loaded
  model, part = loaded.stream_model
  return blocks(model, loaded.params[part], loaded.tokenizer, groups, held_out, measured.mesh)


def _samples(group: Group, scores: np.ndarray) -> str:
  """The HTML of a group's images, ordered by their log-likelihoods float [P, N], in nats."""
  order = 'Ordered by likelihood, right images first.' if group.right is not None else 'Ordered by likelihood.'
  note = f'{group.note} {order} Below each image: its log-likelihood at temperature 1, in nats.'
  return gallery.samples(group.prompts, group.samples.images, scores, note, group.right)


def _held_out_readings(
  model: Any, tokenizer: Tokenizer | None, held_out: HeldOut, nats: np.ndarray
) -> list[likelihood_maps.Reading]:
  """The likelihood maps of held-out images, from the nats of their tokens [N, T]."""
  return [
    _reading(model, tokenizer, f'{held_out.title} {i + 1}', held_out.images[i], held_out.text[i], nats[i])
    for i in range(len(nats))
  ]


def _sample_readings(
  model: Any, tokenizer: Tokenizer | None, group: Group, nats: np.ndarray, count: int
) -> list[likelihood_maps.Reading]:
  """The likelihood maps of `count` sampled images: the first image of each prompt, then the second, and so on.

  Args:
    model: The stream model.
    tokenizer: The captions' tokenizer; None for a model without captions.
    group: The sampled images.
    nats: The nats of their tokens, [P, N, T].
    count: The number of images.
  """
  indices = [(p, i) for i in range(nats.shape[1]) for p in range(len(nats))][:count]
  text, images = group.samples.text, group.samples.images
  titles = [f'{group.title}, {f"prompt {p + 1}" if tokenizer else f"image {i + 1}"}' for p, i in indices]
  return [
    _reading(model, tokenizer, title, images[p, i], text[p], nats[p, i])
    for title, (p, i) in zip(titles, indices, strict=True)
  ]


def _reading(
  model: Any,
  tokenizer: Tokenizer | None,
  title: str,
  image: np.ndarray,
  text: np.ndarray,
  nats: np.ndarray,
) -> likelihood_maps.Reading:
  """The likelihood map of one image.

  Args:
    model: The stream model.
    tokenizer: The captions' tokenizer; None for a model without captions.
    title: The map's title.
    image: The image, uint8 [H, W, 3].
    text: Its caption tokens, int32 [text_length - 1].
    nats: The nats of its caption tokens and image tokens, [T].
  """
  pieces = examples.caption_pieces(tokenizer, text) if tokenizer else []
  grid = nats[model.text_length :].reshape(model.grid_size, model.grid_size)
  return likelihood_maps.Reading(title, image, grid, list(zip(pieces, nats.tolist(), strict=False)))
