"""The loop itself, with the real local driver on the probe environment."""

from collections.abc import Callable
from itertools import chain, repeat

from mario_dist.config import RunConfig
from mario_dist.system.feed import make_queue_feed
from mario_dist.system.local import LocalRollouts, local_learner
from mario_dist.system.plan import make_plan
from mario_dist.system.topology import Counters, Iteration, train
from mario_dist.types import Arrays, EvalReport


class Log:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.iterations: list[Iteration] = []
        self.evaluations: list[int] = []
        self.checkpoints: list[tuple[int, bool]] = []

    def iterated(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)

    def evaluated(self, counters: Counters, report: EvalReport) -> None:
        self.evaluations.append(counters.agent_steps)

    def checkpoint(
        self,
        counters: Counters,
        learner: Arrays,
        workers: list[Arrays],
        evaluation: EvalReport | None,
        *,
        last: bool,
        save_replay: object = None,
    ) -> None:
        self.checkpoints.append((counters.agent_steps, evaluation is not None))


def run(config: RunConfig, stop: Callable[[], bool] = lambda: False) -> tuple[str, Log]:
    plan = make_plan(config, 1, gpu=False)
    log = Log()
    rollouts = LocalRollouts(config, plan)
    feed = make_queue_feed(config, plan)
    outcome = train(rollouts, local_learner(config, plan, None), feed, config, Counters(), log, stop)
    return outcome, log


def test_it_counts_learns_evaluates_and_checkpoints_when_due(probe_config: Callable[..., RunConfig]) -> None:
    config = probe_config(
        total_steps=256, checkpoint={"every_steps": 128}, evaluation={"every_steps": 192, "episodes": 2}
    )
    outcome, log = run(config)
    assert outcome == "finished"
    assert [i.counters.agent_steps for i in log.iterations] == [64, 128, 192, 256]
    assert [i.report.version for i in log.iterations] == [1, 2, 3, 4]
    assert all(i.report.metrics["policy_lag"] == 0 for i in log.iterations)
    assert all(i.queue_depth == 1 for i in log.iterations)
    assert log.evaluations == [192, 256]
    assert log.checkpoints == [(128, False), (192, True), (256, True)]


def test_a_stop_ends_the_iteration_and_writes_a_checkpoint(probe_config: Callable[..., RunConfig]) -> None:
    asked = chain([False], repeat(True))
    outcome, log = run(probe_config(), lambda: next(asked))
    assert outcome == "stopped"
    assert [i.counters.agent_steps for i in log.iterations] == [64, 128]
    assert log.checkpoints[-1][0] == 128


def test_several_actors_collect_side_by_side(probe_config: Callable[..., RunConfig]) -> None:
    outcome, log = run(probe_config(rollout={"actors": 3}, total_steps=384))
    assert outcome == "finished"
    assert [i.counters.agent_steps for i in log.iterations] == [192, 384]
    assert {e.actor for i in log.iterations for e in i.episodes} == {0, 1, 2}
    assert [i.queue_depth for i in log.iterations] == [3, 3]
