"""Training and sampling on meshes of eight devices against one device; see `compare_meshes.py`."""

import pytest
from processes import report_of, run_on_eight_devices

# The share of a large parameter that each device holds.
SHARES = {
  '8x1x1': {'prior/transformer/layers/block_0/qkv/kernel': 1},
  '1x8x1': {
    'prior/transformer/layers/block_0/qkv/kernel': 1 / 8,
    'prior/embeddings/text_embedding': 1 / 8,
    'dvae/encoder/group_2_block_1/conv_4/kernel': 1 / 8,
  },
  '1x1x8': {
    'prior/transformer/layers/block_0/qkv/kernel': 1 / 8,
    'prior/transformer/layers/block_0/mlp/mlp_in/kernel': 1 / 8,
    'prior/embeddings/image_kernel': 1 / 8,
    'dvae/code/kernel': 1 / 8,
  },
  '2x2x2': {
    'prior/transformer/layers/block_0/qkv/kernel': 1 / 4,
    'dvae/encoder/group_2_block_1/conv_4/kernel': 1 / 4,
  },
}


# The default suite has the mesh with three axes, and the stages that hold the layers of all others; the rest is slow.
# Four sizes start with dcn_data.
MESH = '2x2x2'
OTHER_MESHES = ('8x1x1', '1x8x1', '1x1x8', '4x2x1', '4x1x2', '2x4x1', '2x1x4', '1x4x2', '1x2x4', '2x1x2x2', '2x2x2x1')


STAGES = ('dvae', 'prior', 'joint')  # the other meshes compare only the first two
OTHER_STAGES = ('vq', 'reranker', 'transformer', 'lstm', 'rnn', 'neural_ngram')


def _compare(stages, meshes):
  return run_on_eight_devices('compare_meshes.py', ','.join(stages), *meshes, timeout=1800)


@pytest.fixture(scope='module')
def finished():
  return _compare(STAGES, [MESH])


@pytest.fixture(scope='module')
def report(finished):
  return report_of(finished)


def _check_training(result):
  # The tolerance is relative to the largest loss, because the dVAE's loss crosses 0.
  largest = max(map(abs, result['expected_losses']))
  assert result['losses'] == pytest.approx(result['expected_losses'], rel=1e-5, abs=1e-5 * largest)
  assert len(set(result['losses'])) == 3
  errors = result['gradient_errors']
  assert max(errors.values()) < 1e-5, max(errors, key=errors.get)
  assert result['state_error'] < 1e-4  # parameters, moments and averages


@pytest.mark.parametrize('stage', STAGES)
def test_training_is_the_same_on_2x2x2(report, stage):
  _check_training(report[MESH][stage])


def test_sparse_attention_is_the_same_on_2x2x2(report):
  assert report[MESH]['attention_error'] < 1e-5


@pytest.mark.slow
def test_training_of_the_other_stages_is_the_same_on_2x2x2():
  report = report_of(_compare(OTHER_STAGES, [MESH]))
  for stage in OTHER_STAGES:
    _check_training(report[MESH][stage])


@pytest.mark.slow
def test_training_and_sampling_are_the_same_on_the_other_meshes():
  report = report_of(_compare(STAGES[:2], OTHER_MESHES))
  for mesh in OTHER_MESHES:
    for stage in ('dvae', 'prior'):
      _check_training(report[mesh][stage])
    assert report[mesh]['wrong_codes'] == 0
    assert report[mesh]['attention_error'] < 1e-5
    if mesh in SHARES:
      _check_shares(report, mesh)


def _check_shares(report, mesh):
  shares = report[mesh]['dvae']['shares'] | report[mesh]['prior']['shares']
  assert {name: shares[name] for name in SHARES[mesh]} == pytest.approx(SHARES[mesh])


def test_parameters_are_created_sharded(report):
  _check_shares(report, MESH)


def test_sampled_codes_are_the_same_on_2x2x2(report):
  assert report[MESH]['wrong_codes'] == 0
  assert report['num_codes'] > 5


def test_xla_reports_no_involuntary_full_rematerialization(finished):
  assert 'Involuntary full rematerialization' not in finished.stderr
