"""MLflow: tracked runs. Importing this package does not import MLflow, which takes seconds."""

from mario_dist.registry.connection import default_tracking_uri
from mario_dist.registry.evaluations import record_evaluation
from mario_dist.registry.tracker import RunEnd, Tracker

__all__ = ["RunEnd", "Tracker", "default_tracking_uri", "record_evaluation"]
