"""Tags over HTTP: what is asked, who may ask, how often, and the page. Ray runs it in on_ray.serve."""
