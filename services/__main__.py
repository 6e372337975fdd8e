"""``python -m services``: the command ``eddy`` of this very interpreter."""

import sys

from services.cli import main

sys.exit(main())
