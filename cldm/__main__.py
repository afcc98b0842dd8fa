"""python -m cldm COMMAND ...: see cldm.cli."""

from cldm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
