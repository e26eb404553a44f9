"""Two processes over gloo against one: DistributedDataParallel, FSDP2, checkpoints, torchrun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from doors import threads
from safetensors.torch import load_file, save_file
from torch import multiprocessing, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import elman.torch
from examples.distributed import train as train_example

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
    ),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),  # in one process, it is
]
SHARDS = hasattr(torch.cpu.Stream, "record_event")
can_shard = pytest.mark.skipif(not SHARDS, reason="FSDP2 of this torch needs a GPU")
PROCESSES, STEPS, L, N, D, H = 2, 6, 9, 8, 5, 7
FULL = StateDictOptions(full_state_dict=True)


class Model(nn.Module):
    """Two layers, two directions, rows of unequal length and episodes within them."""

    def __init__(self, package=elman.torch):
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
        self.gru = package.GRU(D, H, **options)
        self.lstm = package.LSTM(2 * H, H, proj_size=4, **options)
        self.cell = elman.torch.RNNCell(8, H, dtype=torch.float64)
        self.lstm_cell = elman.torch.LSTMCell(8, H, dtype=torch.float64)
        self.linear = nn.Linear(3 * H, 3, dtype=torch.float64)

    def forward(self, x, lengths, reset):
        output, _ = self.gru(x, lengths=lengths, reset=reset)
        output, _ = self.lstm(output, lengths=lengths, reset=reset)
        total = output.sum(0)
        return self.linear(torch.cat([self.cell(total), *self.lstm_cell(total)], -1))


def make():
    torch.manual_seed(0)
    return Model()


def train(model, rows=slice(None)):
    """Learn from these rows of a batch, again and again; the losses, means over the rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(L, N, D, generator=random, dtype=torch.float64)[:, rows]
    lengths = torch.randint(1, L + 1, (N,), generator=random)[rows]
    reset = (torch.rand(L, N, generator=random) < 0.2)[:, rows]
    wanted = torch.randn(N, 3, generator=random, dtype=torch.float64)[rows]
    losses = []
    for _ in range(STEPS):
        loss = (model(x, lengths, reset) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def work(rank, folder):
    """What each of the processes does; the first writes down what came of it."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), PROCESSES)  # no port, which others might take
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    results = {}
    ways = {"ddp": DistributedDataParallel, **({"fsdp": shard} if SHARDS else {})}
    for name, distribute in ways.items():
        model = distribute(make())
        losses = train(model, slice(rank, None, PROCESSES))
        dist.all_reduce(losses)
        results[f"{name}.losses"] = losses / PROCESSES
        weights = get_model_state_dict(model, options=FULL)
        results |= {f"{name}.{n}": w for n, w in weights.items()}
        if name == "fsdp":
            assert isinstance(model.gru.weight_hh_l0, DTensor)
            assert isinstance(model.lstm.weight_hr_l0, DTensor)
            assert elman.torch.paths["kernel"] > 0
            assert elman.torch.paths["scan"] == elman.torch.paths["torch"] == 0

    if SHARDS:
        results |= move(model, folder)
    if rank == 0:
        save_file(results, folder / "results.safetensors")
    dist.destroy_process_group()


def move(model, folder):
    """Weights out of the sharded model, and into it; those that it then has."""
    dcp.save(get_model_state_dict(model), checkpoint_id=folder / "sharded")
    set_model_state_dict(model, load_file(folder / "stock.safetensors"), options=FULL)
    loaded = get_model_state_dict(model, options=FULL)
    sharded = get_model_state_dict(model)
    dcp.load(sharded, checkpoint_id=folder / "plain")
    set_model_state_dict(model, sharded)
    again = get_model_state_dict(model, options=FULL)
    return {f"loaded.{n}": w for n, w in loaded.items()} | {
        f"again.{n}": w for n, w in again.items()
    }


def shard(model):
    for layer in (model.gru, model.lstm):
        fully_shard(layer)
    return fully_shard(model)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A folder in which two processes have done their work, and what they wrote."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(2)
    stock = Model(nn).state_dict()
    save_file(stock, folder / "stock.safetensors")
    dcp.save(make().state_dict(), checkpoint_id=folder / "plain")
    multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    return folder, load_file(folder / "results.safetensors")


def of(results, name):
    return {n.removeprefix(f"{name}."): t for n, t in results.items() if n.startswith(f"{name}.")}


@pytest.mark.parametrize("way", ["ddp", pytest.param("fsdp", marks=can_shard)])
def test_two_processes_learn_as_one_does(way, two_processes):
    """To rounding: a gradient is summed over each half of the batch first, then over both."""
    model = make()
    losses = train(model)
    assert losses[-1] < 0.95 * losses[0]
    want = {"losses": losses, **model.state_dict()}
    got = of(two_processes[1], way)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-11, atol=1e-12, msg=name)


@can_shard
@pytest.mark.parametrize("package", [elman.torch, nn], ids=["elman", "stock"])
def test_a_sharded_checkpoint_becomes_a_plain_model(package, two_processes):
    folder, results = two_processes
    model = Model(package)
    weights = model.state_dict()
    dcp.load(weights, checkpoint_id=folder / "sharded")
    model.load_state_dict(weights)
    want = of(results, "fsdp")
    assert all(torch.equal(w, want[n]) for n, w in model.state_dict().items())
    assert len(want) == len(weights) + 1  # the losses


@can_shard
def test_a_sharded_model_takes_plain_weights(two_processes):
    """Those of torch.nn's layers from a state_dict; Elman's from a checkpoint of one process."""
    folder, results = two_processes
    for name, want in {
        "loaded": load_file(folder / "stock.safetensors"),
        "again": make().state_dict(),
    }.items():
        got = of(results, name)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[n], want[n]) for n in want), name


OPTIONS = ("--epochs=1", "--every=3")


def written(folder):
    """The losses, and all that the example wrote, as bytes."""
    files = {f.name: f.read_bytes() for f in folder.glob("*.*")}
    assert sorted(files) == ["losses.json", "model.safetensors"]
    return json.loads(files["losses.json"]), files


def example(output, *options):
    """Run it for one epoch in two processes; what it printed, and what it wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr=127.0.0.1", f"--nproc-per-node={PROCESSES}", "--max-restarts=1"]
    ran = subprocess.run(
        [*command, "-m", train_example.__name__, *OPTIONS, "--output", str(output), *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, *written(output)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return example(tmp_path_factory.mktemp("undisturbed"))


def test_the_example_learns_in_two_processes_as_in_one(undisturbed, tmp_path, monkeypatch):
    printed, losses, _ = undisturbed
    assert "from step" not in printed
    assert len(losses) == 9
    assert losses[-1] < 0.7 * losses[0]
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0, "RANK": 0, "WORLD_SIZE": 1}
    for name, value in {**torchrun, "TORCHELASTIC_RESTART_COUNT": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "argv", ["train", *OPTIONS, "--output", str(tmp_path)])
    with threads(1):  # which it sets
        train_example.main()
    alone, _ = written(tmp_path)
    assert losses == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    "way", [[], pytest.param(["--shard"], marks=can_shard)], ids=["ddp", "fsdp"]
)
def test_the_example_loses_nothing_when_a_process_is_killed(way, undisturbed, tmp_path):
    """Nor when sharded: a sum of two processes' gradients has the same bits either way."""
    printed, *results = example(tmp_path, "--fail-at=5", *way)
    assert "from step 3" in printed
    assert results == [*undisturbed[1:]]
