"""Where records come from and go to: one protocol (``base.py``), two roads (``memory.py``, ``kafka/``)."""
