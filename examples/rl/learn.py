"""RecurrentPPO on CartPole whose velocities are hidden, timed."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

ENVIRONMENTS, STEPS = 8, 128
FRAMES = ENVIRONMENTS * STEPS  # of a rollout, on which an update follows
LONGEST, SOLVED = 200, 195  # steps of an episode, and the threshold: those of CartPole-v0


class WithoutVelocities(gymnasium.ObservationWrapper):
    """The cart's position and the pole's angle, of -1 to 1; how they move has to be remembered."""

    limits = np.array([2.4, 0.21], np.float32)  # where an episode ends

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]] / self.limits


class Learning(NamedTuple):
    """What came of one seed and one policy."""

    ends: list[int]  # frames, of all environments, at which an episode ended
    returns: list[float]  # of each such episode, in which actions are drawn
    acting: list[float]  # seconds of each rollout
    updating: list[float]  # seconds of the update after it
    score: float  # mean return of 24 episodes after learning, no action by chance


class Watch(BaseCallback):
    """Notes returns and times, and has a progress bar advance."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__()
        self.ends, self.returns, self.acting, self.updating = [], [], [], []
        self.advance, self.begun = advance, 0.0

    def _lap(self) -> float:
        before, self.begun = self.begun, time.perf_counter()
        return self.begun - before

    def _on_rollout_start(self) -> None:
        seconds = self._lap()
        if self.acting:  # else it is the first, and no update was before it
            self.updating.append(seconds)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.ends.append(self.num_timesteps)
                self.returns.append(info["episode"]["r"])
        self.advance(ENVIRONMENTS)
        return True

    def _on_rollout_end(self) -> None:
        self.acting.append(self._lap())

    def _on_training_end(self) -> None:
        self.updating.append(self._lap())


def environments(seed: int) -> VecEnv:
    """Eight of them in this process, each with its own seed."""
    return make_vec_env(
        "CartPole-v1",
        ENVIRONMENTS,
        seed=seed,
        wrapper_class=WithoutVelocities,
        env_kwargs={"max_episode_steps": LONGEST},
    )


def learn(policy: Any, seed: int, steps: int, advance: Callable[[int], None]) -> Learning:
    """Train a new policy; the seed fixes its weights, the environments and the actions drawn."""
    model = RecurrentPPO(
        policy,
        environments(seed),
        learning_rate=lambda remaining: 2e-3 * remaining,
        n_steps=STEPS,
        batch_size=256,
        n_epochs=10,
        gamma=0.995,  # a cart that drifts away takes a hundred steps and more for it
        gae_lambda=0.9,
        policy_kwargs={
            "lstm_hidden_size": 32,
            "shared_lstm": True,  # what actor and critic have to remember is the same
            "enable_critic_lstm": False,
        },
        seed=seed,
        device="cpu",
    )
    watch = Watch(advance)
    model.learn(steps, watch)
    score, _ = evaluate_policy(model, environments(seed + 1000), 24)
    return Learning(watch.ends, watch.returns, watch.acting, watch.updating, float(score))
