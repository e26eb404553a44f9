"""PyTorch Lightning, skorch and TorchRL, each as its users use it, with these layers and torch's.

``make test-ecosystem`` installs them; where they are not, these tests are skipped.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman.torch

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages, of themselves and each other
LONGEST, FEATURES, CLASSES = 12, 4, 3


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recordings(rows=90):
    """x (N, L, D), lengths (N,) and classes (N,): the feature that is raised."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, LONGEST + 1, (rows,), generator=random)
    classes = torch.randint(CLASSES, (rows,), generator=random)
    x = torch.randn(rows, LONGEST, FEATURES, generator=random)
    x[torch.arange(rows), :, classes] += 1.5
    x[torch.arange(LONGEST) >= lengths[:, None]] = 0
    return x, lengths, classes


class Classifier(nn.Module):
    """The layer is Elman's with lengths, or torch's with packing."""

    def __init__(self, gru=elman.torch.GRU, hidden=16):
        super().__init__()
        torch.manual_seed(1)
        self.gru = gru(FEATURES, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, CLASSES)

    def forward(self, x, lengths):
        if isinstance(self.gru, nn.GRU):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.gru(packed)[0], True, total_length=LONGEST)
        else:
            output, _ = self.gru(x, lengths=lengths)
        return self.linear(output.sum(1) / lengths[:, None])


BOTH = [elman.torch.GRU, nn.GRU]


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Recogniser(lightning.LightningModule):
        def __init__(self, gru):
            super().__init__()
            self.model, self.losses = Classifier(gru), []

        def training_step(self, batch, _):
            *inputs, classes = batch
            loss = F.cross_entropy(self.model(*inputs), classes)
            self.losses.append(loss.item())
            return loss

        def test_step(self, batch):
            *inputs, classes = batch
            right = (self.model(*inputs).argmax(1) == classes).float().mean()
            self.log("accuracy", right, batch_size=len(classes))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    data = torch.utils.data.TensorDataset(*recordings())
    losses, scores = [], []
    for gru in BOTH:
        lightning.seed_everything(0, verbose=False)
        trainer = lightning.Trainer(
            max_epochs=8,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / gru.__module__,
        )
        module = Recogniser(gru)
        trainer.fit(module, torch.utils.data.DataLoader(data, 30, shuffle=True))
        found = trainer.test(module, torch.utils.data.DataLoader(data, 90), verbose=False)
        losses.append(module.losses)
        scores.append(found[0]["accuracy"])
        again = Recogniser.load_from_checkpoint(
            trainer.checkpoint_callback.best_model_path, gru=gru
        )
        assert torch.equal(again.model.gru.weight_hh_l0, module.model.gru.weight_hh_l0)
    assert len(losses[0]) == 24
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # rounding, grown over 24 steps
    assert scores[0] == scores[1] > 0.9


def test_skorch():
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    from sklearn.model_selection import GridSearchCV, cross_val_score

    x, _, classes = recordings()

    class OfOneArray(Classifier):
        """scikit-learn splits one array: the lengths are what is not padding."""

        def forward(self, x):
            return super().forward(x, (x != 0).any(2).sum(1)).softmax(1)

    scores = []
    for gru in BOTH:
        net = skorch.NeuralNetClassifier(
            OfOneArray,
            module__gru=gru,
            criterion=nn.NLLLoss,
            optimizer=torch.optim.Adam,
            lr=1e-2,
            max_epochs=15,
            batch_size=30,
            train_split=None,
            verbose=0,
        )
        net.fit(x.numpy(), classes.numpy())
        torch.testing.assert_close(
            torch.from_numpy(net.predict_proba(x.numpy())),
            OfOneArray.forward(net.module_.eval(), x).detach(),
        )
        folds = cross_val_score(net, x.numpy(), classes.numpy(), cv=3, scoring="accuracy")
        scores.append([net.score(x.numpy(), classes.numpy()), *folds])
    np.testing.assert_allclose(scores[0], scores[1], atol=1 / 30)  # one of a fold's rows
    assert min(scores[0]) > 0.8
    search = GridSearchCV(net.set_params(max_epochs=3), {"module__hidden": [4, 16]}, cv=2)
    assert search.fit(x.numpy(), classes.numpy()).best_params_["module__hidden"] in (4, 16)


class Memory(nn.Module):
    """The layer for a TensorDictModule: steps one by one, or rollouts with episodes in them."""

    def __init__(self, *sizes):
        super().__init__()
        self.gru = elman.torch.GRU(*sizes, batch_first=True)

    def forward(self, observation, memory, is_init):
        """Features and last state for (N, D), (N, 1, H) and (N, 1), or all with a T after N."""
        one = observation.dim() == 2
        if one:
            observation, memory, is_init = (t[:, None] for t in (observation, memory, is_init))
        h_0 = memory[:, 0].transpose(0, 1)  # what the rollout before had left
        features, h_n = self.gru(observation, h_0, reset=is_init[..., 0])
        after = torch.zeros_like(memory)
        after[:, -1] = h_n.transpose(0, 1)
        return (features[:, 0], after[:, 0]) if one else (features, after)


def test_torchrl():
    """A policy learns to repeat what it saw when the episode began, as TorchRL's own GRU does."""
    pytest.importorskip("torchrl", reason="torchrl is not installed")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
    from torchrl.envs import EnvBase, InitTracker, TransformedEnv
    from torchrl.envs.transforms import TensorDictPrimer
    from torchrl.modules import GRUModule, ProbabilisticActor, set_recurrent_mode

    STEPS, ENVS, HIDDEN = 4, 32, 16

    class Recall(EnvBase):
        """Shows +1 or -1 at the first of four steps; the last action should tell which."""

        def __init__(self):
            super().__init__(batch_size=[ENVS])
            shape, self.random = (ENVS, 1), torch.Generator()
            self.observation_spec = Composite(
                observation=Bounded(-1, 1, shape=shape), batch_size=[ENVS]
            )
            self.action_spec = Categorical(2, shape=(ENVS,))
            self.reward_spec = Bounded(0, 1, shape=shape)
            self.done_spec = Binary(1, shape=shape, dtype=torch.bool)
            self.shown, self.step_of = torch.zeros(shape), torch.zeros(shape)

        def _reset(self, tensordict):
            begins = torch.ones(ENVS, 1, dtype=torch.bool)
            if tensordict is not None and "_reset" in tensordict:
                begins = tensordict["_reset"].reshape(ENVS, 1)
            fresh = torch.randint(2, (ENVS, 1), generator=self.random) * 2.0 - 1
            self.shown = torch.where(begins, fresh, self.shown)
            self.step_of = torch.where(begins, torch.arange(ENVS)[:, None] % 2, self.step_of)
            observation = torch.where(begins, self.shown, 0.0)
            done = torch.zeros(ENVS, 1, dtype=torch.bool)
            return TensorDict({"observation": observation, "done": done}, [ENVS])

        def _step(self, tensordict):
            self.step_of = self.step_of + 1
            done = self.step_of >= STEPS
            right = (tensordict["action"][:, None] * 2 - 1) == self.shown
            return TensorDict(
                {
                    "observation": torch.zeros(ENVS, 1),
                    "reward": (right & done).float(),
                    "done": done,
                },
                [ENVS],
            )

        def _set_seed(self, seed):
            self.random.manual_seed(seed)

    keys = {
        "in_keys": ["observation", "memory", "is_init"],
        "out_keys": ["features", ("next", "memory")],
    }

    def ours():
        return TensorDictModule(Memory(1, HIDDEN), **keys)

    def theirs():
        return GRUModule(gru=nn.GRU(1, HIDDEN, batch_first=True), **keys)

    def learn(make_memory, iterations):
        torch.manual_seed(0)
        memory = make_memory()
        head = TensorDictModule(nn.Linear(HIDDEN, 2), ["features"], ["logits"])
        network = TensorDictSequential(memory, head)
        actor = ProbabilisticActor(
            network, in_keys=["logits"], distribution_class=torch.distributions.Categorical
        )
        env = TransformedEnv(Recall(), InitTracker())
        state = Unbounded(shape=(1, HIDDEN))
        env.append_transform(TensorDictPrimer({"memory": state}, expand_specs=True))
        env.set_seed(0)
        frames = ENVS * 2 * STEPS
        collector = Collector(env, actor, frames_per_batch=frames, total_frames=frames * iterations)
        optimizer = torch.optim.Adam(actor.parameters(), 3e-2)
        losses, rewards = [], []
        for batch in collector:
            reward, done = batch["next", "reward"], batch["next", "done"]
            rewards.append((reward.sum() / done.sum()).item())
            with set_recurrent_mode(True):
                logits = network(batch.clone())["logits"]
            chosen = logits.log_softmax(-1).gather(-1, batch["action"][..., None])
            loss = -((chosen * (reward - 0.5))[done]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        collector.shutdown()
        assert batch["is_init"][:, 1:].any()  # episodes do begin within a batch
        return losses, rewards

    losses, rewards = learn(ours, 30)
    assert np.mean(rewards[-5:]) > 0.9 > 0.7 > np.mean(rewards[:3])
    assert losses[:5] == pytest.approx(learn(theirs, 5)[0], rel=1e-4)
