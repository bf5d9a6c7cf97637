"""`python -m data.synthetic`: see `data.synthetic.corpus`."""

from data.synthetic.corpus import main

if __name__ == "__main__":
    main()
