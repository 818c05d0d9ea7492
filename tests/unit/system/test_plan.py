"""Who runs where, on machines of any size."""

from dataclasses import replace

import pytest

from mario_dist.config import RunConfig, parse
from mario_dist.errors import UserError
from mario_dist.system.plan import Cores, check_replay, make_plan, most_actors, reserved_cores, shard_bytes


def test_a_small_machine_trains_in_one_process() -> None:
    plan = make_plan(RunConfig(), cores=2, gpu=False)
    assert (plan.driver, plan.actors, plan.lanes) == ("local", 1, 32)
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


IMPALA: dict[str, object] = {"algo": {"name": "impala"}}


def test_impala_on_ray_lets_actors_and_learner_divide_the_cores() -> None:
    for cores in (2, 4, 16, 64):
        plan = make_plan(parse({**IMPALA, "system": {"driver": "ray"}}), cores, gpu=False)
        assert not plan.in_turn
        assert reserved_cores(plan) == cores
        assert plan.learner_threads >= plan.actors, "learning takes longer than acting"
        assert make_plan(parse({**IMPALA, "system": {"driver": "ray"}}), cores, gpu=True).actors == cores - 1
    in_step = make_plan(parse({**IMPALA, "system": {"driver": "ray", "max_policy_lag": 0}}), 4, gpu=False)
    assert in_step.in_turn


def test_groups_and_a_shared_network_are_checked_first() -> None:
    shared = {"inference": "shared", "groups": 2}
    plan = make_plan(parse({**IMPALA, "rollout": {**shared, "actors": 2}}), 4, gpu=False)
    assert plan.driver == "ray", "its actors are processes"
    assert plan.inference_cores == 1
    assert make_plan(parse({**IMPALA, "rollout": shared}), 4, gpu=True).inference_cores == 0
    with pytest.raises(UserError, match="inference=shared serves actors in processes of their own"):
        make_plan(parse({"rollout": shared, "system": {"driver": "local"}}), 4, gpu=False)
    with pytest.raises(UserError, match=r"rollout.groups=3 of 2 lane\(s\)"):
        make_plan(parse({"rollout": {"groups": 3, "lanes": 2}}), 4, gpu=False)


APEX: dict[str, object] = {"algo": {"name": "apex"}, "replay": {"capacity": 100_000, "min_size": 10_000}}


def test_on_ray_a_replay_lets_actors_and_learner_divide_the_cores() -> None:
    config = parse({**APEX, "system": {"driver": "ray"}})
    for cores in (2, 4, 16, 64):
        plan = make_plan(config, cores, gpu=False)
        assert not plan.in_turn
        assert reserved_cores(plan) <= cores
        assert plan.learner_threads > plan.actors or cores == 2
        assert plan.shards == -(-plan.actors // 8)
    assert make_plan(config, 16, gpu=True).actors == 15
    assert make_plan(parse(APEX), 2, gpu=False).in_turn
    assert make_plan(RunConfig(), 16, gpu=False).shards == 0
    chosen = parse({**APEX, "replay": {"capacity": 90_000, "min_size": 1_000, "shards": 3}})
    assert make_plan(chosen, 2, gpu=False).shards == 3


def test_a_replay_is_held_against_the_memory() -> None:
    config = parse(APEX)
    plan = make_plan(config, 2, gpu=False)
    need = plan.shards * shard_bytes(config, plan)
    assert 100_000 * 84 * 84 < need < 100_000 * 7_300
    check_replay(config, plan, need / 0.79)
    with pytest.raises(UserError, match=r"takes 0.7 GiB, and 0.6 GiB are to spare; set replay.capacity=\d+"):
        check_replay(config, plan, need / 0.9)
    packed = parse({**APEX, "replay": {"capacity": 100_000, "min_size": 10_000, "compression": "lz4"}})
    assert 100_000 * 1_900 < shard_bytes(packed, plan) < 100_000 * 2_000
    check_replay(packed, plan, need / 2)
    check_replay(RunConfig(), make_plan(RunConfig(), 2, gpu=False), free_bytes=0.0)


def test_a_replay_holds_two_unrolls_of_every_actor() -> None:
    """Else an actor's unroll overwrites its one before, and nothing reaches over their border."""
    tree = {
        **APEX,
        "replay": {"capacity": 3_000, "min_size": 500},
        "rollout": {"unroll_length": 32, "lanes": 16},
    }
    check_replay(parse(tree), make_plan(parse(tree), 2, gpu=False), 2**40)
    several = parse({**tree, "rollout": {"unroll_length": 32, "lanes": 16, "actors": 3}})
    with pytest.raises(UserError, match="of each of its actors; make it at least 3,072"):
        check_replay(several, make_plan(several, 2, gpu=False), 2**40)


def test_on_a_cluster_the_learner_fits_on_one_node_and_the_actors_take_the_rest() -> None:
    four_of_16 = Cores(free=64, largest=16, learner=16)
    impala = parse({**IMPALA, "system": {"driver": "ray"}})
    plan = make_plan(impala, four_of_16, gpu=False)
    assert (plan.learner_threads, plan.actors) == (16, 48)
    assert not plan.learner_node
    in_turn = make_plan(parse({"system": {"driver": "ray"}, "rollout": {"actors": 2}}), four_of_16, gpu=False)
    assert (in_turn.learner_threads, in_turn.env_threads) == (16, 16), "more than one node has is of no use"
    # A node for the learner is the learner's, however many actors are asked for before their nodes are there.
    named = Cores(free=20, largest=16, learner=4, learner_node=True)
    plan = make_plan(parse({**IMPALA, "rollout": {"actors": 64}}), named, gpu=False, address="auto")
    assert (plan.learner_threads, plan.actors, plan.learner_node) == (4, 64, True)
    plan = make_plan(parse({**IMPALA}), named, gpu=False, address="auto")
    assert (plan.learner_threads, plan.actors) == (4, 16)
    assert make_plan(parse({**IMPALA}), named, gpu=True, address="auto").learner_threads == 1
    for alone in (Cores(2, 2, 2, True), Cores(8, 8, 8, True)):
        for actors in (0, 64):
            config = parse({**IMPALA, "rollout": {"actors": actors}})
            plan = make_plan(config, alone, gpu=False, address="auto")
            assert plan.learner_threads == alone.free - 1
            assert reserved_cores(replace(plan, actors=1)) == alone.free, "one actor can begin"


def test_a_replay_bounds_how_many_actors_may_join() -> None:
    assert most_actors(RunConfig(), make_plan(RunConfig(), 16, gpu=False)) > 1_000
    fixed = parse({"rollout": {"actors": 3}, "system": {"driver": "ray"}})
    assert most_actors(fixed, make_plan(fixed, 16, gpu=False)) == 3
    config = parse({**APEX, "rollout": {"lanes": 10, "unroll_length": 100}, "system": {"driver": "ray"}})
    plan = make_plan(config, 64, gpu=False)
    most = most_actors(config, plan)
    assert 0 < most < 1_000
    check_replay(config, replace(plan, actors=most), 2**40)
    with pytest.raises(UserError, match=r"replay\.(capacity|min_size)"):
        check_replay(config, replace(plan, actors=most + plan.shards), 2**40)
