"""Make a native on emoji: `mla job pretrain_native` as a module."""

from mla_ray.cli.job.pretrain_native import run_pretraining

if __name__ == "__main__":
    run_pretraining()
