"""What others build on torch, each as its users use it, with these layers and torch's.

PyTorch Lightning, skorch and TorchRL train models that have these layers. The models of
Resemblyzer, sb3-contrib, neuralforecast, darts and flair run as they come, and accelerated. ``make
test-ecosystem`` installs them all; where one is not, its tests are skipped. With ``-s`` the times
of both are printed.
"""

import copy
import importlib.metadata
import inspect
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman
import elman.torch
from elman import _engine
from elman.cli import processor

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages, of themselves and each other
LONGEST, FEATURES, CLASSES = 12, 4, 3


@pytest.fixture(autouse=True)
def _engine_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with elman.torch.require("kernel"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def times():
    """Takes a name, torch's call and ours; prints the best time of each when the module ends.

    Without what `conftest.py` does to memory, which takes longer than some calls.
    """
    rows = []

    def measure(what, *calls, turns=5):
        seconds = [[], []]
        _engine.poison_buffers(False)
        end = time.perf_counter() + 0.2
        while len(seconds[0]) < turns or time.perf_counter() < end:
            for taken, call in zip(seconds, calls, strict=True):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
        _engine.poison_buffers(True)
        rows.append((what, *map(min, seconds)))

    yield measure
    if rows:
        print(f"\n\nMilliseconds, one thread, {processor()}\n")
        print(f"{'':50}{'torch':>10}{'Elman':>10}{'ratio':>8}")
    for what, stock, ours in rows:
        print(f"{what:50}{1e3 * stock:10.2f}{1e3 * ours:10.2f}{stock / ours:8.2f}")


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
        if not isinstance(self.gru, elman.torch.GRU):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.gru(packed)[0], True, total_length=LONGEST)
        else:
            output, _ = self.gru(x, lengths=lengths)
        return self.linear(output.sum(1) / lengths[:, None])


BOTH = [elman.torch.GRU, nn.GRU]


def test_lightning(times, tmp_path):
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

    def fitted(gru):
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
        return trainer, module

    losses, scores = [], []
    for gru in BOTH:
        trainer, module = fitted(gru)
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
    times("Lightning: 8 epochs, lengths= or packing", *(partial(fitted, gru) for gru in BOTH[::-1]))


def test_skorch(times):
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    from sklearn.base import clone
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

    # A clone, and every fit, builds the module anew.
    class Plain(OfOneArray):
        def __init__(self):
            super().__init__(nn.GRU)  # by the name that install changes

    def losses(net):
        return [row["train_loss"] for row in net.fit(x.numpy(), classes.numpy()).history]

    plain = skorch.NeuralNetClassifier(
        Plain, criterion=nn.NLLLoss, max_epochs=4, train_split=None, verbose=0
    )
    expected = losses(plain)
    with elman.torch.install():
        for built in (plain, clone(plain)):
            assert losses(built) == pytest.approx(expected, rel=1e-4)
            assert type(built.module_.gru) is elman.torch.GRU

    def losses_with_elmans():
        with elman.torch.install():
            return losses(plain)

    times("skorch: 4 epochs, packed", partial(losses, plain), losses_with_elmans)
    search = GridSearchCV(net.set_params(max_epochs=3), {"module__hidden": [4, 16]}, cv=2)
    assert search.fit(x.numpy(), classes.numpy()).best_params_["module__hidden"] in (4, 16)


def make_memory(name, ours, **keys):
    """TorchRL's module of that name in float64, or Elman's, with the same weights."""
    theirs = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
    if ours:
        import elman.torch.torchrl as theirs
    torch.manual_seed(0)
    module = getattr(theirs, name)(3, 5, 2, in_key="seen", out_key="features", **keys)
    return module.double()


@pytest.mark.parametrize("name", ["GRUModule", "LSTMModule"])
def test_torchrl_modules(name, times):
    """Rollouts of any axes with episodes that begin within, and steps: values and gradients."""
    stock, ours = make_memory(name, False), make_memory(name, True)
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    assert (ours.in_keys, ours.out_keys) == (stock.in_keys, stock.out_keys)
    assert str(ours.make_tensordict_primer()) == str(stock.make_tensordict_primer())
    assert ours.make_cudnn_based() is ours.make_python_based() is ours
    expected = stock.state_dict()
    torch.testing.assert_close(ours.state_dict(), expected, rtol=0, atol=0)
    states = ours.in_keys[1:-1]
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def rollout(*shape, recurrent):
        begins = torch.rand(*shape, 1, generator=random) < 0.3
        if recurrent:
            begins[..., :2, :] = torch.tensor([[False], [True]])
        given = {key: draw(*shape, 2, 5) for key in states}
        return TensorDict({"seen": draw(*shape, 3), "is_init": begins, **given}, shape)

    def answers(module, data, cotangents, recurrent):
        leaves = {key: data[key].clone().requires_grad_() for key in ("seen", *states)}
        # Where an episode begins TorchRL's begin with the state that is there, which is to be 0.
        given = {key: leaves[key] * ~data["is_init"][..., None] for key in states}
        with set_recurrent_mode(recurrent):
            found = module(data.clone().update(leaves).update(given))
        last = [found["next", key] for key in states]
        last = [state[..., -1, :, :] if recurrent else state for state in last]
        values = (found["features"], *last)
        loss = sum((v * c).sum() for v, c in zip(values, cotangents, strict=True))
        gradients = torch.autograd.grad(loss, (*leaves.values(), *module.parameters()))
        return values, gradients

    for shape, recurrent in [((4, 9), 1), ((2, 3, 7), 1), ((8,), 1), ((4,), 0), ((2, 3), 0)]:
        data = rollout(*shape, recurrent=recurrent)
        rows = shape[:-1] if recurrent else shape
        cotangents = (draw(*shape, 5), *(draw(*rows, 2, 5) for _ in states))
        both = [answers(m, data, cotangents, bool(recurrent)) for m in (stock, ours)]
        torch.testing.assert_close(both[1], both[0], rtol=1e-12, atol=1e-12)
        with set_recurrent_mode(bool(recurrent)):
            # Without any state; with one of an LSTM's two; and by keywords.
            bare = data.exclude(*states)
            found = [module(bare.clone())["features"] for module in (stock, ours)]
            torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
            if len(states) == 2:
                with pytest.raises(KeyError, match=states[1]):
                    ours(data.exclude(states[1]))
            torch.testing.assert_close(
                ours(seen=bare["seen"], is_init=bare["is_init"])[0], found[1], rtol=0, atol=0
            )
    with set_recurrent_mode(True), pytest.raises(ValueError, match="no axis"):
        ours(rollout(recurrent=0))
    with pytest.raises(TypeError):
        make_memory(name, True, python_based=True)

    data = rollout(16, 100, recurrent=1)
    cotangents = (draw(16, 100, 5), *(draw(16, 2, 5) for _ in states))
    times(
        f"TorchRL, {name}: 16 x 100 steps, gradients, float64",
        *(partial(answers, module, data, cotangents, True) for module in (stock, ours)),
    )


def test_torchrl_loss():
    """A loss of TorchRL's calls the actor with weights of its own, stacked in a tensordict."""
    pytest.importorskip("torchrl", reason="torchrl is not installed")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import ProbabilisticActor, ValueOperator, set_recurrent_mode
    from torchrl.objectives import ClipPPOLoss

    random = torch.Generator().manual_seed(0)
    begins = torch.rand(4, 10, 1, generator=random) < 0.3

    def draw(size):
        return torch.randn(4, 10, size, generator=random).double()

    data = TensorDict(
        {
            "seen": draw(3),
            "is_init": begins,
            "action": torch.randint(2, (4, 10), generator=random),
            "action_log_prob": -0.7 * torch.ones(4, 10).double(),
            "advantage": draw(1),
            "value_target": draw(1),
        },
        [4, 10],
    )

    def losses(ours):
        memory = make_memory("LSTMModule", ours)
        head = TensorDictModule(nn.Linear(5, 2).double(), ["features"], ["logits"])
        actor = ProbabilisticActor(
            TensorDictSequential(memory, head),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
        )
        critic = TensorDictSequential(
            memory, ValueOperator(nn.Linear(5, 1).double(), in_keys=["features"])
        )
        loss = ClipPPOLoss(actor, critic)
        with set_recurrent_mode(True):
            found = loss(data.clone())
        total = found["loss_objective"] + found["loss_critic"] + found["loss_entropy"]
        return total, torch.autograd.grad(total, list(loss.parameters()))

    torch.testing.assert_close(losses(True), losses(False), rtol=1e-12, atol=1e-12)


def test_torchrl():
    """A policy learns to repeat what it saw when the episode began, as TorchRL's own GRU does."""
    pytest.importorskip("torchrl", reason="torchrl is not installed")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.data import Binary, Bounded, Categorical, Composite
    from torchrl.envs import EnvBase, InitTracker, TransformedEnv
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
        from elman.torch.torchrl import GRUModule

        return GRUModule(1, HIDDEN, **keys)

    def theirs():
        return GRUModule(gru=nn.GRU(1, HIDDEN, batch_first=True), **keys)

    def accelerated():
        module = theirs()
        assert elman.torch.accelerate(module) == ["gru"]
        assert module.make_cudnn_based() is module  # it has torch's class, and keeps it
        return module

    def learn(make_memory, iterations):
        torch.manual_seed(0)
        memory = make_memory()
        head = TensorDictModule(nn.Linear(HIDDEN, 2), ["features"], ["logits"])
        network = TensorDictSequential(memory, head)
        actor = ProbabilisticActor(
            network, in_keys=["logits"], distribution_class=torch.distributions.Categorical
        )
        env = TransformedEnv(Recall(), InitTracker())
        env.append_transform(memory.make_tensordict_primer())
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
    expected = learn(theirs, 5)[0]
    assert losses[:5] == pytest.approx(expected, rel=1e-4)
    assert learn(accelerated, 5)[0] == pytest.approx(expected, rel=1e-4)


close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def test_resemblyzer(times):
    """The weights of the speaker encoder that the package ships, and embeddings by them."""
    try:
        files = importlib.metadata.files("resemblyzer")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("resemblyzer is not installed")
    path = next(file for file in files if file.name == "pretrained.pt").locate()
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]

    class VoiceEncoder(nn.Module):
        """Resemblyzer's, which cannot be imported without a package that needs a compiler."""

        def __init__(self, lstm):
            super().__init__()
            self.lstm, self.linear = lstm(40, 256, 3, batch_first=True), nn.Linear(256, 256)
            self.load_state_dict({n: w for n, w in state.items() if "similarity" not in n})

        @torch.no_grad()
        def forward(self, mels):
            output, (h_n, c_n) = self.lstm(mels)
            return F.normalize(self.linear(h_n[-1]).relu()), output, h_n, c_n

    stock, ours, accelerated = (VoiceEncoder(lstm) for lstm in (nn.LSTM, elman.torch.LSTM, nn.LSTM))
    assert elman.torch.accelerate(accelerated) == ["lstm"]
    random = torch.Generator().manual_seed(0)
    spectra = torch.randn(8, 1, 40, generator=random)  # of eight voices
    mels = (spectra + torch.randn(8, 160, 40, generator=random)).exp() / 10  # power, in 1.6 s
    expected = stock(mels)
    assert torch.pdist(expected[0]).min() > 0.1  # one voice is not another
    close(ours(mels), expected)
    close(accelerated(mels), expected)
    lstm = elman.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({name: w.numpy() for name, w in stock.lstm.state_dict().items()})
    output, states = lstm(mels.numpy())
    close(tuple(map(torch.from_numpy, (output, *states))), expected[1:])
    for rows in (1, 8):
        times(
            f"Resemblyzer: {rows} x 160 frames",
            partial(stock, mels[:rows]),
            partial(accelerated, mels[:rows]),
        )


def sb3(name):
    """Elman's policy of that name, and sb3-contrib's."""
    stock = pytest.importorskip("sb3_contrib.ppo_recurrent", reason="sb3-contrib is not installed")
    import elman.torch.sb3

    return getattr(elman.torch.sb3, name), getattr(stock, name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MlpLstmPolicy", {"n_lstm_layers": 2}),
        ("MlpLstmPolicy", {"shared_lstm": True, "enable_critic_lstm": False}),
        ("CnnLstmPolicy", {"enable_critic_lstm": False}),
        ("MultiInputLstmPolicy", {"lstm_kwargs": {"bias": False}}),
    ],
)
def test_sb3_policies(name, options):
    """The same weights by the same seed; then answers and gradients where episodes begin."""
    both = sb3(name)
    from gymnasium.spaces import Box, Dict, Discrete
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    assert inspect.signature(both[0]) == inspect.signature(both[1])
    vector, image = Box(-1, 1, (3,)), Box(0, 255, (1, 36, 36), np.uint8)
    spaces = {"Mlp": vector, "Cnn": image, "MultiInput": Dict({"a": vector, "b": Box(-1, 1, (2,))})}
    space, N, L = spaces[name.removesuffix("LstmPolicy")], 4, 7
    space.seed(0)
    sampled = [space.sample() for _ in range(N * L)]
    policies, drawn = [], []
    for policy in both:
        torch.manual_seed(0)
        policies.append(policy(space, Discrete(5), lambda _: 1e-3, lstm_hidden_size=6, **options))
        drawn.append(torch.randn(5))  # after as many numbers
    ours, stock = policies
    torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=0, atol=0)
    assert torch.equal(*drawn)
    assert isinstance(ours.lstm_actor, elman.torch.LSTM)
    assert nn.LSTM is not elman.torch.LSTM

    if name.startswith("Multi"):
        observations = {key: torch.tensor(np.stack([o[key] for o in sampled])) for key in space}
    else:
        observations = torch.from_numpy(np.stack(sampled))
    layers = ours.lstm_actor.num_layers
    states = RNNStates(*(tuple(pair) for pair in torch.randn(2, 2, layers, N, 6)))
    starts = torch.zeros(N, L)
    starts[0, 0] = starts[1, 3] = starts[2, ::2] = 1
    actions = torch.randint(5, (N * L,))

    def answers(policy):
        nn.init.normal_(policy.action_net.weight, generator=torch.Generator().manual_seed(2))
        values, log_probs, entropy = policy.evaluate_actions(
            observations, actions, states, starts.flatten()
        )
        weights = torch.randn(3, N * L, generator=torch.Generator().manual_seed(1))
        (weights[0] @ values + weights[1] @ log_probs + weights[2] @ entropy).sum().backward()
        gradients = tuple(p.grad for p in policy.parameters() if p.grad is not None)
        more = policy.forward(observations, states, starts.flatten(), deterministic=True)
        return values, log_probs, entropy, gradients, *more

    with elman.torch.require("kernel"):
        found = answers(ours)
    close(found, answers(stock))


def test_sb3_sequences():
    """Output and last states with gradients of all that they come from, in float64."""
    ours, stock = sb3("MlpLstmPolicy")
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    N, L, D, H = 4, 9, 3, 5
    given = draw(N * L, D), draw(2, N, H), draw(2, N, H)
    cotangents = draw(N * L, H), draw(2, N, H), draw(2, N, H)
    layers = [module(D, H, 2, dtype=torch.float64) for module in (elman.torch.LSTM, nn.LSTM)]
    layers[0].load_state_dict(layers[1].state_dict())
    some = torch.zeros(N, L)
    some[0, 0] = some[1, 4] = some[1, 5] = some[2, -1] = some[3, ::3] = 1

    def answers(policy, layer, starts):
        features, h_0, c_0 = leaves = [t.clone().requires_grad_() for t in given]
        output, last = policy._process_sequence(features, (h_0, c_0), starts.flatten(), layer)
        gradients = torch.autograd.grad((output, *last), (*leaves, *layer.parameters()), cotangents)
        return (output, *last), gradients

    for starts in (some, torch.zeros_like(some), torch.ones_like(some)):
        found, expected = (
            answers(policy, layer, starts)
            for policy, layer in zip((ours, stock), layers, strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def recurrent_ppo(policy="MlpLstmPolicy"):
    """One that balances a pole. An update follows on the 128 steps of two environments."""
    sb3_contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")
    from stable_baselines3.common.env_util import make_vec_env

    return sb3_contrib.RecurrentPPO(
        policy,
        make_vec_env("CartPole-v1", 2, seed=0),
        n_steps=64,
        batch_size=128,
        n_epochs=1,
        seed=0,
        device="cpu",
    )


def test_sb3_policy(times):
    """Sequences in which episodes start, and one in which none does: answers and gradients."""
    model = recurrent_ppo()
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    stock, (rows, steps) = model.policy, (4, 30)
    torch.manual_seed(0)
    nn.init.normal_(stock.action_net.weight)  # it is almost 0 at first, and so are all logits
    ours = copy.deepcopy(stock)
    assert elman.torch.accelerate(ours) == ["lstm_actor", "lstm_critic"]
    observations, actions = torch.randn(rows * steps, 4), torch.randint(2, (rows * steps,))
    states = RNNStates(*(tuple(pair) for pair in torch.randn(2, 2, 1, rows, 256)))

    def answers(policy, starts):
        policy.zero_grad()
        values, log_probs, entropy = policy.evaluate_actions(observations, actions, states, starts)
        (values.square().mean() + log_probs.mean() + entropy.mean()).backward()
        distribution, after = policy.get_distribution(observations, states.pi, starts)
        gradients = tuple(weight.grad for weight in policy.parameters())
        return values, log_probs, entropy, distribution.distribution.probs, after, gradients

    some = (torch.rand(rows * steps) < 0.1).float()
    for starts in (some, torch.zeros_like(some)):
        expected = answers(stock, starts)
        assert expected[3].std() > 0.1
        close(answers(ours, starts), expected)

    def step(policy):
        return policy.predict(observations[:rows].numpy(), deterministic=True)

    np.testing.assert_array_equal(step(ours)[0], step(stock)[0])
    np.testing.assert_allclose(step(ours)[1], step(stock)[1], rtol=1e-5, atol=1e-5)

    def sequence(policy):
        return policy._process_sequence(observations, states.pi, some, policy.lstm_actor)

    one_call = recurrent_ppo(sb3("MlpLstmPolicy")[0]).policy
    one_call.load_state_dict(stock.state_dict())
    close(answers(one_call, some), answers(stock, some))
    times("sb3-contrib: a step of 4 environments", partial(step, stock), partial(step, ours))
    for name, starts in (("with", some), ("without", torch.zeros_like(some))):
        times(
            f"sb3-contrib: 4 x 30 steps {name} starts, gradients",
            partial(answers, stock, starts),
            partial(answers, ours, starts),
        )
    times(
        "sb3-contrib: 4 x 30 steps, its loop or reset=",
        partial(sequence, stock),
        partial(sequence, one_call),
    )


def test_sb3_learns(times, tmp_path):
    """A rollout and an update: the same actions, losses and gradients, by the same seed.

    Only rounding differs. The weights after it are another matter: Adam's first step is as long
    whatever the gradient is, and where that is 0 but for rounding it may go either way.
    """
    policy, _ = sb3("MlpLstmPolicy")
    stock, accelerated, one_call = recurrent_ppo(), recurrent_ppo(), recurrent_ppo(policy)
    assert elman.torch.accelerate(accelerated.policy) == ["lstm_actor", "lstm_critic"]
    found = []
    for model in (stock, accelerated, one_call):
        model.set_random_seed(0)
        model.learn(128)
        buffer, logged = model.rollout_buffer, model.logger.name_to_value
        losses = [logged[f"train/{name}_loss"] for name in ("value", "entropy", "policy_gradient")]
        gradients = tuple(weight.grad for weight in model.policy.parameters())
        found.append((buffer.actions.copy(), losses, gradients))
    actions, losses, gradients = found[0]
    assert buffer.episode_starts[1:].any()  # episodes do start within a rollout
    assert max(g.abs().max() for g in gradients) > 0.01
    for our_actions, our_losses, our_gradients in found[1:]:
        np.testing.assert_array_equal(our_actions, actions)
        assert our_losses == pytest.approx(losses, rel=1e-5, abs=1e-6)
        close(our_gradients, gradients)

    # Files of both: Elman's as it is, and sb3-contrib's read with Elman's policy.
    observations = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for model, objects in ((one_call, {}), (stock, {"policy_class": policy})):
        model.save(tmp_path / "model.zip")
        again = type(model).load(tmp_path / "model.zip", custom_objects=objects, device="cpu")
        assert type(again.policy) is policy
        (action, states), (expected, expected_states) = (
            m.predict(observations, deterministic=True) for m in (again, model)
        )
        np.testing.assert_array_equal(action, expected)
        np.testing.assert_allclose(states, expected_states, rtol=1e-5, atol=1e-5)

    def learn(model):
        model.learn(128, reset_num_timesteps=False)

    times("sb3-contrib: learn(128)", partial(learn, stock), partial(learn, accelerated), turns=3)
    times("sb3-contrib: train()", stock.train, one_call.train, turns=3)


@pytest.mark.parametrize("recurrent", [False, True])  # of which True has a projection
def test_neuralforecast(recurrent, times):
    """A model is accelerated before it learns, or after it, to predict."""
    neuralforecast = pytest.importorskip("neuralforecast", reason="neuralforecast is not installed")
    import pandas
    from neuralforecast.models import LSTM

    random = np.random.default_rng(0)
    days = np.arange(100)
    series = pandas.concat(
        pandas.DataFrame(
            {
                "unique_id": name,
                "ds": pandas.date_range("2026-01-01", periods=100),
                "y": np.sin(days / (k + 1)) + random.normal(0, 0.2, 100),
            }
        )
        for k, name in enumerate("abcd")
    )

    def forecaster(model):
        return neuralforecast.NeuralForecast([model], freq="D")

    def model():
        return LSTM(
            h=7,
            input_size=28,
            recurrent=recurrent,
            max_steps=5,
            learning_rate=1e-2,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    turned = model()
    assert elman.torch.accelerate(turned) == ["hist_encoder"]
    stock, ours = forecaster(model()), forecaster(turned)
    stock.fit(series)
    ours.fit(series)
    losses = [[loss for _, loss in f.models[0].train_trajectories] for f in (stock, ours)]
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)

    with elman.torch.install():  # for what is built at every fit
        rebuilt = forecaster(model())
        for use_init_models in (False, True):
            rebuilt.fit(series, use_init_models=use_init_models)
            assert type(rebuilt.models[0].hist_encoder) is elman.torch.LSTM
            again = [loss for _, loss in rebuilt.models[0].train_trajectories]
            assert again == pytest.approx(losses[0], rel=1e-5)

    accelerated = copy.deepcopy(stock)
    assert elman.torch.accelerate(accelerated.models[0]) == ["hist_encoder"]

    def predict(forecaster):
        return forecaster.predict()["LSTM"].to_numpy()

    np.testing.assert_allclose(predict(accelerated), predict(stock), rtol=1e-5, atol=1e-5)
    name = "neuralforecast" + (", recurrent" if recurrent else "")
    for what, call in (("predict", predict), ("5 steps of training", lambda f: f.fit())):
        times(f"{name}: {what}", partial(call, stock), partial(call, ours), turns=3)


@pytest.mark.parametrize("kind", ["RNNModel", "BlockRNNModel"])
def test_darts(kind, times, tmp_path):
    """Fitted with Elman's layers; accelerated to predict; and built anew for every forecast."""
    models = pytest.importorskip("darts.models", reason="darts is not installed")
    from darts import TimeSeries

    random, days = np.random.default_rng(0), np.arange(120)
    values = [np.sin(days / (k + 1)) + random.normal(0, 0.2, 120) for k in range(4)]
    series = [TimeSeries.from_values(v.astype(np.float32)) for v in values]
    of_kind = {
        "RNNModel": {"model": "LSTM", "training_length": 40},
        "BlockRNNModel": {"model": "GRU", "output_chunk_length": 7},
    }
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")

    def fitted():
        model = getattr(models, kind)(
            input_chunk_length=28,
            n_epochs=2,
            random_state=0,
            pl_trainer_kwargs={"accelerator": "cpu", "devices": 1, **dict.fromkeys(quiet, False)},
            **of_kind[kind],
        )
        return model.fit(series)

    def predict(model):
        return model.predict(7, series=series[0]).values()

    def loss(model):
        return model.trainer.callback_metrics["train_loss"].item()

    def backtest(model):
        forecasts = model.historical_forecasts(
            series[0], start=-9, stride=2, forecast_horizon=7, retrain=True, verbose=False
        )
        return forecasts.values()

    def fitted_with_elmans():
        with elman.torch.install():
            return fitted()

    stock, ours = fitted(), fitted_with_elmans()
    assert type(ours.model.rnn).__module__ == "elman.torch.layers"
    with elman.torch.install():
        elman.torch.paths.clear()
        found = backtest(ours)
        assert elman.torch.paths["kernel"] > 10
    times(f"darts, {kind}: 2 epochs", fitted, fitted_with_elmans, turns=2)
    assert loss(ours) == pytest.approx(loss(stock), rel=1e-5)
    np.testing.assert_allclose(predict(ours), predict(stock), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, backtest(stock), rtol=1e-4, atol=1e-5)

    expected = predict(stock)
    assert elman.torch.accelerate(stock.model) == ["rnn"]
    np.testing.assert_allclose(predict(stock), expected, rtol=1e-5, atol=1e-5)
    for model, file in ((stock, "stock.pt"), (ours, "ours.pt")):
        model.save(str(tmp_path / file))
        again = type(model).load(str(tmp_path / file))  # which builds it anew, of torch's
        np.testing.assert_allclose(predict(again), predict(model), rtol=1e-5, atol=1e-5)
        assert elman.torch.accelerate(again.model) == ["rnn"]


def test_flair(times):
    """A tagger of an LSTM over words, whose embeddings are of one over characters, both packed."""
    flair = pytest.importorskip("flair", reason="flair is not installed")
    from flair.data import Dictionary, Sentence
    from flair.embeddings import CharacterEmbeddings
    from flair.models import SequenceTagger

    random = np.random.default_rng(0)
    words = ["the", "Anna", "Berlin", "goes", "to", "and", "Otto", "sees", "Paris", "from", "walks"]
    characters, tags = Dictionary(), Dictionary(add_unk=False)
    for character in "".join(words):
        characters.add_item(character)
    for tag in ("O", "name"):
        tags.add_item(tag)
    sentences = [Sentence(list(random.choice(words, n))) for n in random.integers(3, 12, 24)]
    for token in (token for sentence in sentences for token in sentence):
        token.add_label("ner", "name" if token.text[0].isupper() else "O")

    def built():
        flair.set_seed(0)
        return SequenceTagger(CharacterEmbeddings(characters), tags, "ner", hidden_size=64)

    def train(tagger, steps=4):
        """Losses, with the dropout of a seed."""
        flair.set_seed(1)
        tagger.train()
        optimizer, losses = torch.optim.SGD(tagger.parameters(), 0.1), []
        for _ in range(steps):
            for sentence in sentences:
                sentence.clear_embeddings()
            optimizer.zero_grad()
            loss, count = tagger.forward_loss(sentences)
            (loss / count).backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    stock, accelerated = built(), built()
    assert elman.torch.accelerate(accelerated) == ["embeddings.char_rnn", "rnn"]
    with elman.torch.install():
        rebuilt = built()
    assert type(rebuilt.rnn) is type(rebuilt.embeddings.char_rnn) is elman.torch.LSTM
    expected = train(stock)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-2)
    for tagger in (accelerated, rebuilt):
        assert train(tagger) == pytest.approx(expected, rel=1e-5)
        close(tagger.state_dict(), stock.state_dict())
    times("flair: a step of 24 sentences", partial(train, stock, 1), partial(train, accelerated, 1))


def test_the_example_begins_alike():
    """examples/rl: the same weights, environments and draws, until rounding parts the policies."""
    policy, _ = sb3("MlpLstmPolicy")
    from examples.rl.learn import FRAMES, learn

    frames = []
    ours, stock = (learn(p, 3, FRAMES, frames.append) for p in (policy, "MlpLstmPolicy"))
    assert sum(frames) == 2 * FRAMES
    assert (ours.ends, ours.returns) == (stock.ends, stock.returns)
    assert 10 < np.mean(ours.returns) < 40  # of actions drawn at even chances
    for found in (ours, stock):
        assert len(found.acting) == len(found.updating) == 1
        assert min(found.acting + found.updating) > 0


def test_the_curve_of_the_example_by_hand():
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")
    from examples.rl.__main__ import at_end
    from examples.rl.learn import FRAMES, Learning
    from examples.rl.picture import curve

    ends, returns = [100, 300, 400, 4 * FRAMES, 5 * FRAMES], [1, 2, 4, 10, 20]
    learning = Learning(ends, returns, [1.0] * 5, [1.0] * 5, 0)
    edges = np.array([0, 200, 400, 600, 800])
    np.testing.assert_array_equal(curve(learning, edges), [1, 3, 3, 3])
    assert at_end(learning) == 20
