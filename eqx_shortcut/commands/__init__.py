"""The commands, a module each, with its `Config`, its `main` and its text of help: see eqx_shortcut.cli."""
