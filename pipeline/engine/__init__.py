"""What runs the model: graph surgery, execution providers, the arena, the threads that run it."""

from pipeline.engine.arena import Arena
from pipeline.engine.costs import Costs
from pipeline.engine.engine import Engine, Run

__all__ = ["Arena", "Costs", "Engine", "Run"]
