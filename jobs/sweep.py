"""Search the best training settings of languages: the module form of `mla job sweep`."""

from mla_ray.cli.job.sweep import run_sweep

if __name__ == "__main__":
    run_sweep()
