"""One frozen tree that says what a run is: ``load`` reads it, ``dump`` writes it as resolved.

The rooms' own configurations are plain frozen dataclasses, so that the learner's rooms need nothing but
PyTorch and NumPy; pydantic stands at the door, here, and refuses wrong types and unknown keys.
"""

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from mario_dist.algos.apex import ApexConfig
from mario_dist.algos.impala import ImpalaConfig
from mario_dist.algos.ppo import PPOConfig
from mario_dist.env.config import EnvConfig
from mario_dist.errors import UserError
from mario_dist.nets.config import NetworkConfig


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How experience is made. 0 lets the machine decide.

    actors: rollout actors; lanes: emulators in each of them. See ``system.plan`` for what auto means.
    unroll_length: agent steps of each lane between two learner steps.
    threads: emulation threads in each actor.
    groups: into which each actor's lanes are cut; they take turns, so that one steps while the network looks
    at the next.
    inference: ``actor``, each actor's own network on its CPU; ``shared``, one actor beside the learner that
    looks at the lanes of all actors in batches, on the GPU where there is one (Ray only).
    """

    actors: int = 0
    lanes: int = 0
    unroll_length: int = 128
    threads: int = 0
    groups: int = 1
    inference: Literal["actor", "shared"] = "actor"

    def __post_init__(self) -> None:
        if min(self.actors, self.lanes, self.threads) < 0 or min(self.unroll_length, self.groups) < 1:
            raise ValueError(
                "actors, lanes and threads must not be negative, unroll_length and groups at least 1"
            )


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """The replay that off-policy algorithms learn from; others have none.

    capacity: transitions, over all shards. shards: 0 lets the plan decide.
    min_size: transitions before learning begins. samples_per_insert: the replay ratio, how often a
    transition is learned from on average.
    compression: ``lz4`` keeps frames in a quarter of the memory and samples more slowly.
    prefetch: batches that a learner on Ray asks for ahead.
    checkpoint: keep the replay in the newest checkpoint; without it, a resumed run fills a new one first.
    """

    capacity: int = 200_000
    shards: int = 0
    min_size: int = 20_000
    samples_per_insert: float = 4.0
    compression: Literal["none", "lz4"] = "none"
    prefetch: int = 4
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if min(self.capacity, self.min_size, self.prefetch) < 1 or self.shards < 0:
            raise ValueError("capacity, min_size and prefetch must be at least 1, shards not negative")
        if self.min_size > self.capacity:
            raise ValueError(
                f"min_size ({self.min_size:,}) must not be larger than capacity ({self.capacity:,})"
            )
        if self.samples_per_insert <= 0.0:
            raise ValueError("samples_per_insert must be positive")


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """Where and how the learner computes.

    device: auto takes CUDA, then MPS, then the CPU. threads: PyTorch's CPU threads, 0 for the machine's.
    precision: of the torso. auto is bfloat16 where the device computes in it (CUDA devices that support it,
    CPUs with AVX512-BF16 or AMX) and float32 elsewhere.
    compile: torch.compile the network's forward and backward (worth it on GPUs).
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError("threads must not be negative")


@dataclass(frozen=True, slots=True)
class SystemConfig:
    """Which driver runs the topology.

    driver: ``local`` is one process, exactly reproducible; ``ray`` is rollout actors, a queue and a
    learner actor; ``auto`` takes local on small machines and Ray on larger ones or when --address is given.
    max_policy_lag: by how many versions of the weights an unroll may be behind when it is learned from; null
    for what the algorithm is made for: PPO 0, which collects and learns in turn (1 collects the next unrolls
    while learning, on Ray), IMPALA 16. Algorithms with a replay bear any.
    overrun: what IMPALA's actors do while the learner cannot keep up: with ``hold`` they wait; with ``drop``
    never, and the oldest waiting unrolls are left out. Those over the lag are left out either way. All count.
    max_restarts: how often a rollout actor that died is replaced before the run stops. On a cluster, those
    that went with their nodes do not count.
    wait_s: seconds to wait for a cluster that was joined to have a free core, and for learner.device=cuda a
    GPU.
    dashboard_port: where Ray's dashboard listens when this run starts Ray; null for no dashboard.
    """

    driver: Literal["auto", "local", "ray"] = "auto"
    max_policy_lag: int | None = None
    overrun: Literal["hold", "drop"] = "hold"
    max_restarts: int = 100
    wait_s: float = 300.0
    dashboard_port: int | None = None

    def __post_init__(self) -> None:
        if self.max_policy_lag is not None and self.max_policy_lag < 0:
            raise ValueError("max_policy_lag must not be negative")
        if self.wait_s < 0.0:
            raise ValueError("wait_s must not be negative")


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """every_steps: agent steps between checkpoints; a stop always writes one. keep: newest ones kept."""

    every_steps: int = 50_000
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 2:
            raise ValueError("every_steps must be at least 1 and keep at least 2")


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """The evaluations during training, which choose the best checkpoint.

    every_steps: agent steps between them; 0 for none. Their lanes, seeds and no-op starts are their own.
    clip: keep a video of the best episode of evaluations that make a new best checkpoint, in the run's
    videos/; as many of them as ``checkpoint.keep`` says, and the best one as best.mp4. Training waits for
    them, so while it goes on they are left out where they would take more than 3 % of its time.
    """

    every_steps: int = 100_000
    episodes: int = 10
    noop_max: int = 30
    seed: int = 1_000_003
    greedy: bool = False
    clip: bool = True

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.episodes < 1 or self.noop_max < 0:
            raise ValueError("every_steps and noop_max must not be negative, episodes at least 1")


@dataclass(frozen=True, slots=True)
class StopConfig:
    """When a run ends before its ``total_steps``: once a protocol finds its levels cleared.

    clear_rate: of that protocol's episodes, over all levels; null for never. protocol: a named one (``eval
    --protocol``). episodes: of each level. It is asked after each evaluation that leaves the rate possible.
    """

    clear_rate: float | None = None
    protocol: Literal["jitter-30", "jitter-30-greedy", "fixed-start", "fixed-start-greedy", "sticky-25"] = (
        "jitter-30"
    )
    episodes: int = 100
    seed: int = 2_000_003

    def __post_init__(self) -> None:
        if self.clear_rate is not None and not 0.0 < self.clear_rate <= 1.0:
            raise ValueError("clear_rate must be over 0 and at most 1, or null")
        if self.episodes < 1:
            raise ValueError("episodes must be at least 1")


@dataclass(frozen=True, slots=True)
class CollapseConfig:
    """When a run says that its policy has collapsed, and what it does then.

    on_collapse: ``warn`` says so (on the screen, in the run store and in MLflow); ``stop`` also ends the run;
    ``restore`` goes on with the weights of the best checkpoint and the learning rate times ``lr_factor``, at
    most ``max_restores`` times.
    share: of the best moving mean of x-position or clear rate over ``window`` episodes, under which it must
    lie for ``episodes`` episodes. entropy_band, in nats, and kl_max: what ``reports`` reports in a row of the
    learner must have left.
    """

    on_collapse: Literal["warn", "stop", "restore"] = "warn"
    share: float = 0.5
    window: int = 100
    episodes: int = 100
    entropy_band: tuple[float, float] = (0.02, 10.0)
    kl_max: float = 0.5
    reports: int = 20
    lr_factor: float = 0.5
    max_restores: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0 or not 0.0 < self.lr_factor <= 1.0:
            raise ValueError("share must be in [0, 1) and lr_factor in (0, 1]")
        if self.entropy_band[0] > self.entropy_band[1] or self.kl_max <= 0.0:
            raise ValueError("entropy_band must be [low, high] and kl_max positive")
        if min(self.window, self.episodes, self.reports) < 1 or self.max_restores < 0:
            raise ValueError("window, episodes and reports must be at least 1, max_restores not negative")


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Where a run's metrics go beside the run store and MLflow.

    tensorboard: event files in the run's directory. wandb_project: Weights & Biases, where its package is
    installed; null for none.
    """

    tensorboard: bool = True
    wandb_project: str | None = None


def _algo_name(value: Any) -> str:
    """What ``algo.name`` says, in a tree or in a configuration; PPO where it says nothing."""
    name = value.get("name", "ppo") if isinstance(value, Mapping) else getattr(value, "name", "ppo")
    return str(name)


_ALGOS: dict[str, type] = {"ppo": PPOConfig, "impala": ImpalaConfig, "apex": ApexConfig}
AlgoConfig = Annotated[
    Annotated[PPOConfig, Tag("ppo")]
    | Annotated[ImpalaConfig, Tag("impala")]
    | Annotated[ApexConfig, Tag("apex")],
    Discriminator(_algo_name),
]


_MOST_BYTES = 2**20
_LARGEST = 2**53
"""Beyond it, neither databases nor a float has every whole number."""
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A training run. ``total_steps`` counts agent steps over all lanes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = "run"
    seed: int = 0
    total_steps: int = 2_000_000
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    algo: AlgoConfig = field(default_factory=PPOConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.total_steps < 1 or self.seed < 0:
            raise ValueError("total_steps must be at least 1 and seed not negative")
        if len(self.name) > _LONGEST_NAME or not self.name.isprintable():
            raise ValueError(f"name must be up to {_LONGEST_NAME} characters of one line")
        if self.stop.clear_rate is not None and not self.evaluation.every_steps:
            raise ValueError("stop.clear_rate needs evaluations: set evaluation.every_steps")
        if self.algo.bears_lag is not None and self.max_policy_lag > self.algo.bears_lag:
            raise ValueError(
                f"system.max_policy_lag={self.max_policy_lag}: {self.algo.name} bears {self.algo.bears_lag}"
            )
        impala = self.algo if isinstance(self.algo, ImpalaConfig) else None
        if self.system.overrun == "drop" and (impala is None or not self.max_policy_lag):
            raise ValueError("system.overrun=drop is for algo.name=impala with a policy lag")
        if impala is not None and impala.batch_unrolls and not self.max_policy_lag:
            raise ValueError("algo.batch_unrolls is for a policy lag: without one, all actors make a batch")

    @property
    def max_policy_lag(self) -> int:
        """In versions of the weights, with the algorithm's own filled in."""
        asked = self.system.max_policy_lag
        return self.algo.usual_lag if asked is None else asked


_ADAPTER = TypeAdapter(RunConfig)


def parse(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a plain tree. Raises ``UserError`` with one line that names every bad key."""
    return _validated(RunConfig, _ADAPTER, tree)


def _validated[T](kind: type[T], adapter: TypeAdapter[T], tree: Mapping[str, Any]) -> T:
    if key := _too_large(tree):
        raise UserError(f"{key}: no number here may be larger than {_LARGEST:,}")
    try:
        return adapter.validate_python(tree)
    except ValidationError as error:
        clauses = (_explain(kind, e["loc"], e["type"], e["msg"]) for e in error.errors())
        raise UserError("; ".join(clauses)) from error


def to_tree(config: RunConfig) -> dict[str, Any]:
    """The whole resolved tree as JSON-able values."""
    tree: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return tree


def load(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file and apply dotted overrides such as ``algo.gamma=0.95``.

    A file that begins with ``base: other.yaml`` says only what is different there, beside it on the disk.
    Raises ``UserError`` where a file is missing, is not YAML or does not fit ``RunConfig``.
    """
    return override(_read(path, ()), overrides)


def load_settings[T](kind: type[T], path: Path | None, overrides: Iterable[str] = ()) -> T:
    """The same for another dataclass, which says itself that it forbids unknown keys."""
    tree = {} if path is None else _read(path, ())
    return _validated(kind, TypeAdapter(kind), _overridden(tree, overrides))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The tree of a file, laid over its base's. ``above``: the files whose base it is."""
    if path.resolve() in above:
        raise UserError(f"{path} is its own base")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(f"{path} is no configuration: it has more than {_MOST_BYTES:,} bytes")
        tree = _plain(content.decode())
    except FileNotFoundError:
        named = f", the base of {above[-1]}" if above else ""
        raise UserError(f"there is no configuration file {path}{named}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, such as 'seed: 0'")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str) or "\0" in base:
        raise UserError(f"{path}: base names one file, such as base: ppo-1-1.yaml")
    return _laid_over(_read(path.parent / base, (*above, path.resolve())), tree)


def _plain(text: str) -> Any:
    """The value of a YAML text. Raises ``yaml.YAMLError`` or ``ValueError`` where it has none."""
    try:
        return yaml.load(text, _TreeLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _TreeLoader(yaml.SafeLoader):
    """Without aliases: with them, a few lines can make a value that is huge, or part of itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
        return super().compose_node(parent, index)


def _laid_over(below: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """``tree``, and what it does not say from ``below``; another algorithm's settings are not mixed in."""
    merged = dict(below)
    for key, value in tree.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            same = key != "algo" or value.get("name", _algo_name(under)) == _algo_name(under)
            value = _laid_over(under, value) if same else value
        merged[key] = value
    return merged


def override(tree: Mapping[str, Any], overrides: Iterable[str]) -> RunConfig:
    """``tree`` with dotted overrides such as ``algo.gamma=0.95``, validated.

    Raises ``UserError`` where an override cannot be read or the result does not fit ``RunConfig``.
    """
    return parse(_overridden(tree, overrides))


def _overridden(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    result = copy.deepcopy(dict(tree))
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"{text!r} is not an override; write key=value, such as algo.gamma=0.95")
        node: Any = result
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{text!r}: {parent} is a value, not a group of keys")
        try:
            node[leaf] = _plain(value)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"{text!r}: cannot read the value {value!r}") from None
    return result


def dump(config: RunConfig) -> str:
    """The whole resolved tree as YAML that ``load`` reads back."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Dotted keys and plain values of a tree."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def _too_large(tree: Mapping[str, Any]) -> str | None:
    """The key of a whole number that is beyond use, if there is one, however deep."""
    nodes: list[tuple[str, Any]] = [(str(key), value) for key, value in tree.items()]
    while nodes:
        key, node = nodes.pop()
        if isinstance(node, int) and abs(node) > _LARGEST:
            return key
        if isinstance(node, Mapping):
            nodes += [(f"{key}.{name}", value) for name, value in node.items()]
        elif isinstance(node, list):
            nodes += [(key, value) for value in node]
    return None


def _explain(root: type, loc: tuple[int | str, ...], kind: str, message: str) -> str:
    """One clause for one validation error, with the nearest valid key where the key is unknown."""
    # The algorithm's name, by which pydantic chose its class, is no part of the key.
    shown = loc[:1] + loc[2:] if loc[:1] == ("algo",) else loc
    path = ".".join(str(part) for part in shown)
    if kind == "union_tag_invalid":
        return f"{path}.name: there is no such algorithm; algorithms are {', '.join(_ALGOS)}"
    if kind == "unexpected_keyword_argument":
        known = _keys_at(root, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(known)}"
        return f"unknown key {path}; {hint}"
    text = message.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return f"{path}: {text}" if path else text


def _keys_at(root: type, loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the configuration group at ``loc``."""
    node = root
    for part in loc:
        if node is RunConfig and part == "algo":
            continue
        if part in _ALGOS:
            node = _ALGOS[str(part)]
            continue
        hint = typing.get_type_hints(node).get(str(part))
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            node = hint
    return [f.name for f in dataclasses.fields(node)]
