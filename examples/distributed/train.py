"""Train the Japanese Vowels classifier on several processes; go on where it was after a failure.

Every step's batch and noise depend on the number of the step alone, and each process takes its
share of the batch, so that a run that was interrupted ends as one that was not.

Example:
    torchrun --standalone --nproc-per-node 2 --max-restarts 1 -m examples.distributed.train
"""

import argparse
import json
import os
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..japanese_vowels.data import Utterances, load
from ..japanese_vowels.train import (
    BATCH,
    EPOCHS,
    LEARNING_RATE,
    NOISE,
    ElmanClassifier,
    classify,
)


def main() -> None:
    """Train in this process, one of those that torchrun started."""
    args = parse_arguments()
    torch.set_num_threads(1)
    connect()
    try:
        run(args)
    finally:
        dist.destroy_process_group()


def connect() -> None:
    """Join the other processes.

    Each attempt has keys of its own, as torchrun's store still holds the addresses of the last.
    """
    store, rank, processes = next(iter(rendezvous("env://")))
    attempt = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group("gloo", store=attempt, rank=rank, world_size=processes)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    add("--every", type=int, default=20, help="steps between checkpoints (default: %(default)s)")
    add("--shard", action="store_true", help="FSDP2 in place of DistributedDataParallel")
    add("--output", type=Path, default=Path("build/distributed"), help="default: %(default)s")
    add("--fail-at", type=int, help="kill the last process at this step, once, to see what happens")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train from the newest checkpoint, if there is one, to the end."""
    to_train, to_test = load()
    torch.manual_seed(0)
    model = distribute(ElmanClassifier(), args.shard)
    optimizer = torch.optim.AdamW(model.parameters())
    losses = torch.zeros(args.epochs * -(-len(to_train.lengths) // BATCH))
    checkpoints = Checkpoints(args.output / "checkpoints")
    first = checkpoints.load(model, optimizer, losses)
    with progress(first, len(losses)) as bar:
        for step in range(first, len(losses)):
            if step == args.fail_at and first == 0 and dist.get_rank() == dist.get_world_size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            set_learning_rate(optimizer, step / len(losses))
            losses[step] = take_step(model, optimizer, to_train, step)
            if (step + 1) % args.every == 0:
                checkpoints.save(model, optimizer, losses, step + 1)
            bar.advance(bar.task_ids[0])
    report(model, losses, to_test, args.output)


def distribute(model: nn.Module, shard: bool) -> nn.Module:
    """Let every process hold the model, or its share of each weight."""
    if not shard:
        return DistributedDataParallel(model)
    fully_shard(model.gru)
    return fully_shard(model)


def set_learning_rate(optimizer: torch.optim.Optimizer, done: float) -> None:
    """Rise for the first tenth of the training, fall for the rest."""
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min((done + 0.01) / 0.1, (1 - done) / 0.9)


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Utterances, step: int
) -> Tensor:
    """Learn from this step's batch, of which each process sees a part; return its mean loss."""
    batch, noise = draw(data, step)
    rank, processes = dist.get_rank(), dist.get_world_size()
    mine = slice(rank, None, processes)
    frames, lengths, speakers = (torch.from_numpy(a)[batch[mine]] for a in data)
    logits = model(frames + noise[mine], lengths)
    # Gradients are averaged over the processes: times their number, this is the batch's mean.
    loss = F.cross_entropy(logits, speakers, reduction="sum") / len(batch)
    optimizer.zero_grad()
    (loss * processes).backward()
    optimizer.step()
    total = loss.detach()
    dist.all_reduce(total)
    return total


def draw(data: Utterances, step: int) -> tuple[Tensor, Tensor]:
    """Return which utterances are this step's, and the noise for them."""
    utterances, longest, channels = data.frames.shape
    epoch, number = divmod(step, -(-utterances // BATCH))
    order = torch.randperm(utterances, generator=torch.Generator().manual_seed(epoch))
    batch = order.split(BATCH)[number]
    random = torch.Generator().manual_seed(1_000_000 + step)
    return batch, NOISE * torch.randn(len(batch), longest, channels, generator=random)


class Checkpoints:
    """One checkpoint, the newest, which every process writes its share of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unfinished = folder / "unfinished"

    def newest(self) -> Path | None:
        """Return the folder of the checkpoint, if there is one."""
        return max(self.folder.glob("step-*"), default=None)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor) -> int:
        """Put everything back as it was, and return the step to go on with."""
        newest = self.newest()
        if newest is None:
            return 0
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "losses": losses}
        dcp.load(state, checkpoint_id=newest)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        return int(newest.name.partition("-")[2])

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor, step: int
    ) -> None:
        """Write a checkpoint, which bears its name only when it is whole."""
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "losses": losses}
        if dist.get_rank() == 0:
            shutil.rmtree(self.unfinished, ignore_errors=True)
        dist.barrier()
        dcp.save(state, checkpoint_id=self.unfinished)  # returns when all have written
        if dist.get_rank() == 0:
            older = self.newest()
            self.unfinished.rename(self.folder / f"step-{step:08}")
            if older is not None:
                shutil.rmtree(older)


def progress(first: int, steps: int) -> Progress:
    """Return a progress bar, which the first process shows."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    bar = Progress(*columns, TimeElapsedColumn(), disable=dist.get_rank() != 0)
    bar.add_task(f"from step {first}" if first else "training", total=steps, completed=first)
    return bar


def report(model: nn.Module, losses: Tensor, to_test: Utterances, output: Path) -> None:
    """Gather the weights in the first process, which tries them and writes them down."""
    weights = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() != 0:
        return
    plain = ElmanClassifier().eval()
    plain.load_state_dict(weights)
    accuracy = classify(plain, to_test).accuracy(to_test.speakers)
    save_file(weights, output / "model.safetensors")
    (output / "losses.json").write_text(json.dumps(losses.tolist()))
    print(
        f"{accuracy:.1%} of {len(to_test.speakers)} utterances recognised, "
        f"last loss {losses[-1]:.4f}; saved in {output}"
    )


if __name__ == "__main__":
    main()
