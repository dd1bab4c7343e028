"""The decode loop: whole sequences from any sequence model, with its cache, in one piece or in several.

`begin`, `advance` and `finish` are jitted by whoever calls them; what stands between two of them, a `State`, can be
looked at while the sequences grow. What is None in their arguments is not computed at all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models.sequence import SequenceModel, token_nll
from dalle_jax.sampling.logits import guide, sample


class NotFiniteError(ValueError):
  """The model's logits are NaN or infinite."""


class Guidance(NamedTuple):
  """Classifier-free guidance, whose scale may grow from 1 to its full value over the first tokens."""

  scale: jax.Array | float
  first: jax.Array | int  # the position from which it grows
  ramp: jax.Array | float  # positions over which it does; 0: it is whole from `first` on

  def at(self, position: jax.Array) -> jax.Array:
    """The scale at a position."""
    share = jnp.clip((position - self.first + 1) / jnp.maximum(self.ramp, 1), 0, 1)
    return 1 + (self.scale - 1) * jnp.where(self.ramp > 0, share, 1.0)


class Given(NamedTuple):
  """Tokens [B, length] that are known beforehand."""

  tokens: jax.Array
  forced: jax.Array  # bool [B, length]: where they are taken as they are
  bonus: jax.Array | float | None = None  # the log of what multiplies their odds elsewhere, in nats


class Settings(NamedTuple):
  """How tokens are drawn."""

  temperature: jax.Array | float = 1.0
  top_p: jax.Array | float | None = None
  guidance: Guidance | None = None


class State(NamedTuple):
  """Sequences that are being drawn. With guidance, the rows 2b and 2b + 1 of `cache` and `logits` belong to row b."""

  tokens: jax.Array  # int32 [B, length]
  nats: jax.Array  # float32 [B, length]: -ln p of each token by the model alone; 0 in the prefix
  not_finite: jax.Array  # int32 [B]: the first position without a finite logit; `length` where there is none
  position: jax.Array  # int32: of the next token
  cache: Any
  logits: jax.Array  # [B or 2B, V] of the next token


def row_keys(seed: jax.Array | int, index: jax.Array) -> jax.Array:
  """The typed keys [B] of the images or texts number index [B]: fold_in(key(seed), number)."""
  base = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(base, i))(index)


def begin(model: SequenceModel, params: Any, prefix: jax.Array, unconditional: jax.Array | None = None) -> State:
  """Reads token prefixes int32 [B, P], P < model.length.

  Args:
    model: any sequence model.
    params: as `model.decode_params` returns them.
    prefix: what the sequences begin with.
    unconditional: int32 [B, P], the prefixes that guidance compares with; None without it.
  """
  batch, start = prefix.shape
  read = prefix if unconditional is None else jnp.stack([prefix, unconditional], axis=1).reshape(2 * batch, start)
  cache, logits = model.prefill(params, read)
  tokens = jnp.pad(prefix.astype(jnp.int32), ((0, 0), (0, model.length - start)))
  return State(
    tokens, jnp.zeros(tokens.shape, jnp.float32), jnp.full(batch, model.length, jnp.int32), jnp.int32(start), cache,
    logits,
  )  # fmt: skip


def advance(
  model: SequenceModel,
  params: Any,
  state: State,
  keys: jax.Array,
  stop: jax.Array | int,
  settings: Settings,
  top_k: int = 0,
  given: Given | None = None,
) -> State:
  """Draws the tokens before `stop`, which is at most model.length - 1.

  Args:
    model: any sequence model.
    params: as `model.decode_params` returns them.
    state: the sequences so far.
    keys: typed PRNG keys [B]; the token at position t of row b is drawn with fold_in(keys[b], t).
    stop: the position at which to stop.
    settings: of sampling.
    top_k: tokens to choose among at each position; 0 for all.
    given: known tokens.
  """

  def body(position: jax.Array, state: State) -> State:
    state, token = _draw(state, position, keys, settings, top_k, given)
    fed = token if settings.guidance is None else jnp.repeat(token, 2)
    cache, logits = model.step(params, state.cache, fed)
    return state._replace(cache=cache, logits=logits)

  state = jax.lax.fori_loop(state.position, stop, body, state)
  return state._replace(position=jnp.asarray(stop, jnp.int32))


def finish(
  state: State, keys: jax.Array, settings: Settings, top_k: int = 0, given: Given | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws the last token: nothing needs the logits that would follow it.

  Returns:
    Of `State`: tokens, nats, not_finite.
  """
  state, _ = _draw(state, jnp.int32(state.tokens.shape[1] - 1), keys, settings, top_k, given)
  return state.tokens, state.nats, state.not_finite


def _draw(
  state: State, position: jax.Array, keys: jax.Array, settings: Settings, top_k: int, given: Given | None
) -> tuple[State, jax.Array]:
  """The state with the token at `position`, and the token [B]."""
  logits, conditional = state.logits, state.logits
  if settings.guidance is not None:
    conditional, unconditional = logits[::2], logits[1::2]
    logits = guide(conditional, unconditional, settings.guidance.at(position))
  if given is not None and given.bonus is not None:
    likelier = jax.nn.one_hot(given.tokens[:, position], logits.shape[-1], dtype=bool)
    # Before the temperature divides the logits, so that the odds change as said at every temperature.
    bonus = given.bonus * jnp.where(settings.temperature == 0, 1.0, settings.temperature)
    logits = jnp.where(likelier, logits + bonus, logits)
  folded = jax.vmap(lambda key: jax.random.fold_in(key, position))(keys)
  token = sample(folded, logits, settings.temperature, top_k, settings.top_p)
  if given is not None:
    token = jnp.where(given.forced[:, position], given.tokens[:, position], token)
  finite = jnp.isfinite(jnp.max(logits, axis=-1))  # the maximum is NaN if one of them is
  drawn = state._replace(
    tokens=state.tokens.at[:, position].set(token),
    nats=state.nats.at[:, position].set(token_nll(conditional, token)),
    not_finite=jnp.where(finite, state.not_finite, jnp.minimum(state.not_finite, position)),
  )
  return drawn, token


def check_finite(not_finite: np.ndarray, length: int, name: Callable[[int, int], str]) -> None:
  """Refuses sequences for which the model had no finite logits.

  Args:
    not_finite: int [B], as in `State`.
    length: of a sequence.
    name: what to call a row and a position in the message.

  Raises:
    NotFiniteError: says where.
  """
  rows = np.flatnonzero(not_finite < length)
  if len(rows):
    where = name(int(rows[0]), int(not_finite[rows[0]]))
    raise NotFiniteError(
      f'The logits of the model are NaN or infinite at {where} ({len(rows)} of a batch of {len(not_finite)}), so there '
      'is nothing to draw: its parameters are damaged, or its dtype is too narrow (config.prior.dtype, '
      'config.model.dtype). Train it again, or take an earlier model.'
    )


def decode(
  model: SequenceModel,
  params: Any,
  prefix: jax.Array,
  keys: jax.Array,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float | None = None,
) -> jax.Array:
  """Continues token prefixes [B, P] to whole sequences, in one piece.

  Args:
    model: any sequence model.
    params: its parameters.
    prefix: int32 [B, P], P < model.length.
    keys: typed PRNG keys [B].
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: tokens to choose among at each position; 0 for all.
    top_p: share of the probability to choose among; None for all.

  Returns:
    int32 [B, model.length], and int32 [B]: the first position without finite logits, `model.length` for none.
  """
  settings = Settings(temperature, top_p)
  params = model.decode_params(params)
  state = begin(model, params, prefix)
  state = advance(model, params, state, keys, model.length - 1, settings, top_k)
  tokens, _, not_finite = finish(state, keys, settings, top_k)
  return tokens, not_finite
