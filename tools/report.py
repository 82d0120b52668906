"""Write the page on a run anew: `python tools/report.py runs/demo`."""

import argparse
import sys
from pathlib import Path

from trainer.cli import ending_with_code
from trainer.report import write_report


def main() -> int:
    """Write `report.html` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a run, finished or not")
    print(write_report(parser.parse_args().folder.expanduser()))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
