"""Serves tags over HTTP: requests, keys, rate limits and the page. `sigrl_core.on_ray.serve` runs it on Ray Serve."""
