"""The metrics the kit takes itself: their names and units. What they mean stands in docs/metrics.md."""

from __future__ import annotations

__all__ = ["METRICS", "scale_of"]

SECONDS = 1e-9  # kept in nanoseconds, told in seconds
BYTES = 1
NUMBER = 1
RATIO = 1e-3  # kept in thousandths

METRICS: dict[str, float] = {
    "processing_time": SECONDS,
    "response_time": SECONDS,
    "total_time": SECONDS,
    "receive_time": SECONDS,
    "send_time": SECONDS,
    "loop_time": SECONDS,
    "longest_step": SECONDS,
    "request_size": BYTES,
    "response_size": BYTES,
    "memory_delta": BYTES,
    "thread_wait_time": SECONDS,
    "thread_time": SECONDS,
    "query_time": SECONDS,
    "query_count": NUMBER,
    "dependency_resolution_time": SECONDS,
    "serialization_time": SECONDS,
    "compression_time": SECONDS,
    "compression_ratio": RATIO,
    "background_wait_time": SECONDS,
    "background_time": SECONDS,
    "websocket_time": SECONDS,
    "websocket_messages_in": NUMBER,
    "websocket_messages_out": NUMBER,
}
"""By name, what a kept value is multiplied with to be told in the unit of the contract."""


def scale_of(metric: str) -> float:
    """The factor from kept to told; what users measure themselves is time."""
    return METRICS.get(metric, SECONDS)
