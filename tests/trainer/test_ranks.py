"""Several processes train as one: the same weights everywhere, one writer, one voice, no hang."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import SOON, TRAINER, command, difference, environment, finish, rows, rows_without_time
from rank_worker import (
    EXACT,
    FIXED,
    STEPS,
    STOPS,
    VARIANTS,
    begin_alike,
    exact,
    fixed_crops,
    load,
)

import checkpoint
import evaluate
import plots
import train
from config import validate
from errors import UserError
from ranks import Ranks
from repulsion import norm
from spawned import free_port, once
from trainer import Trainer, read_metrics

WORKER = Path(__file__).with_name("rank_worker.py")
# More than two numbers have a sum that depends on their order.
RANKS = 3
MOCO = ("--method", "moco-logo", "--affinity", "learned")
LONG = 300  # seconds in which anything here ends, on a busy machine


class Started:
    """Processes that find each other by what torchrun would have set."""

    def __init__(self, words: list[str], count: int = 2, **more: str) -> None:
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free_port())
        self.processes = [
            subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment() | shared | more | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]

    def end(self, rank: int) -> tuple[int, str, str]:
        """Status, stdout and stderr of a rank, once it has ended."""
        out, err = self.processes[rank].communicate(timeout=LONG)
        return self.processes[rank].returncode, out, err

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What the ranks leave of every variant."""
    return once("trained", lambda out: work("train", out, RANKS), tmp_path_factory)


def work(what: str, out: Path, count: int) -> None:
    with Started([sys.executable, str(WORKER), what, str(out)], count) as started:
        ends = [started.end(rank) for rank in range(count)]
    assert [status for status, *_ in ends] == [0] * count, "\n".join(err for *_, err in ends)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_weights_after_20_steps_are_those_of_one_process(count, tmp_path):
    """In float64, where batch norm has the same statistics for all."""
    work("exact", tmp_path, count)
    for name in EXACT:
        before, after = exact(name, load(), tmp_path, steps=0), exact(name, load(), tmp_path)
        assert max((after[key] - before[key]).abs().max() for key in after if key != "queue") > 0.05
        for rank in range(count):
            found = torch.load(tmp_path / f"{name}-{rank}.pt")
            assert found.keys() == after.keys()
            for key, value in after.items():
                assert value.dtype == torch.float64
                assert (found[key] - value).abs().max() < 1e-12 * max(1, value.abs().max()), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_share_weights_and_the_images_of_a_batch(trained, variant):
    first, *others = (torch.load(trained / variant / f"{rank}.pt") for rank in range(RANKS))
    for other in others:
        assert first["weights"].keys() == other["weights"].keys()
        for name, value in first["weights"].items():
            assert torch.equal(value, other["weights"][name]), name
    images = torch.cat([first["images"], *(other["images"] for other in others)])
    assert torch.equal(images, Trainer(VARIANTS[variant], load(), trained).batch())


@pytest.mark.parametrize("variant", VARIANTS)
def test_ctrl_c_on_one_rank_stops_all_and_a_resumed_run_is_the_same(trained, variant):
    whole, stopped = trained / variant / "whole", trained / variant / "stopped"
    middle = torch.load(trained / variant / "middle" / "checkpoint.pt", weights_only=True)
    assert middle["step"] == STOPS
    assert difference(whole, stopped) is None
    assert len(rows_without_time(whole / "metrics.csv")) == STEPS + 1
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    drawn = {bytes(s["torch"].numpy()) for s in (state["random"], *state["ranks"]["random"])}
    assert len(drawn) == RANKS


def test_one_rank_writes_for_tensorboard(trained):
    runs = {name: trained / "spare" / name / "events" for name in ("whole", "stopped")}
    assert runs["whole"].read_text() == "0 1\n"
    assert runs["stopped"].read_text() == f"0 1\n0 {STOPS + 1}\n"


@pytest.mark.parametrize("variant", FIXED)
def test_a_step_is_that_of_the_mean_gradients(trained, tmp_path, variant):
    """Against trainers without ranks, one for each part of the batch."""
    found = torch.load(trained / f"{variant}-0.pt")
    expected = step_of_mean_gradients(FIXED[variant], tmp_path)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def step_of_mean_gradients(config, out) -> dict[str, list[torch.Tensor]]:
    """As `gradients` of rank_worker.py. First θd's step, then the encoder's."""
    trainers = [Trainer(config, load(), out) for _ in range(RANKS)]
    parts = trainers[0].batch().chunk(RANKS)
    embedded, affinity_gradients = [], []
    for trainer, part in zip(trainers, parts, strict=True):
        begin_alike(trainer)
        trainer.network.train()
        trainer.set_lr()
        embedded.append(trainer.network.embed(*fixed_crops(part), len(part)))
        affinity = trainer.repulsion.affinity.requires_grad_(True)
        affinity.objective(embedded[-1].repelled, form="difference").backward()
        affinity_gradients.append([p.grad for p in affinity.parameters()])
    expected = {"affinity": mean_of(affinity_gradients)}
    attracted, repelled = [], []
    for trainer, seen in zip(trainers, embedded, strict=True):
        repulsion, network = trainer.repulsion, trainer.network
        for parameter, gradient in zip(
            repulsion.affinity.parameters(), expected["affinity"], strict=True
        ):
            parameter.grad = gradient.clone()
        repulsion.optimizer.step()
        repulsion.affinity.requires_grad_(False)
        if repulsion.clipped:
            ll = repulsion.mean_affinity(seen.repelled)
            repelled.append(torch.autograd.grad(ll, repulsion.parameters, retain_graph=True))
            trainer.loss(seen, None, 0.0).total.backward()
        else:
            trainer.loss(seen, repulsion.affinity, config.repulsion_weight).total.backward()
        attracted.append([p.grad for group in network.parameter_groups() for p in group])
    expected["body"] = mean_of(attracted)
    if repelled:
        mean, moved = mean_of(repelled), len(repelled[0])
        scale = config.repulsion_clip * norm(expected["body"][:moved]) / norm(mean)
        assert scale < 1, "the clip has nothing to do"
        expected["repulsion"] = [gradient * scale for gradient in mean]
    return expected


def mean_of(gradients) -> list[torch.Tensor]:
    return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]


def test_a_run_goes_on_with_another_number_of_ranks_and_says_what_is_lost(
    trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate, "linear_metric", lambda *_: 0.5)
    for name in ("losses", "crops", "similarity", "knn"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    out = tmp_path / "out"
    shutil.copytree(trained / "moco" / "middle", out)
    train.run(replace(VARIANTS["moco"], out=out, resume=True))
    said = capsys.readouterr().out
    assert f"resumed at step {STOPS} of {STEPS}" in said
    assert "was written by 3 processes and is resumed by 1: weights, optimisers, the queue" in said
    assert read_metrics(out / "metrics.csv")["step"].tolist() == [*range(1, STEPS + 1)]
    assert "ranks" not in torch.load(out / "checkpoint.pt", weights_only=True)


def test_a_checkpoint_of_one_process_is_resumed_by_two(tmp_path):
    """A rank that the checkpoint does not know draws random numbers of its own."""
    drawn = []
    for rank in range(2):
        ranks = Ranks(rank, 2)
        trainer = Trainer(VARIANTS["simsiam"], load(), tmp_path)
        state = checkpoint.random_states()
        trainer.ranks = ranks
        remark = trainer.restore_random_states([state])
        assert "was written by 1 processes and is resumed by 2" in remark
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)


def test_seeds_differ_between_ranks_and_the_first_has_the_seed_itself():
    drawn = []
    for rank, seed in ((0, 5), (1, 5), (2, 5), (0, 6), (1, 6), (1, 4)):
        Ranks(rank, 3).seed(seed)
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == len(drawn)
    torch.manual_seed(5)
    assert drawn[0] == torch.rand(()).item()


@pytest.mark.parametrize(("size", "count"), [(15, 2), (2, 2), (8, 3)])
def test_a_batch_that_ranks_cannot_share(size, count):
    want = f"got {size}; want a multiple of the {count} processes, with 2 images or more for each"
    with pytest.raises(UserError, match=want):
        validate(replace(VARIANTS["simsiam"], batch_size=size), count)
    validate(replace(VARIANTS["simsiam"], batch_size=2 * count), count)


def test_key_groups_are_parts_of_what_one_process_has():
    """Two crops of each of 12 images are 24 in one process, 8 in each of three."""
    config = replace(VARIANTS["moco"], key_groups=4)
    validate(config, 3)
    with pytest.raises(UserError, match="at most 4, two of the 8 global crops of a process"):
        validate(replace(config, key_groups=5), 3)
    validate(replace(config, key_groups=12))
    with pytest.raises(UserError, match="at most 12, two of the 24 global crops to each"):
        validate(replace(config, key_groups=13))


def test_such_a_batch_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="got 12; want a multiple of the 5 processes"):
        train.run(replace(VARIANTS["moco"], out=tmp_path / "out"), Ranks(0, 5))
    assert not (tmp_path / "out").exists()


def script(body: str) -> list[str]:
    """Of what ranks do without a trainer, which takes seconds to import."""
    start = (
        f"import sys, time; sys.path.insert(0, {str(TRAINER)!r})\n"
        "from errors import UserError, in_words\n"
        "from ranks import joined\n"
        "with in_words(), joined() as ranks:\n"
    )
    return [sys.executable, "-c", start + textwrap.indent(body, "    ")]


@pytest.mark.parametrize("finder", ["ranks.rank == 1", "ranks.is_writer", "True"])
def test_an_error_is_said_once_and_ends_all(finder):
    """Whether one rank finds it or all."""
    with Started(script(f"if {finder}: raise UserError('found')\nranks.any(False)")) as started:
        ends = [started.end(rank) for rank in (0, 1)]
    assert [status for status, *_ in ends] == [1, 1]
    assert sorted(said for *_, said in ends) == ["", "error: found\n"]


def test_a_status_is_that_of_the_rank_that_speaks():
    """As after --help, which ends the writer while the others wait for its words."""
    with Started(script("ranks.from_writer(lambda: sys.exit(0))")) as started:
        assert [started.end(rank) for rank in (0, 1)] == [(0, "", "")] * 2


def test_a_rank_that_hangs_is_given_up_and_the_writer_has_its_time():
    body = (
        "ranks.from_writer(lambda: time.sleep(5))\n"
        "if ranks.rank == 1:\n"
        "    print('patient', file=sys.stderr, flush=True)\n"
        "    time.sleep(600)\n"
        "ranks.any(False)"
    )
    with Started(script(body), LOGO_TIMEOUT="3") as started:
        status, _, said = started.end(0)
        started.processes[1].kill()
        assert started.end(1)[2] == "patient\n"
    assert status == 1
    assert said.startswith("error: process 0 lost another, which was killed, failed, or did not")
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The command by torchrun, which nothing happens to."""

    def fill(folder: Path) -> None:
        done = finish(folder / "out", *MOCO, ranks=2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("raw pixels") == done.stdout.count("kNN mAP") == 1

    return once("torchrun", fill, tmp_path_factory) / "out"


def test_torchrun_writes_what_one_process_writes(whole):
    names = {"checkpoint.pt", "metrics.csv", "results.json"}
    names |= {f"{name}.png" for name in ("crops", "knn", "losses", "similarity")}
    assert {path.name for path in whole.iterdir()} == names
    assert read_metrics(whole / "metrics.csv")["step"].tolist() == [*range(1, 25)]
    report = json.loads((whole / "results.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["raw pixels", "untrained encoder", MOCO[1]]


def test_a_killed_rank_ends_the_others_and_costs_nothing(whole, tmp_path):
    """The writer, here, with which goes what the ranks found each other by; kills.py has both."""
    out, deadline = tmp_path / "out", time.monotonic() + LONG
    with Started(command(out, *MOCO)) as started:
        while rows(out) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        started.processes[0].kill()
        began = time.monotonic()
        status, _, said = started.end(1)
        assert time.monotonic() - began < SOON
    assert status == 1
    assert "error: process 1 lost another, which was killed, failed, or did not answer" in said
    assert "Repeat the command with --resume to go on from the last checkpoint." in said
    assert "Traceback" not in said
    done = finish(out, *MOCO, "--resume", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed at step") == 1
    assert difference(whole, out) is None
