"""The learner's benchmark: its bare loop learns exactly what the learner learns."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from mario_dist.algos.impala import Impala, ImpalaConfig
from mario_dist.bench.bare import stacked
from mario_dist.bench.learner import bench_learner
from mario_dist.config import RunConfig
from mario_dist.learner.batch import make_batch
from mario_dist.nets import ActorCritic, get_weights
from mario_dist.system.build import make_network, make_worker


def test_ready_stacks_make_the_same_loss(impala_config: Callable[..., RunConfig]) -> None:
    config = impala_config(env={"max_steps": 7})
    network = make_network(config)
    assert isinstance(network, ActorCritic)
    assert isinstance(config.algo, ImpalaConfig)
    worker = make_worker(config, lanes=4, threads=1)
    try:
        unroll = worker.collect(get_weights(network, version=0)).unroll
    finally:
        worker.close()
    batch = make_batch([unroll], config.env.frame_stack, torch.device("cpu"))
    ready = stacked(batch)
    assert len(batch.final_tn_F2), "episodes were truncated, so that there are true final frames"
    for minibatch in (0, 10):
        algorithm = Impala(dataclasses.replace(config.algo, minibatch=minibatch))
        index_B = algorithm.minibatches(batch, algorithm.prepare(network, batch), torch.Generator())[0][0]
        expected, actual = (
            algorithm.loss(network, which, algorithm.prepare(network, which), index_B, 0.0)
            for which in (batch, ready)
        )
        torch.testing.assert_close(actual.loss, expected.loss)
        torch.testing.assert_close(actual.metrics, expected.metrics)


@pytest.mark.parametrize("algo", ["ppo", "impala"])
def test_the_learner_is_measured_beside_a_bare_loop(
    algo: str, probe_config: Callable[..., RunConfig], impala_config: Callable[..., RunConfig]
) -> None:
    config = {"ppo": probe_config, "impala": impala_config}[algo]()
    document = bench_learner(config, [1], 2)
    row = document["mario-dist"]
    assert row["samples_per_s"] > 0
    assert row["share_of_bare"] == pytest.approx(row["samples_per_s"] / row["bare_samples_per_s"])


def test_an_algorithm_with_a_replay_has_no_bare_loop(apex_config: Callable[..., RunConfig]) -> None:
    row = bench_learner(apex_config(), [1], 1)["mario-dist"]
    assert row["updates_per_s"] > 0
    assert "share_of_bare" not in row
