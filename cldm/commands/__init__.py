"""The commands of `python -m cldm`, one a file; cldm.commands.cli says what each must define."""
