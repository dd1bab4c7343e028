import dataclasses
import functools

import jax
import pytest
from dalle_jax.configs import dalle, language

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig
from dalle_jax.planning import arithmetic, fit, programs, search, topologies


@pytest.fixture(scope='module', autouse=True)
def shared_traces():
  """Traces each configuration once; two searches and the test of the policies ask for the same ones."""
  traced = functools.cache(lambda config, stage: trace(config, stage))
  trace = arithmetic.trace_costs
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(arithmetic, 'trace_costs', lambda config, stage, work=None: traced(config, stage))
    yield


def text_config(**model) -> Config:
  """A small language model, which is quick to trace, with changed keys of `config.model`."""
  config = language.get_config('transformer,tiny')
  config.sequence_training.optimizer = 'adamw'
  for name, value in model.items():
    config.model[name] = value
  return Config.from_dict(config)


def test_fsdp_halves_the_memory_and_averages_are_as_large_as_parameters():
  unsplit, split = (
    arithmetic.memory(text_config(), 'sequence', arithmetic.abstract_mesh({'fsdp': fsdp}), row_bytes=1000)
    for fsdp in (1, 2)
  )
  assert unsplit['averages'] == unsplit['parameters'] == unsplit['gradients']
  assert unsplit['parameters'] == 4 * programs.training_work(text_config(), 'sequence').num_params
  assert split['parameters'] == pytest.approx(unsplit['parameters'] / 2, rel=0.02)
  assert unsplit['activations and temporaries'] == 16 * 1000 == 2 * split['activations and temporaries']
  assert unsplit['batch'] == 16 * 64 * 4


def test_rematerialisation_policies_trade_memory_for_flops():
  policies = ('none', 'attention', 'dots', 'full')
  costs = {policy: arithmetic.trace_costs(text_config(remat=policy), 'sequence') for policy in policies}
  row_bytes = [costs[policy].row_bytes for policy in policies]
  step_flops = [costs[policy].step_flops for policy in policies]
  assert row_bytes == sorted(row_bytes, reverse=True)
  assert len(set(row_bytes)) == 4
  assert step_flops == sorted(step_flops)
  # Only 'none' repeats no computation. The model FLOPs are the same for all policies.
  assert step_flops[0] == costs['full'].work.model_flops < step_flops[2]
  assert {policy_costs.work.model_flops for policy_costs in costs.values()} == {step_flops[0]}


def test_collectives_follow_from_the_mesh():
  config = text_config(dtype='bfloat16')
  params = programs.training_work(config, 'sequence').num_params

  def bytes_of(**sizes: int) -> dict[str, int]:
    collectives = arithmetic.collectives(config, 'sequence', arithmetic.abstract_mesh(sizes))
    return {f'{collective.kind} {collective.group}': collective.bytes for collective in collectives}

  assert bytes_of() == {}
  assert bytes_of(fsdp=2) == {'all-gather 2': 2 * params, 'reduce-scatter 2': params}
  assert bytes_of(data=2) == {'all-reduce 2': 2 * params * 4 // 2}
  assert set(bytes_of(tensor=2)) == {'all-reduce 2'}


def test_arguments_of_a_compiled_step_have_the_predicted_bytes():
  config = dataclasses.replace(text_config(), mesh=MeshConfig(data=1))
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  program = programs.training_program(config, 'sequence', mesh)
  usage = program.jitted.lower(*program.arguments).compile().memory_analysis()
  sizes = arithmetic.memory(config, 'sequence', mesh, row_bytes=0)
  counted = sum(sizes[name] for name in ('parameters', 'optimizer', 'averages', 'batch'))
  assert usage.argument_size_in_bytes == pytest.approx(counted, rel=0.001)


def test_reports_on_absent_gpus_say_that_they_are_arithmetic():
  topology = topologies.parse('h100:4')
  report = fit.fit_training(text_config(), 'sequence', topology, 0.5, log=lambda line: None)
  assert report.fits
  assert 'arithmetic' in report.memory_source
  assert 'nothing was compiled' in report.estimate.source
  fields = report.to_dict()
  assert fields['mesh']['data'] == 4
  assert fields['days'] == pytest.approx(fields['step_seconds'] * 400 / 86_400)
  assert fields['chip_hours'] == pytest.approx(fields['days'] * 24 * 4)
  assert 0 < fields['model_flops_utilisation'] <= 0.5


def test_search_prefers_plans_without_rematerialisation_if_they_fit():
  lines = []
  best = search.search(text_config(), 'sequence', topologies.parse('h100:2'), [], 2, 0.5, lines.append)
  assert lines[0].endswith('fit by arithmetic')
  assert best[0].settings['model.remat'] == 'none'
  rates = [report.estimate.examples_per_second for report in best]
  assert rates == sorted(rates, reverse=True)
  assert 'examples/s' in search.table(best)


def test_search_reports_that_no_plan_fits(monkeypatch):
  topology = topologies.parse('t4:1')
  chip = dataclasses.replace(topology.chip, memory=1000)
  monkeypatch.setattr(topologies.Topology, 'chip', property(lambda self: chip))
  reports = search.search(text_config(), 'sequence', topology, [], 3, 0.5, lambda line: None)
  assert search.table(reports).startswith('None of the plans that were tried fits.')


def test_only_stages_that_the_configuration_trains_are_accepted():
  config = Config.from_dict(dalle.get_config('12b,tiny'))
  assert programs.stage_of(config, None) == 'prior'
  assert programs.stage_of(config, 'dvae') == 'dvae'
  with pytest.raises(ValueError, match=r'--stage=joint: config.task=all trains dvae, prior'):
    programs.stage_of(config, 'joint')
  with pytest.raises(ValueError, match='counted, not trained'):
    programs.stage_of(Config.from_dict(language.get_config('ngram')), None)
