"""An agent at play as a stream of pictures: several lanes live, or one episode of an evaluation again."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mario_dist.emulator import Emulator
from mario_dist.env import EnvConfig, MarioVectorEnv, VectorEnv
from mario_dist.env.actions import action_set
from mario_dist.evaluation import BlockPlayer, EvalProtocol, Played, Player, locate
from mario_dist.nets import Network
from mario_dist.report.overlay import Caption, captioned, enlarged, finished, footer, grid
from mario_dist.types import U8, Episode

Show = Callable[[U8], bool]
"""Takes the next uint8 picture [H, W, 3]; False ends the show early."""

_WIDE, _HIGH = 1024, 960
"""What a grid's playing fields fill at most, in pixels, where they can be enlarged at all."""


@dataclass(frozen=True, slots=True)
class Look:
    """How play is shown: rows x columns of lanes, with an overlay or without.

    label: of whose play it is; the overlay has it under the picture.
    """

    rows: int = 1
    columns: int = 1
    overlay: bool = False
    label: str = ""

    @property
    def lanes(self) -> int:
        return self.rows * self.columns

    @property
    def zoom(self) -> int:
        """By how much each lane's 240 x 256 picture is enlarged."""
        return 2 if self.columns * 512 <= _WIDE and self.rows * 480 <= _HIGH else 1


class Board:
    """The newest picture of each lane, composed into one."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._cells: list[U8 | None] = [None] * look.lanes

    def draw(self, lane: int, rgb_HW3: U8, caption: Caption) -> None:
        """A lane's next frame."""
        zoom = self._look.zoom
        self._cells[lane] = (
            captioned(rgb_HW3, caption, zoom) if self._look.overlay else enlarged(rgb_HW3, zoom)
        )

    def finish(self, episode: Episode) -> None:
        """Leave a lane at its last picture, dimmed, with how its episode ended."""
        cell = self._cells[episode.lane]
        assert cell is not None, "an episode has frames"
        lines = (episode.end, f"at x {episode.x_pos_max}")
        self._cells[episode.lane] = finished(cell, lines, self._look.zoom)

    def picture(self) -> U8:
        """Every lane was drawn before."""
        cells = [cell for cell in self._cells if cell is not None]
        picture = grid(cells, self._look.columns)
        if self._look.overlay:
            picture = np.concatenate([picture, footer(self._look.label, picture.shape[1])])
        return picture


def film_play(
    network: Network,
    config: EnvConfig,
    look: Look,
    *,
    episodes: int,
    seed: int,
    greedy: bool,
    show: Show,
    threads: int = 1,
) -> list[Episode]:
    """Play in all lanes of ``look`` together and show every emulator frame; the episodes as they ended.

    While one lane goes through a pipe in a single step (``env.skip_transitions``), the others stand still.
    The first ``episodes`` that begin are played to their ends, at least one in each lane; a lane that begins
    no more stays at its last picture. A grid ends with a picture on which all have.
    """
    if episodes < look.lanes:
        raise ValueError(f"{look.lanes} lanes play at least {look.lanes} episodes, not {episodes}")
    board = Board(look)
    begun, done, watching = look.lanes, set[int](), True
    drawn: int | None = None  # the last lane of those that are in the picture to be shown next

    def show_drawn() -> None:
        nonlocal drawn, watching
        if drawn is not None and watching:
            watching = show(board.picture())
        drawn = None

    def on_frame(lane: int, emulator: Emulator) -> None:
        nonlocal drawn
        if drawn is not None and lane <= drawn:
            show_drawn()
        if lane not in done:
            board.draw(lane, emulator.rgb(), _caption(player, env, buttons_A, lane))
        drawn = lane

    buttons_A = action_set(config.actions)
    played: list[Episode] = []
    env = MarioVectorEnv(config, look.lanes, (seed,), threads, on_frame=on_frame)
    with contextlib.closing(env):
        player = Player(network, env, seed=seed, greedy=greedy)
        while watching and len(played) < episodes:
            ended = player.step().ended
            show_drawn()
            for episode in ended:
                if episode.lane in done:
                    continue
                played.append(episode)
                if begun < episodes:
                    begun += 1
                else:
                    done.add(episode.lane)
                    board.finish(episode)
    if watching and look.lanes > 1:
        show(board.picture())
    return played


def film_episode(
    network: Network, env: EnvConfig, protocol: EvalProtocol, wanted: Played, label: str, show: Show
) -> Episode | None:
    """Play the block of an evaluation again and show every emulator frame of one episode, with the overlay.

    Returns the episode; None where ``show`` ended it. Raises ``RuntimeError`` where it went otherwise than
    was reported: then what was shown is not that episode.
    """
    block, number = locate(protocol, wanted)
    board = Board(Look(overlay=True, label=label))
    watching = True

    def on_frame(lane: int, emulator: Emulator) -> None:
        nonlocal watching
        if playing.number_N[lane] != number or not watching:
            return
        board.draw(0, emulator.rgb(), _caption(playing.player, playing.env, buttons_A, lane))
        watching = show(board.picture())

    buttons_A = action_set(env.actions)
    playing = BlockPlayer(network, env, protocol, block, on_frame)
    with contextlib.closing(iter(playing)) as ends:
        for ended, episode in ends:
            if not watching:
                return None
            if ended == number:
                if not wanted.is_of(episode):
                    raise RuntimeError(
                        f"played again, the episode ended by {episode.end} at x {episode.x_pos_max}"
                        f" instead of {wanted.end} at x {wanted.x_pos}"
                    )
                return episode
    raise AssertionError("a block plays all its episodes")


def _caption(player: Player, env: VectorEnv, buttons_A: tuple[tuple[str, ...], ...], lane: int) -> Caption:
    assert isinstance(env, MarioVectorEnv)
    return Caption(
        buttons=buttons_A[env.action_N[lane]],
        x_pos=int(env.x_pos_N[lane]),
        value=float(player.value_N[lane]),
        value_name=player.value_name,
    )
