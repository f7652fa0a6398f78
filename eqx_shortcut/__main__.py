"""`python -m eqx_shortcut COMMAND`, the same as `eqx-shortcut COMMAND`."""

from .cli import main

if __name__ == "__main__":
    main()
