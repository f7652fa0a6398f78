"""`python -m eqx_shortcut COMMAND`, the same as `eqx-shortcut COMMAND`."""

import sys


def main() -> None:
    """`cli.main`; Ctrl-C while that is imported ends in one line and status 130 too."""
    try:
        from . import cli

        cli.main()
    except KeyboardInterrupt:
        print("\nstopped by SIGINT", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
