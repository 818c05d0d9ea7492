"""Distributed actor-learner reinforcement learning for Super Mario Bros."""

from pkgutil import extend_path

# Sources that come before the installed package, as those of a job's working directory do, have no built core
# among them: the installed one serves.
__path__ = extend_path(__path__, __name__)
