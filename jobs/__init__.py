"""Jobs of mla-ray as modules for `python -m`, such as `python -m jobs.pipeline`."""
