"""The project's own conf/, and an experiment whose values no test has to share with its authors."""

from pathlib import Path

CONF = Path(__file__).parent.parent.parent / "conf"

TINY = """\
# @package _global_
experiment:
  name: tiny
  module: tiny
optim:
  lr: 0.05
  nesterov: true
model:
  layers: 4
  act: relu
  note: null
training:
  steps: 60
  batch_size: 64
"""
