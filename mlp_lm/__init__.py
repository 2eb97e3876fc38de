"""The MLP language model of Bengio et al. (2003): one text file in, a trained generator out.

from mlp_lm import Sampling, load

lm = load("runs/names/version_0")
lm.sample(10, Sampling(prompt="an", seed=1))
lm.score(["emma"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlp_lm.models.checkpoint import load as load
    from mlp_lm.models.sampling import Sampling as Sampling

__version__ = "0.1.0"
__all__ = ["Sampling", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import lazily (PEP 562), so that `import mlp_lm` loads neither torch nor Lightning."""
    if name == "load":
        from mlp_lm.models.checkpoint import load

        return load
    if name == "Sampling":
        from mlp_lm.models.sampling import Sampling

        return Sampling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
