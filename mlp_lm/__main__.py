"""`python -m mlp_lm`."""

from mlp_lm.cli import run_and_end

if __name__ == "__main__":  # a process that Lightning starts imports this module without running it
    run_and_end()
