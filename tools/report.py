"""Write the page on a run anew, or lay several runs side by side.

python tools/report.py runs/demo                 # writes runs/demo/report.html
python tools/report.py runs/a runs/b             # writes comparison.html here
python tools/report.py runs/a runs/b --output x.html
"""

import argparse
import sys
from pathlib import Path

from trainer.cli import ending_with_code
from trainer.report import write_comparison, write_report


def main() -> int:
    """Write the page and name its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="RUN", help="output folder, finished or not"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("comparison.html"), help="page on several runs"
    )
    arguments = parser.parse_args()
    folders = [folder.expanduser() for folder in arguments.folders]
    if len(folders) == 1:
        print(write_report(folders[0]))
    else:
        print(write_comparison(folders, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
