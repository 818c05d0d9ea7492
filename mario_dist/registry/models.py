"""The model registry: versions and their aliases. Every failure of MLflow is one clear line."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mario_dist.errors import UserError
from mario_dist.registry.connection import explain, open_client, redact, resolve_uri
from mario_dist.registry.package import PackageError, check_files, seal

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "models:/"
SEAL = "mario_dist.files_sha256"
_NAME = re.compile(r"\w[\w.+-]*")
_ALIAS = re.compile(r"(?!latest$|v\d+$)[a-z0-9_][a-z0-9_-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_NUMBER = 2**31 - 1


class RegistryUnavailable(UserError):
    """MLflow did not answer or failed; a retry may succeed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``."""

    name: str
    version: int | None
    alias: str | None


def parse_reference(target: str) -> Reference:
    """Raises ``UserError`` where ``target`` is no reference to a registered model."""
    body = target.removeprefix(PREFIX)
    name, at, alias = body.partition("@")
    name, slash, version = name.partition("/") if not at else (name, "", "")
    if (
        not _NAME.fullmatch(name)
        or (at and not _NAME.fullmatch(alias))
        or (slash and not version.isdecimal())
    ):
        raise UserError(f"{target!r}: write {PREFIX}NAME@ALIAS or {PREFIX}NAME/VERSION")
    if not at and not slash:
        raise UserError(f"{target!r} names no version: write {target}@champion or {target}/1")
    return Reference(name, version_number(version) if version else None, alias or None)


def version_number(text: str) -> int:
    """Raises ``UserError`` where ``text`` is no number that a version can have."""
    if not text.isdecimal() or not 0 < int(text[:20]) <= _MAX_NUMBER:
        raise UserError(f"{text!r} is no version: write its number, such as 1")
    return int(text)


def check_alias(alias: str) -> str:
    """``alias``, if it can be given. Raises ``UserError``."""
    if not _ALIAS.fullmatch(alias):
        raise UserError(
            f"{alias!r} cannot be an alias: take lower-case letters, digits, - and _, but not latest or v1"
        )
    return alias


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model, as MLflow knows it."""

    name: str
    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_at: datetime

    @property
    def target(self) -> str:
        return f"{PREFIX}{self.name}/{self.number}"


class ModelRegistry:
    """A connection to MLflow's registry. Methods raise ``RegistryUnavailable`` where MLflow fails."""

    def __init__(self, uri: str, experiment: str = "mario-dist") -> None:
        """Raises ``UserError`` within a few seconds where MLflow is away."""
        self._uri = resolve_uri(uri)
        self._client, self._experiment_id = open_client(self._uri, experiment)
        self.where = redact(self._uri)
        import mlflow

        # Some of what a client does asks this process's own registry, not the client's.
        mlflow.set_tracking_uri(self._uri)
        mlflow.set_registry_uri(self._uri)

    def register(
        self,
        name: str,
        package: Path,
        *,
        title: str,
        description: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        agent_steps: int,
        mlflow_run_id: str | None,
    ) -> Version:
        """Seal a package and make it the next version of ``name``, which is made where it is missing.

        title: of the model in its run. description: of the version. metrics: of the model, at
        ``agent_steps``. mlflow_run_id: of the run that it is of; where that is None or gone, one is made.
        """
        with self._calling():
            run_id = self._run(mlflow_run_id, title)
            sealed = seal(package)
            model = self._client.create_logged_model(
                self._experiment_id, name=title, source_run_id=run_id, tags=dict(tags)
            )
            self._client.log_model_artifacts(model.model_id, str(package))
            self._client.finalize_logged_model(model.model_id, "READY")
            for key, value in metrics.items():
                self._client.log_metric(run_id, key, value, step=agent_steps, model_id=model.model_id)
            self._make_model(name)
            version = self._client.create_model_version(
                name,
                f"{PREFIX}{model.model_id}",
                run_id=run_id,
                tags={**tags, SEAL: sealed},
                description=description,
                model_id=model.model_id,
            )
            return self.version(Reference(name, int(version.version), None))

    def names(self) -> list[str]:
        """The registered models, but for those with names that mario-dist gives to none."""
        with self._calling():
            found: list[str] = []
            page: str | None = None
            while True:
                models = self._client.search_registered_models(page_token=page)
                found += [model.name for model in models if _NAME.fullmatch(model.name)]
                if not (page := models.token):
                    return sorted(found)

    def versions(self, name: str) -> list[Version]:
        """A model's versions, oldest first; none of a name that mario-dist gives to no model."""
        if not _NAME.fullmatch(name):
            return []
        with self._calling():
            aliases: dict[int, list[str]] = {}
            for alias, number in self._aliases(name).items():
                aliases.setdefault(number, []).append(alias)
            found: list[Version] = []
            page: str | None = None
            while True:
                # No quote in the name can end the filter's string.
                versions = self._client.search_model_versions(f"name = '{name}'", page_token=page)
                found += [_version(v, aliases.get(int(v.version), [])) for v in versions]
                if not (page := versions.token):
                    return sorted(found, key=lambda version: version.number)

    def version(self, reference: Reference) -> Version:
        """The version that a reference names now. Raises ``UserError`` where there is none."""
        number = reference.version
        if number is None:
            assert reference.alias is not None
            number = self.holder(reference.name, reference.alias)
            if number is None:
                raise UserError(self._missing(reference.name, f"no version is its {reference.alias}"))
        with self._calling():
            from mlflow.exceptions import MlflowException

            try:
                found = self._client.get_model_version(reference.name, str(number))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise UserError(self._missing(reference.name, f"it has no version {number}")) from error
            return _version(found, [a for a, n in self._aliases(reference.name).items() if n == number])

    def has_ours(self, name: str) -> bool:
        """Whether mario-dist registered a version of this model."""
        return any(SEAL in version.tags for version in self.versions(name))

    def holder(self, name: str, alias: str) -> int | None:
        """The version that has an alias now; None where none has it, or there is no such model."""
        with self._calling():
            return self._aliases(name).get(alias)

    def move(self, name: str, alias: str, number: int | None) -> None:
        """Give a version an alias, which another one then loses; None takes it from whichever has it."""
        with self._calling():
            if number is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, str(number))

    def fetch(self, version: Version, cache: Path) -> Path:
        """A version's package on this machine, every file of it checked; downloaded where it is not there.

        Raises ``PackageError``, a ``UserError``, where it is not what was registered.
        """
        sealed = version.tags.get(SEAL)
        if sealed is None or not _SHA256.fullmatch(sealed) or not _NAME.fullmatch(version.name):
            raise PackageError(f"{version.target} was not registered by mario-dist: see its tag {SEAL}")
        place = cache / version.name / f"{version.number}-{sealed[:12]}"
        if place.is_dir():
            try:
                check_files(place, sealed)
                return place
            except PackageError:
                shutil.rmtree(place, ignore_errors=True)  # damaged on this machine
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as folder:
                got = self._download(version, Path(folder))
                check_files(got, sealed)
                got.rename(place)
        except PackageError as error:
            raise PackageError(f"{version.target} must not be used: {error}") from error
        except OSError as error:
            if not place.is_dir():  # else another process has it there already
                raise UserError(f"cannot keep {version.target} in {cache}: {error.strerror}") from error
        return place

    def _download(self, version: Version, folder: Path) -> Path:
        with self._calling():
            import mlflow.artifacts

            got = mlflow.artifacts.download_artifacts(
                artifact_uri=version.target,
                dst_path=str(folder),
                tracking_uri=self._uri,
                registry_uri=self._uri,
            )
            return Path(got)

    def _run(self, run_id: str | None, title: str) -> str:
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                if self._client.get_run(run_id).info.lifecycle_stage == "active":
                    return run_id
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        made = self._client.create_run(self._experiment_id, run_name=f"register {title}")
        self._client.set_terminated(made.info.run_id)
        return str(made.info.run_id)

    def _make_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self, name: str) -> dict[str, int]:
        from mlflow.exceptions import MlflowException

        try:
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(number) for alias, number in aliases.items()}

    def _missing(self, name: str, what: str) -> str:
        names = self.names()
        if name not in names:
            known = (
                f"models are {', '.join(names)}" if names else "'mario-dist models register RUN' makes one"
            )
            return f"there is no model {name!r} in {self.where}; {known}"
        numbers = ", ".join(str(version.number) for version in self.versions(name))
        return f"{name}: {what}; versions are {numbers or 'none'}"

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # MLflow and its stores each raise their own
            raise RegistryUnavailable(f"MLflow at {self.where}: {explain(error, self._uri)}") from error


def _version(version: "ModelVersion", aliases: list[str]) -> Version:
    created_at = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return Version(version.name, int(version.version), tuple(sorted(aliases)), dict(version.tags), created_at)
