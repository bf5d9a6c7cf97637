"""`python -m utils.checkpoint`: see `utils.checkpoint.reading`."""

from utils.checkpoint.reading import main

if __name__ == "__main__":
    main()
