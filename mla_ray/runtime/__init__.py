"""Services that commands and jobs share: storage, Ray, progress, exit codes, bundled files."""
