"""What every command and job stands on: storage, Ray, progress, exit codes, bundled files."""
