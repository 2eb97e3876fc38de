"""`python -m mlp_lm`."""

from mlp_lm.cli import end, main

if __name__ == "__main__":  # a process that Lightning starts imports this module without running it
    end(main())
