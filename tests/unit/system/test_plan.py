"""Who runs where, on machines of any size."""

import pytest

from mario_dist.config import RunConfig, parse
from mario_dist.errors import UserError
from mario_dist.system.plan import make_plan, reserved_cores


def test_a_small_machine_trains_in_one_process() -> None:
    plan = make_plan(RunConfig(), cores=2, gpu=False)
    assert (plan.driver, plan.actors, plan.lanes) == ("local", 1, 16)
    assert (plan.env_threads, plan.actor_torch_threads, plan.learner_threads) == (2, 1, 2)


def test_a_large_machine_or_an_address_means_ray() -> None:
    assert make_plan(RunConfig(), cores=16, gpu=False).driver == "ray"
    assert make_plan(RunConfig(), cores=2, gpu=False, address="auto").driver == "ray"


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("driver", ["local", "ray"])
def test_the_machine_is_never_oversubscribed_by_itself(cores: int, lag: int, gpu: bool, driver: str) -> None:
    config = parse({"system": {"driver": driver, "max_policy_lag": lag}})
    if driver == "local" and lag:
        with pytest.raises(UserError, match="max_policy_lag=1 needs actors beside the learner"):
            make_plan(config, cores, gpu=gpu)
        return
    plan = make_plan(config, cores, gpu=gpu)
    assert plan.actors * plan.env_threads <= cores
    assert plan.learner_threads <= cores
    if driver == "ray":
        assert plan.actors * plan.actor_torch_threads <= cores
        # One core can't be divided: there an actor and a learner side by side share it.
        assert reserved_cores(plan) <= max(cores, 2)


def test_what_is_configured_is_done() -> None:
    config = parse(
        {
            "rollout": {"actors": 3, "lanes": 5, "threads": 2},
            "learner": {"threads": 7},
            "system": {"driver": "ray"},
        }
    )
    plan = make_plan(config, cores=2, gpu=False)
    assert (plan.actors, plan.lanes, plan.env_threads, plan.learner_threads) == (3, 5, 2, 7)
    assert reserved_cores(plan) == 6
