"""`python -m mlp_lm`."""

import sys

from mlp_lm.cli import main

if __name__ == "__main__":  # a process that Lightning starts imports this module without running it
    sys.exit(main())
