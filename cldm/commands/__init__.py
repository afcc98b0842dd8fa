"""The commands of `python -m cldm`, one a file; cldm.cli says what each must define."""
