"""`python -m wgtrain`: the command line."""

from wgtrain.cli.main import main

if __name__ == "__main__":
    main()
