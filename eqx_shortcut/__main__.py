"""`python -m eqx_shortcut COMMAND`, the same as `eqx-shortcut COMMAND`."""

from .interrupts import interruptible


def main() -> None:
    """`cli.main`, interrupted in one line while that is imported, too."""
    with interruptible():
        from . import cli

        cli.main()


if __name__ == "__main__":
    main()
