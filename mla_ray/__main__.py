"""Entry point of `python -m mla_ray`, which runs the `mla` command."""

from mla_ray.cli import main

if __name__ == "__main__":
    main()
