"""Training: what a loop of one's own is made of."""

from boostr.train.adamw8bit import AdamW8bit
from boostr.train.adapters import add_lora, set_dropout
from boostr.train.clip import clip_grad_norm
from boostr.train.config import TrainConfig
from boostr.train.data import Dataset
from boostr.train.losses import contrastive_loss
from boostr.train.muon import Muon
from boostr.train.objectives import Contrastive, NextToken, Objective, Preference
from boostr.train.optimizers import SGD, AdamW, Lion, Optimizer
from boostr.train.pack import pack
from boostr.train.packing import Packs, Position
from boostr.train.ranks import run_ranks
from boostr.train.state import load_state, save_state
from boostr.train.step import compile_step
from boostr.train.trainer import Trainer

__all__ = [
    "SGD", "AdamW", "AdamW8bit", "Contrastive", "Dataset", "Lion", "Muon", "NextToken", "Objective",
    "Optimizer", "Packs", "Position", "Preference", "TrainConfig", "Trainer", "add_lora",
    "clip_grad_norm", "compile_step", "contrastive_loss", "load_state", "pack", "run_ranks",
    "save_state", "set_dropout",
]  # fmt: skip
