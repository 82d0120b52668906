"""Write the page on a run anew, or lay several runs side by side.

python tools/report.py runs/demo                 # writes runs/demo/report.html
python tools/report.py runs/a runs/b             # writes comparison.html here
python tools/report.py runs/a runs/b --output x.html
"""

import argparse
import sys
from pathlib import Path

from trainer.cli import ending_with_code
from trainer.errors import DataError
from trainer.report.write import write_comparison, write_report


def main() -> int:
    """Write the page and name its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="RUN", help="output folder, finished or not"
    )
    parser.add_argument(
        "--output", type=Path, help="the page; default: report.html in RUN, comparison.html here"
    )
    arguments = parser.parse_args()
    folders = [folder.expanduser() for folder in arguments.folders]
    try:
        if len(folders) == 1:
            print(write_report(folders[0], arguments.output))
        else:
            print(write_comparison(folders, arguments.output or Path("comparison.html")))
    except OSError as error:
        raise DataError(
            f"report: {error.filename2 or error.filename} = {error.strerror}; expected a file "
            "to read, or a place to write to. Fix it, or give another --output."
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
