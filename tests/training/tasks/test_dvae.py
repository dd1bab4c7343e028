import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.config import DvaeConfig, MeshConfig, TrainingConfig
from dalle_jax.evaluation import elbo
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.sharding import make_mesh, to_global, use_mesh
from dalle_jax.training import vector_quantizer
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import create_state
from dalle_jax.training.step import make_train_step
from dalle_jax.training.tasks.dvae import DvaeTask, cosine_ramp

SIZE, CODES = 8, 12
SHAPE = {
  'image_vocab_size': CODES, 'hidden_size': 8, 'decoder_input_size': 8, 'num_groups': 2, 'blocks_per_group': 1,
}  # fmt: skip
TASK = DvaeTask(DvaeConfig(**SHAPE, kl_weight=0.5, kl_warmup_steps=4, temperature_steps=10, min_log_scale=-3.0), SIZE)


@pytest.fixture(scope='module')
def params(random_params):
  return random_params(TASK, 0.3)


@pytest.fixture(scope='module')
def batch():
  return {'image': np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)}


@pytest.fixture(scope='module')
def loss():
  return jax.jit(TASK.loss)


@pytest.fixture(scope='module')
def means(params, batch):
  return jax.device_get(jax.jit(TASK.evaluate)(params, batch, jax.random.key(0), jnp.asarray(3)))


@functools.cache
def _jitted(method):
  return jax.jit(lambda params, x: TASK.model.apply({'params': params['dvae']}, x, method=method))


def _apply(params, argument, method):
  return _jitted(method)(params, argument)


def test_cosine_ramp_is_half_a_cosine_and_then_constant():
  values = [float(cosine_ramp(jnp.asarray(step), 1.0, 0.2, 8)) for step in (0, 2, 4, 8, 99)]
  assert values == pytest.approx([1, 0.6 + 0.4 * np.cos(np.pi / 4), 0.6, 0.2, 0.2])


def test_default_schedules_equal_the_paper():
  task = DvaeTask(DvaeConfig(), 256)
  assert [float(task.temperature(jnp.asarray(step))) for step in (0, 150_000)] == pytest.approx([1, 1 / 16])
  assert [float(task.kl_weight(jnp.asarray(step))) for step in (0, 5_000)] == pytest.approx([0, 6.6 / 192])


@pytest.mark.parametrize('step', [0, 2, 50])
def test_the_loss_is_the_nll_plus_the_weighted_kl(params, batch, loss, step):
  key, step = jax.random.key(7), jnp.asarray(step)
  value, metrics = loss(params, batch, key, step)
  logits = _apply(params, batch['image'], 'encode_latents')
  relaxed = bottleneck.gumbel_softmax(logits, key, TASK.temperature(step))
  stats = _apply(params, relaxed, 'mixed_stats')
  nll = likelihood.logit_laplace_nll(likelihood.map_pixels(batch['image']), stats, -3.0)
  kl = bottleneck.kl_to_uniform(logits)
  assert kl.shape == (4, 4, 4)
  assert value == pytest.approx(float(nll.mean() + TASK.kl_weight(step) * kl.mean()), rel=1e-5)
  assert metrics['nll_relaxed'] == pytest.approx(float(nll.mean()), rel=1e-5)
  assert metrics['kl_per_position'] == pytest.approx(float(kl.mean()), rel=1e-5)
  assert metrics['kl_weight'] == pytest.approx([0, 0.25, 0.5][[0, 2, 50].index(int(step))])
  mse = np.mean((np.asarray(likelihood.reconstruction(stats)) / 255 - batch['image'] / 255) ** 2)
  assert metrics['psnr_relaxed'] == pytest.approx(-10 * np.log10(mse), abs=1e-3)


def test_the_noise_depends_on_the_key(params, batch, loss):
  first, repeated, other = (float(loss(params, batch, jax.random.key(k), jnp.asarray(1))[0]) for k in (0, 0, 1))
  assert first == repeated != other


def test_the_loss_moves_from_the_normal_to_the_logit_laplace_nll(params, batch):
  config = DvaeConfig(**SHAPE, kl_weight=0.0, normal_steps=10, normal_scale=0.2, min_log_scale=-3.0)
  task = DvaeTask(config, SIZE)
  loss = jax.jit(task.loss)
  stats = _apply(params, bottleneck.gumbel_softmax(
    _apply(params, batch['image'], 'encode_latents'), jax.random.key(0), 1.0), 'mixed_stats')  # fmt: skip
  location = 1 / (1 + np.exp(-np.float64(stats[..., :3])))
  x = 0.1 + 0.8 * batch['image'] / 255
  normal = np.mean((x - location) ** 2 / (2 * 0.2**2) + np.log(0.2 * np.sqrt(2 * np.pi)))
  start, end = (loss(params, batch, jax.random.key(0), jnp.asarray(step)) for step in (0, 10))
  assert start[0] == pytest.approx(normal, rel=1e-4)
  assert end[0] == pytest.approx(float(end[1]['nll_relaxed']), rel=1e-5)
  assert abs(start[0] - start[1]['nll_relaxed']) > 0.01


VQ = DvaeTask(DvaeConfig(**SHAPE, bottleneck='vq', commitment_weight=0.5, min_log_scale=-3.0), SIZE)
FSQ = DvaeTask(DvaeConfig(**SHAPE, bottleneck='fsq', fsq_levels=(4, 3), min_log_scale=-3.0), SIZE)


@pytest.mark.parametrize('task', [VQ, FSQ], ids=['vq', 'fsq'])
def test_losses_of_deterministic_codes(task, batch, random_params):
  params = random_params(task, 0.3)
  value, metrics = jax.jit(task.loss)(params, batch, jax.random.key(0), jnp.asarray(3))
  means = jax.device_get(jax.jit(task.evaluate)(params, batch, jax.random.key(1), jnp.asarray(3)))
  # Without relaxation, training and evaluation use the same codes.
  assert means['nll_relaxed'] == pytest.approx(means['nll_hard'], rel=1e-5)
  assert metrics['nll_relaxed'] == pytest.approx(means['nll_hard'], rel=1e-5)
  assert means['kl_per_position'] == pytest.approx(np.log(CODES))
  summary = task.summarize(means)
  assert means['nll_sampled'] == means['nll_hard'] and summary['loss'] == pytest.approx(float(means['nll_hard']))
  # The bound of the point mass on the codes, whose KL to the uniform distribution is N ln K.
  bound = _bound(task, params, batch)
  assert summary['bits_per_dim'] == pytest.approx(bound['argmax/uniform/bits_per_dim'], rel=1e-5)
  assert 1 < summary['codebook_perplexity'] <= CODES
  commitment = float(metrics.get('commitment', 0.0))
  assert value == pytest.approx(float(metrics['nll_relaxed']) + 0.5 * commitment, rel=1e-5)


def test_commitment_is_the_mean_squared_distance_to_the_nearest_code(batch, random_params):
  params = random_params(VQ, 0.3)
  _, metrics = jax.jit(VQ.loss)(params, batch, jax.random.key(0), jnp.asarray(3))
  encode = jax.jit(lambda params, image: VQ.apply(params, image, method='encode_latents'))
  z = np.asarray(encode(params, batch['image']), np.float64)
  codebook = np.asarray(params['codebook']['codebook'], np.float64)
  squares = (z[..., None, :] - codebook) ** 2
  assert metrics['commitment'] == pytest.approx(squares.sum(-1).min(-1).mean() / z.shape[-1], rel=1e-4)
  assert metrics['statistics']['share'].sum() == pytest.approx(1)


def test_all_parameters_but_the_codebook_are_trained_by_gradients(batch, random_params):
  grads = jax.jit(jax.grad(lambda p: VQ.loss(p, batch, jax.random.key(0), jnp.asarray(3))[0]))(random_params(VQ, 0.3))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads['dvae']):
    assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
  # The NLL has a gradient with respect to the codebook, but the collection is not trained.
  assert VQ.trainable == ('dvae',) and VQ.updated == ('codebook',)


def _trained(task, batch, num_steps, initial, **changes):
  training = TrainingConfig(learning_rate=3e-3, warmup_steps=0, schedule='constant', num_steps=num_steps, **changes)
  mesh = make_mesh(MeshConfig())
  with use_mesh(mesh):
    tx = make_optimizer(training)
    state = create_state(task, tx, mesh, 0, use_ema=True, initial=initial)
    step = make_train_step(task, tx, training, mesh, seed=0)
    for _ in range(num_steps):
      state, metrics = step(state, to_global(batch, mesh))
  return state, metrics


def test_a_step_updates_the_codebook_and_its_average(batch, random_params):
  initial = {'dvae': random_params(VQ, 0.3)['dvae']}  # the module's own initialisation takes long to compile
  state, metrics = _trained(VQ, batch, 2, initial, accumulation_steps=2)
  codebook = state.frozen['codebook']
  assert codebook['started'] == 1
  assert codebook['share'].sum() == pytest.approx(1, abs=0.3)
  assert set(state.ema) == {'dvae', 'codebook'}
  assert np.abs(state.ema['codebook']['codebook'] - codebook['codebook']).max() > 0
  assert 'statistics' not in metrics and metrics['commitment'].shape == ()


def test_gradients_reach_every_parameter(params, batch):
  grads = jax.jit(jax.grad(lambda p: TASK.loss(p, batch, jax.random.key(0), jnp.asarray(3))[0]))(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_evaluation_decodes_the_hard_codes(params, batch, means):
  codes = np.asarray(_apply(params, batch['image'], 'encode'))
  images = np.asarray(_apply(params, codes, 'decode'))
  np.testing.assert_allclose(means['histogram'], np.bincount(codes.ravel(), minlength=CODES) / codes.size)
  assert means['mse_hard'] == pytest.approx(np.mean((images / 255 - batch['image'] / 255) ** 2), rel=1e-4)
  other = jax.jit(TASK.evaluate)(params, batch, jax.random.key(9), jnp.asarray(3))
  assert other['nll_hard'] == means['nll_hard']
  assert other['nll_relaxed'] != means['nll_relaxed']


def test_the_loss_and_the_bits_pair_the_distortion_and_the_kl_of_sampled_codes(params, batch, means):
  z = _apply(params, batch['image'], 'encode_latents')
  sample = jax.random.categorical(jax.random.key(0), z)
  assert (np.asarray(sample) != np.asarray(_apply(params, batch['image'], 'encode'))).mean() > 0.1
  stats = _apply(params, sample, 'decode_stats')
  density = likelihood.logit_laplace_nll(likelihood.map_pixels(batch['image']), stats, -3.0).mean()
  pixels = likelihood.pixel_nll(batch['image'], stats, -3.0).mean()
  kl = bottleneck.kl_to_uniform(z).mean()
  summary = TASK.summarize(means)
  assert summary['nll_sampled'] == pytest.approx(float(density), rel=1e-5)
  assert summary['loss'] == pytest.approx(float(density + 0.5 * kl), rel=1e-5)
  assert summary['bits_per_dim'] == pytest.approx(float(pixels + kl * 16 / 192) / np.log(2), rel=1e-5)
  assert abs(means['nll_sampled'] - means['nll_hard']) > 1e-3


def test_with_a_certain_encoder_the_loss_and_the_bits_are_those_of_the_evidence_lower_bound(params, batch):
  certain = jax.tree.map(lambda x: x, params)
  certain['dvae']['encoder']['output'] = jax.tree.map(lambda x: 1e4 * x, params['dvae']['encoder']['output'])
  summary = TASK.summarize(jax.device_get(jax.jit(TASK.evaluate)(certain, batch, jax.random.key(0), jnp.asarray(3))))
  bound = _bound(TASK, certain, batch)
  for posterior in elbo.POSTERIORS:
    assert summary['bits_per_dim'] == pytest.approx(bound[f'{posterior}/uniform/bits_per_dim'], rel=1e-5)
    assert summary['loss'] == pytest.approx(bound[f'{posterior}/uniform/phase_1_loss'], rel=1e-4)


def _bound(task, params, batch):
  """The metrics of `evaluation.elbo` for a batch."""
  merged = {'dvae': vector_quantizer.merged(params)}
  terms = elbo.measure(
    task.model, None, task.config.min_log_scale, merged, [(4, batch)], make_mesh(MeshConfig()), seed=0
  )
  return elbo.summarize(terms, num_dims=3 * SIZE**2, num_codes=16, kl_weight=task.config.kl_weight)


def test_the_summary_in_closed_form():
  histogram = np.zeros(CODES)
  histogram[:3] = 1 / 3
  summary = TASK.summarize({
    'nll_relaxed': np.array(0.7), 'nll_sampled': np.array(0.6), 'nll_hard': np.array(0.5),
    'pixel_nll_sampled': np.array(2.5), 'mse_relaxed': np.array(0.01), 'mse_hard': np.array(0.001),
    'kl_per_position': np.array(1.2), 'histogram': histogram,
  })  # fmt: skip
  bits = (2.5 + 1.2 / (3 * 2 * 2)) / np.log(2)
  assert summary == pytest.approx({
    'loss': 0.6 + 0.5 * 1.2, 'nll_relaxed': 0.7, 'nll_sampled': 0.6, 'nll_hard': 0.5, 'relaxation_gap': -0.2,
    'psnr_relaxed': 20, 'psnr_hard': 30,
    'kl_per_position': 1.2, 'bits_per_dim': bits, 'codebook_perplexity': 3, 'codebook_use': 3 / CODES,
  }, rel=1e-5)  # fmt: skip


def test_training_overfits_one_batch():
  rng = np.random.default_rng(2)
  colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
  image = colors[rng.integers(0, 4, (4, 2, 2))].repeat(4, axis=1).repeat(4, axis=2)  # four quarters of one colour each
  task = DvaeTask(DvaeConfig(**SHAPE, kl_weight=0.0, temperature_steps=200, normal_steps=1000), SIZE)
  training = TrainingConfig(learning_rate=1e-2, warmup_steps=0, schedule='constant', num_steps=150, ema_decay=0.0)
  shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))

  rng = np.random.default_rng(3)

  # Similar to the module's initialisation, which takes long to compile.
  def initial_values(leaf):
    scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.0
    return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

  initial = jax.tree.map(initial_values, shapes)
  mesh = make_mesh(MeshConfig())
  with use_mesh(mesh):
    tx = make_optimizer(training)
    state = create_state(task, tx, mesh, 0, use_ema=False, initial=initial)
    step = make_train_step(task, tx, training, mesh, seed=0)
    metrics = []
    for _ in range(training.num_steps):
      state, latest = step(state, to_global({'image': image}, mesh))
      metrics.append(latest)
    summary = task.summarize(jax.jit(task.evaluate)(state.params, {'image': image}, jax.random.key(0), state.step))
  assert metrics[0]['psnr_relaxed'] < 10
  assert summary['psnr_hard'] > 30  # 20 dB, a hundredth of the squared error
  assert summary['codebook_perplexity'] > 3  # for four colours


def _products(jaxpr):
  """All matrix products and convolutions of a program, including inner programs."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _products(inner)


def test_half_precision_keeps_products_with_codes_in_float32():
  """As in the released models, only the encoder's last and the decoder's first convolution stay in float32."""
  config = DvaeConfig(image_vocab_size=11, hidden_size=8, decoder_input_size=12, num_groups=2, dtype='bfloat16')
  task = DvaeTask(config, 8)
  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
  batch = {'image': jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)}
  program = jax.make_jaxpr(task.loss)(params, batch, jax.random.key(0), jnp.asarray(0)).jaxpr
  dtypes = {True: set(), False: set()}  # by whether an operand has the vocabulary size 11 as a dimension
  for equation in _products(program):
    operands = [variable.aval for variable in equation.invars]
    dtypes[any(11 in operand.shape for operand in operands)] |= {operand.dtype.name for operand in operands}
  assert dtypes == {True: {'float32'}, False: {'bfloat16'}}
