"""What hypercorn serves in the throughput benchmark: the same app, unwrapped and wrapped."""

from asgi_perfkit import PerfKit, PerformanceMiddleware

from .contenders import bare_app, starlette_app

unwrapped = bare_app()
middleware = PerformanceMiddleware(bare_app())
wrapped = PerfKit(bare_app())
profiled = PerfKit(bare_app(), profiling=True)
sampled = PerfKit(bare_app(), profiling={"sample_hz": 100})

starlette_unwrapped = starlette_app()
starlette_wrapped = PerfKit(starlette_app())
starlette_profiled = PerfKit(starlette_app(), profiling=True)
starlette_sampled = PerfKit(starlette_app(), profiling={"sample_hz": 100})
