"""The training loop: all of it, top to bottom.

An experiment is a module of `experiments/` with these functions; `config` is the run's hyperparameters.
    load(config, folder) -> data              everything the run reads, from the folder of data sets
    count(data) -> int                        training samples
    model(config, data) -> nn.Module
    optimizer(config, model) -> Optimizer
    batch(config, data, draws) -> tensors     the samples `draws` names, augmented by its numbers
    loss(model, batch) -> Tensor              mean over the batch
    test_batches(config, data) -> list        what is evaluated, in parts
    score(model, batch) -> numbers            sums over a batch of each metric, and `samples`, which they are divided by
A module that keeps its own loop has `train(session)` instead, and none of these.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from runner.inside.seeding import Sampler

if TYPE_CHECKING:
    from runner.inside.session import Session


def train(session: Session, experiment: Any) -> None:
    """Train an experiment from its first step to done.json."""
    config, training = session.config, session.training
    data = experiment.load(config, session.job.data)
    model = experiment.model(config, data).to(session.ranks.device)
    model, _ = session.prepare(model, experiment.optimizer(config, model))
    sampler = Sampler(config["seed"], experiment.count(data))
    for _ in session.steps():
        for draws in session.micro_batches(sampler):
            batch = session.to_device(experiment.batch(config, data, draws))
            with session.autocast():
                loss = experiment.loss(model, batch)
            session.backward(loss)
        session.step()
        if session.is_due(training["eval_every_steps"]):
            session.log(evaluate(session, experiment, data))
        if session.is_due(training["checkpoint_every_steps"]):
            session.checkpoint()
    session.finish()


def evaluate(session: Session, experiment: Any, data: Any) -> dict[str, float]:
    """Return each metric's mean over the whole test set, which the ranks share. The same on any number of ranks."""
    session.module.eval()
    own = []
    batches = experiment.test_batches(session.config, data)
    for batch in batches[session.ranks.rank :: session.ranks.world_size]:
        with torch.inference_mode(), session.autocast():
            own.append(experiment.score(session.module, session.to_device(batch)))
        session.watch.arm()
    session.module.train()
    scores = [score for part in session.ranks.gather(own) for score in part]
    # fsum rounds once, at the end: the order of the parts does not matter.
    sums = {name: math.fsum(score[name] for score in scores) for name in sorted(scores[0])}
    return {name: total / sums["samples"] for name, total in sums.items() if name != "samples"}
