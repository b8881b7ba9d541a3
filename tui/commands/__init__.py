"""One module per command, each with a click command called `command`. See `common` for the shared options."""
