"""The decode loop: sample sequences from any sequence model with its cache, in one call or in several.

`decode` samples complete sequences. To observe sequences while they grow, call `begin`, `advance` and `finish`
instead and read the `State` between the calls. The caller jits them. Optional arguments that are None add no
computation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models.sequence import SequenceModel, token_nll
from dalle_jax.sampling.logits import Real, guide, sample


class NotFiniteError(ValueError):
  """The model's logits are NaN or infinite."""


class Guidance(NamedTuple):
  """Classifier-free guidance whose scale can ramp up from 1 over the first tokens."""

  scale: Real  # the full scale
  first: jax.Array | np.integer | int  # the position at which the ramp starts
  ramp: Real  # the length of the ramp in positions; 0: the full scale at every position

  def at(self, position: jax.Array) -> jax.Array:
    """The guidance scale at a position."""
    share = jnp.clip((position - self.first + 1) / jnp.maximum(self.ramp, 1), 0, 1)
    return 1 + (self.scale - 1) * jnp.where(self.ramp > 0, share, 1.0)


class Given(NamedTuple):
  """Known tokens of the sequences: at each position, either forced or only favoured."""

  tokens: jax.Array  # int32 [B, length]
  forced: jax.Array  # bool [B, length]: positions where the known token is used instead of a sample
  bonus: Real | None = None  # added to the log odds of the known tokens at the other positions, in nats


class Settings(NamedTuple):
  """Sampling settings; `sample` in `logits.py` explains them."""

  temperature: Real = 1.0
  top_p: Real | None = None
  guidance: Guidance | None = None


class State(NamedTuple):
  """Partially sampled sequences.

  With guidance, `cache` and `logits` have 2B rows: row 2b is conditional and row 2b + 1 unconditional for sequence b.
  """

  tokens: jax.Array  # int32 [B, length]; positions from `position` on are not sampled yet
  nats: jax.Array  # float32 [B, length]: -ln p of each token under the conditional logits; 0 in the prefix
  not_finite: jax.Array  # int32 [B]: the first position with NaN or infinite logits; `length` if there is none
  position: jax.Array  # int32: the position of the next token
  cache: Any
  logits: jax.Array  # [B or 2B, V]: the logits of the next token


def row_keys(seed: jax.Array | int, index: jax.Array) -> jax.Array:
  """Typed PRNG keys [B] for the images or texts numbered index [B]: fold_in(key(seed), index)."""
  base = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(base, i))(index)


def begin(model: SequenceModel, params: Any, prefix: jax.Array, unconditional: jax.Array | None = None) -> State:
  """Start sequences: read their prefixes and fill the cache.

  Args:
    model: any sequence model.
    params: parameters as returned by `model.decode_params`.
    prefix: int32 [B, P], the first tokens of the sequences; P < model.length.
    unconditional: int32 [B, P], the prefixes for the unconditional logits of guidance; None without guidance.
  """
  batch, start = prefix.shape
  rows = prefix if unconditional is None else jnp.stack([prefix, unconditional], axis=1).reshape(2 * batch, start)
  cache, logits = model.prefill(params, rows)
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
  """Sample the tokens at positions before `stop`.

  Args:
    model: any sequence model.
    params: parameters as returned by `model.decode_params`.
    state: the sequences so far.
    keys: typed PRNG keys [B]; the token at position t of row b uses fold_in(keys[b], t).
    stop: the position to stop before, at most model.length - 1.
    settings: the sampling settings.
    top_k: how many of the likeliest tokens to sample from; 0 for all.
    given: known tokens; None if there are none.
  """

  def body(position: jax.Array, state: State) -> State:
    state, token = _draw(state, position, keys, settings, top_k, given)
    rows = token if settings.guidance is None else jnp.repeat(token, 2)
    cache, logits = model.step(params, state.cache, rows)
    return state._replace(cache=cache, logits=logits)

  state = jax.lax.fori_loop(state.position, stop, body, state)
  return state._replace(position=jnp.asarray(stop, jnp.int32))


def finish(
  state: State, keys: jax.Array, settings: Settings, top_k: int = 0, given: Given | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sample the last token; unlike `advance`, this computes no logits after it.

  Args:
    state: the sequences, with all tokens but the last.
    keys: as for `advance`.
    settings: as for `advance`.
    top_k: as for `advance`.
    given: as for `advance`.

  Returns:
    The fields `tokens`, `nats` and `not_finite` of `State`.
  """
  state, _ = _draw(state, jnp.int32(state.tokens.shape[1] - 1), keys, settings, top_k, given)
  return state.tokens, state.nats, state.not_finite


def _draw(
  state: State, position: jax.Array, keys: jax.Array, settings: Settings, top_k: int, given: Given | None
) -> tuple[State, jax.Array]:
  """Sample the token at `position`; returns the new state and the token [B]."""
  logits, conditional = state.logits, state.logits
  if settings.guidance is not None:
    conditional, unconditional = logits[::2], logits[1::2]
    logits = guide(conditional, unconditional, settings.guidance.at(position))
  if given is not None and given.bonus is not None:
    is_known = jax.nn.one_hot(given.tokens[:, position], logits.shape[-1], dtype=bool)
    # `sample` divides the logits by the temperature; we multiply the bonus by it so that the temperature cancels.
    bonus = given.bonus * jnp.where(settings.temperature == 0, 1.0, settings.temperature)
    logits = jnp.where(is_known, logits + bonus, logits)
  folded = jax.vmap(lambda key: jax.random.fold_in(key, position))(keys)
  token = sample(folded, logits, settings.temperature, top_k, settings.top_p)
  if given is not None:
    token = jnp.where(given.forced[:, position], given.tokens[:, position], token)
  finite = jnp.isfinite(jnp.max(logits, axis=-1))  # the maximum is NaN if any logit is NaN
  state = state._replace(
    tokens=state.tokens.at[:, position].set(token),
    nats=state.nats.at[:, position].set(token_nll(conditional, token)),
    not_finite=jnp.where(finite, state.not_finite, jnp.minimum(state.not_finite, position)),
  )
  return state, token


def check_finite(not_finite: np.ndarray, length: int, name: Callable[[int, int], str]) -> None:
  """Check that the logits of all sampled sequences were finite.

  Args:
    not_finite: int [B], as in `State`.
    length: tokens of a sequence.
    name: describes a row and a position for the message.

  Raises:
    NotFiniteError: some logits were NaN or infinite; the message says where.
  """
  rows = np.flatnonzero(not_finite < length)
  if len(rows):
    where = name(int(rows[0]), int(not_finite[rows[0]]))
    raise NotFiniteError(
      f'The logits of the model are NaN or infinite at {where} ({len(rows)} of a batch of {len(not_finite)}), so no '
      'token can be sampled. Either the parameters are damaged or the dtype is too narrow (config.prior.dtype, '
      'config.model.dtype). Train the model again, or use an earlier one.'
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
) -> tuple[jax.Array, jax.Array]:
  """Sample complete sequences that begin with given prefixes, in one call.

  Args:
    model: any sequence model.
    params: the model's parameters.
    prefix: int32 [B, P], the first tokens of the sequences; P < model.length.
    keys: typed PRNG keys [B].
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: how many of the likeliest tokens to sample from; 0 for all.
    top_p: the share of the probability to sample from; None for all.

  Returns:
    The tokens, int32 [B, model.length], and `not_finite`, int32 [B], as in `State`.
  """
  settings = Settings(temperature, top_p)
  params = model.decode_params(params)
  state = begin(model, params, prefix)
  state = advance(model, params, state, keys, model.length - 1, settings, top_k)
  tokens, _, not_finite = finish(state, keys, settings, top_k)
  return tokens, not_finite
