"""The loop itself, with the real local driver on the probe environment."""

from collections.abc import Callable
from itertools import chain, pairwise, repeat

from mario_dist.config import RunConfig
from mario_dist.system.feed import make_queue_feed
from mario_dist.system.local import LocalRollouts, local_learner
from mario_dist.system.plan import make_plan
from mario_dist.system.topology import Counters, Iteration, Judge, train
from mario_dist.types import Arrays, EvalReport


class Log:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.iterations: list[Iteration] = []
        self.evaluations: list[int] = []
        self.reports: list[EvalReport] = []
        self.checkpoints: list[tuple[int, bool]] = []

    def iterated(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)

    def evaluated(self, counters: Counters, report: EvalReport, by: Judge) -> None:
        self.evaluations.append(counters.agent_steps)
        self.reports.append(report)

    def checkpoint(
        self,
        counters: Counters,
        learner: Arrays,
        workers: list[Arrays],
        evaluation: EvalReport | None,
        *,
        last: bool,
        done: bool = False,
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


def test_it_ends_once_the_protocol_holds(probe_config: Callable[..., RunConfig]) -> None:
    """The probe is learned within seconds; its corridor's end is the flag."""
    config = probe_config(
        seed=1,
        total_steps=60_000,
        algo={"lr": [3e-3, 3e-3], "epochs": 4},
        rollout={"lanes": 8, "unroll_length": 32},
        evaluation={"every_steps": 512, "episodes": 5},
        stop={"clear_rate": 0.9, "episodes": 30},
    )
    outcome, log = run(config)
    assert outcome == "finished"
    assert log.checkpoints[-1][0] < 60_000
    report = log.reports[-1]
    assert report.episodes == 30
    assert report.clear_rate >= 0.9
    assert report.protocol["name"] == "jitter-30"
    assert log.checkpoints[-1] == (log.evaluations[-1], True), "what was judged is what is kept"
    assert any(report.episodes == 5 and report.clear_rate < 0.5 for report in log.reports)
    for small, large in pairwise(log.reports):
        if large.episodes == 30:
            assert small.episodes == 5
            assert small.clear_rate_ci[1] >= 0.9, "it was asked where it could not hold"


def test_what_does_not_hold_goes_on(probe_config: Callable[..., RunConfig]) -> None:
    config = probe_config(
        total_steps=256,
        evaluation={"every_steps": 64, "episodes": 1},
        stop={"clear_rate": 0.5, "episodes": 9},
    )
    outcome, log = run(config)
    assert outcome == "finished"
    assert log.checkpoints[-1][0] == 256
    # One failed episode of one leaves 0.5 possible: the protocol was asked each time and said no.
    assert [report.episodes for report in log.reports] == [1, 9] * 4
    assert all(report.clear_rate < 0.5 for report in log.reports)
