"""Build backend of the package, used by pyproject.toml."""
