"""`python -m utils.lm`: see `utils.lm.commands`."""

from utils.lm.commands import main

if __name__ == "__main__":
    main()
