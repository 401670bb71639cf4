"""The learned affinity between local crops: `LocalAffinity` (LoGo, eqs. 5 and 6)."""

from .module import LocalAffinity

__all__ = ["LocalAffinity"]
