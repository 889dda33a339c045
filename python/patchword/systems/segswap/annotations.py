# SPDX-License-Identifier: Apache-2.0
"""Reads annotation files into catalogues: COCO instances, the published lists, indexed cut-outs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchword.data.folders import is_folder
from patchword.data.io import printable
from patchword.errors import DatasetError
from patchword.evaluation.report import read_index
from patchword.systems.segswap.outlines import (
    MaskFileOutline,
    Outline,
    PolygonOutline,
    RunLengthOutline,
)
from patchword.systems.segswap.sources import CatalogueSource, catalogue, require_file

logger = logging.getLogger(__name__)

_MIN_POLYGON = 6
INFO_NAMES = ("img2cat", "obj", "img2obj")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: It is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"annotations: {printable(path)} cannot be read: {error.strerror}.", path=path
        ) from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"annotations: {printable(path)} must be JSON, got {reason}.", path=path
        ) from error


@dataclass
class _LeftOut:
    """Counts records that cannot be used and remembers the first of each kind."""

    path: Path

    def __post_init__(self) -> None:
        self._found: dict[str, tuple[int, object]] = {}

    def add(self, reason: str, record: object) -> None:
        count, first = self._found.get(reason, (0, record))
        self._found[reason] = (count + 1, first)

    def report(self) -> None:
        for reason, (count, first) in self._found.items():
            logger.warning(
                "%s: %d annotations left out: %s (first: %s)",
                printable(self.path),
                count,
                reason,
                first,
            )


def read_coco(
    images: str | Path, annotations: str | Path, *, skip_missing: bool = False
) -> CatalogueSource:
    """Read a COCO-style folder: pictures and an instances file with polygons or run lengths.

    Crowds and objects of zero area are left out and counted in one warning each.

    Args:
        images: Folder of the pictures that the file names.
        annotations: ``instances_*.json``.
        skip_missing: Leave out pictures that are not in the folder, with one warning, instead of
            refusing the file.

    Raises:
        DatasetError: The file is no such JSON, an annotation belongs to no picture of it, a
            picture is missing, or nothing is left.
    """
    path, folder = Path(annotations), _folder(images)
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise DatasetError(
            f"annotations: {printable(path)} must be COCO instances with images and annotations, "
            f"got {_keys(content)}.",
            path=path,
        )
    left_out = _LeftOut(path)
    try:
        pictures = {record["id"]: record for record in content["images"]}
        files = {key: str(record["file_name"]) for key, record in pictures.items()}
    except (KeyError, TypeError) as error:
        raise _malformed(path, "images", error) from error
    present = _present(folder, files, path, skip_missing=skip_missing)
    paths = {key: folder / name for key, name in files.items() if key in present}

    def instances() -> Iterator[tuple[Path, str, Outline]]:
        for record in content["annotations"]:
            try:
                key, category = record["image_id"], record["category_id"]
                if key not in pictures:
                    raise DatasetError(
                        f"annotations: {printable(path)}: annotation {record.get('id')} belongs "
                        f"to picture {key}, which the file does not list.",
                        path=path,
                        record=record.get("id"),
                    )
                if key not in paths:
                    continue
                if record.get("iscrowd", 0):
                    left_out.add("crowds", record.get("id"))
                    continue
                outline = _outline(record, path)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _malformed(path, "annotations", error) from error
            if outline is None:
                left_out.add("objects of zero area", record.get("id"))
            else:
                yield paths[key], str(category), outline

    source = _catalogue(path, list(paths.values()), instances())
    left_out.report()
    return source


def _outline(record: dict[str, Any], path: Path) -> Outline | None:
    """Give the outline of an annotation, or None where it covers nothing."""
    shape = record["segmentation"]
    if isinstance(shape, dict):
        size = (int(shape["size"][0]), int(shape["size"][1]))
        counts = shape["counts"]
        if float(record.get("area", 1.0)) <= 0:
            return None
        runs = tuple(int(run) for run in counts) if isinstance(counts, list) else counts
        if isinstance(runs, tuple) and sum(runs[1::2]) <= 0:
            return None
        return RunLengthOutline(size, runs)
    polygons = tuple(tuple(float(value) for value in polygon) for polygon in shape)
    if any(len(polygon) % 2 for polygon in polygons):
        raise DatasetError(
            f"annotations: {printable(path)}: annotation {record.get('id')} must have polygons "
            "of x, y pairs, got an odd count of numbers.",
            path=path,
            record=record.get("id"),
        )
    kept = tuple(polygon for polygon in polygons if _area(polygon) > 0)
    return PolygonOutline(kept) if kept else None


def _area(polygon: tuple[float, ...]) -> float:
    if len(polygon) < _MIN_POLYGON:
        return 0.0
    x, y = polygon[0::2], polygon[1::2]
    doubled = sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))
    return abs(doubled) / 2.0


def read_published(
    images: str | Path,
    img2cat: str | Path,
    obj: str | Path,
    img2obj: str | Path,
    *,
    skip_missing: bool = False,
) -> CatalogueSource:
    """Read the three lists that the published generators use.

    Pictures are named by their id, twelve digits and ``.jpg``. Category ids are compared as
    numbers, so that the background's categories can be told from an object's.

    Args:
        images: Folder of the pictures.
        img2cat: ``{"image id": [category id, ...]}``.
        obj: ``{"category id": [[image id, [x, y, ...], ...], ...]}``, for single objects.
        img2obj: ``{"image id": {"category id": [[id, [x, y, ...], ...], ...]}}``, for two.
        skip_missing: Leave out pictures that are not in the folder.

    Raises:
        DatasetError: A file is not of that form, a picture is missing, or nothing is left.
    """
    folder = _folder(images)
    cat_path, obj_path, pair_path = Path(img2cat), Path(obj), Path(img2obj)
    left_out = _LeftOut(obj_path)
    try:
        categories = {
            int(key): [int(c) for c in value] for key, value in read_json(cat_path).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise _malformed(cat_path, "image ids", error) from error
    files = {key: f"{key:012d}.jpg" for key in sorted(categories)}
    present = _present(folder, files, cat_path, skip_missing=skip_missing)
    paths = {key: folder / name for key, name in files.items() if key in present}

    def polygon(record: Any) -> PolygonOutline | None:
        values = tuple(float(value) for value in record[1])
        if len(values) % 2 or _area(values) <= 0:
            left_out.add("objects of zero area", record[0])
            return None
        return PolygonOutline((values,))

    objects: dict[str, list[tuple[Path, Outline]]] = {}
    grouped: list[tuple[Path, dict[str, list[Outline]]]] = []
    try:
        for category, records in read_json(obj_path).items():
            for record in records:
                if int(record[0]) not in files:
                    raise DatasetError(
                        f"annotations: {printable(obj_path)}: an object of category {category} "
                        f"belongs to picture {record[0]}, which {printable(cat_path)} does not "
                        "list.",
                        path=obj_path,
                        record=record[0],
                    )
                outline = polygon(record)
                if outline is not None and int(record[0]) in paths:
                    objects.setdefault(str(int(category)), []).append(
                        (paths[int(record[0])], outline)
                    )
        for key, by_category in read_json(pair_path).items():
            outlines: dict[str, list[Outline]] = {
                str(int(category)): [one for one in map(polygon, records) if one is not None]
                for category, records in by_category.items()
            }
            outlines = {category: found for category, found in outlines.items() if found}
            if int(key) in paths and len(outlines) > 1:
                grouped.append((paths[int(key)], outlines))
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise _malformed(obj_path, "objects", error) from error
    left_out.report()
    return CatalogueSource(
        photographs=tuple(paths.values()),
        categories={paths[key]: frozenset(map(str, categories[key])) for key in paths},
        objects=objects,
        grouped=tuple(grouped),
    )


def published_lists(annotations: str | Path) -> dict[str, Any]:
    """Derive the published lists from a COCO instances file.

    The lists' own filters were not published; taken are objects that are no crowd and have
    exactly one polygon.

    Returns:
        JSON-ready values of ``img2cat``, ``obj`` and ``img2obj``.

    Raises:
        DatasetError: The file is no such JSON.
    """
    path = Path(annotations)
    content = read_json(path)
    img2cat: dict[str, list[int]] = {}
    obj: dict[str, list[Any]] = {}
    img2obj: dict[str, dict[str, list[Any]]] = {}
    try:
        for record in content["annotations"]:
            image, category = str(record["image_id"]), int(record["category_id"])
            found = img2cat.setdefault(image, [])
            if category not in found:
                found.append(category)
            shape = record["segmentation"]
            if record.get("iscrowd", 0) or isinstance(shape, dict) or len(shape) != 1:
                continue
            obj.setdefault(str(category), []).append([record["image_id"], shape[0]])
            img2obj.setdefault(image, {}).setdefault(str(category), []).append(
                [record.get("id"), shape[0]]
            )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, "annotations", error) from error
    return {"img2cat": img2cat, "obj": obj, "img2obj": img2obj}


def read_cutouts(folder: str | Path) -> CatalogueSource:
    """Read a folder with ``index.json``: records of ``image`` and, where there is one, ``mask``.

    ``class`` names the category; without it every picture is a category of its own.

    Raises:
        DatasetError: The index or a file it names is missing, or no record has a mask.
    """
    top = Path(folder)
    photographs: list[Path] = []
    instances: list[tuple[Path, str, Outline]] = []
    for record in read_index(top):
        if not isinstance(record.get("image"), str):
            raise DatasetError(
                f"annotations: every record of {printable(top)}/index.json must name an image.",
                path=top,
            )
        picture = require_file(top / record["image"], "annotations: picture")
        photographs.append(picture)
        if record.get("mask"):
            mask = require_file(top / str(record["mask"]), "annotations: mask")
            category = str(record.get("class", record["image"]))
            instances.append((picture, category, MaskFileOutline(mask)))
    return _catalogue(top, photographs, iter(instances))


def _catalogue(
    path: Path, photographs: list[Path], instances: Iterator[tuple[Path, str, Outline]]
) -> CatalogueSource:
    try:
        return catalogue(photographs, instances)
    except DatasetError as error:
        if error.path is None:
            raise DatasetError(
                f"annotations: {printable(path)} must hold pictures with objects, got "
                f"{len(photographs)} pictures and no object.",
                path=path,
            ) from error
        raise


def _present(folder: Path, files: dict[int, str], path: Path, *, skip_missing: bool) -> set[int]:
    """Find which pictures are there, with one listing of each sub-folder."""
    listed = {
        str(parent): _names(folder / parent)
        for parent in {Path(name).parent for name in files.values()}
    }
    missing = [
        key for key, name in files.items() if Path(name).name not in listed[str(Path(name).parent)]
    ]
    if missing and not skip_missing:
        raise DatasetError(
            f"annotations: {printable(path)} lists {len(missing)} pictures that are not in "
            f"{printable(folder)} (first: {printable(files[missing[0]])}). Pass --skip-missing to "
            "leave them out.",
            path=folder / files[missing[0]],
        )
    if missing:
        logger.warning(
            "%s: %d pictures are not in %s and left out",
            printable(path),
            len(missing),
            printable(folder),
        )
    return files.keys() - set(missing)


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()


def _folder(images: str | Path) -> Path:
    folder = Path(images)
    if not is_folder(folder):
        raise DatasetError(f"annotations: {printable(folder)} is not a folder.", path=folder)
    return folder


def _keys(content: Any) -> str:
    if isinstance(content, dict):
        return f"keys {sorted(map(str, content))[:6]}"
    return type(content).__name__


def _malformed(path: Path, part: str, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split())
    return DatasetError(
        f"annotations: {part} of {printable(path)} are not as expected "
        f"({type(error).__name__}: {reason}).",
        path=path,
    )
