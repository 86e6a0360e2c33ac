from tests.profiling.postgres import postgres

__all__ = ["postgres"]
