"""What users import in their own tests: their consumers on a broker of the test's own."""

from rabbitflow.deadletters.letter import Letter
from rabbitflow.testing.flow import Flow, NotSettled

__all__ = ["Flow", "Letter", "NotSettled"]
