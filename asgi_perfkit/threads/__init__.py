"""Blocking code in worker threads: functions, context managers, iterators."""
