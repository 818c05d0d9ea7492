"""MLflow: tracked runs and the model registry. Importing this does not import MLflow, which takes seconds."""

from mario_dist.registry.connection import default_tracking_uri
from mario_dist.registry.evaluations import evaluation_metrics, record_evaluation
from mario_dist.registry.models import (
    PREFIX,
    ModelRegistry,
    Reference,
    RegistryUnavailable,
    Version,
    check_alias,
    parse_reference,
    version_number,
)
from mario_dist.registry.package import CHECKPOINT, REPLAYED, PackageError, load_model, write_model
from mario_dist.registry.tracker import RunEnd, Tracker

__all__ = [
    "CHECKPOINT",
    "PREFIX",
    "REPLAYED",
    "ModelRegistry",
    "PackageError",
    "Reference",
    "RegistryUnavailable",
    "RunEnd",
    "Tracker",
    "Version",
    "check_alias",
    "default_tracking_uri",
    "evaluation_metrics",
    "load_model",
    "parse_reference",
    "record_evaluation",
    "version_number",
    "write_model",
]
