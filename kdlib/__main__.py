"""python -m kdlib"""

import sys

from kdlib.book.command import main

if __name__ == "__main__":
    sys.exit(main())
