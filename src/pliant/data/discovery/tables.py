"""Find boxes in CSV tables, and the images that their rows name."""

from __future__ import annotations

from pliant.data.box_table import BoxTable, TableFormat, read_table
from pliant.data.discovery.assign import Sample, assign, main_folders
from pliant.data.discovery.boxes import FoundBoxes
from pliant.data.discovery.masks import pictures
from pliant.data.discovery.pairing import Names
from pliant.data.discovery.survey import Survey


def find_tables(survey: Survey) -> FoundBoxes | None:
    """Boxes in CSV files with a row for each box, one file for all images or one for each split."""
    tables = {file: table for file in survey.having((".csv",)) if (table := _read(survey, file)) is not None}
    if not tables:
        return None
    images = pictures(survey)
    names = Names(images)
    samples = []
    for file, table in tables.items():
        for written in table.rows:
            annotation = f"{file}/{written}"
            found = names.find(written, annotation)
            samples.append(Sample(found[0] if len(found) == 1 else None, annotation))
    used = {sample.image for sample in samples if sample.image is not None}
    if not used:
        return None
    parts, notes = assign(samples, survey)
    alone = [image for image in images if image not in used]
    if alone:
        one = "1 image is" if len(alone) == 1 else f"{len(alone)} images are"
        notes.insert(0, f"{one} in no row and left out, such as {alone[0]}")
    form = TableFormat({survey.path(file): table for file, table in tables.items()})
    title = f"tables of boxes: {', '.join(tables)}; images in {main_folders(sorted(used))}"
    return FoundBoxes("csv", survey, parts, form, title, notes)


def _read(survey: Survey, file: str) -> BoxTable | None:
    try:
        table = read_table(survey.path(file))
    except (OSError, ValueError):
        return None
    return table if table is not None and any(table.rows.values()) else None
