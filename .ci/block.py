"""Print a fenced block of a Markdown file: ``block.py README.md test`` for ```` ```sh test ````."""

import re
import sys


def main() -> None:
    path, name = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        blocks = re.findall(rf"^```sh {name}\n(.*?)^```$", file.read(), flags=re.M | re.S)
    if len(blocks) != 1:
        sys.exit(f"{path} has {len(blocks)} blocks opened by ```sh {name}; it must have one")
    print(blocks[0], end="")


if __name__ == "__main__":
    main()
