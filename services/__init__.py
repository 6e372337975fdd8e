"""What people start: the command line, the worker process, its health page, the development broker."""
