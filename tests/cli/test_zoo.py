"""`maskformer zoo`: a table for people, a list for machines."""

import json

from maskformer.checkpoints.zoo import list_zoo
from maskformer.cli import DONE, main


def test_json_is_the_whole_list(capsys):
    assert main(["zoo", "--json"]) == DONE

    zoo = json.loads(capsys.readouterr().out)
    assert zoo == list_zoo()
    assert all({"name", "original_config", "parameters", "num_classes"} <= entry.keys() for entry in zoo)


def test_table_has_a_line_for_each_model_with_what_people_compare(capsys):
    assert main(["zoo"]) == DONE

    shown = capsys.readouterr()
    header, *lines = shown.out.splitlines()
    assert header.split() == ["name", "backbone", "classes", "parameters", "published", "weights", "on", "the", "hub"]
    assert len(lines) == 30
    for line, entry in zip(lines, list_zoo(), strict=True):
        cells = line.split()
        assert cells[0] == entry["name"]
        assert cells[-1] == (entry["hub_id"] or "-")
        assert entry["backbone"] in line
        assert entry["published_metric"] in line
        assert f"{entry['params_M']:.3f} M" in line
        assert str(entry["num_classes"]) in cells
    assert "\x1b" not in shown.out
    assert shown.err == ""
