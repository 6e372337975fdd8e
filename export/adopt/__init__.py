"""`eddy adopt`: a stateful ONNX file that somebody else exported becomes a model that Eddy serves.

Nothing is believed that can be run. Declared shapes, symbols and names only say what to try first; what is then claimed
(which input comes back as which output, where streams and time lie, how long a step is) has been run, in the order of
these modules, each a question of its own:

- ``file``      what goes in and out, and hints in the graph. A ``triton`` configuration beside it is read, not guessed.
- ``constants`` inputs that no stream feeds. Which value one has cannot be seen: it is asked for.
- ``runs``      a first run of one step of one stream: sizes that the graph takes, numbers to try it with.
- ``pairing``   state pairs, by ``names``, by dtype and shape, by the ``evidence`` of runs.
- ``sequence``  the time axis and the hop: many steps in one call must be the same as many calls.
- ``batch``     the streams' axis of everything: different streams at different places must get what they get alone.
- ``lifting``   where a batch of one is baked in: relaxed, rewritten, or served one stream at a time.
- ``edges``     the graph and its contract: axes moved to where the contract has them.
- ``proof``     the real engine, with streams side by side and whole sequences, against the file run by hand.

It ends in one of three ways. *Adopted*: the folder is written, and the proof's figures stand in its card. *Unclear*: no
run can tell (a sample rate, the length of a frame, two tensors that do the same); the message has the whole flags that
would say it, and nothing is written. *Refused*: it cannot be served right (a cache that grows, a state that nothing
gives back, a layer that runs backwards over time, numbers drawn at random), and the message says why.

``adopt`` is the whole of it; ``AdoptOptions`` is what may be said about a file. Neither needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.adopt.adoption import Adopted, AdoptOptions, adopt
    from export.adopt.verdict import Refused, Unclear

__all__ = ["AdoptOptions", "Adopted", "Refused", "Unclear", "adopt"]


def __getattr__(name: str) -> Any:
    """What runs files is loaded when it is asked for: the command line must answer at once."""
    if name in ("Refused", "Unclear"):
        from export.adopt import verdict

        return getattr(verdict, name)
    if name in __all__:
        from export.adopt import adoption

        return getattr(adoption, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
