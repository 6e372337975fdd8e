"""What `eddy produce` writes and how: ``send.py`` to a topic; sound and video, and their parsers."""
