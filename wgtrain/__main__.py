"""`python -m wgtrain`, and the command of the installed package: the command line."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C while that is imported ends it without a traceback."""
    try:
        from wgtrain.cli.main import main as command
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
