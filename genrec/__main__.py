"""`python -m genrec COMMAND`: the `genrec` command where only this checkout is at hand, as in a job's folder."""

from genrec.cli import main

if __name__ == "__main__":
    main()
