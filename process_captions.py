"""Turn a COCO caption file into one text file an image: `python process_captions.py --captions FILE --out-dir DIR`.

Captions stand one a line, cleaned (COCO has some with line breaks in them). The text files of an earlier run are
replaced one by one; a new folder appears once it is complete; so a run that is killed leaves no half file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from data.coco import read_coco_captions
from data.folder import CAPTION_EXTENSION
from data.report import DataReport


def write_captions(captions: Dict[int, List[str]], out_dir: Path) -> None:
    """Write the captions of each image, by id, to a file named by the id with twelve digits."""
    folder = out_dir
    if not out_dir.exists():
        folder = out_dir.parent / f".{out_dir.name}.partial"
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        folder.mkdir(parents=True)
    for image_id, lines in captions.items():
        name = f"{image_id:012d}{CAPTION_EXTENSION}"
        (folder / f".{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(folder / f".{name}", folder / name)
    if folder != out_dir:
        folder.rename(out_dir)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Write the files and say how many there are."""
    parser = argparse.ArgumentParser(description="Turn a COCO caption file into one text file an image.")
    parser.add_argument("--captions", type=Path, default=Path("data/COCO/annotations/captions_train2017.json"))
    parser.add_argument("--out-dir", type=Path, default=Path("data/COCO/train2017_captions"))
    args = parser.parse_args(arguments)
    report = DataReport()
    try:
        content = read_coco_captions(args.captions, report)
    except (OSError, ValueError) as error:
        sys.exit(f"--captions: {error}")
    captions = {image_id: lines for image_id, lines in content.captions.items() if lines}
    write_captions(captions, args.out_dir)
    print(
        f"{args.out_dir}: {len(captions)} images, {sum(map(len, captions.values()))} captions; "
        f"dropped {content.empty} empty captions and {len(report.skipped)} duplicates"
    )


if __name__ == "__main__":
    main()
