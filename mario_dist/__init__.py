"""Distributed actor-learner reinforcement learning for Super Mario Bros."""
