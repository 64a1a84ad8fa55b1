"""Where the tests' programs in processes of their own find what tests import from here."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
