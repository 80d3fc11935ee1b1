"""The command `nanomodels`, also as `python -m nanomodels`."""

from nanomodels.cli import start


def main():
    start.leave_at_ctrl_c()
    from nanomodels.cli.program import main

    start.run_program(main)


if __name__ == "__main__":
    main()
