"""The Nature CNN as an RLlib module: RLlib's own encoder cannot be the same network.

Its default CNN fails on uint8 pictures, pads "same" (2.5 times the features after the last convolution)
and has no dense layer that policy and value share. A module of one's own is RLlib's documented way out,
and scaling inside it lets pictures stay uint8 in episodes and in Ray's object store, a quarter of the bytes.
"""

from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

FEATURES = 512


class NatureModule(TorchRLModule, ValueFunctionAPI):
    """Logits and value of uint8 pictures [B, K, 84, 84], from one torso."""

    def setup(self) -> None:
        observations, actions = self.observation_space, self.action_space
        assert isinstance(observations, Box)
        assert isinstance(actions, Discrete)
        self.torso = nn.Sequential(
            nn.Conv2d(observations.shape[0], 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, FEATURES),
            nn.ReLU(),
        )
        self.policy = nn.Linear(FEATURES, int(actions.n))
        self.value = nn.Linear(FEATURES, 1)
        # As SB3 and we start: gain sqrt(2) in the torso, a nearly uniform policy.
        for layer in self.torso:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _orthogonal(layer, 2**0.5)
        _orthogonal(self.policy, 0.01)
        _orthogonal(self.value, 1.0)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(self._features(batch))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self._features(batch)
        return {Columns.ACTION_DIST_INPUTS: self.policy(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        features = self._features(batch) if embeddings is None else embeddings
        values: Tensor = self.value(features)
        return values.squeeze(-1)

    def _features(self, batch: dict[str, Any]) -> Tensor:
        features: Tensor = self.torso(batch[Columns.OBS].to(torch.float32) / 255.0)
        return features


def _orthogonal(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
