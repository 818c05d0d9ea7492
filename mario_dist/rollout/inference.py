"""Who computes the policy of a worker's lanes: the worker itself, or a server that does it for many."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mario_dist.nets import NetOut, Network, set_weights
from mario_dist.rollout.stack import FrameStack
from mario_dist.types import F32, U8, Bool, Weights


class Look(NamedTuple):
    """What the network says of some lanes, on the CPU, and the version of its weights."""

    out: NetOut
    version: int


class Inference(Protocol):
    """The policy's network as a worker sees it."""

    def load(self, weights: Weights) -> None:
        """Use these weights from now on, or newer ones."""

    def look(self, group: int, stack: FrameStack) -> Look:
        """The newest stacks of a group of lanes. Every stack that was pushed is looked at once, in order."""

    def values(self, stack_BKHW: U8) -> F32:
        """The values of any stacks: float32 [B]."""


class OwnNetwork:
    """A network of the worker's own, one batch over the lanes of a group."""

    def __init__(self, network: Network) -> None:
        self._network = network.eval()
        self._device = next(network.parameters()).device
        self._version = -1

    def load(self, weights: Weights) -> None:
        if weights.version != self._version:
            set_weights(self._network, weights.arrays)
            self._version = weights.version

    def look(self, group: int, stack: FrameStack) -> Look:
        return Look(self.forward(stack.stack_NKHW()), self._version)

    def values(self, stack_BKHW: U8) -> F32:
        value_B: F32 = self.forward(stack_BKHW).value_B.numpy()
        return value_B

    @torch.no_grad()
    def forward(self, stack_BKHW: U8) -> NetOut:
        out: NetOut = self._network(torch.from_numpy(stack_BKHW).to(self._device))
        return NetOut(out.logits_BA.cpu(), out.value_B.cpu())


@dataclass(frozen=True, slots=True)
class Request:
    """The newest frames of a client's lanes.

    frames: uint8 [N, H, W], of which ``first_N`` (bool [N]) are the first of an episode; or, with ``first_N``
    None, the whole stacks [K, N, H, W]: what a client begins with, and sends again where it is not known.
    """

    client: Hashable
    frames: U8
    first_N: Bool | None


class Answer(NamedTuple):
    """logits: float32 [N, A]; value: float32 [N]; version: of the weights."""

    logits_NA: F32
    value_N: F32
    version: int


class InferenceServer:
    """Looks at the lanes of many clients in one batch (as in SEED RL; Espeholt et al. 2020).

    It keeps each client's stacks, so that a client sends each frame once. Who takes a dead client's place has
    its name.
    """

    def __init__(self, network: Network, frame_stack: int) -> None:
        self._network = OwnNetwork(network)
        self._frame_stack = frame_stack
        self._stacks: dict[Hashable, FrameStack] = {}
        self.version = -1

    def load(self, weights: Weights) -> None:
        """Older weights than it has are left alone: clients may be behind."""
        if weights.version > self.version:
            self._network.load(weights)
            self.version = weights.version

    def look(self, requests: Sequence[Request]) -> list[Answer | None]:
        """None for a client that must send its whole stacks, or while there are no weights."""
        known = [self._push(request) for request in requests]
        stacks = [
            self._stacks[request.client]
            for request, is_known in zip(requests, known, strict=True)
            if is_known
        ]
        if self.version < 0 or not stacks:
            return [None] * len(requests)
        out = self._network.forward(np.concatenate([stack.stack_NKHW() for stack in stacks]))
        sizes = [stack.frames_KNHW.shape[1] for stack in stacks]
        parts = zip(torch.split(out.logits_BA, sizes), torch.split(out.value_B, sizes), strict=True)
        answers = (Answer(logits.numpy(), value.numpy(), self.version) for logits, value in parts)
        return [next(answers) if is_known else None for is_known in known]

    def values(self, stack_BKHW: U8) -> F32:
        return self._network.values(stack_BKHW)

    def _push(self, request: Request) -> bool:
        """Whether the client's stacks are known now."""
        if request.first_N is None:
            stack = FrameStack(self._frame_stack)
            stack.frames_KNHW = request.frames.copy()  # what comes through shared memory is read-only
            self._stacks[request.client] = stack
        elif request.client in self._stacks:
            self._stacks[request.client].push(request.frames, request.first_N)
        return request.client in self._stacks


class Server(Protocol):
    """An ``InferenceServer`` wherever it is, as a client sees it."""

    def look(self, request: Request) -> Answer | None: ...

    def load(self, weights: Weights) -> None: ...

    def values(self, stack_BKHW: U8) -> F32: ...


class SharedInference:
    """A worker's ``Inference`` by a server that others use, too; ``client`` names the worker there.

    The weights that it uses may be newer than the worker's, and change within an unroll.
    """

    def __init__(self, server: Server, client: Hashable) -> None:
        self._server = server
        self._client = client
        self._weights: Weights | None = None

    def load(self, weights: Weights) -> None:
        # The conductor gives them to the server: once, and not through every worker.
        self._weights = weights

    def look(self, group: int, stack: FrameStack) -> Look:
        client = self._client, group
        answer = None
        if stack.first_N is not None:
            answer = self._server.look(Request(client, stack.frames_KNHW[-1], stack.first_N))
        while answer is None:  # nothing was said yet, or the server knows nothing any more
            assert self._weights is not None, "load comes first"
            self._server.load(self._weights)
            answer = self._server.look(Request(client, stack.frames_KNHW, None))
        out = NetOut(torch.tensor(answer.logits_NA), torch.tensor(answer.value_N))
        return Look(out, answer.version)

    def values(self, stack_BKHW: U8) -> F32:
        return self._server.values(stack_BKHW)
