"""The `coco` layout: COCO annotation files say which images there are, and draw their masks.

Rules
-----
- Every COCO file in the root or in folders below it counts. One whose name or folder says `train`
  is of the training split.
- An image without an annotation is normal; its defect is otherwise called as its classes are.
  Classes named as normal images are (`good`, `OK`, …) mark nothing.
- An object that has a box alone has no mask; then its image has none, and counts as a whole.
- A file name is one from the folder of the file, from the root or from `images/` in one of them; or
  that of the only image of this name.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select, entry_of, good_notes
from spg_pipe.datasets.layouts.table import in_form_of
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS
from spg_pipe.datasets.names import GOOD, is_normal
from spg_pipe.datasets.walk import Reason, annotation_tool, relative, walk
from spg_pipe.errors import SpgError, counted, listed, noted
from spg_pipe.images.annotations import Annotation, CocoFile, Id, read_coco

_TRAIN = re.compile(r"(^|[^a-z])train")


def scan_coco(root: Path, split: str, select: Select) -> Scan:
    """List the images that COCO files name; a `Layout.scan`.

    SpgError if there is no such file or one is damaged, or an image is missing.
    """
    walked, category = walk(root), root.resolve().name
    others = walked.left_out.get(Reason.NO_IMAGE, ())
    files = [path for path in others if annotation_tool(path) == "COCO"]
    if not files:
        raise SpgError(
            f"The coco layout needs a COCO annotation file (.json) in {root} or below it, and "
            f"there is none. Export one as COCO (instances), or use the layout folder."
        )
    places = _places([relative(path, root) for path in walked.images])
    entries, used, missing, words = list[Entry](), set[str](), list[str](), set[str]()
    for file in files:
        coco, train = read_coco(file), bool(_TRAIN.search(relative(file, root).lower()))
        words |= {one.name for one in coco.categories if is_normal(one.name)}
        objects = _defects(file, coco)
        for image in coco.images:
            path = places(relative(file.parent, root), image.file_name)
            if path is None:
                missing.append(image.file_name)
                continue
            used.add(path)
            if split in ("all", "train" if train else "test") and select(category):
                kinds = objects[image.id]
                drawn = kinds and all(one.segmentation for _, one in kinds)
                mask = file.with_name(f"{file.name}#{image.id}") if drawn else None
                kind = "+".join(sorted({name for name, _ in kinds})) or GOOD
                entries.append(entry_of(root, category, root / path, kind, mask, train))
    if missing:
        raise SpgError(
            f"{counted(len(missing), 'image')} that {listed([f.name for f in files])} names not "
            f"found in {root}: {listed(missing)}. Put the images beside the file, or in images/."
        )
    without = [e.path for e in entries if e.label == LABEL_ANOMALOUS and not e.mask]
    unnamed = sorted({relative(path, root) for path in walked.images} - used)
    notes = [
        *good_notes(words),
        *noted(without, "defect image", "with boxes alone, left out of pixel metrics"),
        *noted(unnamed, "image", "not named in a COCO file, ignored"),
        *walked.notes(root, documents=files[0].parent),
    ]
    return Scan(entries, [category], notes)


COCO = Layout(
    "coco",
    "COCO annotation files, as labelling tools export them; polygons and run lengths are masks.",
    """\
ROOT/annotations/*.json                      (or beside the images)
ROOT/images/*.jpg                            (or as the file names them)""",
    scan_coco,
    own_images=True,
)


def _defects(file: Path, coco: CocoFile) -> Mapping[Id, list[tuple[str, Annotation]]]:
    """Image → its objects that are no normal ones, with the names of their classes."""
    names = {each.id: each.name for each in coco.categories}
    defects: dict[Id, list[tuple[str, Annotation]]] = defaultdict(list)
    for number, marked in enumerate(coco.annotations):
        if marked.category_id not in names:
            raise SpgError(
                f"{file}: annotations.{number}.category_id: there is no category "
                f"{marked.category_id}. Export the file again."
            )
        if not is_normal(names[marked.category_id]):
            defects[marked.image_id].append((names[marked.category_id], marked))
    return defects


def _places(paths: list[str]) -> Callable[[str, str], str | None]:
    """What finds the image that a file calls so, by the file's folder; None: it is not there."""
    as_here, known = in_form_of(paths), {*paths}
    named: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        named[path.rpartition("/")[2]].append(path)

    def path_of(folder: str, name: str) -> str | None:
        for start in (folder, f"{folder}/images", ".", "images"):
            if (path := as_here((Path(start) / name).as_posix())) in known:
                return path
        same = named[as_here(name.rpartition("/")[2])]
        return same[0] if len(same) == 1 else None

    return path_of
