"""python -m cldm COMMAND ...: see cldm.commands.cli."""

from cldm.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
