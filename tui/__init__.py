"""What a person sees: the command line and the screens. Widgets do no I/O; deeds live in `remote`."""
