"""``python -m unifreeze`` is ``unifreeze``, for where the program is not on the path."""

from unifreeze.cli import main

if __name__ == "__main__":
    main()
