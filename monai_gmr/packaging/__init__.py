"""How the package is built: the backend of pyproject.toml."""
