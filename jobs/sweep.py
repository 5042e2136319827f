"""Find settings for languages: `mla job sweep` as a module."""

from mla_ray.cli.job.sweep import run_sweep

if __name__ == "__main__":
    run_sweep()
