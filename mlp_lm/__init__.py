"""The MLP language model of Bengio et al. (2003): one text file in, a trained generator out.

from mlp_lm import load

lm = load("best.ckpt")
lm.sample(10, seed=1)
lm.score(["emma"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlp_lm.models.checkpoint import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import lazily (PEP 562), so that `import mlp_lm` loads neither torch nor Lightning."""
    if name == "load":
        from mlp_lm.models.checkpoint import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
